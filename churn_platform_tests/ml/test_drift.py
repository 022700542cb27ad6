"""Drift: nothing where there is none, the right columns where there is, and no crash on odd ones."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from churn_platform.ml import drift
from churn_platform_tests import graph
from churn_platform_tests.worlds import changed

METHODS = ["psi", "jensenshannon", "wasserstein", "hellinger"]
WRITTEN = "drift: {method: psi, threshold: 0.2, share: 0.5}"


def contract_with(text: str = "drift: {method: psi, threshold: 0.1, share: 0.3}"):
    return changed(graph.SIMULATED, (WRITTEN, text))


CONTRACT = contract_with()


def drifted(report: drift.DriftReport) -> set[str]:
    return {column.column for column in report.columns if column.drifted}


@pytest.mark.parametrize("method", METHODS)
def test_two_halves_of_the_same_customers_do_not_drift(method):
    contract = contract_with(f"drift: {{method: {method}, threshold: 0.15, share: 0.1}}")
    rows = graph.customers(2400).sample(frac=1, random_state=3)
    report = drift.compare(contract, rows[:1200], rows[1200:])
    assert drifted(report) == set()
    assert not report.drifted
    assert report.share == 0
    assert report.not_comparable == []


def test_as_few_rows_as_are_compared_at_all_do_not_drift_by_chance():
    """At the default threshold, on new customers of the same kind, again and again."""
    contract, reference = contract_with("drift: {}"), graph.customers(3000)
    for seed in range(2, 5):
        assert not drift.compare(contract, reference, graph.customers(drift.MIN_ROWS, seed)).drifted


SHIFTS = {
    "a mean": ("age", lambda rows: rows["age"] + 15),
    "a spread": ("tenure_months", lambda rows: 12 + (rows["tenure_months"] - 12) * 0.2),
    "a scale": ("spent_90d", lambda rows: rows["spent_90d"] * 2.5),
    "counts": ("purchases_30d", lambda rows: rows["purchases_30d"] + 2),
    "a mix of categories": ("segment", lambda rows: rows["segment"].replace("standard", "premium")),
    "a new category": ("segment", lambda rows: rows["segment"].replace("standard", "platinum")),
}


@pytest.mark.parametrize("kind", SHIFTS)
def test_a_shift_is_found_on_the_column_that_shifted_and_on_no_other(kind):
    column, shift = SHIFTS[kind]
    contract = contract_with("drift: {threshold: 0.15}")
    now = graph.customers(1000, seed=2)
    report = drift.compare(contract, graph.customers(1000), now.assign(**{column: shift(now)}))
    assert drifted(report) == {column}


def test_the_window_drifts_when_the_contracts_share_of_watched_columns_does():
    now = graph.customers(1000, seed=2)
    shifted = now.assign(age=now["age"] + 20, spent_90d=now["spent_90d"] * 3)
    watched = 6  # all but tenure_months
    for share, expected in ((2 / watched, True), (2 / watched + 0.01, False)):
        report = drift.compare(contract_with(f"drift: {{share: {share}}}"), graph.customers(1000), shifted)
        assert report.share == pytest.approx(2 / watched)
        assert report.drifted is expected


def test_a_feature_that_grows_with_tenure_never_decides():
    now = graph.customers(1000, seed=2)
    older = now.assign(tenure_months=now["tenure_months"] + 36)
    report = drift.compare(contract_with("drift: {share: 0.01}"), graph.customers(1000), older)
    assert drifted(report) == {"tenure_months"}
    assert not report.drifted
    assert "tenure_months | psi" in report.table()
    assert "**drifted** (not watched)" in report.table()


def test_scores_are_compared_and_never_decide():
    reference = graph.customers(1000).assign(churn_probability=0.2)
    now = graph.customers(1000, seed=2).assign(churn_probability=0.9)
    report = drift.compare(contract_with("drift: {share: 0.01}"), reference, now)
    assert report.score_drift is not None
    assert report.score_drift > 0.1
    assert not report.drifted


@pytest.mark.parametrize(
    ("judged_by", "column", "expected"),
    [
        ("any_feature", "tenure_months", True),
        ("any_feature", "churn_probability", False),
        ("scores", "churn_probability", True),
        ("scores", "age", False),
        ("share", "age", False),
    ],
)
def test_the_contract_says_what_makes_a_window_drift(judged_by, column, expected):
    reference, now = (graph.customers(1000, seed).assign(churn_probability=0.2) for seed in (1, 2))
    contract = contract_with(f"drift: {{share: 0.5, judged_by: {judged_by}}}")
    report = drift.compare(contract, reference, now.assign(**{column: now[column] + 40}))
    assert drifted(report) == {column}
    assert report.drifted is expected


def test_without_scores_there_is_no_drift_of_scores():
    report = drift.compare(CONTRACT, graph.customers(500), graph.customers(500, seed=2))
    assert report.score_drift is None


def test_a_columns_own_method_and_threshold_replace_the_contracts():
    contract = contract_with("drift: {threshold: 0.1, columns: {age: {method: wasserstein, threshold: 9}}}")
    now = graph.customers(1000, seed=2)
    report = drift.compare(contract, graph.customers(1000), now.assign(age=now["age"] + 15))
    found = {column.column: column for column in report.columns}
    assert (found["age"].method, found["age"].threshold) == ("wasserstein", 9)
    assert (found["spent_90d"].method, found["spent_90d"].threshold) == ("psi", 0.1)
    assert not report.drifted
    assert found["age"].score == pytest.approx(15 / 14, rel=0.1)  # in deviations of the reference


def test_a_category_has_no_wasserstein_distance_and_gets_another():
    report = drift.compare(contract_with("drift: {method: wasserstein}"), graph.customers(500), graph.customers(500, 2))
    assert {c.column: c.method for c in report.columns}["segment"] == "jensenshannon"


def odd(rows: int, seed: int) -> pd.DataFrame:
    """Customers whose every number is odd in its own way."""
    random = np.random.default_rng(seed)
    return graph.customers(rows, seed).assign(
        purchases_30d=np.ones(rows),
        spent_90d=random.random(rows) < 0.5,
        recency_days=pd.array(random.choice([1, 2, None], rows), dtype="Int64"),
        gap_90d=pd.array(random.choice([True, False, None], rows), dtype="boolean"),
        tenure_months=random.integers(0, 4, rows),
        age=random.random(rows) * 1e15,
    )


@pytest.mark.parametrize("method", METHODS)
def test_odd_columns_are_compared_without_a_crash(method):
    contract = contract_with(f"drift: {{method: {method}}}")
    report = drift.compare(contract, odd(1000, 1), odd(1000, 2))
    assert drifted(report) == set()
    assert report.not_comparable == []
    pairs = ((odd(1000, 1), graph.customers(1000, 2)), (graph.customers(1000), odd(1000, 2)))
    for left, right in pairs if method in ("psi", "wasserstein") else ():
        report = drift.compare(contract, left, right)
        assert drifted(report) == {*contract.numeric_features}
        assert all(np.isfinite(column.score) for column in report.columns)


def test_a_column_of_which_nothing_is_known_on_one_side_is_named_and_not_judged():
    reference, now = graph.customers(400), graph.customers(400, seed=2)
    for left, right in (
        (reference, now.assign(gap_90d=np.nan, segment=None)),
        (reference.assign(gap_90d=np.nan, segment=None), now),
    ):
        report = drift.compare(contract_with("drift: {share: 0.01, threshold: 0.2}"), left, right)
        assert report.not_comparable == ["gap_90d", "segment"]
        assert not report.drifted
        assert "| segment | | | | not comparable |" in report.table()


def test_missing_categories_are_left_out_of_the_comparison():
    reference, now = graph.customers(1000), graph.customers(1000, seed=2)
    now.loc[::2, "segment"] = np.nan
    assert "segment" not in drifted(drift.compare(CONTRACT, reference, now))


@pytest.mark.parametrize("short", ["reference", "window"])
def test_too_few_rows_are_said_to_be_too_few(short):
    many, few = graph.customers(1000), graph.customers(drift.MIN_ROWS - 1)
    left, right = (few, many) if short == "reference" else (many, few)
    with pytest.raises(drift.DriftError, match=rf"the {short} has {len(few)} rows; at least {drift.MIN_ROWS}"):
        drift.compare(CONTRACT, left, right)


def test_with_no_column_to_compare_there_is_no_verdict():
    nothing = graph.customers(400).assign(**dict.fromkeys(CONTRACT.feature_names))
    with pytest.raises(drift.DriftError, match="no column holds enough values"):
        drift.compare(CONTRACT, graph.customers(400), nothing)


def test_the_verdict_is_the_same_at_every_run_also_on_a_sample():
    contract = contract_with("drift: {sample_rows: 1000}")
    reference, now = graph.customers(3000), graph.customers(2500, seed=2)
    first, second = (drift.compare(contract, reference, now).columns for _ in range(2))
    assert first == second


@pytest.mark.parametrize("method", METHODS)
def test_the_page_shows_the_distances_that_we_judge_by(method, tmp_path):
    contract = contract_with(f"drift: {{method: {method}}}")
    reference, now = (graph.customers(600, seed).assign(churn_probability=0.1 * seed) for seed in (1, 2))
    page = tmp_path / "drift.html"
    report = drift.compare(contract, reference, now, page)
    shown = [float(score) for score in re.findall(r'"drift_score": ([0-9.e+-]+)', page.read_text())]
    watched = [column.score for column in report.columns if column.column in contract.watched_features]
    assert sorted(shown) == pytest.approx(sorted(watched), abs=1e-6)


def test_the_page_needs_no_network(tmp_path):
    page = tmp_path / "drift.html"
    drift.compare(CONTRACT, graph.customers(400), graph.customers(400, seed=2), page)
    text = page.read_text()
    assert "spent_90d" in text
    assert re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=[\"']?https?:", text) == []
