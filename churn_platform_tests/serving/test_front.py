"""The HTTP app, before a real scorer whose store and models do as they are told."""

import asyncio
import json
import logging
import math

import httpx
import pytest
from prometheus_client import CollectorRegistry

from churn_platform_tests.serving.doubles import AT, VALUES, MemoryStore, Upkeep, namespace, served
from serving import schema
from serving.front import Endpoints, Front
from serving.keys import Keys, RateLimit, hashed
from serving.lineup import LineUp
from serving.metrics import Metrics
from serving.online import Found
from serving.scorer import Limits, Scorer

FEATURES = {"purchases_30d": 2.0, "amount_30d": None, "copy": 3.5, "segment": "gold"}


class World:
    """An app, and what is around it."""

    def __init__(self, contract, limits=Limits(), **options):  # noqa: B008 - frozen
        self.figures = CollectorRegistry()
        self.metrics = Metrics(self.figures)
        self.store = MemoryStore()
        self.upkeep = Upkeep()
        self.scorer = Scorer(contract, self.store, lineup=lambda: self.upkeep.lineup, limits=limits)
        self.lines = []
        self.endpoints = Endpoints(
            contract,
            scorer=self.scorer,
            upkeep=self.upkeep,
            metrics=self.metrics,
            access_log=self.lines.append,
            **options,
        )

    def requests(self, *requests):
        """Answers to several requests that are made at once: (method, path, options)."""

        async def call():
            transport = httpx.ASGITransport(app=self.endpoints)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await asyncio.gather(*(client.request(m, path, **options) for m, path, options in requests))

        return asyncio.run(call())

    def request(self, method, path, **options):
        return self.requests((method, path, options))[0]

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, body, **headers):
        headers = {"content-type": "application/json"} | {
            name.replace("_", "-"): text for name, text in headers.items()
        }
        return self.request("POST", path, content=body, headers=headers)

    def figure(self, name, **labels):
        self.metrics.flush()
        return self.figures.get_sample_value(name, labels)


@pytest.fixture
def world(make_contract):
    return World(make_contract())


def predict(world, body=b'{"user_id": "1"}', **headers):
    return world.post("/predict", body, **headers)


def code(answer):
    return answer.json()["error"]["code"]


def test_a_prediction_is_answered_with_everything_that_it_was_made_from(world):
    answer = predict(world)
    assert answer.status_code == 200
    assert answer.json() == {
        "user_id": "1",
        "churn_probability": 0.8,
        "prediction": "High Risk",
        "features": FEATURES,
        "model_version": "3",
        "feature_timestamp": "2024-03-01T00:00:00Z",
        "stale": False,
        "schema_version": 1,
    }
    described = schema.response_model(world.scorer.contract)
    described.model_validate_json(answer.content)


def test_a_number_finds_the_customer_whose_id_is_its_digits(world):
    assert predict(world, b'{"user_id": 1}').json()["user_id"] == "1"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_the_content_type_may_carry_parameters_and_capitals(world, content_type):
    assert predict(world, content_type=content_type).status_code == 200


def test_a_bad_request_is_refused_in_words_and_counted(world, bad_request):
    headers = {"content-type": bad_request.content_type} if bad_request.content_type else {}
    answer = world.request("POST", "/predict", content=bad_request.body, headers=headers)
    assert (answer.status_code, code(answer)) == (bad_request.status, bad_request.code)
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"]["message"].endswith(".")
    assert world.figure("churn_prediction_errors_total", code=bad_request.code) == 1
    if bad_request.status != 404:
        assert world.store.asked == []


