"""The probes, each with what it must notice and what it must let pass."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from churn_platform.contract_file import ContractError
from churn_platform.ml import probes
from churn_platform_tests import graph
from churn_platform_tests.worlds import changed

GATES = "gates: {minimum: {roc_auc: 0.6}, min_test_rows: 50, min_test_churners: 10}"


def contract_with(text: str = GATES):
    return changed(graph.SIMULATED, (GATES, text))


CONTRACT = contract_with()
ROWS = graph.labelled(300, 4)
FITTED, TESTED = (ROWS[(ROWS["snapshot_time"] == ROWS["snapshot_time"].max()) == newest] for newest in (False, True))
LEFT = ROWS["churned"] == 1
RANDOM = np.random.default_rng(2)


def parts(**columns):
    rows = ROWS.assign(**columns)
    return rows.loc[FITTED.index], rows.loc[TESTED.index]


# -- what a feature gives away


def test_honest_features_give_nothing_away():
    found = probes.gives_away(CONTRACT, FITTED, TESTED)
    assert found.passed
    assert "the strongest feature alone, " in found.words
    assert 0.6 < found.metadata["roc_auc"] < 0.9


@pytest.mark.parametrize(
    ("leak", "copy"),
    [
        (LEFT.astype("float64"), True),
        (1.0 - LEFT, True),
        (np.where(LEFT, np.nan, ROWS["gap_90d"].fillna(1.0)), False),
        (np.where(LEFT, RANDOM.choice([-9.0, 9.0], len(ROWS)), 0.0) + RANDOM.normal(0, 1, len(ROWS)), False),
    ],
    ids=["the label", "its opposite", "missing for those who left", "far from the middle for those who left"],
)
def test_a_feature_that_knows_the_outcome_is_named(leak, copy):
    found = probes.gives_away(CONTRACT, *parts(gap_90d=leak))
    assert not found.passed
    assert "gap_90d alone has a ROC AUC of " in found.words
    assert ("gap_90d is the label itself" in found.words) is copy
    assert "when gap_90d becomes known" in found.remedy


def test_a_category_that_knows_the_outcome_is_named():
    found = probes.gives_away(CONTRACT, *parts(segment=np.where(LEFT, "premium", "plus")))
    assert not found.passed
    assert "segment is the label itself" in found.words


def test_a_category_with_a_value_for_each_row_of_training_gives_nothing_away():
    assert probes.gives_away(CONTRACT, *parts(segment=[f"s{number}" for number in range(len(ROWS))])).passed


def test_the_bound_of_a_single_feature_is_the_contracts():
    strict = contract_with("gates: {max_single_feature_auc: 0.6}")
    found = probes.gives_away(strict, FITTED, TESTED)
    assert not found.passed
    assert "more than 0.6 is not to be believed" in found.words


# -- ids


def test_honest_features_name_nobody():
    assert probes.is_id(CONTRACT, FITTED, TESTED).passed


NUMBER = ROWS["buyer"].str.removeprefix("c").astype("float64")


@pytest.mark.parametrize(
    "column",
    [{"tenure_months": NUMBER * 31 + 5}, {"segment": "no. " + ROWS["buyer"]}],
    ids=["a number", "a text"],
)
def test_a_feature_with_a_value_of_its_own_for_each_customer_is_an_id(column):
    found = probes.is_id(CONTRACT, *parts(**column))
    assert not found.passed
    assert f"{next(iter(column))} has a value of its own for each customer" in found.words


def test_the_key_itself_is_an_id_also_as_a_number():
    rows = ROWS.assign(buyer=NUMBER.astype("int64").astype(str), age=NUMBER)
    found = probes.is_id(CONTRACT, rows.loc[FITTED.index], rows.loc[TESTED.index])
    assert "age is the customer's key" in found.words


def test_a_number_of_its_own_that_was_seen_once_is_no_id():
    """Without a second observation every sum of money is one's own."""
    once = ROWS.assign(buyer=[f"b{number}" for number in range(len(ROWS))])
    assert probes.is_id(CONTRACT, once.loc[FITTED.index], once.loc[TESTED.index]).passed


# -- rows that are not new


def test_honest_test_rows_are_unseen():
    found = probes.unseen(CONTRACT, FITTED, TESTED, "time")
    assert found.passed
    assert "0.0% have a twin" in found.words


def test_rows_that_stand_twice_are_seen_also_where_the_id_is_written_otherwise():
    again = TESTED.head(3).assign(buyer=lambda rows: " " + rows["buyer"].str.upper())
    found = probes.unseen(CONTRACT, pd.concat([FITTED, again]), TESTED, "time")
    assert not found.passed
    assert "3 rows stand twice for the same customer and time" in found.words


def test_customers_on_both_sides_are_seen_where_customers_are_what_is_divided():
    found = probes.unseen(CONTRACT, FITTED, TESTED, "customer")
    assert "300 customers are among the fitted and the tested rows" in found.words


