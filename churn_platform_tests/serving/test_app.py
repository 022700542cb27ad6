"""The HTTP app, with a predictor that does as it is told."""

import asyncio
import logging
import threading
from datetime import UTC, datetime

import httpx
import pytest
from prometheus_client import CollectorRegistry

from churn_platform.resources.tracking import RegisteredModel
from serving import app as module
from serving.schema import RefusedError

FEATURES = {"purchases_30d": 2.0, "amount_30d": None, "copy": 3.5, "segment": "gold"}
CHAMPION = RegisteredModel("3", "run-3", None, list(FEATURES), 0.5, {"trained_at": "2024-03-02T10:00:00+00:00"})


class FakePredictor:
    """Knows customer "1"; `problem` is raised for everybody."""

    def __init__(self):
        self.champion, self.problems, self.store_answers, self.problem = CHAMPION, [], True, None
        self.asked = []

    def predict(self, customer):
        self.asked.append(customer)
        if self.problem is not None:
            raise self.problem
        if customer != "1":
            raise RefusedError("unknown_customer", "This customer is not known.")
        return {
            "customer": customer,
            "churn_probability": 0.8,
            "prediction": "High Risk",
            "features": FEATURES,
            "model_version": "3",
            "feature_timestamp": datetime(2024, 3, 1, tzinfo=UTC),
        }


class Client:
    """Calls an app with no server between; Starlette's own test client wants httpx2, which we do not have."""

    def __init__(self, app):
        self.app = app

    def request(self, method, path, **options):
        async def call():
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(call())

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, **options):
        return self.request("POST", path, **options)


@pytest.fixture
def predictor():
    return FakePredictor()


@pytest.fixture
def figures():
    return CollectorRegistry()


@pytest.fixture
def client(make_contract, predictor, figures):
    return Client(module.build(make_contract(), predictor, module.Metrics(figures), deadline=0.5))


def post(client, body=b'{"user_id": "1"}', content_type="application/json"):
    headers = {"content-type": content_type} if content_type else {}
    return client.post("/predict", content=body, headers=headers)


def test_a_prediction_is_answered_with_everything_that_it_was_made_from(client):
    answer = post(client)
    assert answer.status_code == 200
    assert answer.json() == {
        "user_id": "1",
        "churn_probability": 0.8,
        "prediction": "High Risk",
        "features": FEATURES,
        "model_version": "3",
        "feature_timestamp": "2024-03-01T00:00:00Z",
    }


def test_a_number_finds_the_customer_whose_id_is_its_digits(client):
    assert post(client, b'{"user_id": 1}').json()["user_id"] == "1"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_the_content_type_may_carry_parameters_and_capitals(client, content_type):
    assert post(client, content_type=content_type).status_code == 200


def test_a_bad_request_is_refused_in_words_and_counted(client, predictor, figures, bad_request):
    answer = post(client, bad_request.body, bad_request.content_type)
    assert (answer.status_code, answer.json()["error"]["code"]) == (bad_request.status, bad_request.code)
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"]["message"].endswith(".")
    assert figures.get_sample_value("churn_prediction_errors_total", {"code": bad_request.code}) == 1
    if bad_request.status != 404:
        assert predictor.asked == []


def test_a_body_that_does_not_say_its_length_is_read_no_further_than_the_limit(client):
    read = []

    async def chunks():
        for number in range(100):
            read.append(number)
            yield b" " * 10_000

    answer = client.post("/predict", content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert len(read) < 10


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_a_wrong_method_is_405_and_names_the_right_one(client, method):
    answer = client.request(method, "/predict")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/", "/nope", "/predict/", "/predict/1", "/docs", "/Predict"])
def test_an_unknown_path_is_404_in_json(client, path):
    answer = client.post(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_an_unexpected_error_is_500_and_leaks_nothing_to_caller_or_log(client, predictor, caplog):
    predictor.problem = RuntimeError("customer-4711 at postgresql://user:secret@host")
    with caplog.at_level(logging.DEBUG):
        answer = post(client)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    for text in (answer.text, caplog.text):
        assert "4711" not in text
        assert "secret" not in text
    assert "RuntimeError at" in caplog.text
    assert "RuntimeError" not in answer.text


def test_a_predictor_that_hangs_is_503_at_the_deadline_and_health_still_answers(client, predictor, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(predictor, "predict", lambda customer: release.wait(30))
    try:
        answer = post(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "deadline_exceeded")
        assert answer.headers["retry-after"] == "5"
        assert client.get("/health").status_code == 200
    finally:
        release.set()


def test_an_answer_that_is_no_probability_is_500(client, predictor, monkeypatch):
    answered = predictor.predict("1")
    monkeypatch.setattr(predictor, "predict", lambda customer: {**answered, "churn_probability": float("nan")})
    answer = post(client)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "unusable_answer")


def test_health_says_which_model_answers(client):
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "healthy",
        "model_version": "3",
        "feature_store": "available",
        "problems": [],
    }


def test_health_is_503_and_says_what_is_missing(client, predictor):
    predictor.champion, predictor.problems, predictor.store_answers = None, ["No champion is loaded."], False
    answer = client.get("/health")
    assert answer.status_code == 503
    assert answer.json() == {
        "status": "unavailable",
        "model_version": None,
        "feature_store": "unavailable",
        "problems": ["No champion is loaded."],
    }
    assert client.get("/model").status_code == 503


def test_the_model_is_described(client):
    assert client.get("/model").json() == {
        "version": "3",
        "run_id": "run-3",
        "trained_at": "2024-03-02T10:00:00Z",
        "threshold": 0.5,
        "features": list(FEATURES),
    }


def test_predictions_are_counted_and_timed(client, figures):
    for _ in range(3):
        post(client)
    labels = {"prediction": "High Risk", "model_version": "3"}
    assert figures.get_sample_value("churn_predictions_total", labels) == 3
    assert figures.get_sample_value("churn_prediction_seconds_count") == 3


def test_the_gauge_shows_the_version_that_answers_now(figures):
    metrics = module.Metrics(figures)
    newer = RegisteredModel("4", "run-4", None, [], 0.5, {})
    metrics.champion_changed(CHAMPION, None)
    metrics.champion_changed(newer, CHAMPION)
    assert figures.get_sample_value("churn_model_info", {"model_version": "3"}) == 0
    assert figures.get_sample_value("churn_model_info", {"model_version": "4"}) == 1


def test_the_description_names_every_path(client):
    assert set(client.get("/openapi.json").json()["paths"]) == {"/predict", "/health", "/model"}
