"""The registry, read without MLflow, from what MLflow itself has written: its SQLite file, and its server."""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from churn_platform.registered import COMPILED
from churn_platform_tests.ports import free_port
from serving.registry import Cache, HttpRegistry, RegistryError, SqliteRegistry, Version, registry

NAME = "tiny_churn"


@pytest.fixture(scope="module")
def world(make_world):
    world = make_world()
    world.promote()
    return world


@pytest.fixture(scope="module")
def server(world, tmp_path_factory):
    """A real MLflow server over the world's database, and its address."""
    port = free_port()
    folder = tmp_path_factory.mktemp("mlflow")
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", world.settings.tracking_uri, "--artifacts-destination", str(folder)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                assert time.monotonic() < end, (folder / "log").read_text()
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


@pytest.fixture(params=["sqlite", "http"])
def read(request, world):
    """The registry, read either way."""
    if request.param == "sqlite":
        return registry(world.contract, world.settings)
    return HttpRegistry(request.getfixturevalue("server"), NAME, 10)


def test_the_champion_is_found_with_its_tags_and_metrics(read, world):
    theirs = world.tracking.version_of("champion")
    found = read.version("champion")
    assert found == Version(str(theirs.version), theirs.run_id, dict(theirs.tags))
    assert read.metrics(found) == world.tracking.client.get_run(theirs.run_id).data.metrics


def test_an_alias_that_names_nothing_is_none(read):
    assert read.version("nobody") is None


def test_the_compiled_model_is_the_file_that_was_logged(read, world, tmp_path):
    found = read.version("champion")
    read.fetch(found, tmp_path / "model")
    logged = Path(world.tracking.artifact(found.run_id, COMPILED))
    assert (tmp_path / "model").read_bytes() == logged.read_bytes()


def test_a_version_without_a_compiled_model_is_said(read, world, tmp_path):
    tracking = world.tracking
    with tracking.run("empty", "run-empty") as run_id:
        pass
    with pytest.raises(RegistryError, match=f"version 9 has no {COMPILED}"):
        read.fetch(Version("9", run_id, {}), tmp_path / "model")


def test_a_registry_that_does_not_exist_yet_has_no_champion(tmp_path):
    assert SqliteRegistry(tmp_path / "none.db", NAME).version("champion") is None
    (tmp_path / "empty.db").touch()
    assert SqliteRegistry(tmp_path / "empty.db", NAME).version("champion") is None


def test_a_registry_that_is_broken_is_said_and_not_taken_for_an_empty_one(tmp_path):
    (tmp_path / "broken.db").write_bytes(b"this is no database, and never was" * 100)
    with pytest.raises(RegistryError, match="cannot be read"):
        SqliteRegistry(tmp_path / "broken.db", NAME).version("champion")


def test_a_server_that_is_away_is_said(tmp_path):
    away = HttpRegistry("http://127.0.0.1:9", NAME, 1)
    with pytest.raises(RegistryError, match="cannot be reached"):
        away.version("champion")


def test_another_kind_of_registry_is_refused_with_what_to_do(world):
    settings = world.settings.model_copy(update={"mlflow_tracking_uri": "postgresql://mlflow@db/mlflow"})
    with pytest.raises(RegistryError, match="MLflow server"):
        registry(world.contract, settings)


# -- what is kept on this machine


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def embedded(world):
    return registry(world.contract, world.settings)


def test_what_was_fetched_is_there_for_a_start_without_a_registry(cache, embedded):
    version = embedded.version("champion")
    kept = cache.fetch(embedded, version)
    assert cache.last_good() is None, "nobody has said yet that it is any good"
    cache.keep(version, [])
    assert Cache(cache.folder).last_good() == kept


def test_what_is_here_is_not_fetched_again(cache, embedded):
    version = embedded.version("champion")
    kept = cache.fetch(embedded, version)

    class Away:
        def __getattr__(self, name):
            raise AssertionError("it was asked")

    assert cache.fetch(Away(), version) == kept


def test_a_fetch_that_fails_half_way_leaves_nothing(cache, embedded):
    version = embedded.version("champion")

    class Breaks:
        def metrics(self, version):
            return {}

        def fetch(self, version, target):
            target.write_bytes(b"half")
            raise RegistryError("broke off")

    with pytest.raises(RegistryError, match="broke off"):
        cache.fetch(Breaks(), version)
    assert [path.suffix for path in cache.folder.iterdir()] == []


def test_versions_that_nobody_serves_any_more_are_removed(cache, embedded):
    old = embedded.version("champion")
    cache.fetch(embedded, old)
    new = Version("2", "another-run", {})
    shutil.copy(cache._path(old), cache._path(new))
    shutil.copy(cache._path(old).with_suffix(".json"), cache._path(new).with_suffix(".json"))
    cache.keep(new, [])
    assert sorted(path.name for path in cache.folder.iterdir()) == [
        "2-another-run.json",
        "2-another-run.npz",
        "last_good",
    ]


@pytest.mark.parametrize("spoilt", ["last_good", ".json", ".npz"])
def test_a_spoilt_cache_is_an_empty_one(cache, embedded, spoilt):
    version = embedded.version("champion")
    cache.fetch(embedded, version)
    cache.keep(version, [])
    path = next(path for path in cache.folder.iterdir() if path.name.endswith(spoilt))
    if spoilt == ".npz":
        path.unlink()
    else:
        path.write_text("{")
    assert cache.last_good() is None
