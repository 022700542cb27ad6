"""The predictor: what it answers, what it refuses, and how it follows the registry."""

import logging
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest

from churn_platform.resources.tracking import RegisteredModel, RegistryError
from serving.predictor import Predictor
from serving.schema import RefusedError

SNAPSHOT = datetime(2024, 3, 1, tzinfo=UTC)
ROW = {"purchases_30d": 2.0, "amount_30d": 30.0, "copy": 15.0, "segment": "gold", "snapshot_time": SNAPSHOT}


class Model:
    """Answers the same probability for everybody."""

    def __init__(self, probability):
        self.probability = probability

    def predict_proba(self, inputs):
        return np.array([[1 - self.probability, self.probability]] * len(inputs))


class Registry:
    """A registry with one champion, which may be broken."""

    def __init__(self, probability=0.7):
        self.version, self.probability, self.problem, self.loads = None, probability, None, 0

    def promote(self, version, probability=None):
        self.version = version
        self.probability = self.probability if probability is None else probability

    def version_of(self, alias):
        assert alias == "champion"
        return self.version and SimpleNamespace(version=self.version, run_id=f"run-{self.version}")

    def load(self, version):
        self.loads += 1
        if self.problem is not None:
            raise self.problem
        return RegisteredModel(version.version, version.run_id, Model(self.probability), list(ROW)[:-1], 0.5, {})


class Store:
    """An online store that knows customer "1" only."""

    def __init__(self, rows=None):
        self.rows, self.problem, self.connections = rows or {"1": ROW}, None, 0

    def connect(self):
        self.connections += 1
        return self

    def online(self, customers):
        if self.problem is not None:
            raise self.problem
        return [self.rows.get(customer) for customer in customers]


@pytest.fixture
def registry():
    return Registry()


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def predictor(make_contract, registry, store):
    return Predictor(make_contract(), registry, store.connect)


def refused(predictor, customer="1"):
    with pytest.raises(RefusedError) as refusal:
        predictor.predict(customer)
    return refusal.value.status, refusal.value.code


def test_a_known_customer_is_answered_with_the_champions_prediction(predictor, registry):
    registry.promote("1")
    predictor.refresh()
    assert predictor.problems == []
    assert predictor.predict("1") == {
        "customer": "1",
        "churn_probability": 0.7,
        "prediction": "High Risk",
        "features": {name: value for name, value in ROW.items() if name != "snapshot_time"},
        "model_version": "1",
        "feature_timestamp": SNAPSHOT,
    }


@pytest.mark.parametrize(("probability", "prediction"), [(0.499, "Low Risk"), (0.5, "High Risk")])
def test_the_threshold_itself_is_high_risk(predictor, registry, probability, prediction):
    registry.promote("1", probability)
    predictor.refresh()
    assert predictor.predict("1")["prediction"] == prediction


def test_without_a_champion_nothing_is_answered_until_there_is_one(predictor, registry):
    predictor.refresh()
    assert refused(predictor) == (503, "not_ready")
    assert "champion" in predictor.problems[0]
    registry.promote("1")
    predictor.refresh()
    assert predictor.problems == []


def test_an_unknown_customer_is_refused_and_not_given_the_average(predictor, registry):
    registry.promote("1")
    predictor.refresh()
    assert refused(predictor, "2") == (404, "unknown_customer")


@pytest.mark.parametrize("written", ["Zo\u00eb", "Zoe\u0308", " Zo\u00eb\u200b"])
def test_an_id_is_found_however_it_is_written_and_answered_as_it_was_asked(predictor, registry, store, written):
    store.rows = {"Zo\u00eb": ROW}
    registry.promote("1")
    predictor.refresh()
    assert predictor.predict(written)["customer"] == written


def test_an_online_store_that_fails_is_said_and_is_connected_to_again(predictor, registry, store):
    registry.promote("1")
    predictor.refresh()
    store.problem = ConnectionError("refused")
    assert refused(predictor) == (503, "features_unavailable")
    predictor.refresh()
    assert "feature store" in predictor.problems[0]
    assert refused(predictor) == (503, "features_unavailable")
    store.problem = None
    predictor.refresh()
    assert predictor.problems == []
    assert predictor.predict("1")["model_version"] == "1"
    assert store.connections == 2


def test_an_online_store_that_has_not_answered_for_long_is_not_ready(predictor, registry, monkeypatch):
    registry.promote("1")
    predictor.refresh()
    monkeypatch.setattr("serving.predictor.STALE_AFTER", 0.0)
    assert predictor.problems


