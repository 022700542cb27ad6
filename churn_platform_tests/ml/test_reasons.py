"""Reasons: the strongest contributions, said in words that a person understands."""

from __future__ import annotations

import numpy as np
import pytest

from churn_platform.contract import Kind
from churn_platform.ml.reasons import reasons, words
from churn_platform_tests import graph
from churn_platform_tests.worlds import PURCHASES, changed

WORDS = [
    ("quiet_days", 47.2, 12.0, "no purchase for 47 days, far above the usual 12"),
    ("visits_30d", 2.0, 4.0, "2 purchases in the last 30 days, half of the usual 4"),
    ("visits_30d", 1.0, 0.0, "1 purchase in the last 30 days (usual: 0)"),
    ("visits_30d", 0.0, 4.0, "no purchase in the last 30 days, far below the usual 4"),
    ("spent_90d", 1234.56, 600.0, "sum of paid, in the last 90 days: 1,235, twice the usual 600"),
    ("basket_90d", 9.5, 10.0, "mean of paid, in the last 90 days: 9.5, about the usual 10"),
    ("gap_90d", float("nan"), 10.0, "mean days between one purchase and the next, in the last 90 days: not known"),
    ("gap_90d", None, 10.0, "mean days between one purchase and the next, in the last 90 days: not known"),
    ("months", 0.25, float("nan"), "months since the first purchase: 0.25"),
]


@pytest.mark.parametrize(("name", "value", "usual", "said"), WORDS, ids=[f"{w[0]}-{w[1]}" for w in WORDS])
def test_a_value_reads_well(name, value, usual, said):
    contract = changed(PURCHASES)
    assert words(contract, name, value, dict.fromkeys(contract.feature_names, usual)) == said


def test_a_teams_own_description_and_a_category_are_used_as_they_are():
    changes = ("age: {kind: column, table: customers, column: age}", "calls: {kind: count, window_days: 9}")
    contract = changed(
        graph.SIMULATED,
        changes,
        ("{kind: count, window_days: 30}", "{kind: count, window_days: 30, description: Buys}"),
    )
    usual = dict.fromkeys(contract.feature_names, 2.0)
    assert words(contract, "purchases_30d", 4.0, usual) == "Buys, in the last 30 days: 4, twice the usual 2"
    assert words(contract, "segment", "plus", usual).endswith("(from customers): plus")
    assert contract.feature_definitions["calls"].kind is Kind.count


def said_of(contributions, **options):
    contract = changed(PURCHASES)
    names = contract.feature_names
    sizes = np.zeros(len(names))
    sizes[: len(contributions)] = contributions
    found = reasons(contract, dict.fromkeys(names, 1.0), sizes, dict.fromkeys(names, 1.0), **options)
    return [names.index(reason.feature) for reason in found]


def test_what_raised_the_score_comes_first_and_what_lowered_it_is_left_out():
    assert said_of([0.1, -0.9, 0.3, 0.2, 0.15]) == [2, 3, 4]
    assert said_of([0.1, -0.9]) == [0]
    assert said_of([-0.1, -0.9]) == []


def test_both_sides_are_told_by_size_where_they_are_asked_for():
    assert said_of([0.1, -0.9, 0.3], only_raising=False) == [1, 2, 0]
    assert said_of([0.1, -0.9, 0.3], only_raising=False, most=1) == [1]
