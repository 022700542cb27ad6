"""MLflow as the platform uses it: runs that end as they ended, a registry that takes and gives our models only."""

from __future__ import annotations

import json
import subprocess
import sys

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from churn_platform.ml.models import ModelError, fit, frame
from churn_platform.registered import CHALLENGER, CHAMPION
from churn_platform.resources.tracking import RegistryError, Tracking
from churn_platform_tests import graph


@pytest.fixture(scope="module")
def _template(tmp_path_factory):
    """A home whose MLflow database is there already: to make one takes seconds."""
    found = graph.empty(tmp_path_factory.mktemp("tracking"))
    assert found.tracking.experiment_id
    return found


@pytest.fixture
def shop(_template, tmp_path, monkeypatch):
    return _template.copy(tmp_path).use(monkeypatch)


def model(shop, rows=None):
    rows = graph.labelled(100, 1) if rows is None else rows
    return fit(shop.contract, frame(shop.contract, rows), rows["churned"].to_numpy())


def logged(shop, pipeline=None, key="run-1"):
    tracking = shop.tracking
    folder = shop.home / "plots"
    folder.mkdir(exist_ok=True)
    (folder / "note.txt").write_text("seen")
    inputs = frame(shop.contract, graph.customers(60))
    with tracking.run("a test", key):
        return tracking.log_model(pipeline or model(shop), inputs, folder, {"window": "2023-01-01"})


def runs(shop):
    tracking = shop.tracking
    return tracking.client.search_runs([tracking.experiment_id])


# -- runs


def test_a_run_that_succeeds_ends_finished_in_the_contracts_experiment(shop):
    with shop.tracking.run("as of then", "key") as run_id:
        mlflow.log_param("a", 1)
    found = shop.tracking.client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.info.experiment_id == shop.tracking.experiment_id
    assert found.data.tags["dagster.run_id"] == "key"
    assert found.data.tags["contract"] == shop.contract.fingerprint


def test_a_run_that_fails_ends_failed(shop):
    with pytest.raises(ZeroDivisionError), shop.tracking.run("as of then", "key"):
        raise ZeroDivisionError
    assert [run.info.status for run in runs(shop)] == ["FAILED"]
    assert mlflow.active_run() is None


def test_a_retry_goes_on_in_the_same_run_and_ends_it_well(shop):
    def attempt():
        with shop.tracking.run("first", "key", "rows@1"):
            mlflow.log_params({"rows": 10})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attempt()
    (first,) = [run.info.run_id for run in runs(shop)]
    with shop.tracking.run("again", "key", "rows@1") as second:
        mlflow.log_params({"rows": 10})
    assert second == first
    assert [run.info.status for run in runs(shop)] == ["FINISHED"]


def test_a_retry_on_other_data_or_under_another_contract_is_a_run_of_its_own(shop):
    """MLflow refuses to change a parameter: such a retry could otherwise never succeed."""
    found = []
    for tracking, inputs in (
        (shop.tracking, "rows@1"),
        (shop.tracking, "rows@2"),
        (shop.other(("threshold: 0.2", "threshold: 0.3")).tracking, "rows@2"),
    ):
        with tracking.run("again", "key", inputs) as run_id:
            mlflow.log_params({"rows": len(found)})
        found.append(run_id)
    assert len(set(found)) == 3


def test_other_dagster_runs_are_other_runs(shop):
    with shop.tracking.run("one", "a") as first:
        pass
    with shop.tracking.run("two", "b") as second:
        pass
    assert first != second


@pytest.mark.slow
def test_four_processes_that_start_on_a_fresh_database_share_one_experiment(tmp_path):
    """Together they migrate a database that is not there yet and make an experiment that is not there yet."""
    shop = graph.make(tmp_path)
    program = (
        "import sys, pathlib, churn_platform\n"
        "from churn_platform.contract_file import load\n"
        "from churn_platform.settings import Settings\n"
        "from churn_platform.resources.tracking import Tracking\n"
        "home, path, number = map(pathlib.Path, sys.argv[1:])\n"
        "tracking = Tracking(load(path), Settings(home=home, contract=path))\n"
        "with tracking.run('a test', str(number)):\n"
        "    print(tracking.experiment_id)\n"
    )
    arguments = [str(shop.home), str(shop.settings.contract)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    ended = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0, 0], [err[-2000:] for _, err in ended]
    assert len({out for out, _ in ended}) == 1
    assert len(runs(shop)) == 4
    assert shop.tracking.client.search_runs(["0"]) == []  # none went to "Default"


# -- the registry


def test_a_logged_model_is_the_challenger_with_signature_features_and_files(shop):
    version = logged(shop)
    tracking = shop.tracking
    assert shop.alias(CHALLENGER) == str(version.version)
    assert shop.alias(CHAMPION) is None
    assert tracking.has_signature(version)
    assert json.loads(version.tags["features"]) == shop.contract.feature_names
    assert version.tags["window"] == "2023-01-01"
    assert pd.io.common.file_exists(tracking.artifact(version.run_id, "note.txt"))


def test_a_loaded_model_answers_as_it_did_before_it_was_stored(shop):
    pipeline, inputs = model(shop), frame(shop.contract, graph.customers(50))
    loaded = shop.tracking.load(logged(shop, pipeline))
    assert (loaded.pipeline.predict_proba(inputs) == pipeline.predict_proba(inputs)).all()
    assert loaded.features == shop.contract.feature_names
    assert loaded.threshold == shop.contract.model.threshold