def test_a_new_champion_takes_over_whole(predictor, registry):
    changes = []
    predictor._on_champion = lambda new, old: changes.append((new.version, old and old.version))
    registry.promote("1")
    predictor.refresh()
    registry.promote("2", probability=0.1)
    predictor.refresh()
    answer = predictor.predict("1")
    assert (answer["model_version"], answer["churn_probability"], answer["prediction"]) == ("2", 0.1, "Low Risk")
    assert changes == [("1", None), ("2", "1")]
    predictor.refresh()
    assert registry.loads == 2, "a champion that is served already is not loaded again"


def test_a_champion_that_cannot_be_loaded_leaves_the_old_one_serving_and_is_logged(predictor, registry, caplog):
    registry.promote("1")
    predictor.refresh()
    registry.promote("2")
    registry.problem = RegistryError("trained on other features")
    with caplog.at_level(logging.WARNING):
        predictor.refresh()
    assert predictor.predict("1")["model_version"] == "1"
    assert predictor.problems == []
    assert "version 1 goes on serving: trained on other features" in caplog.text


def test_a_champion_that_cannot_be_loaded_is_tried_again_but_not_at_every_look(predictor, registry, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("serving.predictor.time.monotonic", lambda: now[0])
    registry.promote("1")
    registry.problem = OSError("no route to the artifacts")
    for _ in range(10):
        predictor.refresh(interval=5)
    assert registry.loads == 1
    registry.problem = None
    now[0] += 10
    predictor.refresh(interval=5)
    assert predictor.champion is not None


def test_a_champion_that_answers_no_probability_is_not_swapped_in(predictor, registry):
    registry.promote("1")
    predictor.refresh()
    registry.promote("2", probability=float("nan"))
    predictor.refresh()
    assert predictor.predict("1")["model_version"] == "1"


@pytest.mark.parametrize("probability", [float("nan"), float("inf"), 1.2, -0.1])
def test_a_probability_that_is_none_is_never_answered(predictor, registry, probability):
    registry.promote("1")
    predictor.refresh()
    predictor.champion.pipeline.probability = probability
    assert refused(predictor) == (500, "unusable_answer")


def test_a_missing_feature_is_null_and_an_infinite_one_is_refused(make_contract, registry):
    missing = {**ROW, "amount_30d": None, "copy": float("nan"), "segment": None}
    store = Store({"1": missing, "2": {**ROW, "copy": float("inf")}})
    predictor = Predictor(make_contract(), registry, store.connect)
    registry.promote("1")
    predictor.refresh()
    features = predictor.predict("1")["features"]
    assert (features["amount_30d"], features["copy"], features["segment"]) == (None, None, None)
    assert refused(predictor, "2") == (500, "unusable_features")


def test_a_registry_that_is_away_does_not_stop_the_champion_that_is_loaded(predictor, registry):
    registry.promote("1")
    predictor.refresh()
    registry.version_of = lambda alias: (_ for _ in ()).throw(ConnectionError("away"))
    predictor.refresh()
    assert predictor.problems == []
    assert predictor.predict("1")["model_version"] == "1"


def test_a_problem_is_logged_once_and_so_is_its_end(predictor, registry, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(5):
        predictor.refresh()
    assert caplog.text.count("has no champion") == 1
    registry.promote("1")
    predictor.refresh()
    assert caplog.text.count("registry: all is well again") == 1


def test_ids_do_not_reach_the_log(predictor, registry, store, caplog):
    caplog.set_level(logging.DEBUG)
    registry.promote("1")
    predictor.refresh()
    refused(predictor, "customer-4711")
    store.problem = KeyError("customer-4711")
    refused(predictor, "customer-4711")
    assert "KeyError" in caplog.text
    assert "4711" not in caplog.text


def test_a_contract_that_hashes_customers_needs_the_key(make_contract, registry, store):
    with pytest.raises(ValueError, match="needs the key"):
        Predictor(make_contract(hashed=True), registry, store.connect)


@pytest.mark.parametrize(
    ("options", "known", "unknown"),
    [
        ({"hashed": True}, "2", "4711"),
        ({"id_type": "integer", "family": "gradient_boosting"}, 2, 4711),
        ({"id_type": "integer", "family": "random_forest"}, 2, 4711),
    ],
    ids=["hashed ids", "integer ids, gradient boosting", "integer ids, random forest"],
)
def test_the_real_stores_serve_any_kind_of_id_and_a_customer_with_missing_values(make_world, options, known, unknown):
    world = make_world(**options)
    world.bring_features_online()
    world.promote()
    predictor = Predictor(world.contract, world.tracking, lambda: world.store, key=world.settings.key)
    predictor.refresh()
    assert predictor.problems == []
    answer = predictor.predict(known)
    assert answer["customer"] == known
    assert answer["features"]["amount_30d"] is None
    assert answer["features"]["segment"] is None
    assert 0 <= answer["churn_probability"] <= 1
    assert answer["feature_timestamp"] == SNAPSHOT
    assert refused(predictor, unknown) == (404, "unknown_customer")
