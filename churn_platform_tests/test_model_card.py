"""The model card says what a model was made of, how good it is and for whom."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from churn_platform.assets.training import CARD, read_training_set
from churn_platform.ml import metrics
from churn_platform.ml.training import train
from churn_platform.model_card import card
from churn_platform_tests import graph


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield graph.played().copy(tmp_path_factory.mktemp("card")).use(patch)


def test_it_is_kept_with_the_run_of_the_version(shop):
    champion = shop.tracking.version_of("champion")
    text = Path(shop.tracking.artifact(champion.run_id, CARD)).read_text()
    assert f"as of {champion.tags['window']}" in text
    assert f"- training_set_version: `{champion.tags['training_set_version']}`" in text
    assert champion.tags["inputs"] in text
    assert shop.contract.owner in text
    measured = shop.tracking.client.get_run(champion.run_id).data.metrics
    for name in metrics.NAMES:
        assert f"| {name} | {measured[f'validation_{name}']:.4f} | {measured[f'test_{name}']:.4f} |" in text


def test_the_registry_says_what_a_version_is_and_where_its_card_is(shop):
    import mlflow

    champion = shop.tracking.version_of("champion")
    assert f"as of {champion.tags['window']}" in champion.description
    assert f"roc_auc {float(champion.tags['test_roc_auc']):.4f}" in champion.description
    mlflow.set_tracking_uri(shop.settings.tracking_uri)
    assert mlflow.artifacts.load_text(champion.tags["model_card"]).startswith("# Model card")


@pytest.mark.parametrize(("threshold", "words"), [(0.31, "which earned most"), (0.5, "no threshold earned anything")])
def test_the_card_says_how_the_threshold_came_about(threshold, words):
    value = "value: {customer_value: 10, offer_cost: 1, acceptance: 0.3}\n"
    trained = dataclasses.replace(train(graph.parse(graph.SIMULATED), graph.labelled()), threshold=threshold)
    text = card(graph.parse(graph.SIMULATED + value), trained, {})
    assert words in text
    assert "High Risk from 50% on" not in text


def test_slices_limits_and_the_contract_are_in_it(shop):
    rows = read_training_set(shop.contract, shop.tables, None)
    trained = train(shop.contract, rows)
    text = card(shop.contract, trained, {})
    for heading in ("Intended use", "Limits", "Data", "How good it is", "Probabilities and decisions"):
        assert f"\n## {heading}\n" in text
    assert str(trained.calibration) in text
    found = metrics.by_slice(
        trained.splits.test,
        shop.contract.slices[0],
        trained.splits.test["churned"].to_numpy(dtype="float64"),
        trained.test_probability,
    )
    assert len(found) > 0
    for name, rows_there in zip(found["slice"], found["rows"], strict=True):
        assert f"| {name} | {rows_there:,} |" in text
