"""What contacts did: intervals as published, and a lot tells what an observation cannot."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from churn_platform.ml import models, uplift
from churn_platform_tests import graph
from churn_platform_tests.worlds import changed


def rows(churned: int, stayed: int) -> list[float]:
    return [1.0] * churned + [0.0] * stayed


def arms(treated: tuple[int, int], control: tuple[int, int]):
    labels = np.array(rows(*treated) + rows(*control))
    return labels, np.arange(len(labels)) < sum(treated)


# Newcombe 1998, table II, method 10: 56/70 - 48/80, 9/10 - 3/10, 10/10 - 0/20
PUBLISHED = [
    ((48, 32), (56, 14), 0.2000, 0.0524, 0.3339),
    ((3, 7), (9, 1), 0.6000, 0.1705, 0.8090),
    ((0, 20), (10, 0), 1.0000, 0.6791, 1.0000),
]


@pytest.mark.parametrize(("treated", "control", "value", "low", "high"), PUBLISHED)
def test_the_interval_is_the_published_one(treated, control, value, low, high):
    found = uplift.effect(*arms(treated, control)).saved
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=5e-5)


def test_an_effect_says_how_many_of_the_leavers_stayed():
    found = uplift.effect(*arms((15, 85), (20, 80)))
    assert (found.treated, found.control, found.left_out) == (100, 100, 0)
    assert found.saved.value == pytest.approx(0.05)
    assert found.acceptance == pytest.approx(0.25)
    assert np.isnan(uplift.effect(*arms((0, 10), (0, 10))).acceptance)


def test_lists_of_their_own_risk_and_share_are_compared_each_with_itself():
    """Together, contacts would look harmful: the risky list was contacted nearly whole (Simpson's paradox)."""
    calm, calm_treated = arms((1, 99), (20, 980))
    risky, risky_treated = arms((400, 600), (50, 50))
    labels, treated = np.r_[calm, risky], np.r_[calm_treated, risky_treated]
    strata = np.repeat([0, 1], [len(calm), len(risky)])
    assert uplift.effect(labels, treated).saved.high < 0
    found = uplift.effect(labels, treated, strata)
    assert found.saved.value == pytest.approx((0.01 * 100 + 0.10 * 1000) / 1100)


def test_a_list_without_a_hold_out_is_left_out_and_counted():
    labels, treated = arms((10, 90), (20, 80))
    labels, treated = np.r_[labels, rows(3, 7)], np.r_[treated, np.ones(10, dtype=bool)]
    found = uplift.effect(labels, treated, np.repeat([0, 1], [200, 10]))
    assert (found.treated, found.control, found.left_out) == (100, 100, 10)


@pytest.mark.parametrize("treated", [np.ones(5, dtype=bool), np.zeros(5, dtype=bool), np.zeros(0, dtype=bool)])
def test_with_nobody_to_compare_with_nothing_is_said(treated):
    with pytest.raises(uplift.NotComparableError):
        uplift.effect(np.zeros(len(treated)), treated)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(5)
    held = 0
    for _ in range(600):
        strata = random.integers(0, 3, 500)
        treated = random.random(500) < 0.8
        risk = np.array([0.05, 0.2, 0.4])[strata] * np.where(treated, 0.7, 1.0)
        found = uplift.effect((random.random(500) < risk).astype("float64"), treated, strata)
        share = np.bincount(strata[treated], minlength=3) / treated.sum()
        truth = 0.3 * share @ np.array([0.05, 0.2, 0.4])
        held += found.saved.low <= truth <= found.saved.high
    assert held / 600 == pytest.approx(0.95, abs=0.025)


def test_a_difference_of_means_has_an_interval_around_it():
    labels, treated = arms((15, 85), (20, 80))
    earned = 100 * (1 - labels) - 5 * treated
    found = uplift.difference(earned, treated, pd.Series(range(200)))
    assert found.value == pytest.approx(0.05 * 100 - 5)
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 100 * np.sqrt((0.15 * 0.85 + 0.16) / 100), rel=0.1)
    assert found == uplift.difference(earned, treated, pd.Series(range(200)))


def test_rows_of_the_same_customers_make_no_more_certain():
    labels, treated = arms((15, 85), (20, 80))
    once = uplift.difference(labels, treated, pd.Series(range(200)))
    four = uplift.difference(np.tile(labels, 4), np.tile(treated, 4), pd.Series(np.tile(range(200), 4)))
    assert four.high - four.low == pytest.approx(once.high - once.low, rel=0.05)


def campaign(effect: float, seed: int = 2):
    """A campaign that reached the quiet ones, as campaigns do; it keeps a share of them."""
    contract = changed(graph.SIMULATED)
    inputs = models.frame(contract, graph.customers(4000, seed))
    random = np.random.default_rng(seed)
    risk = graph.risk(inputs)
    contacted = random.random(4000) < 0.1 + 0.7 * risk
    labels = (random.random(4000) < risk * np.where(contacted, 1 - effect, 1)).astype("float64")
    found = uplift.observed(
        labels, contacted, lambda: uplift.propensity(contract, inputs, contacted), pd.Series(range(4000))
    )
    return found, effect * risk[contacted].mean()


def test_a_campaign_that_reached_the_quiet_ones_looks_harmful_until_like_is_compared_with_like():
    found, truth = campaign(effect=0.3)
    assert found.plain.high < 0
    assert found.alike.low > 0
    assert found.alike.value == pytest.approx(truth, abs=0.06)
    assert found.contacted + found.others == 4000
    assert found.contacted_rate > found.others_rate


def test_a_campaign_without_effect_shows_none_once_like_is_compared_with_like():
    found, _ = campaign(effect=0.0)
    assert found.plain.value < -0.2
    assert abs(found.alike.value) < 0.06


def test_both_are_said_in_words_with_what_they_do_not_say():
    found = uplift.effect(*arms((15, 85), (20, 80)))
    words = found.words(0.95, 0.2, uplift.Interval(1.0, -2.0, 3.0))
    assert "of 100 who were held out by lot, 20.0%. Contacts avoided +0.0500 [" in words
    assert "25% of those who would have left; the contract assumes 20%" in words
    assert "nobody to be compared with" not in words
    observed, _ = campaign(effect=0.3)
    assert observed.words(0.95).startswith("**An observation, no experiment.**")
