"""What all tests share: a home of their own, settings that are read anew, and an S3."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from churn_platform import settings
from churn_platform.resources.feature_store import import_feast
from churn_platform_tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A test that imports Feast's own modules first would leave all that follow it with Feast's metrics directory.
import_feast()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """CHURN_HOME in a folder of the test's own; nothing is remembered from test to test."""
    monkeypatch.setenv("CHURN_HOME", str(tmp_path / "home"))
    settings.settings.cache_clear()
    settings.contract.cache_clear()
    yield tmp_path / "home"
    settings.settings.cache_clear()
    settings.contract.cache_clear()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket of moto's S3 server, in a process of its own: a call into Delta holds this one's interpreter."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed: s3:// tables are not tested")
    import boto3
    import s3fs

    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # they know the server of another test in this process
    client = boto3.client("s3")
    for _ in range(200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        assert server.poll() is None
        time.sleep(0.1)
    client.create_bucket(Bucket="tables")
    yield client
    s3fs.S3FileSystem.clear_instance_cache()
    client.close()
    server.terminate()
    server.wait()
