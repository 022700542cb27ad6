"""The benchmark of the endpoint: that what it reports is what happened."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from benchmarks.serving import load, report, world
from benchmarks.serving.packages import closure
from benchmarks.serving.report import Measured, Started
from benchmarks.serving.ways import REFERENCE, Running, tree
from churn_platform.contract import LABEL
from churn_platform.contract_file import parse
from churn_platform.ml import models

NO_ERRORS = {"connect": 0, "read": 0, "write": 0, "timeout": 0, "status": 0}


def measured(way: str, number: int, requests: int, p99: float, errors: int = 0) -> Measured:
    met = load.Load(10.0, requests, p99 / 2, p99, p99, NO_ERRORS | {"status": errors})
    return Measured(way, number, 64, met, cpu_ms=p99, pss_mb=100.0)


ROUNDS = [
    measured("reference", 1, 400, 2000.0),
    measured("ours", 1, 40_000, 20.0),
    measured("reference", 2, 200, 4000.0),
    measured("ours", 2, 40_000, 20.0),
]
STARTS = [
    Started("reference", 1, 9.0, [0.25, 0.5]),
    Started("ours", 1, 3.0, [0.25, 0.5 + 1e-9]),
    Started("reference", 2, 9.0, [0.25]),
    Started("ours", 2, 5.0, [0.25]),
]


class TestTheReport:
    def test_ratios_compare_ways_within_a_round_and_more_is_always_better(self):
        faster = report.ratio(ROUNDS, "ours", 64, "throughput")
        sooner = report.ratio(ROUNDS, "ours", 64, "p99_ms")
        assert faster == {"min": 100.0, "median": 150.0, "max": 200.0}
        assert sooner == {"min": 100.0, "median": 150.0, "max": 200.0}

    def test_there_is_no_ratio_without_the_reference_or_at_another_load(self):
        assert report.ratio([one for one in ROUNDS if one.way == "ours"], "ours", 64, "throughput") is None
        assert report.ratio(ROUNDS, "ours", 16, "throughput") is None

    def test_answers_that_are_errors_are_no_throughput_and_are_counted(self):
        failing = measured("ours", 1, 1000, 1.0, errors=900)
        assert failing.load.throughput == pytest.approx(10.0)
        assert report.report(STARTS, [failing], (85, 263))["errors"] == 900

    def test_the_headline_is_that_of_ours(self):
        found = report.report(STARTS, ROUNDS, (80, 240))
        assert found["throughput_ratio_c64"] == 150.0
        assert found["p50_ratio_c1"] is None  # one connection was not measured
        assert found["cold_start_s"] == 4.0
        assert found["rss_mb"] == 100.0
        assert found["max_probability_difference"] == pytest.approx(1e-9)
        assert found["dependency_share"] == pytest.approx(1 / 3)
        json.dumps(found)

    def test_the_table_has_a_line_for_each_load_with_its_spread(self):
        lines = report.table(report.report(STARTS, ROUNDS, (80, 240))).splitlines()
        (ours,) = [line for line in lines if line.startswith("| 64 | ours")]
        assert "| 4,000 |" in ours
        assert "150x (100-200)" in ours


class TestTheWorld:
    def test_the_bare_forest_answers_as_the_platforms_pipeline(self):
        contract = parse(world.CONTRACT)
        rows = world.customers(2000)
        inputs = models.frame(contract, rows)
        pipeline = models.fit(contract, inputs, rows[LABEL].to_numpy())
        forest = pipeline.named_steps["model"]
        assert (forest.n_estimators, forest.max_depth, forest.n_features_in_) == (200, 10, len(world.FEATURES))
        assert contract.feature_names == list(world.FEATURES)
        alone = forest.predict_proba(rows[list(world.FEATURES)].to_numpy())[:, 1]
        assert np.array_equal(alone, models.probabilities(pipeline, inputs))

    def test_customers_are_the_same_in_every_run(self):
        assert world.customers(50).equals(world.customers(50))
        assert world.customers(50)["user_id"].is_unique


class TestPackages:
    def test_extras_bring_their_packages_and_only_where_they_are_asked_for(self):
        assert "hiredis" in closure(["redis[hiredis]"])
        assert "hiredis" not in closure(["redis"])

    def test_requirements_are_followed_to_their_end(self):
        assert {"starlette", "anyio", "idna"} <= closure(["starlette"])

    def test_a_marker_that_does_not_hold_here_brings_nothing(self):
        assert closure(["redis; sys_platform == 'win32'"]) == set()


class _Answers(BaseHTTPRequestHandler):
    """Answers 200, or 404 to every body that says so; keeps the bodies."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    bodies: list[str]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.bodies.append(body)
        self.send_response(404 if "missing" in body else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def answers():
    """A small HTTP server: its URL, and the bodies that came."""
    _Answers.bodies = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/predict", _Answers.bodies
        server.shutdown()
        thread.join()


class TestTheLoad:
    @pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is missing: scripts/install_bench_tools.sh")
    def test_bodies_are_posted_in_order_from_the_offset_on_and_failures_counted(self, answers, tmp_path):
        url, bodies = answers
        file = tmp_path / "bodies"
        file.write_text('{"user_id": "1"}\n{"user_id": "missing"}\n{"user_id": "3"}\n')
        found = load.apply(url, file, concurrency=1, seconds=1, offset=1)
        sent = [json.loads(body)["user_id"] for body in bodies]
        assert sent[:4] == ["missing", "3", "1", "missing"]
        assert found.requests == pytest.approx(len(sent), abs=2)
        assert found.errors["status"] == pytest.approx(sent.count("missing"), abs=2)
        assert found.throughput == pytest.approx((found.requests - found.errors["status"]) / found.seconds)
        assert 0 < found.p50_ms <= found.p99_ms <= found.max_ms

    def test_without_wrk_it_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        with pytest.raises(load.LoadError, match=r"scripts/install_bench_tools\.sh"):
            load.require_wrk()

    def test_a_load_that_measured_nothing_is_an_error(self):
        with pytest.raises(load.LoadError, match="unable to connect"):
            load.parse("unable to connect to 127.0.0.1:1 Connection refused\n")


WORKER = "import time; print(1, flush=True); end = time.process_time() + {}\nwhile time.process_time() < end: pass\n"
PARENT = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE)\n"
    "child.stdout.readline(); print(child.pid, flush=True)\n"
    "sys.stdin.readline(); child.wait(); print('waited', flush=True); sys.stdin.readline()\n"
)


def test_cpu_and_memory_are_those_of_all_processes_and_cpu_does_not_end_with_a_process():
    command = [sys.executable, "-c", PARENT, WORKER.format(0.6)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        service = Running(REFERENCE, process, port=0)  # type: ignore[arg-type]
        child = int(process.stdout.readline())
        assert tree(process.pid) == [process.pid, child]
        alone = Running(REFERENCE, _Pid(child), port=0).megabytes()  # type: ignore[arg-type]
        assert 1 < alone < service.megabytes()
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        assert tree(process.pid) == [process.pid]
        assert service.cpu_seconds() > 0.6
        process.stdin.write("\n")


class _Pid:
    def __init__(self, pid: int) -> None:
        self.pid = pid
