"""Playing history: it ends where the daemon would have got to, it ends once, and it survives being killed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from datetime import date

import pandas as pd
import pytest

from churn_platform.assets.common import POOL, SIDE_BY_SIDE
from churn_platform.play import Player, catch_up
from churn_platform_tests import graph

WINDOWS = [f"2023-{month:02}-01" for month in range(1, 7)]
TABLES = ("validated_transactions", "validated_customers", "customer_features", "churn_labels")


def play(shop) -> tuple[bool, list[str]]:
    said: list[str] = []
    return Player(shop.contract, shop.settings, shop.instance, said.append).catch_up(), said


@pytest.fixture
def shop(tmp_path, monkeypatch):
    return graph.played().copy(tmp_path).use(monkeypatch)


def test_history_is_played_to_its_end_with_a_first_champion_on_the_way(shop):
    for name in TABLES:
        assert shop.tables.windows(name) == WINDOWS
    assert shop.alias() == "1"
    assert [entry["version"] for entry in shop.log()] == ["1"]
    assert shop.tracking.version("1").tags["window"] == "2023-04-01"
    for name in ("churn_scores", "drift_report", "model_performance"):
        assert shop.tables.windows(name) == WINDOWS[3:]


def test_a_second_play_does_nothing(shop):
    before = {name: shop.tables.version(name) for name in (*TABLES, "churn_scores", "promotion_log")}
    runs = len(shop.instance.get_runs())
    succeeded, said = play(shop)
    assert succeeded
    assert said == ["every window that has landed is processed already"]
    assert {name: shop.tables.version(name) for name in before} == before
    assert len(shop.instance.get_runs()) == runs


def test_what_lands_later_is_played_by_the_policy(shop):
    shop.land(date(2023, 8, 1))
    succeeded, said = play(shop)
    assert succeeded
    assert said[0] == "1 windows to process"
    assert any("window_cycle" in line and "2023-07-01" in line for line in said)
    assert sum("policy: " in line for line in said) == 1
    assert shop.tables.windows("churn_scores") == [*WINDOWS[3:], "2023-07-01"]
    assert play(shop)[1] == ["every window that has landed is processed already"]


def test_a_window_that_fails_stops_the_play_and_is_explained(shop):
    shop.land(date(2023, 9, 1))
    (path,) = (shop.settings.landing / shop.contract.name / "transactions").glob("2023-07-01*")
    rows = pd.read_parquet(path)
    rows["amount"] = -1.0
    rows.to_parquet(path)
    succeeded, said = play(shop)
    assert not succeeded
    assert "2023-07-01" in said[-1]
    assert "FAILED" in said[-1]
    assert "validated_transactions: bad_rows_are_few" in said[-1]
    assert "-> " in said[-1]
    assert "2023-08-01" not in shop.tables.windows("raw_transactions")


def test_without_enough_labels_there_is_no_model_and_no_failure(tmp_path, monkeypatch):
    shop = graph.empty(tmp_path).use(monkeypatch)
    shop.land(date(2023, 2, 1))
    succeeded, said = play(shop)
    assert succeeded
    assert shop.tracking.versions() == []
    assert sum("prepare_window" in line for line in said) == 1


def test_a_play_that_was_killed_right_after_its_first_champion_scores_at_the_next(shop):
    for name in ("churn_scores", "drift_report", "model_performance"):
        graph.shutil.rmtree(shop.tables.path(name))
    succeeded, said = play(shop)
    assert succeeded
    assert shop.tables.windows("churn_scores") == [WINDOWS[-1]]
    assert any("score_window" in line for line in said)


PROGRAM = """
import sys
from pathlib import Path
import pytest
from churn_platform.assets.common import POOL, SIDE_BY_SIDE
from churn_platform.play import Player, catch_up
from churn_platform_tests import graph
with pytest.MonkeyPatch.context() as patch:
    folder = Path(sys.argv[1])
    shop = graph.make(folder, (folder / "contract.yaml").read_text()).use(patch)
    Player(shop.contract, shop.settings, shop.instance, lambda line: print(line, flush=True)).catch_up()
"""


@pytest.mark.slow
def test_a_play_that_is_killed_half_way_is_finished_by_the_next_with_the_same_result(tmp_path, monkeypatch):
    whole, known = graph.played(), WINDOWS[:3]
    shop = graph.empty(tmp_path).use(monkeypatch)
    shop.land(date(2023, 4, 1))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "[1/3]" in line:
            break
    while not set(shop.tables.windows("raw_transactions")) >= set(known[:2]):  # the second has begun
        assert process.poll() is None, lines
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert known[2] not in shop.tables.windows("raw_transactions")

    assert play(shop)[0]
    for name in TABLES:
        assert shop.tables.windows(name) == known
        left, right = (platform.rows(name, *known) for platform in (shop, whole))
        pd.testing.assert_frame_equal(left, right)
    assert shop.check("feature_store").success


def test_a_backfill_may_run_windows_side_by_side_unless_somebody_said_otherwise(shop, monkeypatch):
    monkeypatch.setattr(Player, "catch_up", lambda *_: True)
    storage = shop.instance.event_log_storage
    monkeypatch.setattr("dagster.DagsterInstance.get", lambda: contextlib.nullcontext(shop.instance))

    def limits():
        return {limit.name: limit.limit for limit in storage.get_pool_limits()}

    catch_up(shop.contract, shop.settings, print)
    assert limits()[POOL] == SIDE_BY_SIDE
    storage.set_concurrency_slots(POOL, 1)
    catch_up(shop.contract, shop.settings, print)
    assert limits()[POOL] == 1
