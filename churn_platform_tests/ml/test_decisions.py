"""Decisions: whom to contact follows from money, capacity and a lot that nothing else has a part in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from churn_platform.ml import decisions
from churn_platform_tests.worlds import PURCHASES, changed


def contract_with(words: str):
    return changed(PURCHASES + f"value: {{{words}}}\n")


FLAT = contract_with("customer_value: 100, offer_cost: 10, acceptance: 0.5, capacity: 2, hold_out: 0.2")
BY_FEATURE = contract_with("customer_value: spent_90d, value_factor: 0.2, offer_cost: 2, acceptance: 0.5")


def test_a_customer_is_worth_what_the_contract_says():
    rows = pd.DataFrame({"spent_90d": [50.0, np.nan, -3.0]})
    assert decisions.worth(FLAT, rows).tolist() == [100, 100, 100]
    assert decisions.worth(BY_FEATURE, rows).tolist() == [10, 0, 0]


def test_profit_is_acceptance_times_risk_times_worth_less_the_cost():
    profit = decisions.expected_profit(FLAT, np.array([0.0, 0.2, 1.0]), np.full(3, 100.0))
    assert profit.tolist() == [-10, 0, 40]
    labels, contacted = np.array([1.0, 0, 1, 0]), np.array([True, True, False, False])
    assert decisions.realised_profit(FLAT, labels, contacted, np.full(4, 100.0)) == 40 - 10


def test_the_threshold_lies_where_contacting_who_is_most_at_risk_earned_most():
    random = np.random.default_rng(5)
    probability = random.random(500)
    labels = (random.random(500) < probability).astype("float64")
    worth = random.exponential(50, 500)
    earned = decisions.earned_by_risk(FLAT, labels, probability, worth)
    assert earned.shape == (501,)
    assert earned[0] == 0
    assert earned[-1] == pytest.approx(decisions.realised_profit(FLAT, labels, np.ones(500, dtype="bool"), worth))
    contacted = (probability >= decisions.best_threshold(FLAT, labels, probability, worth)).sum()
    assert earned[contacted] == earned.max()


def test_the_best_are_contacted_up_to_the_capacity_and_nobody_at_a_loss():
    chosen = decisions.choose(FLAT, np.array([0.3, 0.9, 0.1, 0.5]), np.full(4, 100.0))
    assert chosen.tolist() == [False, True, False, True]
    chosen = decisions.choose(BY_FEATURE, np.full(4, 0.5), np.array([100.0, 8, 9, 0]))
    assert chosen.tolist() == [True, False, True, False]


def test_a_valuable_customer_goes_before_a_riskier_one():
    chosen = decisions.choose(FLAT, np.array([0.9, 0.5, 0.6]), np.array([30.0, 400, 400]))
    assert chosen.tolist() == [False, True, True]


def test_who_is_held_out_takes_nothing_of_the_capacity():
    held_out = np.array([True, False, False, False])
    chosen = decisions.choose(FLAT, np.array([0.9, 0.8, 0.7, 0.6]), np.full(4, 100.0), held_out)
    assert chosen.tolist() == [True, True, True, False]


def test_of_equals_the_first_is_chosen():
    assert decisions.choose(FLAT, np.full(4, 0.5), np.full(4, 100.0)).tolist() == [True, True, False, False]


def test_the_threshold_earns_more_than_any_other_on_the_rows_it_was_chosen_on():
    random = np.random.default_rng(3)
    probability = random.random(400).round(2)  # many equals
    labels = (random.random(400) < probability).astype("float64")
    worth = random.lognormal(4, 1, 400)
    threshold = decisions.best_threshold(FLAT, labels, probability, worth)

    def earned(at: float) -> float:
        return decisions.realised_profit(FLAT, labels, probability >= at, worth)

    assert earned(threshold) == pytest.approx(max(earned(at) for at in np.linspace(0, 1, 501)))


def test_the_threshold_of_a_calibrated_model_is_where_an_offer_pays():
    random = np.random.default_rng(3)
    probability = random.random(200_000)
    labels = (random.random(200_000) < probability).astype("float64")
    threshold = decisions.best_threshold(FLAT, labels, probability, np.full(200_000, 100.0))
    assert threshold == pytest.approx(0.2, abs=0.02)  # 0.5 * p * 100 = 10


def test_a_threshold_that_contacts_all_or_only_the_surest_lies_between_0_and_1():
    ones, nobody = np.ones(3), np.array([1.0, 0.0, 0.0])
    assert decisions.best_threshold(FLAT, ones, np.zeros(3), np.full(3, 100.0)) == pytest.approx(0, abs=1e-5)
    assert 0 < decisions.best_threshold(FLAT, nobody, np.array([1.0, 1, 0]), np.full(3, 100.0)) < 1


@pytest.mark.parametrize(
    ("contract", "labels"), [(changed(PURCHASES), [1.0, 0, 1]), (FLAT, [0.0, 0, 0]), (FLAT, [])], ids=str
)
def test_without_figures_or_without_gain_the_contracts_own_threshold_holds(contract, labels):
    probability = np.linspace(0.1, 0.9, len(labels))
    found = decisions.best_threshold(contract, np.array(labels), probability, np.full(len(labels), 100.0))
    assert found == contract.model.threshold


def test_without_figures_nobody_can_be_chosen():
    with pytest.raises(ValueError, match="does not describe"):
        decisions.choose(changed(PURCHASES), np.ones(1), np.ones(1))


def test_the_lot_is_the_same_on_every_run_and_another_one_in_every_window():
    customers = [f"c{n}" for n in range(5000)]
    first = decisions.held_out(FLAT, "2024-01-01", customers)
    assert (first == decisions.held_out(FLAT, "2024-01-01", customers)).all()
    assert first.mean() == pytest.approx(0.2, abs=0.02)
    second = decisions.held_out(FLAT, "2024-02-01", customers)
    assert second[first].mean() == pytest.approx(0.2, abs=0.04)  # the lot has no memory
    order = np.random.default_rng(1).permutation(5000)
    assert (decisions.held_out(FLAT, "2024-01-01", np.array(customers)[order]) == first[order]).all()


def test_nobody_is_held_out_where_the_contract_says_so():
    contract = contract_with("customer_value: 100, offer_cost: 10, acceptance: 0.5, hold_out: 0")
    assert not decisions.held_out(contract, "2024-01-01", map(str, range(1000))).any()
    assert decisions.held_out(contract, "2024-01-01", []).shape == (0,)


def test_the_profit_curve_rises_while_an_offer_pays_and_falls_after():
    probability = np.array([0.1, 0.9, 0.3])
    curve = decisions.profit_curve(FLAT, probability, np.full(3, 100.0))
    assert curve.tolist() == pytest.approx([0, 35, 40, 35])
    realised = decisions.profit_curve(FLAT, probability, np.full(3, 100.0), np.array([0.0, 0, 1]))
    assert realised.tolist() == pytest.approx([0, -10, 30, 20])
