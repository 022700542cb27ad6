"""The retraining policy, as a table: what is known, and what is decided."""

from __future__ import annotations

import pytest

from churn_platform.ml import policy
from churn_platform_tests import graph
from churn_platform_tests.worlds import changed

WINDOWS = [f"2023-{month:02}-01" for month in range(1, 11)]
LAST = WINDOWS[-1]
WRITTEN = "retraining: {drifted_windows: 1, of_last: 1, cooldown_windows: 2, budget: {retrains: 3, windows: 12}}"


def contract_with(*, drifted=2, of_last=3, cooldown=3, retrains=4, budget_windows=12, drop=0.05):
    text = (
        f"retraining: {{drifted_windows: {drifted}, of_last: {of_last}, cooldown_windows: {cooldown}, "
        f"performance_drop: {drop}, budget: {{retrains: {retrains}, windows: {budget_windows}}}}}"
    )
    return changed(graph.SIMULATED, (WRITTEN, text))


def ago(*numbers: int) -> list[str]:
    """Windows so many before the last."""
    return [WINDOWS[-1 - number] for number in numbers]


def reports(text: str) -> dict[str, bool]:
    """Drift reports of the last windows, oldest first: D drifted, s steady, a point where there is none."""
    newest = WINDOWS[len(WINDOWS) - len(text) :]
    return {window: letter == "D" for window, letter in zip(newest, text, strict=True) if letter != "."}


@pytest.mark.parametrize(
    ("said", "retrain"),
    [
        ("", False),
        ("sss", False),
        ("ssD", False),
        ("sDD", True),
        ("DsD", True),
        ("DDs", True),
        ("DDss", False),
        ("DDD", True),
        ("D", False),
        ("DD", True),
        ("D.D", True),
        ("D..D", True),  # a window without a report counts neither way
        ("DD...", True),
        ("DDsss", False),
    ],
)
def test_n_of_the_last_m_reports_ask_for_a_retrain(said, retrain):
    assert policy.decide(contract_with(), WINDOWS, reports(said), {}, []).retrain is retrain


@pytest.mark.parametrize(
    ("retrained", "retrain"),
    [
        ([], True),
        (ago(0), False),
        (ago(1), False),
        (ago(2), False),
        (ago(3), True),
        (ago(9, 3), True),
        (ago(9, 2), False),
        (["2022-01-01"], True),  # not one of the windows: long ago
        (["2023-11-01"], False),  # later than what is judged: its alarm has been answered
    ],
)
def test_the_cooldown_counts_windows_since_the_last_training(retrained, retrain):
    decision = policy.decide(contract_with(), WINDOWS, reports("DDD"), {}, retrained)
    assert decision.retrain is retrain
    assert retrain or "drifted" in decision.reason


def test_without_a_cooldown_a_window_is_still_not_trained_on_twice():
    contract = contract_with(cooldown=0)
    assert not policy.decide(contract, WINDOWS, reports("DDD"), {}, ago(0)).retrain
    assert policy.decide(contract, WINDOWS, reports("DDD"), {}, ago(1)).retrain


@pytest.mark.parametrize(
    ("retrained", "retrain"),
    [
        (ago(4), True),
        (ago(5, 4), False),
        (ago(4, 4), False),  # two models of one window are two
        (ago(9, 4), True),  # the older one lies outside the budget's windows
        (ago(6, 5), True),  # six windows: the last and the five before it
    ],
)
def test_the_budget_counts_models_in_its_windows(retrained, retrain):
    contract = contract_with(cooldown=1, retrains=2, budget_windows=6)
    decision = policy.decide(contract, WINDOWS, reports("DDD"), {}, sorted(retrained))
    assert decision.retrain is retrain
    assert retrain or "budget" in decision.reason


def test_a_budget_of_none_allows_none():
    contract = contract_with(cooldown=0, retrains=0)
    assert not policy.decide(contract, WINDOWS, reports("DDD"), {}, []).retrain
    assert not policy.scheduled(contract, WINDOWS, []).retrain


@pytest.mark.parametrize(
    ("drops", "retrain"),
    [
        ({}, False),
        ({LAST: 0.05}, False),  # more than, not as much as
        ({LAST: 0.051}, True),
        ({LAST: -0.2}, False),
        ({WINDOWS[0]: 0.3, LAST: 0.01}, False),  # the newest measurement counts
        ({WINDOWS[0]: 0.01, WINDOWS[5]: 0.3}, True),  # which may be some windows old: labels take time
        ({LAST: float("nan")}, False),
        ({"2023-12-01": 0.3}, False),  # later than what is judged
    ],
)
def test_a_fall_of_live_performance_asks_for_a_retrain(drops, retrain):
    assert policy.decide(contract_with(), WINDOWS, {}, drops, []).retrain is retrain


def test_cooldown_and_budget_bind_a_fall_of_performance_too():
    assert not policy.decide(contract_with(), WINDOWS, {}, {LAST: 0.3}, ago(1)).retrain
    assert not policy.decide(contract_with(retrains=1), WINDOWS, {}, {LAST: 0.3}, ago(5)).retrain


def test_what_came_after_the_window_that_is_judged_is_not_known_yet():
    earlier = WINDOWS[:5]
    later = dict.fromkeys(WINDOWS[5:], True)
    assert not policy.decide(contract_with(), earlier, later, {}, []).retrain


def test_without_any_window_nothing_is_decided():
    for decision in (
        policy.decide(contract_with(), [], {LAST: True}, {LAST: 1.0}, []),
        policy.scheduled(contract_with(), [], []),
    ):
        assert not decision.retrain
        assert decision.reason == "there is no window yet"


def test_both_reasons_are_given_when_there_are_two():
    reason = policy.decide(contract_with(), WINDOWS, reports("sDD"), {LAST: 0.1}, []).reason
    drift, fall = reason.split(" and ")
    assert drift == f"2 of the last 3 windows drifted ({WINDOWS[-2]}, {LAST})"
    assert fall == f"live ROC AUC of {LAST} fell by 0.100 (more than 0.05)"


@pytest.mark.parametrize(("retrained", "retrain"), [([], True), (ago(2), False), (ago(3), True), (ago(0), False)])
def test_the_calendar_keeps_to_the_cooldown(retrained, retrain):
    assert policy.scheduled(contract_with(), WINDOWS, retrained).retrain is retrain


def asked_by(*reasons: str):
    return changed(graph.SIMULATED, (WRITTEN, f"retraining: {{when: [{', '.join(reasons)}], cooldown_windows: 0}}"))


@pytest.mark.parametrize(
    ("reasons", "because"),
    [
        ([], ""),
        (["drift"], "1 of the last 1 windows drifted"),
        (["performance"], "live ROC AUC"),
        (["every_window"], "the contract asks for one in every window"),
    ],
)
def test_only_what_the_contract_names_asks_for_a_retrain(reasons, because):
    decision = policy.decide(asked_by(*reasons), WINDOWS, {LAST: True}, {LAST: 0.3}, [])
    assert decision.retrain is bool(because)
    assert decision.reason.startswith(because or "the contract asks for no retrains")


@pytest.mark.parametrize(
    ("reasons", "quiet"),
    [
        (["drift"], "0 of the last 1 windows drifted (it takes 1)"),
        (["performance"], "performance holds"),
        (["drift", "performance"], "0 of the last 1 windows drifted (it takes 1) and performance holds"),
    ],
)
def test_what_did_not_ask_is_said(reasons, quiet):
    assert policy.decide(asked_by(*reasons), WINDOWS, {LAST: False}, {LAST: 0.0}, []).reason == quiet
