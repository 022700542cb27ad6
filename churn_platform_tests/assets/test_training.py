"""The candidate model: what is kept of how it came about."""

from __future__ import annotations

import json

import pytest

from churn_platform.assets.training import profit_figure
from churn_platform.ml.training import train
from churn_platform.reproduce import reproduce
from churn_platform_tests import graph

TRIALS = 6
SEARCH = (
    "model: {family: logistic_regression, min_windows: 3}",
    f"model: {{family: logistic_regression, min_windows: 3, search: {{trials: {TRIALS}, seconds: 600, folds: 2}}}}",
)


def test_the_profit_on_which_the_threshold_was_chosen_is_drawn():
    value = "value: {customer_value: 20, offer_cost: 2, acceptance: 0.3}\n"
    contract = graph.parse(graph.SIMULATED + value)
    trained = train(contract, graph.labelled())
    axes = profit_figure(contract, trained).axes[0]
    curve, marked = axes.lines[0].get_ydata(), axes.lines[1].get_xdata()[0]
    assert curve[marked] == max(curve) > 0
    assert len(curve) == len(trained.splits.validation) + 1
    assert f"threshold {trained.threshold:.3f}: {marked:,} customers" in axes.get_legend().texts[1].get_text()


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A platform whose newest version was searched for, and the run that did it."""
    shop = graph.played().copy(tmp_path_factory.mktemp("searched"), SEARCH)
    with pytest.MonkeyPatch.context() as patch:
        shop.use(patch)
        result = shop.run("retrain")
    graph.forget()
    assert "candidate_model" in graph.materialized(result), graph.why(result)
    return shop, result


def trials(shop, version):
    found = shop.tracking.trials(version.run_id)
    return sorted(found, key=lambda run: int(run.data.tags["trial"]))


def test_every_trial_is_a_run_nested_in_the_one_that_searches(searched):
    shop, _ = searched
    found = trials(shop, shop.tracking.version_of("challenger"))
    assert [run.data.tags["trial"] for run in found] == [str(number) for number in range(1, TRIALS + 1)]
    assert {run.info.status for run in found} == {"FINISHED"}
    assert found[0].data.params == {"model.C": "0.1", "model.class_weight": "None"}
    assert all(run.data.metrics["score"] > 0.5 for run in found)
    folds = shop.tracking.client.get_metric_history(found[0].info.run_id, "score_of_fold")
    assert sorted(entry.step for entry in folds) == [0, 1]


def test_a_version_knows_its_parameters_its_calibration_and_its_threshold(searched):
    shop, result = searched
    version = shop.tracking.version_of("challenger")
    best = max(
        (run for run in trials(shop, version) if run.data.tags["state"] == "complete"),
        key=lambda run: run.data.metrics["score"],
    )
    parameters = json.loads(version.tags["parameters"])
    assert str(parameters["C"]) == best.data.params["model.C"]
    assert (version.tags["search"], version.tags["threshold"]) == ("trials", "0.5")
    params = shop.tracking.client.get_run(version.run_id).data.params
    assert params["model.C"] == str(parameters["C"])
    assert params["calibration"] == version.tags["calibration"]
    shown = graph.metadata(result, "candidate_model")
    assert shown["search"].startswith(f"{TRIALS} trials, ")
    assert shown["parameters"] == parameters
    assert shown["calibration"].startswith(version.tags["calibration"])


def test_a_searched_model_comes_out_the_same_with_its_search(searched, monkeypatch):
    shop, _ = searched
    shop.use(monkeypatch)
    found = {finding.what: finding for finding in reproduce(shop.contract, shop.settings, "2")}
    assert found["search"].words == f"the same parameters, after {TRIALS} trials"
    assert all(finding.same for finding in found.values()), found
    assert "equal to the last digit" in found["predictions"].words


def test_other_parameters_than_the_search_finds_are_told(searched, monkeypatch):
    shop, _ = searched
    shop.use(monkeypatch)
    version = shop.tracking.version("2")
    other = json.dumps({**json.loads(version.tags["parameters"]), "C": 0.5})
    client, name = shop.tracking.client, shop.tracking.model_name
    client.set_model_version_tag(name, "2", "parameters", other)
    found = {finding.what: finding for finding in reproduce(shop.contract, shop.settings, "2")}
    client.set_model_version_tag(name, "2", "parameters", version.tags["parameters"])
    assert not found["search"].same
    assert "C was 0.5, now " in found["search"].words


def test_a_search_that_time_ended_is_not_repeated_and_its_parameters_are_taken(searched, monkeypatch):
    shop, _ = searched
    shop.use(monkeypatch)
    shop.tracking.client.set_model_version_tag(shop.tracking.model_name, "2", "search", "time")
    said: list[str] = []
    found = reproduce(shop.contract, shop.settings, "2", said.append)
    shop.tracking.client.set_model_version_tag(shop.tracking.model_name, "2", "search", "trials")
    assert any("ended by its time budget, so it is not repeated" in line for line in said)
    assert [finding.what for finding in found][-2:] == ["metrics", "predictions"]
    assert all(finding.same for finding in found)


def test_the_trials_of_an_attempt_that_was_cut_short_make_way_for_those_of_the_next(searched):
    from churn_platform.ml.tuning import Trial

    shop, _ = searched
    tracking = shop.tracking
    with tracking.run("a test", "attempts") as parent:
        for attempt in ((1, 2, 3), (1, 2)):
            for number in attempt:
                tracking.log_trial(parent, Trial(number, {"C": 0.1 * number}, [0.7, 0.8], "complete", 1.0))
    assert sorted(run.data.tags["trial"] for run in tracking.trials(parent)) == ["1", "2"]


def test_a_trial_that_had_no_time_is_kept_without_a_score(searched):
    from churn_platform.ml.tuning import Trial

    shop, _ = searched
    with shop.tracking.run("a test", "late") as parent:
        shop.tracking.log_trial(parent, Trial(1, {"C": 0.1}, [], "out_of_time", 0.0))
    (run,) = shop.tracking.trials(parent)
    assert run.data.tags["state"] == "out_of_time"
    assert set(run.data.metrics) == {"seconds"}
