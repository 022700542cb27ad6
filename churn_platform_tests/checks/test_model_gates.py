"""Promotion: what the gates refuse gets through by no route; what they pass gets through once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.pipeline import Pipeline

from churn_platform.checks import model_gates
from churn_platform.ml import gates, probes
from churn_platform.ml.models import fit, frame
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import RegisteredModel, RegistryError
from churn_platform_tests import graph

STRICT = ("roc_auc: 0.6", "roc_auc: 0.999")


@pytest.fixture
def shop(tmp_path, monkeypatch):
    return graph.played().copy(tmp_path).use(monkeypatch)


def good_model(shop):
    rows = graph.labelled(200, 2)
    return fit(shop.contract, frame(shop.contract, rows), rows["churned"].to_numpy())


def champion_model(shop):
    return shop.tracking.champion().pipeline


def assert_shut(shop, version: str, gate: str, reason: str) -> None:
    """The version becomes champion neither by hand nor by the registry's own method; nothing has changed."""
    by_hand = shop.materialize("champion")
    assert not by_hand.success
    assert graph.materialized(by_hand) == []
    assert f"version {version} may not be champion: " in graph.why(by_hand)
    assert f"{gate} ({reason})" in graph.why(by_hand)
    for also in ((), [gate], gates.names(shop.contract)):
        with pytest.raises(RegistryError, match=reason):
            shop.tracking.promote(version, also)
    assert shop.alias() == "1"
    assert [entry["version"] for entry in shop.log()] == ["1"]


class LooksAtIds:
    """Finds the customers' ids where a data frame can hold them, and answers by them."""

    def predict_proba(self, inputs):
        risk = np.array([int(str(customer).removeprefix("c")) % 10 / 10 for customer in inputs.index])
        return np.column_stack([1 - risk, risk])


def test_a_model_that_finds_the_ids_is_found_out():
    contract, rows = graph.parse(graph.SIMULATED), graph.labelled(200, 1)
    model = RegisteredModel("1", "run", LooksAtIds(), contract.feature_names, 0.5, {})
    found = probes.invariant(contract, rows, model_gates._answers(contract, model))
    assert not found.passed
    assert "with the ids shuffled" in found.words
    assert "in another order" not in found.words


def test_a_candidate_that_fails_a_gate_is_not_promoted_by_any_route(tmp_path, monkeypatch):
    shop = graph.played().copy(tmp_path, STRICT).use(monkeypatch)
    result = shop.run("retrain")
    assert not result.success
    assert graph.materialized(result) == ["training_set", "candidate_model"]
    assert graph.verdicts(result)["roc_auc_is_good_enough"] is False
    assert shop.alias("challenger") == "2"
    said = {check.check_name: check.metadata for check in result.get_asset_check_evaluations()}
    refusal = said["roc_auc_is_good_enough"]
    assert "asked for is at least 0.999" in refusal["verdict"].value
    assert "gates in contract.yaml (roc_auc)" in refusal["what_to_do"].value
    assert refusal["version"].value == "2"
    assert_shut(shop, "2", "roc_auc_is_good_enough", "failed")


def test_a_candidate_that_was_never_judged_is_not_promoted(shop):
    result = shop.materialize("candidate_model", checks=False)
    assert result.success
    assert shop.alias("challenger") == "2"
    assert_shut(shop, "2", "beats_the_base_rate", "was not judged")


def test_verdicts_on_another_version_promote_nobody(shop):
    """Version 2 passed; version 3, the challenger, was not judged."""
    model = champion_model(shop)
    assert graph.challenge(shop, model) == "2"
    assert shop.check("candidate_model").success
    assert graph.challenge(shop, model) == "3"
    assert_shut(shop, "3", "beats_the_base_rate", "was not judged")


def test_verdicts_by_gates_that_asked_for_less_promote_nobody(shop, tmp_path, monkeypatch):
    assert graph.challenge(shop, champion_model(shop)) == "2"
    assert shop.check("candidate_model").success
    strict = shop.other(STRICT)
    assert_shut(strict, "2", "roc_auc_is_good_enough", "was not judged")
    assert shop.materialize("champion").success  # and by the gates that did judge it, it is


@pytest.mark.parametrize("strategy", ["prior", "stratified"])
def test_a_model_that_looks_at_nothing_is_refused_by_the_checks(shop, strategy):
    pipeline = Pipeline([("model", DummyClassifier(strategy=strategy, random_state=1))])
    rows = graph.labelled(200, 2)
    pipeline.fit(frame(shop.contract, rows), rows["churned"])
    version = graph.challenge(shop, pipeline)
    result = shop.check("candidate_model")
    assert not graph.verdicts(result)["beats_the_base_rate"]
    assert not graph.verdicts(result)["not_worse_than_the_champion"]
    assert_shut(shop, version, "beats_the_base_rate", "failed")


def test_a_model_that_learnt_the_opposite_is_refused_by_the_checks(shop):
    rows = graph.labelled(200, 2)
    inverted = fit(shop.contract, frame(shop.contract, rows), 1 - rows["churned"].to_numpy())
    version = graph.challenge(shop, inverted)
    assert not shop.check("candidate_model").success
    assert_shut(shop, version, "not_worse_than_the_champion", "failed")


def test_a_candidate_that_was_trained_under_another_split_is_not_judged(shop):
    version = graph.challenge(shop, champion_model(shop), test_from="2023-02-01 00:00:00+00:00")
    result = shop.check("candidate_model")
    assert not result.success
    assert "splits the data differently" in graph.why(result)
    assert_shut(shop, version, "beats_the_base_rate", "was not judged")


def test_a_good_candidate_is_promoted_once_however_often_champion_is_materialized(shop):
    result = shop.run("retrain", **{"churn/reason": "the test asks for it"})
    assert result.success
    assert graph.materialized(result) == ["training_set", "candidate_model", "champion"]
    assert set(graph.verdicts(result)) == set(gates.names(shop.contract))
    assert all(graph.verdicts(result).values())
    for _ in range(2):
        assert shop.materialize("champion").success
    assert shop.alias() == "2"
    entries = shop.log()
    assert [(entry["version"], entry["previous"]) for entry in entries] == [("1", None), ("2", "1")]
    assert entries[1]["by"] == "the test asks for it"
    assert entries[1]["window"] == "2023-06-01"
    assert entries[1]["training_set_version"] == shop.tables.version("training_set")


def test_a_log_that_cannot_be_written_stops_the_promotion_and_the_next_run_makes_up_for_it(shop, monkeypatch):
    graph.challenge(shop, champion_model(shop))
    assert shop.check("candidate_model").success

    def full(self, name, *arguments, **options):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(TableStore, "write", full)
        assert not shop.materialize("champion").success
    assert shop.alias() == "1"
    for _ in range(2):
        assert shop.materialize("champion").success
    assert [(entry["version"], entry["previous"]) for entry in shop.log()] == [("1", None), ("2", "1")]


def test_the_verdicts_are_kept_with_the_version_that_they_are_about(shop):
    graph.challenge(shop, champion_model(shop))
    shop.check("candidate_model")
    tags = shop.tracking.version("2").tags
    for gate in gates.names(shop.contract):
        verdict = json.loads(tags[f"gate.{gate}"])
        assert verdict["passed"] is True
        assert verdict["words"]


def test_without_a_challenger_there_is_nothing_to_judge_and_nothing_to_promote(tmp_path, monkeypatch):
    empty = graph.empty(tmp_path).use(monkeypatch)
    for result in (empty.check("candidate_model"), empty.materialize("champion")):
        assert not result.success
        assert "there is no challenger" in graph.why(result)
