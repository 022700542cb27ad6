"""The drift report: what it compares, and what it must not."""

from __future__ import annotations

from churn_platform.ml import drift
from churn_platform_tests import graph

MAY = "2023-05-01"


def test_scores_of_an_earlier_champion_are_not_compared_with_what_the_present_one_says(tmp_path, monkeypatch):
    shop = graph.played().copy(tmp_path).use(monkeypatch)
    monkeypatch.setattr(drift, "MIN_ROWS", 100)  # the toy shop's validation window has no more
    assert shop.materialize("drift_report", key=MAY).success
    assert "churn_probability" in set(shop.rows("drift_report", MAY)["column"])
    graph.challenge(shop, shop.tracking.champion().pipeline)
    shop.tracking.reinstate("2")
    reference = shop.tracking.artifact(shop.tracking.version("1").run_id, "reference.parquet")
    shop.tracking.client.log_artifact(shop.tracking.version("2").run_id, reference)
    said = graph.metadata(shop.materialize("drift_report", key=MAY), "drift_report")
    assert (said["scored_by"], said["model_version"]) == ("1", "2")
    found = set(shop.rows("drift_report", MAY)["column"])
    assert "churn_probability" not in found
    assert "recency_days" in found
    assert "| churn_probability | | | | not comparable |" in said["columns"]