def test_copies_under_other_ids_are_seen():
    copies = TESTED.head(90).assign(buyer=lambda rows: "x" + rows["buyer"], snapshot_time=FITTED["snapshot_time"].min())
    found = probes.unseen(CONTRACT, pd.concat([FITTED, copies]), TESTED, "time")
    assert not found.passed
    assert "30% of the test rows equal, in every feature, a row of another customer" in found.words
    assert probes.unseen(contract_with("gates: {max_twins: 0.5}"), pd.concat([FITTED, copies]), TESTED, "time").passed


def test_customers_who_share_a_few_whole_numbers_are_no_copies():
    whole = dict.fromkeys(CONTRACT.numeric_features, 1.0) | {"segment": "plus"}
    found = probes.unseen(CONTRACT, *parts(**whole), "time")
    assert found.passed
    assert "whether they have twins is not judged" in found.words


# -- behaviour


def answers(rows: pd.DataFrame):
    return graph.risk(rows)


def test_a_model_that_reacts_as_expected_passes_and_says_by_how_much():
    found = probes.reacts(CONTRACT, TESTED, answers)
    assert found.passed
    assert set(found.metadata) == {"all that speaks for staying", "recency_days"}
    assert all(change < 0 for change in found.metadata.values())


def test_a_model_that_ignores_what_is_known_passes():
    assert probes.reacts(CONTRACT, TESTED, lambda rows: np.full(len(rows), 0.3)).passed


def test_a_model_that_learnt_the_opposite_is_refused():
    found = probes.reacts(CONTRACT, TESTED, lambda rows: 1 - answers(rows))
    assert not found.passed
    assert "with more of all that speaks for staying, the mean probability of leaving rises" in found.words
    assert "with less recency_days" in found.words


def test_one_feature_that_goes_the_other_way_in_company_is_no_fault():
    """More purchases in the past and none lately: such a customer tires."""

    def tiring(rows):
        return 1 / (1 + np.exp(0.8 * rows["purchases_30d"] - 0.001 * rows["spent_90d"]))

    assert probes.reacts(CONTRACT, TESTED, tiring).passed
    stated = contract_with("gates: {directions: {spent_90d: decreasing}}")
    assert not probes.reacts(stated, TESTED, tiring).passed


def test_what_the_contract_states_takes_the_place_of_the_kinds_own_rule():
    stated = contract_with("gates: {directions: {age: increasing, recency_days: any, spent_90d: any}}")
    assert stated.directions == {"purchases_30d": -1, "age": 1}
    young = probes.reacts(stated, TESTED, answers)  # it says that the young leave
    assert not young.passed
    assert "with less age, the mean probability of leaving rises" in young.words


def test_where_no_direction_is_known_there_is_nothing_to_judge_and_it_is_said():
    stated = contract_with("gates: {directions: {purchases_30d: any, recency_days: any, spent_90d: any}}")
    found = probes.reacts(stated, TESTED, lambda rows: 1 - answers(rows))
    assert found.passed
    assert "state some under gates.directions" in found.words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gates: {directions: {spent: decreasing}}", "there is no feature 'spent'"),
        ("gates: {directions: {segment: decreasing}}", "a category has no more or less"),
        ("gates: {directions: {age: down}}", "is not one of the choices"),
        ("gates: {minimum: {brier: 0.5}, maximum: {brier: 0.2}}", "no model can"),
        ("gates: {slices: {minimum: {roc_auc: 60}}}", "lies outside 0 to 1"),
    ],
)
def test_a_contract_whose_gates_contradict_it_is_refused(text, words):
    with pytest.raises(ContractError, match=words):
        contract_with(text)


def test_an_honest_model_answers_the_same_however_it_is_asked():
    assert probes.invariant(CONTRACT, TESTED, answers).passed


def by_id(rows):
    return rows["buyer"].str.removeprefix("c").astype(float).to_numpy() / 1000


def by_order(rows):
    return np.linspace(0, 1, len(rows))


def by_company(rows):
    return (rows["spent_90d"].rank() / (len(rows) + 1)).to_numpy()


def by_chance(rows):
    return RANDOM.random(len(rows))


@pytest.mark.parametrize(
    ("model", "how"),
    [
        (by_id, "with the ids shuffled"),
        (by_order, "in another order"),
        (by_company, "asked with half of the customers"),
        (by_company, "asked one at a time"),
        (by_chance, "asked again"),
    ],
)
def test_a_model_whose_answer_hangs_on_something_else_is_refused(model, how):
    found = probes.invariant(CONTRACT, TESTED, model)
    assert not found.passed
    assert f"{how}, probabilities change by up to " in found.words


def test_the_budget_is_judged_by_time_and_size():
    def slow(rows):
        time.sleep(0.02)
        return answers(rows)

    contract = contract_with("gates: {max_latency_ms: 15, max_size_mb: 2}")
    assert probes.budget(CONTRACT, TESTED, slow, 1.0).passed
    assert "asked for is at most 15" in probes.budget(contract, TESTED, slow, 1.0).words
    assert not probes.budget(contract, TESTED, slow, 1.0).passed
    assert not probes.budget(CONTRACT, TESTED, answers, 201.0).passed
    assert not probes.budget(CONTRACT, TESTED, answers, None).passed
