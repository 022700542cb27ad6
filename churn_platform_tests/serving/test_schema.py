"""The request and response, as the contract shapes them."""

import json

import pytest

from serving import schema
from serving.schema import RefusedError


def read(contract, body):
    return schema.read_request(schema.request_model(contract), json.dumps(body).encode()).customer


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("1", "1"),
        (1, "1"),
        (-7, "-7"),
        (0, "0"),
        (3.0, "3"),
        ("a" * 256, "a" * 256),
        (" 1 ", " 1 "),
        ("Zoë 名", "Zoë 名"),
    ],
)
def test_a_text_id_is_taken_as_it_is_and_a_number_becomes_its_digits(make_contract, given, expected):
    assert read(make_contract(), {"user_id": given}) == expected


@pytest.mark.parametrize("given", [7, -7, 7.0, 2**63 - 1, -(2**63), "7", str(2**63 - 1)])
def test_an_integer_id_is_taken_as_a_number_or_as_its_digits(make_contract, given):
    assert read(make_contract(id_type="integer"), {"user_id": given}) == int(given)


@pytest.mark.parametrize("given", [True, 1.5, None, "", "1.0", "x", " 7", "٧", "1_0", [7], 2**63, str(2**63)])  # noqa: RUF001
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


def test_the_openapi_description_shows_the_features_with_their_types_and_examples(make_contract):
    contract = make_contract()
    shown = schema.openapi(contract, keys=False)
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


def test_what_an_api_key_changes_is_described_where_one_is_asked_for(make_contract):
    without, with_keys = (schema.openapi(make_contract(), keys=keys) for keys in (False, True))
    for path in ("/predict", "/predict/batch", "/explain"):
        assert {"401", "429"} <= set(with_keys["paths"][path]["post"]["responses"])
        assert not {"401", "429"} & set(without["paths"][path]["post"]["responses"])
    assert "securitySchemes" not in without["components"]
