"""The search: it begins with what there is without it, ends when it is told to, and finds the same again."""

from __future__ import annotations

import math

import numpy as np
import pytest

from churn_platform.contract import Search
from churn_platform.ml import metrics, models, splits, tuning
from churn_platform_tests import graph
from churn_platform_tests.worlds import changed

MODEL = "model: {family: logistic_regression, min_windows: 3}"


def contract(search: str = "{trials: 8, seconds: 600}", **model: str):
    written = {"family": "logistic_regression", "min_windows": "3", "search": search} | model
    text = ", ".join(f"{key}: {value}" for key, value in written.items())
    return changed(graph.SIMULATED, (MODEL, f"model: {{{text}}}"))


@pytest.fixture(scope="module")
def rows():
    return graph.labelled(200, 4)


@pytest.fixture(scope="module")
def found(rows):
    return tuning.search(contract(), rows)


def test_the_first_trial_is_what_there_is_without_a_search(found):
    defaults = models.FAMILIES["logistic_regression"].defaults
    assert found.trials[0].number == 1
    assert found.trials[0].parameters == {"C": defaults["C"], "class_weight": None}
    assert found.trials[0].state == "complete"


def test_the_best_trial_is_the_best_of_the_complete_ones(found):
    complete = {trial.number: trial.score for trial in found.trials if trial.state == "complete"}
    assert found.best == max(complete, key=complete.__getitem__)
    assert complete[found.best] >= complete[1]
    best = found.trials[found.best - 1]
    assert found.parameters == {**models.FAMILIES["logistic_regression"].defaults, **best.parameters}
    assert not found.cut


def test_a_trials_scores_are_those_of_its_parameters_on_the_folds(rows, found):
    trial = found.trials[found.best - 1]
    inputs, labels = models.frame(contract(), rows), rows["churned"].to_numpy(dtype="float64")
    expected = []
    for fold in splits.folds(contract(), rows, 3):
        fitted = models.fit(contract(), inputs.iloc[fold.train], labels[fold.train], found.parameters)
        said = models.probabilities(fitted, inputs.iloc[fold.valid])
        expected.append(metrics.fast_roc_auc(labels[fold.valid], said))
    assert trial.scores == expected
    assert trial.score == np.mean(expected)


def test_the_same_rows_and_seed_find_the_same(rows, found):
    again = tuning.search(contract(), rows)
    assert [(t.parameters, t.scores, t.state) for t in again.trials] == [
        (t.parameters, t.scores, t.state) for t in found.trials
    ]
    assert again.parameters == found.parameters


def test_another_seed_tries_something_else(rows, found):
    other = tuning.search(contract("{trials: 3, seconds: 600}", seed="8"), rows)
    assert other.trials[0].parameters == found.trials[0].parameters
    assert other.trials[1].parameters != found.trials[1].parameters


def test_a_hopeless_trial_is_pruned_before_its_last_fold():
    rows = graph.labelled(80, 5, seed=3)
    pruned = [
        trial for trial in tuning.search(contract("{trials: 12, folds: 3}"), rows).trials if trial.state == "pruned"
    ]
    assert pruned
    assert all(trial.number > 5 and 0 < len(trial.scores) < 3 for trial in pruned)


def test_a_search_for_the_smallest_brier_score_minimizes(rows):
    found = tuning.search(contract("{trials: 6, metric: brier}"), rows)
    complete = [trial for trial in found.trials if trial.state == "complete"]
    assert found.trials[found.best - 1].score == min(trial.score for trial in complete)
    assert found.trials[found.best - 1].parameters["class_weight"] is None  # balanced weights spoil probabilities


def test_what_the_contract_fixes_is_not_searched(rows):
    found = tuning.search(contract("{trials: 4}", params="{C: 3.0}"), rows)
    assert {name for trial in found.trials for name in trial.parameters} == {"class_weight"}
    assert found.parameters["C"] == 3.0


@pytest.mark.parametrize("family", list(models.FAMILIES))
def test_every_family_begins_with_its_defaults_and_takes_what_its_space_offers(family):
    few = {"random_forest": "{n_estimators: 5}", "gradient_boosting": "{max_iter: 5}"}.get(family, "{}")
    spec = contract("{trials: 3, folds: 2}", family=family, params=few)
    found = tuning.search(spec, graph.labelled(100, 2))
    own = models.hyperparameters(spec.model)
    assert set(found.parameters) == set(own)
    for name, choice in models.searched(spec.model).items():
        assert found.trials[0].parameters[name] == own[name]
        for trial in found.trials:
            value = trial.parameters[name]
            inside = value in choice.values if isinstance(choice, models.OneOf) else choice.low <= value <= choice.high
            assert inside, (name, value)


def test_time_ends_a_search_and_it_says_so(rows, monkeypatch):
    clock = iter(range(0, 10_000, 10))  # each look at the clock is ten seconds later
    monkeypatch.setattr(tuning, "monotonic", lambda: next(clock))
    said: list[str] = []
    found = tuning.search(contract("{trials: 50, seconds: 100}"), rows, said.append)
    assert found.cut
    assert 1 < len(found.trials) < 50
    assert found.trials[-1].state == "out_of_time"
    assert found.best < len(found.trials)
    assert "cut short by its time budget" in said[-1]


def test_without_time_the_defaults_are_tried_and_used(rows, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(tuning, "monotonic", lambda: next(clock))
    found = tuning.search(contract("{trials: 50, seconds: 0.5}"), rows)
    assert (found.trials[0].state, found.best, found.cut) == ("complete", 1, True)
    assert found.parameters == models.hyperparameters(contract().model)


def test_progress_is_told_and_every_trial_handed_over(rows):
    said: list[str] = []
    seen: list[tuning.Trial] = []
    found = tuning.search(contract("{trials: 3}"), rows, said.append, seen.append)
    assert seen == found.trials
    assert [line.split(":")[0] for line in said] == [
        "trial 1 of 3",
        "trial 2 of 3",
        "trial 3 of 3",
        "the search is over",
    ]
    assert f"best so far {found.trials[0].score:.4f}" in said[0]


@pytest.mark.parametrize(
    ("rows", "params", "why"),
    [
        (graph.labelled(50, 1), "{}", "no two folds"),
        (graph.labelled(50, 3).assign(churned=0), "{}", "no fold has churners and others"),
        (graph.labelled(50, 3), "{C: 1.0, class_weight: balanced}", "fixes every parameter"),
    ],
)
def test_where_there_is_nothing_to_search_the_contracts_parameters_are_used_and_it_is_said(rows, params, why):
    said: list[str] = []
    spec = contract(params=params)
    found = tuning.search(spec, rows, said.append)
    assert why in str(found)
    assert why in said[-1]
    assert found.trials == []
    assert found.parameters == models.hyperparameters(spec.model)


def test_of_many_rows_whole_customers_are_looked_at():
    rows = graph.labelled(700, 4)
    seen: list[int] = []
    spec = contract("{trials: 2, sample_rows: 1000}")
    sample = tuning._sample(spec, rows, 1000)
    assert sample["buyer"].value_counts().eq(4).all()
    assert 900 < len(sample) < 1100
    assert sample.equals(tuning._sample(spec, rows, 1000))
    assert tuning._sample(spec, rows, 2800) is rows
    found = tuning.search(spec, rows, each=lambda trial: seen.append(trial.number))
    assert seen == [1, 2]
    assert math.isfinite(found.trials[0].score)


def test_the_contract_reads_a_search_and_its_defaults():
    assert contract("{}").model.search == Search()
    assert contract("null").model.search is None