def test_a_body_that_does_not_say_its_length_is_read_no_further_than_the_limit(world):
    read = []

    async def chunks():
        for number in range(100):
            read.append(number)
            yield b" " * 10_000

    answer = world.request("POST", "/predict", content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert len(read) < 10


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_a_wrong_method_is_405_and_names_the_right_one(world, method):
    answer = world.request(method, "/predict")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/", "/nope", "/predict/", "/predict/1", "/docs", "/Predict", "/schema.json"])
def test_an_unknown_path_is_404_in_json(world, path):
    answer = world.post(path, b"{}")
    assert (answer.status_code, code(answer)) == (404, "not_found")


def test_an_unexpected_error_is_500_and_leaks_nothing_to_caller_or_log(world, caplog, monkeypatch):
    def fail(_):
        raise RuntimeError("customer zanzibar broke it")

    monkeypatch.setattr(world.scorer, "submit", fail)
    with caplog.at_level(logging.DEBUG):
        answer = predict(world)
    assert (answer.status_code, code(answer)) == (500, "internal_error")
    assert "zanzibar" not in answer.text + caplog.text
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda w: setattr(w.store, "away", True), "features_unavailable"),
        (lambda w: setattr(w.upkeep, "lineup", LineUp()), "not_ready"),
        (lambda w: setattr(w.upkeep, "lineup", LineUp(champion=served(probability=math.nan))), "unusable_answer"),
        (lambda w: w.store.known.update({"1": Found([math.inf, *VALUES[1:]], AT)}), "unusable_features"),
    ],
)
def test_what_cannot_be_answered_is_503_with_the_seconds_after_which_to_ask_again(world, spoil, expected):
    spoil(world)
    answer = predict(world)
    assert (answer.status_code, code(answer)) == (503, expected)
    assert int(answer.headers["retry-after"]) > 0


def test_a_request_goes_by_its_own_id_or_by_one_that_it_is_given(world):
    assert predict(world, x_request_id="order-17").headers["x-request-id"] == "order-17"
    one, other = predict(world).headers["x-request-id"], predict(world).headers["x-request-id"]
    assert one
    assert one != other
    for strange in ("a b", "x" * 129, "a;b", '"'):
        assert predict(world, x_request_id=strange).headers["x-request-id"] != strange


# -- many customers


def test_a_batch_is_answered_in_its_order_and_each_failure_stands_in_its_place(world):
    answer = world.post("/predict/batch", b'{"customers": ["1", 2, "nobody", true, "", null, 1.5, ["3"], "3"]}')
    assert answer.status_code == 200
    body = answer.json()
    assert (body["answered"], body["refused"], body["schema_version"]) == (3, 6, 1)
    assert [one.get("user_id") or one["error"]["code"] for one in body["results"]] == [
        "1",
        "2",
        "unknown_customer",
        *["invalid_request"] * 5,
        "3",
    ]
    assert body["results"][0] == predict(world).json()


@pytest.mark.parametrize(
    "body",
    [
        b'{"customers": []}',
        b'{"customers": "1"}',
        b'{"customers": null}',
        b"{}",
        b'{"customers": ["1"], "user_id": "1"}',
        b'["1"]',
        b'{"customers": %s}' % json.dumps(["1"] * 1001).encode(),
    ],
)
def test_a_batch_that_is_none_or_too_long_is_refused_whole(world, body):
    answer = world.post("/predict/batch", body)
    assert (answer.status_code, code(answer)) == (422, "invalid_request")
    assert world.store.asked == []


def test_a_batch_of_the_largest_size_is_answered_in_pieces(world):
    answer = world.post("/predict/batch", json.dumps({"customers": ["1"] * 1000}).encode())
    assert answer.json()["answered"] == 1000
    assert max(map(len, world.store.asked)) <= 100


def test_a_batch_fails_whole_when_the_store_is_away(world):
    world.store.away = True
    answer = world.post("/predict/batch", b'{"customers": ["1", "2"]}')
    assert (answer.status_code, code(answer)) == (503, "features_unavailable")


# -- explanations


