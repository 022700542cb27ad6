"""A contract read back in words reads well."""

from __future__ import annotations

import pytest

from churn_platform.explain import explain
from churn_platform_tests.worlds import PURCHASES, WIDE, changed

UNDATED = changed(WIDE, ("time: as_of", "observed_at: 2024-03-15"))


@pytest.mark.parametrize(
    "words",
    [
        "paid: float, always there, from 0\n",
        "spent_90d (number): sum of paid, in the last 90 days",
        "shops_90d (number): number of different values of shop, in the last 90 days",
        "visits_30d (number): number of purchases, in the last 30 days",
        "refused with no good row, or with more than 5.0% bad rows",
        "tested on the newest labelled window, validated on the one before",
        "no search for better hyperparameters; calibrated as suits the validation rows; tested on",
        "Retraining: when the newest window drifted",
        "at least 1 window apart, at most 4 times in 12 windows",
    ],
)
def test_purchases_are_explained(words: str) -> None:
    assert words in explain(changed(PURCHASES))


@pytest.mark.parametrize(
    "words",
    [
        "plan (category): the column plan, as it stood then",
        "Churn: left is 'Yes' ('No': stayed); known 30 days after the date of all rows, 2024-03-15.",
        "trained on 60% of the customers, validated on 20% and tested on 20%",
    ],
)
def test_a_table_without_dates_is_explained(words: str) -> None:
    assert words in explain(UNDATED)


def test_a_search_is_explained() -> None:
    said = explain(changed(PURCHASES, ("label:", "model: {search: {trials: 30}, calibration: isotonic}\nlabel:")))
    assert "searched in up to 30 trials and 60 seconds, by roc_auc over 3 folds; calibrated by isotonic" in said


def test_what_a_team_did_to_its_customers_is_no_purchase() -> None:
    contacts = "  contacts: {path: c.csv, customer: who, time: at, columns: {who: {type: string}, at: {type: date}}}\n"
    counted = "    mails_90d: {kind: count, table: contacts, window_days: 90}\n"
    contract = changed(PURCHASES, ("features:\n", f"{contacts}features:\n"), ("label:", f"{counted}label:"))
    assert "mails_90d (number): number of contacts, in the last 90 days (from contacts)" in explain(contract)


def test_what_else_refuses_a_window_is_told_where_the_contract_says_it() -> None:
    keys = "    min_volume: 0.5\n    max_repeated: 0.02\n    max_silence_days: 2\n    max_rows: 5000\n"
    said = explain(changed(PURCHASES, ("    order: receipt\n", f"    order: receipt\n{keys}")))
    assert "more than 5,000 good rows, or with less than 50% of the smallest of the windows before" in said
    assert "or with more than 2% of the rows equal to another, or with no row in its last 2 days" in said


def test_figures_of_value_are_explained() -> None:
    figures = "customer_value: spent_90d, value_factor: 0.25, offer_cost: 3, acceptance: 0.2, capacity: 1500"
    said = explain(changed(PURCHASES + f"value: {{{figures}, suppression: do_not_contact.csv}}\n"))
    assert "a kept customer is worth 0.25 times spent_90d; contacting one costs 3 and keeps 20% of those" in said
    assert "at most 1,500 customers a window; 10% of the chosen are left alone by lot" in said
    assert "rests for 90 days; those in do_not_contact.csv are never contacted" in said
    assert "High Risk from the probability on that earns most on the validation rows (50% if none earns)." in said
    assert "High Risk from 50% on." in explain(changed(PURCHASES))
    assert "Decisions" not in explain(changed(PURCHASES))
    said = explain(changed(PURCHASES + "value: {customer_value: 80, offer_cost: 3, acceptance: 0.2, hold_out: 0}\n"))
    assert "is worth 80; " in said
    assert "as many as that; nobody is left alone by lot" in said


def test_answers_in_the_shadow_are_explained_where_they_are_asked_for() -> None:
    said = explain(changed(PURCHASES + "gates: {shadow_answers: 2000}\nserving: {shadow: true}\n"))
    assert "2,000 live requests answered in the shadow of the champion, much as it did" in said
    assert "in the shadow" not in explain(changed(PURCHASES))
