"""A row that comes late, or is corrected, is noticed; what depends on it is computed again, and nothing else is."""

from __future__ import annotations

import pandas as pd
import pytest

from churn_platform.automation import state
from churn_platform.automation.jobs import CYCLE
from churn_platform.engine import connection
from churn_platform.ml import features
from churn_platform.play import Player
from churn_platform.windows import window, windows
from churn_platform_tests import graph

WINDOWS = [f"2023-{month:02}-01" for month in range(1, 7)]
MARCH = WINDOWS[2]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    return graph.played().copy(tmp_path).use(monkeypatch)


def play(shop) -> tuple[bool, list[str]]:
    said: list[str] = []
    return Player(shop.contract, shop.settings, shop.instance, said.append).catch_up(), said


def due(shop) -> list[state.Work]:
    return state.due(shop.contract, state.look(shop.contract, shop.source), shop.tables)


def landed(shop, key: str = MARCH) -> list:
    return sorted((shop.settings.landing / shop.contract.name / "transactions").glob(f"{key}*.parquet"))


def add_a_late_row(shop, key: str = MARCH) -> str:
    """A purchase of a known customer, of the middle of a window, comes in a file of its own; returns the customer."""
    (first, *_) = landed(shop, key)
    row = pd.read_parquet(first).tail(1).assign(order_id=10**9, amount=123.0)
    row["purchase_time"] = pd.Timestamp(f"{key[:8]}15", tz=row["purchase_time"].dt.tz)
    row.to_parquet(first.with_name(f"{key}-late.parquet"))
    return str(row["customer_id"].iloc[0])


def plainly(shop, key: str) -> pd.DataFrame:
    """A window's features from all of history, as if there had never been a snapshot before."""
    chosen = window(shop.contract, key)
    with connection() as con:
        for name in shop.contract.tables.items():
            known = [other.key for other in windows(shop.contract, chosen.end)]
            shop.tables.read(con, f"validated_{name}", known)
        return features.build(con, shop.contract, chosen).df().sort_values("buyer", ignore_index=True)


def test_nothing_is_due_when_nothing_has_changed(shop):
    assert due(shop) == []
    for path in landed(shop):
        path.write_bytes(path.read_bytes())  # written again: another time stamp, the same rows
    assert due(shop) == []


def test_a_late_row_is_found_and_what_depends_on_it_is_computed_again(shop):
    before = {name: shop.tables.ledger()[name] for name in ("raw_transactions", "customer_features", "churn_labels")}
    scores = shop.tables.version("churn_scores")
    raw_customers = shop.tables.version("raw_customers")
    old = shop.rows("customer_features", *WINDOWS[:2])
    customer = add_a_late_row(shop)

    (first,) = due(shop)
    assert (first.window.key, first.job) == (MARCH, CYCLE)
    assert first.assets == ("raw_transactions", "validated_transactions", *state.COMPUTED)
    assert first.reason == f"transactions of window {MARCH} came late or were corrected"

    succeeded, said = play(shop)
    assert succeeded, said
    assert sum("window_cycle" in line for line in said) == 4  # March to June
    after = shop.tables.ledger()
    changed = {name: [key for key in WINDOWS if after[name][key] != before[name][key]] for name in before}
    assert changed["raw_transactions"] == [MARCH]
    assert changed["customer_features"] == WINDOWS[2:]
    # those that mature in January and February are computed from nothing that came later
    assert changed["churn_labels"][0] == MARCH
    assert shop.tables.version("churn_scores") == scores, "what was said at the time stays as it was said"
    assert shop.tables.version("raw_customers") == raw_customers
    pd.testing.assert_frame_equal(shop.rows("customer_features", *WINDOWS[:2]), old)
    for key in WINDOWS[2:]:
        found = shop.rows("customer_features", key).drop(columns="_window").sort_values("buyer", ignore_index=True)
        pd.testing.assert_frame_equal(found, plainly(shop, key)[found.columns], check_exact=True)
    served = shop.store.online([customer])[0]
    (newest,) = shop.rows("customer_features", WINDOWS[-1]).query("buyer == @customer").to_dict("records")
    assert {name: served[name] for name in ("recency_days", "tenure_months")} == {
        name: newest[name] for name in ("recency_days", "tenure_months")
    }
    assert due(shop) == []
    assert play(shop)[1] == ["every window that has landed is processed already"]


def test_a_correction_that_changes_no_good_row_goes_no_further(shop):
    (first, *_) = landed(shop)
    bad = pd.read_parquet(first).tail(1).assign(order_id=10**9, amount=-1.0)
    bad.to_parquet(first.with_name(f"{MARCH}-late.parquet"))
    (work,) = due(shop)
    assert work.window.key == MARCH
    succeeded, said = play(shop)
    assert succeeded, said
    assert sum("window_cycle" in line for line in said) == 1
    assert "amount is below 0" in set(shop.rows("quarantine_transactions", MARCH)["_reason"])
    assert due(shop) == []


def test_a_correction_that_is_refused_leaves_what_there_was(shop):
    before = shop.rows("customer_features")
    for path in landed(shop):
        pd.read_parquet(path).assign(amount=-1.0).to_parquet(path)
    succeeded, said = play(shop)
    assert not succeeded
    assert "bad_rows_are_few" in said[-1]
    pd.testing.assert_frame_equal(shop.rows("customer_features"), before)
    assert [work.window.key for work in due(shop)] == [MARCH]


def test_a_run_that_was_killed_between_two_tables_is_finished(shop):
    add_a_late_row(shop)
    assert shop.materialize("raw_transactions", key=MARCH).success
    (work,) = due(shop)
    assert work.assets == ("validated_transactions", *state.COMPUTED)
    assert shop.materialize("validated_transactions", key=MARCH).success
    assert [work.assets for work in due(shop)] == [state.COMPUTED] * 4


def test_the_sensor_asks_for_the_assets_that_are_touched_once_for_each_cause(shop):
    add_a_late_row(shop)
    from churn_platform.automation.sensors import request

    first = request(due(shop)[0])
    assert [key.to_user_string() for key in first.asset_selection] == [
        "raw_transactions",
        "validated_transactions",
        *state.COMPUTED,
    ]
    assert request(due(shop)[0]).run_key == first.run_key
    late = landed(shop)[-1]
    pd.read_parquet(late).assign(amount=5.0).to_parquet(late)
    assert request(due(shop)[0]).run_key != first.run_key


def test_files_that_were_moved_away_undo_nothing(shop):
    for path in landed(shop):
        path.unlink()
    assert due(shop) == []


def test_a_play_that_fails_leaves_its_newest_good_window_online(tmp_path, monkeypatch):
    from datetime import date

    shop = graph.played().copy(tmp_path).use(monkeypatch)
    shop.land(date(2023, 9, 1))
    for path in landed(shop, "2023-08-01"):
        pd.read_parquet(path).assign(amount=-1.0).to_parquet(path)
    succeeded, _ = play(shop)
    assert not succeeded
    assert state.not_online(shop.tables) is None
    customer = shop.rows("customer_features", "2023-07-01")["buyer"].iloc[0]
    assert shop.store.online([customer])[0]["snapshot_time"] == window(shop.contract, "2023-07-01").end