def test_the_signature_lets_every_value_be_missing_whatever_the_example_knew(shop):
    version = logged(shop)
    served = mlflow.pyfunc.load_model(f"models:/{shop.tracking.model_name}/{version.version}")
    nothing = pd.DataFrame([dict.fromkeys(shop.contract.feature_names)])
    answer = np.asarray(served.predict(frame(shop.contract, nothing)))
    assert answer.shape == (1, 2)


def test_a_pipeline_of_types_that_are_not_trusted_is_refused_and_not_registered(shop):
    rows = graph.labelled(100, 1)
    foreign = Pipeline(
        [
            ("own", FunctionTransformer(lambda table: table[["purchases_30d"]])),
            ("model", LogisticRegression()),
        ]
    ).fit(frame(shop.contract, rows), rows["churned"])
    with pytest.raises(ModelError, match=r"does not trust: .*lambda.*TRUSTED_TYPES"):
        logged(shop, foreign)
    assert shop.tracking.versions() == []
    assert [run.info.status for run in runs(shop)] == ["FAILED"]


@pytest.mark.parametrize("how", ["a pickle", "its own idea of trust", "without tags"])
def test_a_model_that_somebody_else_registered_is_not_loaded(shop, how):
    tracking = shop.tracking
    options = {
        "a pickle": {"serialization_format": "cloudpickle"},
        "its own idea of trust": {"skops_trusted_types": ["numpy.dtype", "os.system"]},
        "without tags": {"skops_trusted_types": ["numpy.dtype"]},
    }[how]
    with tracking.run("foreign", "key"):
        info = mlflow.sklearn.log_model(
            model(shop),
            name="model",
            registered_model_name=tracking.model_name,
            pip_requirements=["scikit-learn"],
            **options,
        )
    tags = {"features": json.dumps(shop.contract.feature_names), "threshold": "0.5"} if how != "without tags" else {}
    for name, value in tags.items():
        tracking.client.set_model_version_tag(tracking.model_name, info.registered_model_version, name, value)
    with pytest.raises(RegistryError, match="was not made by this platform"):
        tracking.load(tracking.version(str(info.registered_model_version)))


def test_a_model_of_other_features_is_not_loaded_and_the_difference_is_named(shop):
    version = logged(shop)
    other = shop.other(("    gap_90d: {kind: mean_gap_days, window_days: 90}\n", ""))
    with pytest.raises(RegistryError, match=r"trained on other features.*different: gap_90d"):
        other.tracking.load(version)
    first, second = "    recency_days: {kind: recency_days}\n", "    tenure_months: {kind: tenure_months}\n"
    swapped = shop.other((first, "SWAP"), (second, first), ("SWAP", second))
    with pytest.raises(RegistryError, match="different: their order"):
        swapped.tracking.load(version)


def test_a_model_of_another_version_of_the_features_is_not_loaded_and_is_no_usable_champion(shop):
    version = logged(shop)
    shop.tracking.reinstate(str(version.version))
    assert shop.tracking.load(version)
    assert shop.tracking.usable_champion() is not None
    other = shop.other(("features:\n", "features:\n  version: 2\n"))
    with pytest.raises(RegistryError, match=r"features of version 1, and features\.version in contract\.yaml is 2"):
        other.tracking.load(version)
    assert other.tracking.usable_champion() is None


def test_an_empty_registry_has_no_champion_and_says_how_to_get_one(shop):
    assert shop.tracking.version_of(CHAMPION) is None
    assert shop.tracking.versions() == []
    with pytest.raises(RegistryError, match="no champion yet: launch the job `retrain`"):
        shop.tracking.champion()
    with pytest.raises(RegistryError, match="has no version 7"):
        shop.tracking.version("7")


def test_promotion_needs_every_gate_of_the_contract_whatever_it_is_asked_for(shop):
    version = logged(shop)
    tracking = shop.tracking
    with pytest.raises(RegistryError, match=r"roc_auc_is_good_enough \(was not judged\)"):
        tracking.promote(version.version, [])
    from churn_platform.ml import gates

    for gate in gates.names(shop.contract):
        assert shop.alias() is None
        tracking.record_gate(version.version, gate, True, "fine")
    with pytest.raises(RegistryError, match=r"one_more \(was not judged\)"):
        tracking.promote(version.version, ["one_more"])
    tracking.promote(version.version)
    assert shop.alias() == str(version.version)
    tracking.record_gate(version.version, "signature_is_recorded", False, "gone")
    with pytest.raises(RegistryError, match=r"signature_is_recorded \(failed\)"):
        tracking.promote(version.version)


def test_the_registrys_database_stays_on_the_machine_that_the_settings_name(shop):
    assert Tracking(shop.contract, shop.settings).client.tracking_uri == shop.settings.tracking_uri
    assert str(shop.home) in shop.settings.tracking_uri


# -- compiled


def test_a_version_carries_its_compiled_model_with_its_own_threshold(shop):
    version = logged(shop)
    compiled = shop.tracking.compiled(version)
    assert list(compiled.features) == shop.contract.feature_names
    assert repr(compiled.threshold) == version.tags["threshold"]


def test_a_model_that_cannot_be_compiled_is_registered_and_says_why_it_will_not_be_served(shop):
    rows = graph.labelled(100, 1)
    foreign = Pipeline([("model", DummyClassifier())]).fit(frame(shop.contract, rows), rows["churned"])
    with pytest.raises(RegistryError, match=r"no compiled model that could be served: .*not made by ml\.models"):
        shop.tracking.compiled(logged(shop, foreign))
