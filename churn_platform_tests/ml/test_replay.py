"""The replay: it knows no more than the platform did at the time, and says what retraining would have been worth."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pandas as pd
import pytest

from benchmarks.replay import FIRST, contract_of, history
from churn_platform.assets.replay import read_history
from churn_platform.contract import LABEL, SimulatedDrift
from churn_platform.engine import connection
from churn_platform.ml import metrics, replay
from churn_platform_tests import graph

QUIET = contract_of(1000, 6)

# A candidate in every window; some reach what the gates ask and some do not.
EVENTFUL = graph.SIMULATED
for _old, _new in (
    ("present: 2023-07-01", "present: 2023-08-01"),
    ("minimum: {roc_auc: 0.6}", "minimum: {roc_auc: 0.76}"),
    ("drifted_windows: 1, of_last: 1, cooldown_windows: 2", "when: [every_window], cooldown_windows: 0"),
    ("budget: {retrains: 3, windows: 12}", "budget: {retrains: 9, windows: 12}"),
):
    assert _old in EVENTFUL
    EVENTFUL = EVENTFUL.replace(_old, _new)


@pytest.fixture(scope="module")
def quiet() -> pd.DataFrame:
    return history(QUIET)


def chosen(contract, *names: str) -> list[replay.Policy]:
    return [each for each in replay.policies(contract) if each.gated and each.name in (replay.NEVER, *names)]


@pytest.mark.slow
def test_where_nothing_changes_retraining_is_not_said_to_pay(quiet):
    report = replay.replay(QUIET, quiet, chosen(QUIET, "every window"))
    never, every = report.results
    assert never.retrains == 0
    assert every.retrains == len(report.windows)
    assert every.better.low <= 0 <= every.better.high
    assert "no policy is significantly better" in report.recommendation


@pytest.mark.slow
def test_where_what_predicts_churn_changes_it_pays():
    change = (QUIET.time.start + timedelta(days=30 * (FIRST + 2))).replace(day=1)
    contract = contract_of(1500, 14, [SimulatedDrift(kind="concept", at=change, strength=1.0)], train_windows=4)
    report = replay.replay(contract, history(contract), chosen(contract, "every window"))
    _, every = report.results
    assert every.better.low > 0
    assert every.wins > every.losses
    assert report.recommendation.startswith("Choose: every window.")


@pytest.mark.slow
def test_a_label_changes_nothing_before_it_is_known(quiet):
    """The trap: the labels of the last window that is judged are turned round; only what comes after may differ."""
    policies = chosen(QUIET, "every window")
    last = sorted(quiet.loc[quiet[replay.KNOWN_IN].notna(), replay.KNOWN_IN].unique())[-3]
    turned = quiet.assign(**{LABEL: quiet[LABEL].where(quiet[replay.KNOWN_IN] < last, 1 - quiet[LABEL])})
    before, after = (replay.replay(QUIET, rows, policies) for rows in (quiet, turned))
    for first, second in zip(before.results, after.results, strict=True):
        for window, champion in first.played.champions.items():
            if window <= last:
                assert second.played.champions[window] == champion
        told = {window: words for window, words in first.played.reasons.items() if window < last}
        assert {window: words for window, words in second.played.reasons.items() if window < last} == told
    assert before.by_window != after.by_window


def test_cooldown_and_budget_hold(quiet):
    often = QUIET.model_copy(
        update={"retraining": QUIET.retraining.model_copy(update={"when": ["every_window"], "cooldown_windows": 3})}
    )
    done = replay.replay(QUIET, quiet, [chosen(QUIET)[0], replay.Policy("with a cooldown", often)]).results[1].played
    windows = sorted(quiet[replay.WINDOW].unique())
    places = [windows.index(window) for window in done.trained]
    assert len(places) > 2
    assert min(later - earlier for earlier, later in pairwise(places)) == 3


@pytest.mark.slow
def test_it_does_what_the_platform_did(tmp_path, monkeypatch):
    """A history that was really played, in which candidates were promoted and refused, window by window."""
    shop = graph.played(EVENTFUL).copy(tmp_path).use(monkeypatch)
    promoted = [entry["window"] for entry in shop.log()]
    scored = {}
    with connection() as con:
        shop.tables.read(con, "churn_scores")
        rows = con.execute("SELECT DISTINCT _window, model_version FROM churn_scores ORDER BY 1").fetchall()
    for window, version in rows:
        scored[window] = shop.tracking.version(version).tags["window"]
    never, own = replay.policies(shop.contract)[0], replay.policies(shop.contract)[-2]
    assert own.name == "the contract's own"
    assert own.gated
    report = replay.replay(shop.contract, read_history(shop.contract, shop.tables), [never, own])
    played = report.results[1].played
    assert played.champions == scored
    assert played.promoted == promoted
    assert played.trained == sorted(version.tags["window"] for version in shop.tracking.versions())
    first, *later = promoted
    assert later  # one that took over from another
    assert min(played.trained) < first  # a first candidate that was refused, which is no retrain
    assert played.retrains == len([window for window in played.trained if window > first]) > len(later)


def result(name: str, gain: float, brier_gain: float) -> replay.Result:
    """A policy that is surely better, or worse, by so much."""
    near = [metrics.Interval(value, value - 0.001, value + 0.001) for value in (gain, brier_gain)]
    return replay.Result(
        played=replay.Played(replay.Policy(name, QUIET), trained=["2021-01-01"], promoted=["2021-01-01"]),
        roc_auc=0.7 + gain,
        brier=0.2 - brier_gain,
        better=near[0],
        brier_better=near[1],
        profit=None,
        wins=1,
        losses=0,
    )


def test_a_policy_that_ranks_better_with_worse_probabilities_is_not_recommended():
    never, bold, honest = result(replay.NEVER, 0, 0), result("bold", 0.02, -0.003), result("honest", 0.01, 0.002)
    said = replay._recommend([never, bold, honest], 12)
    assert said.startswith("Choose: honest.")
    assert "Not considered, as its probabilities are significantly worse (Brier score): bold." in said
    assert "no policy is significantly better" in replay._recommend([never, bold], 12)


def test_a_history_without_a_model_says_what_to_do(quiet):
    early = quiet[quiet[replay.WINDOW] < "2021-06-01"]
    with pytest.raises(replay.ReplayError, match=r"no window was scored by a model .* lower model.min_windows"):
        replay.replay(QUIET, early, chosen(QUIET))
