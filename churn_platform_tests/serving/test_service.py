"""The real service: `bentoml serve` in a process of its own, over a real registry and a real online store."""

import os
import subprocess
import sys

import httpx
import pytest

from churn_platform_tests.ports import free_port
from churn_platform_tests.serving.running import ROOT, Server, bentoml, home

WORKERS = 2  # so that metrics must be summed over processes, and both must follow the registry


def test_serving_never_imports_dagster_and_importing_the_service_is_light():
    """BentoML's supervisor imports the service too: what it loads is paid for twice."""
    assert not modules_after("import serving.service") & {"numba", "msgspec", "prometheus_client.multiprocess"}
    found = {name.split(".")[0] for name in modules_after("import serving.service, serving.assembly, serving.front")}
    assert not [name for name in found if name.startswith("dagster")]
    assert not found & {"mlflow", "feast", "sklearn", "pandas", "pyarrow", "skops", "scipy"}


def test_the_front_can_be_imported_without_bentoml():
    assert "bentoml" not in modules_after("import serving.assembly, serving.front")


def test_the_service_does_not_start_without_a_usable_contract(tmp_path):
    (tmp_path / "contract.yaml").write_text("contract: 1\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CHURN_CONTRACT": str(tmp_path / "contract.yaml")}
    command = [bentoml(), "serve", "serving.service:ChurnService", "--port", str(free_port())]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | home(tmp_path), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "contract.yaml has" in done.stdout + done.stderr
    assert "customer: this key is required and missing." in done.stdout + done.stderr


def modules_after(statement):
    command = [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def world(make_world):
    return make_world(family="gradient_boosting")


@pytest.fixture(scope="module")
def before(world, tmp_path_factory):
    """A service that was started in an empty world, and what it answered there."""
    server = Server(world, tmp_path_factory.mktemp("server"), workers=WORKERS)
    try:
        server.wait(lambda: server.log.count("has no champion") == WORKERS, 90)
        paths = ("/livez", "/healthz", "/readyz", "/health", "/model", "/metrics")
        answers = {path: server.get(path) for path in paths}
        answers["/predict"] = server.predict(b'{"user_id": "1"}')
        yield server, answers
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(before, world):
    """The same service, after features and a champion have appeared; it was not told."""
    server, _ = before
    world.bring_features_online()
    world.promote()
    server.wait_for_champion(1)
    return server


def test_without_a_champion_the_service_is_alive_but_not_ready(before):
    _, answers = before
    statuses = {path: answer.status_code for path, answer in answers.items()}
    assert statuses == {
        "/livez": 200,
        "/healthz": 200,
        "/readyz": 503,
        "/health": 503,
        "/model": 503,
        "/metrics": 200,
        "/predict": 503,
    }
    assert answers["/predict"].json()["error"]["code"] == "not_ready"
    assert answers["/health"].json()["status"] == "unavailable"


def test_it_becomes_ready_by_itself_once_there_is_a_champion(server):
    for path in ("/livez", "/healthz", "/readyz", "/health", "/model"):
        assert server.get(path).status_code == 200, path
    assert server.get("/health").json()["status"] == "healthy"


def test_a_known_customer_is_answered(server, world):
    answer = server.predict(b'{"user_id": "1"}')
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {
        "user_id",
        "churn_probability",
        "prediction",
        "features",
        "model_version",
        "feature_timestamp",
        "stale",
        "schema_version",
    }
    assert body["user_id"] == "1"
    assert 0 <= body["churn_probability"] <= 1
    assert body["prediction"] == ("High Risk" if body["churn_probability"] >= 0.5 else "Low Risk")
    assert list(body["features"]) == world.contract.feature_names
    assert body["feature_timestamp"] == "2024-03-01T00:00:00Z"
    by_number = server.predict(b'{"user_id": 1}').json()
    assert (by_number["user_id"], by_number["features"]) == ("1", body["features"])


def test_a_customer_with_missing_features_is_answered_with_nulls(server):
    features = server.predict(b'{"user_id": "2"}').json()["features"]
    assert features == {"purchases_30d": features["purchases_30d"], "amount_30d": None, "copy": None, "segment": None}


def test_a_bad_request_is_refused_in_json(server, bad_request):
    answer = server.predict(bad_request.body, bad_request.content_type)
    assert (answer.status_code, answer.json()["error"]["code"]) == (bad_request.status, bad_request.code)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nope", 404),
        ("POST", "/predict/", 404),
        ("GET", "/predict", 405),
        ("DELETE", "/predict", 405),
        ("POST", "/readyz", 405),
    ],
)
def test_what_is_not_there_is_refused_in_json(server, method, path, status):
    answer = httpx.request(method, server.url + path, timeout=20)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message"}


def test_the_metrics_of_all_workers_are_summed_beside_bentomls_own(server):
    def answered():
        version = server.get("/model").json()["version"]
        risks = ("High Risk", "Low Risk")
        return sum(server.figure("churn_predictions_total", model_version=version, prediction=risk) for risk in risks)

    count, errors = answered(), server.figure("churn_prediction_errors_total", code="unknown_customer")
    timed = server.figure("churn_prediction_seconds_count")
    for _ in range(20):  # a new connection each: they spread over the workers
        assert server.predict(b'{"user_id": "1"}').status_code == 200
    server.predict(b'{"user_id": "nobody"}')
    server.wait(lambda: answered() == count + 20, 10)  # the other worker's figures are a moment old
    server.wait(lambda: server.figure("churn_prediction_errors_total", code="unknown_customer") == errors + 1, 10)
    assert server.figure("churn_prediction_seconds_count") == timed + 21
    assert server.figure("churn_requests_total", path="/predict", status="404") >= 1
    text = server.get("/metrics").text
    assert 'churn_model_info{model_version="1"}' in text
    assert "bentoml_service_" in text


def test_a_new_champion_takes_over_while_requests_go_on(server, world):
    old = server.get("/model").json()["version"]
    new = str(world.promote(seed=1).version)
    seen = []

    def taken_over():
        answer = server.predict(b'{"user_id": "1"}')
        assert answer.status_code == 200
        seen.append((answer.json()["model_version"], answer.json()["churn_probability"]))
        return server.log.count(f"version {new} is the champion") == WORKERS

    server.wait(taken_over)
    assert server.predict(b'{"user_id": "1"}').json()["model_version"] == new
    assert {version for version, _ in seen} <= {old, new}
    assert len(set(seen)) == len({version for version, _ in seen}), "one version, one probability"
    assert server.figure("churn_model_info", model_version=new) == 1
    assert server.figure("churn_model_info", model_version=old) == 0


def test_what_the_description_allows_is_answered_and_what_it_forbids_is_refused(server, tmp_path):
    """Schemathesis makes requests of both kinds from /openapi.json, and holds every answer against it."""
    command = [bentoml().replace("bentoml", "schemathesis"), "run", f"{server.url}/openapi.json", "--checks", "all"]
    command += ["--max-examples", "25", "--generation-deterministic", "--no-color"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


def test_ids_do_not_reach_the_log(server):
    # letters that are no hex digits: the log is full of random trace ids, in which a number alone may well stand
    server.predict(b'{"user_id": "zanzibar"}')
    server.predict(b'{"user_id": "zanzibar\\n"}')
    assert "zanzibar" not in server.log