def test_reasons_come_where_they_are_asked_for_by_either_way(world):
    by_field, by_path = (
        predict(world, b'{"user_id": "1", "explain": true}'),
        world.post("/explain", b'{"user_id": "1"}'),
    )
    assert by_field.json() == by_path.json()
    assert [reason["feature"] for reason in by_path.json()["reasons"]] == ["purchases_30d", "segment", "amount_30d"]
    assert "reasons" not in predict(world, b'{"user_id": "1", "explain": false}').json()
    assert predict(world, b'{"user_id": "1", "explain": "yes"}').status_code == 422


# -- keys and limits


@pytest.fixture
def guarded(make_contract, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"shop:{hashed('secret')}\ncrm:{hashed('other')}\n")
    return World(make_contract(), keys=Keys(path), limit=RateLimit(rate=1, burst=3), only_errors=False)


def test_without_a_valid_key_nothing_is_answered_and_nothing_asked(guarded):
    for headers in ({}, {"x_api_key": "wrong"}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
        for path in ("/predict", "/predict/batch", "/explain"):
            answer = guarded.post(path, b'{"user_id": "1"}', **headers)
            assert (answer.status_code, code(answer)) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.get("/model").status_code == 401
    assert guarded.store.asked == []


def test_a_key_is_taken_from_either_header(guarded):
    assert predict(guarded, x_api_key="secret").status_code == 200
    assert predict(guarded, authorization="Bearer other").status_code == 200
    assert guarded.get("/model", headers={"x-api-key": "secret"}).status_code == 200


def test_health_and_description_ask_for_no_key(guarded):
    assert guarded.get("/health").status_code == 200
    described = guarded.get("/openapi.json").json()
    assert set(described["components"]["securitySchemes"]) == {"key", "bearer"}
    assert "401" in described["paths"]["/predict"]["post"]["responses"]


def test_who_asks_too_often_is_told_when_to_come_again_and_others_are_not_touched(guarded):
    statuses = [predict(guarded, x_api_key="secret").status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    answer = predict(guarded, x_api_key="secret")
    assert code(answer) == "too_many_requests"
    assert int(answer.headers["retry-after"]) >= 1
    assert predict(guarded, x_api_key="other").status_code == 200


def test_every_customer_of_a_batch_counts(guarded):
    assert guarded.post("/predict/batch", b'{"customers": ["1", "2", "3"]}', x_api_key="secret").status_code == 200
    assert predict(guarded, x_api_key="secret").status_code == 429


# -- overload


def test_beyond_the_queue_requests_are_refused_at_once_and_those_in_it_are_answered(make_contract):
    world = World(make_contract(), limits=Limits(queue=8, batch=4))
    world.store.seconds = 0.2
    post = ("POST", "/predict", {"content": b'{"user_id": "1"}', "headers": {"content-type": "application/json"}})
    answers = world.requests(*[post] * 60)
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}
    assert 8 <= statuses.count(200) <= 24
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert code(refused) == "overloaded"
    assert refused.headers["retry-after"] == "1"


# -- what is said of the service


def test_health_says_which_model_answers(world):
    assert world.get("/health").json() == {
        "status": "healthy",
        "model_version": "3",
        "feature_store": "available",
        "problems": [],
        "warnings": [],
    }


def test_health_is_503_and_says_what_is_missing(world):
    world.upkeep.problems, world.upkeep.store_answers = ["The store is away."], False
    answer = world.get("/health")
    assert answer.status_code == 503
    assert answer.json()["status"] == "unavailable"
    assert answer.json()["problems"] == ["The store is away."]


def test_a_service_that_is_being_stopped_is_not_ready_and_asks_clients_to_connect_elsewhere(world):
    assert "connection" not in predict(world).headers
    world.endpoints.draining = True
    assert world.get("/health").status_code == 503
    answer = predict(world)
    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"


def test_the_model_is_described(world):
    world.upkeep.lineup = LineUp(champion=served(), canary=served("4"), share=0.1, shadow=served("5"))
    body = world.get("/model").json()
    assert body["version"] == "3"
    assert body["trained_at"] == "2024-03-02T10:00:00Z"
    assert body["metrics"] == {"auc": 0.8}
    assert body["features"] == list(FEATURES)
    assert (body["canary_version"], body["canary_share"], body["shadow_version"]) == ("4", 0.1, "5")


def test_predictions_are_counted_and_timed(world):
    predict(world)
    predict(world, b'{"user_id": "nobody"}')
    assert world.figure("churn_predictions_total", prediction="High Risk", model_version="3") == 1
    assert world.figure("churn_prediction_seconds_count") == 2
    assert world.figure("churn_requests_total", path="/predict", status="200") == 1
    assert world.figure("churn_requests_total", path="/predict", status="404") == 1


def test_paths_that_are_none_make_no_series_of_their_own(world):
    for number in range(20):
        world.get(f"/wp-admin/{number}")
    world.metrics.flush()
    paths = {
        sample.labels["path"]
        for metric in world.figures.collect()
        for sample in metric.samples
        if "path" in sample.labels
    }
    assert paths == {"other"}


def test_the_access_log_holds_no_customer_and_no_key(guarded):
    predict(guarded, b'{"user_id": "zanzibar"}', x_api_key="secret", x_request_id="order-17")
    predict(guarded, b'{"user_id": "1"}', x_api_key="secret")
    first, second = guarded.lines
    assert first | {"milliseconds": 0} == {
        "request_id": "order-17",
        "method": "POST",
        "path": "/predict",
        "status": 404,
        "code": "unknown_customer",
        "milliseconds": 0,
        "key": "shop",
    }
    assert second["status"] == 200
    assert "zanzibar" not in str(guarded.lines)
    assert "secret" not in str(guarded.lines)


def test_the_gauge_shows_the_version_that_answers_now():
    figures = CollectorRegistry()
    metrics = Metrics(figures)
    metrics.champion_changed(served("3"), None)
    metrics.champion_changed(served("4"), served("3"))
    assert figures.get_sample_value("churn_model_info", {"model_version": "3"}) == 0
    assert figures.get_sample_value("churn_model_info", {"model_version": "4"}) == 1
    assert figures.get_sample_value("churn_predictions_total", {"model_version": "4", "prediction": "Low Risk"}) == 0


# -- before BentoML's app


def test_what_is_bentomls_is_passed_on_and_what_is_ours_is_not():
    passed = []

    async def inner(scope, receive, send):
        passed.append((scope["type"], scope.get("path")))

    async def ours(scope, receive, send):
        passed.append(("ours", scope["path"]))

    front = Front(inner, lambda: None)
    ours.metrics = namespace(flush=lambda: None)
    front._endpoints = ours

    async def call(method, path, kind="http"):
        await front({"type": kind, "method": method, "path": path, "headers": []}, None, None)

    for method, path in (
        ("GET", "/metrics"),
        ("HEAD", "/readyz"),
        ("POST", "/readyz"),
        ("GET", "/"),
        ("POST", "/predict"),
    ):
        asyncio.run(call(method, path))
    asyncio.run(call("", "/", "websocket"))
    assert passed == [
        ("http", "/metrics"),
        ("http", "/readyz"),
        ("ours", "/readyz"),
        ("ours", "/"),
        ("ours", "/predict"),
        ("websocket", "/"),
    ]


def test_it_begins_after_bentoml_has_begun_and_ends_before_it_ends():
    happened = []

    async def inner(scope, receive, send):
        assert (await receive())["type"] == "lifespan.startup"
        happened.append("BentoML begins")
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        happened.append("BentoML ends")

    async def stop():
        happened.append("we end")

    front = Front(inner, lambda: namespace(start=lambda: happened.append("we begin"), stop=stop))
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive():
        return next(messages)

    async def send(message):
        happened.append(message["type"])

    asyncio.run(front({"type": "lifespan"}, receive, send))
    assert happened == ["BentoML begins", "we begin", "lifespan.startup.complete", "we end", "BentoML ends"]
