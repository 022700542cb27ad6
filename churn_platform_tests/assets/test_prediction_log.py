"""The asset prediction_log: what it shows of what landed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from churn_platform_tests import graph
from churn_platform_tests.answers import line, segment


@pytest.fixture
def shop(tmp_path, monkeypatch):
    return graph.make(tmp_path).use(monkeypatch)


def test_it_shows_days_versions_and_arms_and_how_far_behind_it_is(shop):
    now = datetime.now(UTC)
    yesterday = now - timedelta(days=1)
    segment(
        shop,
        line(1, at=yesterday.isoformat()),
        line(2, at=now.isoformat(), decision="High Risk", probability=0.8),
        line(3, at=now.isoformat(), version="2", arm="canary"),
        b"broken\n",
    )
    result = shop.run("land_predictions")
    assert result.success
    shown = graph.metadata(result, "prediction_log")
    assert shown["landed_by_day"] == {yesterday.date().isoformat(): 1, now.date().isoformat(): 2}
    assert (shown["landed"], shown["rejected_lines"], shown["dagster/row_count"], shown["days"]) == (3, 1, 3, 2)
    assert 86_400 <= shown["lag_seconds"] < 87_000
    assert f"| {now.date().isoformat()} | 1 | champion | 1 | 100.0% | 0.8000 | 0.0% |" in shown["newest_days"]
    assert f"| {now.date().isoformat()} | 2 | canary | 1 | 0.0% | 0.2056 | 0.0% |" in shown["newest_days"]
    assert "data:image/png;base64," in shown["answers"]


def test_with_nothing_to_land_it_is_materialized_and_says_so(shop):
    shown = graph.metadata(shop.materialize("prediction_log"), "prediction_log")
    assert (shown["landed"], shown["days"], shown["lag_seconds"]) == (0, 0, 0.0)
    assert "answers" not in shown


def test_what_landed_before_is_shown_when_nothing_comes(shop):
    segment(shop, line(1))
    shop.materialize("prediction_log")
    shown = graph.metadata(shop.materialize("prediction_log"), "prediction_log")
    assert (shown["landed"], shown["dagster/row_count"]) == (0, 1)
    assert "| 2026-11-20 | 1 | champion | 1 |" in shown["newest_days"]
