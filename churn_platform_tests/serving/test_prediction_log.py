"""The endpoint's side of the prediction log. What becomes of the segments is tested in test_prediction_log.py above."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving import prediction_log
from serving.prediction_log import FLUSH_SECONDS, Answered, Ids, PredictionLog

ROOT = Path(__file__).resolve().parents[2]


def answered(number, **changes):
    fields = {
        "id": f"id-{number}",
        "at": "2026-11-27T20:15:00.123456Z",
        "customer": f"customer {number}",
        "version": "3",
        "arm": "champion",
        "probability": 0.25,
        "threshold": 0.5,
        "decision": "Low Risk",
        "feature_timestamp": "2024-03-01T00:00:00Z",
        "stale": False,
        "features": {"a": 1.5, "b": None, "c": "gold"},
    }
    return Answered(**fields | changes)


def lines(folder, pattern="*.jsonl"):
    found = []
    for path in sorted(Path(folder).glob(pattern)):
        found += [json.loads(line) for line in path.read_text().splitlines()]
    return found


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def start(folder, tmp_path):
    """Starts logs, and closes them."""
    made = []

    def start(**options):
        log = PredictionLog(str(folder), tmp_path / "spool", **options)
        made.append(log)
        log.start()
        return log

    yield start
    for log in made:
        log.close()


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_answers_are_lines_of_json_in_a_segment_that_is_finished_when_the_log_is_closed(start, folder):
    log = start()
    log.add([answered(1), answered(2, shadow_version="4", shadow_probability=0.5)])
    until(lambda: lines(folder, "*.jsonl.open"))
    assert not lines(folder)
    log.add([answered(3)])
    log.close()
    assert [line["id"] for line in lines(folder)] == ["id-1", "id-2", "id-3"]
    assert lines(folder)[0] == {
        "id": "id-1",
        "at": "2026-11-27T20:15:00.123456Z",
        "customer": "customer 1",
        "version": "3",
        "arm": "champion",
        "probability": 0.25,
        "threshold": 0.5,
        "decision": "Low Risk",
        "feature_timestamp": "2024-03-01T00:00:00Z",
        "stale": False,
        "features": {"a": 1.5, "b": None, "c": "gold"},
        "shadow_version": None,
        "shadow_probability": None,
    }
    assert not list(folder.glob("*.open"))


def test_a_segment_is_finished_after_its_time_and_another_begun(start, folder):
    log = start(segment_seconds=0.1)
    log.add([answered(1)])
    until(lambda: len(lines(folder)) == 1)
    log.add([answered(2)])
    until(lambda: len(lines(folder)) == 2)
    assert len(list(folder.glob("*.jsonl"))) == 2


def test_nothing_asked_makes_no_file(start, folder):
    log = start()
    log.close()
    assert not folder.exists()


def test_what_the_backlog_has_no_room_for_is_counted_and_never_waited_for(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(prediction_log, "LARGEST_BACKLOG", 3)
    dropped = []
    log = PredictionLog(str(folder), tmp_path / "spool", dropped=dropped.append)  # not started: nothing is written
    log.add([answered(1), answered(2)])
    log.add([answered(3), answered(4), answered(5)])
    log.add([answered(6)])
    assert dropped == [2, 1]
    log.start()
    log.close()
    assert [line["id"] for line in lines(folder)] == ["id-1", "id-2", "id-3"]


def test_a_disk_that_fails_for_a_while_loses_nothing_and_doubles_nothing(start, folder, monkeypatch):
    fails, fsync = [True], os.fsync

    def failing(number):
        if fails:
            raise OSError(28, "No space left on device")
        fsync(number)

    monkeypatch.setattr(prediction_log.os, "fsync", failing)
    log = start()
    log.add([answered(1)])
    time.sleep(2.5 * FLUSH_SECONDS)
    log.add([answered(2)])
    fails.clear()
    log.close()
    assert [line["id"] for line in lines(folder)] == ["id-1", "id-2"]


def test_the_segment_of_a_killed_process_is_finished_by_the_next_and_that_of_a_live_one_is_left_alone(start, folder):
    folder.mkdir()
    left, held = (
        folder / "20260101T000000000000-host-7-1.jsonl.open",
        folder / "20260101T000000000000-host-8-1.jsonl.open",
    )
    left.write_text('{"id": "whole"}\n{"id": "cu')
    held.write_text('{"id": "being written"}\n')
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        log = start()
        until(lambda: not left.exists())
        log.close()
    assert [path.name for path in folder.glob("*.jsonl")] == ["20260101T000000000000-host-7-1.jsonl"]
    assert held.exists()


def test_at_most_the_last_moments_are_lost_when_the_process_is_killed(folder, tmp_path):
    """Answers that are older than two flushes are on disk, whatever happens then."""
    program = f"""
import sys, time
from pathlib import Path
from churn_platform_tests.serving.test_prediction_log import answered
from serving.prediction_log import PredictionLog
log = PredictionLog({str(folder)!r}, Path({str(tmp_path)!r}))
log.start()
number = 0
while True:
    number += 1
    log.add([answered(number)])
    print(number, time.time(), flush=True)
    time.sleep(0.001)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        until(lambda: folder.exists() and lines(folder, "*.open"), 30)
        time.sleep(3 * FLUSH_SECONDS)
        process.send_signal(signal.SIGKILL)
        killed = time.time()
        said = [line.split() for line in process.stdout]
    safe = [int(number) for number, at in said if float(at) < killed - 2 * FLUSH_SECONDS - 0.5]
    (segment,) = folder.glob("*.open")
    whole = segment.read_bytes().rpartition(b"\n")[0].splitlines()
    written = {json.loads(line)["id"] for line in whole}
    assert safe
    assert {f"id-{number}" for number in safe} <= written
    assert len(written) == len(whole)


def test_finished_segments_are_uploaded_where_the_log_lies_elsewhere(tmp_path):
    import fsspec

    log = PredictionLog("memory://bucket/log", tmp_path / "spool", segment_seconds=60)
    log.start()
    log.add([answered(1)])
    log.close()
    (path,) = fsspec.filesystem("memory").glob("bucket/log/*.jsonl")
    assert json.loads(fsspec.filesystem("memory").cat(path))["id"] == "id-1"
    assert not list((tmp_path / "spool").iterdir())


def test_ids_are_everybodys_own():
    one, other = Ids(), Ids()
    made = [one() for _ in range(100)] + [other() for _ in range(100)]
    assert len(set(made)) == 200
