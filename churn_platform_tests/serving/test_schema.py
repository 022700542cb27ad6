"""The request and response, as the contract shapes them."""

import json
from datetime import UTC, datetime

import pytest

from serving import schema
from serving.schema import RefusedError

SNAPSHOT = datetime(2024, 3, 1, tzinfo=UTC)
FEATURES = {"purchases_30d": 2.0, "amount_30d": None, "copy": 3.5, "segment": None}


def read(contract, body):
    return schema.read_request(schema.request_model(contract), json.dumps(body).encode())


def values(**changes):
    return {
        "customer": "1",
        "churn_probability": 0.25,
        "prediction": "Low Risk",
        "features": FEATURES,
        "model_version": "3",
        "feature_timestamp": SNAPSHOT,
        **changes,
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [("1", "1"), (1, "1"), (-7, "-7"), (0, "0"), ("a" * 256, "a" * 256), (" 1 ", " 1 "), ("Zoë 名", "Zoë 名")],
)
def test_a_text_id_is_taken_as_it_is_and_a_number_becomes_its_digits(make_contract, given, expected):
    assert read(make_contract(), {"user_id": given}) == expected


@pytest.mark.parametrize("given", [7, -7, 2**63 - 1, -(2**63), "7", str(2**63 - 1)])
def test_an_integer_id_is_taken_as_a_number_or_as_its_digits(make_contract, given):
    assert read(make_contract(id_type="integer"), {"user_id": given}) == int(given)


@pytest.mark.parametrize("given", [True, 1.0, 1.5, None, "", "1.0", "x", " 7", "٧", "1_0", [7], 2**63, str(2**63)])  # noqa: RUF001
def test_an_integer_id_is_nothing_but_an_integer(make_contract, given):
    with pytest.raises(RefusedError) as refusal:
        read(make_contract(id_type="integer"), {"user_id": given})
    assert refusal.value.status == 422
    assert "must be an integer" in refusal.value.message


def test_the_contract_names_the_customers_field(make_contract):
    contract = make_contract(field="client-id")
    assert read(contract, {"client-id": "5"}) == "5"
    with pytest.raises(RefusedError, match=r'The field "client-id" is missing\. Send an object such as \{"client-id"'):
        read(contract, {"user_id": "5"})


def test_a_refusal_never_repeats_what_was_sent(make_contract):
    for body in ({"user_id": ["secret"]}, {"secret": "secret"}, {"user_id": "secret\n"}, "secret"):
        with pytest.raises(RefusedError) as refusal:
            read(make_contract(), body)
        assert "secret" not in refusal.value.message


def test_a_response_is_written_with_the_contracts_names(make_contract):
    model = schema.response_model(make_contract(field="client-id"))
    assert json.loads(schema.write_response(model, values())) == {
        "client-id": "1",
        "churn_probability": 0.25,
        "prediction": "Low Risk",
        "features": FEATURES,
        "model_version": "3",
        "feature_timestamp": "2024-03-01T00:00:00Z",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"churn_probability": float("nan")},
        {"churn_probability": float("inf")},
        {"churn_probability": 1.01},
        {"prediction": "Medium Risk"},
        {"features": {**FEATURES, "copy": float("inf")}},
        {"features": {"copy": 1.0}},
        {"feature_timestamp": datetime(2024, 3, 1)},  # noqa: DTZ001
    ],
)
def test_an_answer_that_is_none_is_never_written(make_contract, changes):
    with pytest.raises(RefusedError) as refusal:
        schema.write_response(schema.response_model(make_contract()), values(**changes))
    assert refusal.value.status == 500


def test_the_openapi_description_shows_the_features_with_their_types_and_examples(make_contract):
    contract = make_contract()
    shown = schema.openapi(contract, schema.request_model(contract), schema.response_model(contract))
    schemas = shown["components"]["schemas"]
    assert schemas["PredictRequest"]["additionalProperties"] is False
    assert schemas["PredictRequest"]["required"] == ["user_id"]
    assert schemas["PredictRequest"]["properties"]["user_id"]["examples"] == ["1001"]
    features = schemas["Features"]["properties"]
    assert list(features) == contract.feature_names
    assert {kind["type"] for kind in features["copy"]["anyOf"]} == {"number", "null"}
    assert {kind["type"] for kind in features["segment"]["anyOf"]} == {"string", "null"}
    references = {part.split('"')[0] for part in json.dumps(shown).split("#/components/schemas/")[1:]}
    assert references <= set(schemas)
