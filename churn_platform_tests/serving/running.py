"""`bentoml serve` in a process of its own, and clients that ask it all the time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from churn_platform_tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
POST = {"content": b'{"user_id": "1"}', "headers": {"content-type": "application/json"}}


def bentoml():
    return str(Path(sys.executable).with_name("bentoml"))


def home(folder):
    """BentoML keeps the metrics of all its services in its home, and a service that starts deletes them."""
    return {"BENTOML_HOME": str(folder / "bentoml")}


class Server:
    """A running service. `variables` are further environment variables."""

    def __init__(self, world, folder, workers=1, **variables):
        self.workers = workers
        self.log_file = folder / "log"
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [bentoml(), "serve", "serving.service:ChurnService", "--host", "127.0.0.1"]
        environment = {
            **os.environ,
            **world.environment,
            **home(folder),
            "PYTHONPATH": str(ROOT),
            "CHURN_SERVING_WORKERS": str(workers),
            "CHURN_SERVING_REFRESH_SECONDS": "0.5",
            **variables,
        }
        with self.log_file.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--port", self.url.rsplit(":", 1)[1], "--timeout-graceful-shutdown", "20"],
                cwd=folder,  # not the project: an installed package starts anywhere
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self):
        return self.log_file.read_text()

    def get(self, path, **options):
        return httpx.get(self.url + path, timeout=20, **options)

    def predict(self, content=POST["content"], content_type="application/json"):
        headers = {"content-type": content_type} if content_type else {}
        return httpx.post(self.url + "/predict", content=content, headers=headers, timeout=20)

    def wait(self, condition, seconds=90):
        """Wait until a condition holds; a refused connection is one that does not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log
            try:
                if condition():
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds} seconds:\n{self.log}")

    def ready(self):
        return self.get("/readyz").status_code == 200

    def wait_for_champion(self, version):
        """Until each of the workers serves a version."""
        self.wait(lambda: self.log.count(f"version {version} is the champion") >= self.workers)
        self.wait(self.ready)

    def figure(self, name, **labels):
        """The value of a series in /metrics, or None."""
        for line in self.get("/metrics").text.splitlines():
            series = re.fullmatch(r"(\w+?)(?:\{(.*)\})? (\S+)", line)
            if series and series[1] == name and dict(re.findall(r'(\w+)="([^"]*)"', series[2] or "")) == labels:
                return float(series[3])
        return None

    def stop(self, patience=30):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self):
        """SIGKILL to the supervisor and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(15)


class Load:
    """Requests without a pause, from several clients that keep their connections, while a block goes on.

    `seen` holds, of each request, its status and its body; a connection that failed has the status 0.
    """

    def __init__(self, url, clients=8, customers=60):
        self.url = url
        self.clients = clients
        self.customers = customers
        self.seen = []
        self._stop = asyncio.Event()

    async def __aenter__(self):
        self._client = httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=self.clients))
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(self.clients)]
        return self

    async def _ask(self, number):
        while not self._stop.is_set():
            number = number % self.customers + 1
            body = b'{"user_id": "%d"}' % number
            try:
                answer = await self._client.post(self.url + "/predict", content=body, headers=POST["headers"])
                self.seen.append((answer.status_code, answer.json()))
            except httpx.TransportError as error:
                self.seen.append((0, {"error": type(error).__name__}))
                await asyncio.sleep(0.02)

    async def __aexit__(self, *_):
        self._stop.set()
        await asyncio.gather(*self._tasks)
        await self._client.aclose()

    async def until(self, condition, seconds=60):
        """Wait until a condition holds for what has been seen."""
        end = time.monotonic() + seconds
        while not condition(self.seen):
            assert time.monotonic() < end, self.seen[-5:]
            await asyncio.sleep(0.02)
