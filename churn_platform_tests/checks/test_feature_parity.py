"""What is served must be what was computed: the check sees a value, a time or a customer that differs."""

from __future__ import annotations

import sqlite3
from datetime import date

import pandas as pd
import pytest

from churn_platform.checks.feature_parity import SAMPLE, _same
from churn_platform_tests import graph

NEWEST = "2023-06-01"


@pytest.fixture
def shop(tmp_path, monkeypatch):
    return graph.played().copy(tmp_path).use(monkeypatch)


def served_wrongly(shop, **values) -> None:
    """Somebody else writes to the online store: other values, for every customer of the newest window."""
    store = shop.store
    rows = shop.rows("customer_features", NEWEST)[["buyer", "snapshot_time", *shop.contract.feature_names]]
    store.apply(shop.tables.path("customer_features"))
    view = store.definitions.view_name(shop.contract)
    store.feast.write_to_online_store(view, rows.assign(**values), allow_registry_cache=False)


def verdict(shop) -> tuple[bool, dict[str, str]]:
    result = shop.check("feature_store")
    found = result.get_asset_check_evaluations()[0]
    assert result.success is found.passed  # it blocks
    return found.passed, {name: str(entry.value) for name, entry in found.metadata.items()}


def test_what_was_materialized_is_served_as_it_was_computed(shop):
    passed, said = verdict(shop)
    assert passed
    assert said["verdict"] == f"{SAMPLE} customers of window {NEWEST} are served as they were computed"


@pytest.mark.parametrize(("feature", "value"), [("purchases_30d", 99.0), ("segment", "plus"), ("age", None)])
def test_another_value_is_noticed_and_named(shop, feature, value):
    served_wrongly(shop, **{feature: value})
    passed, said = verdict(shop)
    assert not passed
    assert said["verdict"] == f"of {SAMPLE} customers, different: {feature}"
    assert "Materialize feature_store" in said["what_to_do"]


def test_the_same_values_of_another_time_are_noticed(shop):
    served_wrongly(shop, snapshot_time=pd.Timestamp("2023-07-02", tz="UTC"))
    passed, said = verdict(shop)
    assert not passed
    assert said["verdict"].endswith("different: snapshot_time")


def test_customers_who_are_missing_online_are_noticed(shop):
    with sqlite3.connect(shop.home / "online_store.db") as database:
        table = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchone()[0]
        assert database.execute(f'DELETE FROM "{table}"').rowcount > 0
    passed, said = verdict(shop)
    assert not passed
    assert said["verdict"].endswith("different: (missing online)")


def test_features_that_are_newer_than_what_is_served_are_noticed(shop):
    shop.land(date(2023, 8, 1))
    names = [*(f"{stage}_{name}" for stage in ("raw", "validated") for name in ("customers", "transactions"))]
    assert shop.materialize(*names, "customer_features", key="2023-07-01").success
    passed, said = verdict(shop)
    assert not passed
    assert "snapshot_time" in said["verdict"]


@pytest.mark.parametrize(
    ("offline", "online", "same"),
    [
        (1.0, 1.0, True),
        (1.0, 1.0000000001, False),
        (0.0, None, False),
        (float("nan"), None, True),
        (None, None, True),
        (float("nan"), 0.0, False),
        ("plus", "plus", True),
        ("plus", None, False),
        (None, "plus", False),
        (None, float("nan"), True),
    ],
)
def test_a_missing_value_equals_a_missing_value_and_nothing_else(offline, online, same):
    assert _same(offline, online) is same
