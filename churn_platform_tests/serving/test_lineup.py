"""Who answers: real versions of a real registry come, go, and fail to come."""

import logging

import numpy as np
import pytest

from churn_platform.contract_file import parse
from churn_platform.registered import COMPILED
from churn_platform_tests.serving.conftest import contract_text
from serving.lineup import Keeper
from serving.registry import Cache, RegistryError, registry

SHADOW = contract_text().replace("customer_field: user_id", "customer_field: user_id, shadow: true")


class Away:
    """A registry that cannot be asked."""

    def version(self, alias):
        raise RegistryError("the MLflow server cannot be reached")


@pytest.fixture(scope="module")
def world(make_world):
    """Two versions; the first is champion."""
    world = make_world()
    first = world.promote()
    world.promote(seed=1)
    world.tracking.reinstate(first.version)
    return world


@pytest.fixture
def make_keeper(world, tmp_path):
    """Makes keepers over the world; the champion is version 1 again afterwards."""

    def make(contract=world.contract, registry_=None, **options):
        return Keeper(contract, registry_ or registry(contract, world.settings), Cache(tmp_path / "cache"), **options)

    yield make
    world.tracking.reinstate("1")
    for alias in ("canary", "challenger"):
        world.tracking.client.delete_registered_model_alias(world.tracking.model_name, alias)


def test_the_champion_is_loaded_and_answers_as_its_pipeline_does(make_keeper, world):
    keeper = make_keeper()
    keeper.look()
    champion = keeper.lineup.champion
    assert (champion.version, keeper.registry_problem, keeper.from_cache) == ("1", "", False)
    numbers, texts = np.array([[3.0, 50.0, np.nan], [np.nan] * 3]), [["gold", None]]
    import pandas as pd

    from churn_platform.ml.models import frame, probabilities

    rows = pd.DataFrame(numbers, columns=["purchases_30d", "amount_30d", "copy"]).assign(segment=texts[0])
    expected = probabilities(world.tracking.champion().pipeline, frame(world.contract, rows))
    assert champion.model.probabilities(numbers, texts) == pytest.approx(expected, abs=1e-12)
    assert champion.threshold == world.tracking.champion().threshold


def test_a_new_champion_takes_over_and_a_rollback_brings_the_old_one_back(make_keeper, world):
    changes = []
    keeper = make_keeper(on_champion=lambda new, old: changes.append((old and old.version, new.version)))
    for version in ("1", "2", "2", "1"):
        world.tracking.reinstate(version)
        keeper.look()
        assert keeper.lineup.champion.version == version
    assert changes == [(None, "1"), ("1", "2"), ("2", "1")]


@pytest.mark.parametrize("spoil", ["cut", "foreign", "gone", "features"])
def test_a_champion_that_cannot_serve_is_refused_and_the_old_one_goes_on(make_keeper, world, spoil, caplog):
    from pathlib import Path

    keeper = make_keeper()
    keeper.look()
    before = keeper.lineup.champion
    path = Path(world.tracking.client.get_run(world.tracking.version("2").run_id).info.artifact_uri) / COMPILED
    whole = path.read_bytes()
    contract = keeper.contract
    try:
        if spoil == "cut":
            path.write_bytes(whole[: len(whole) // 2])
        elif spoil == "foreign":
            path.write_bytes(b"\x80\x04cbuiltins\neval\n")
        elif spoil == "gone":
            path.unlink()
        else:
            keeper.contract = parse(contract_text().replace("    copy:", "    other:"))
        world.tracking.reinstate("2")
        with caplog.at_level(logging.WARNING, "bentoml.churn"):
            for _ in range(3):
                keeper.look()
        assert keeper.lineup.champion is before
        assert "version 2" in keeper.registry_problem
        assert "version 1 goes on serving" in keeper.registry_problem
        assert caplog.text.count("cannot be loaded") == 1, "said once"
    finally:
        path.write_bytes(whole)
        keeper.contract = contract
    keeper._failed.clear()  # the pause before the next attempt
    keeper.look()
    assert (keeper.lineup.champion.version, keeper.registry_problem) == ("2", "")


def test_a_version_that_does_not_load_is_not_tried_at_every_look(make_keeper, world, monkeypatch):
    keeper = make_keeper()
    attempts = []

    def fail(kept):
        attempts.append(kept.version.version)
        raise RegistryError("broken")

    monkeypatch.setattr(keeper, "_ready", fail)
    for _ in range(5):
        keeper.look()
    assert attempts == ["1"]
    world.tracking.reinstate("2")  # another one is tried at once
    keeper.look()
    assert attempts == ["1", "2"]


def test_a_registry_that_goes_away_leaves_the_champion_serving(make_keeper):
    keeper = make_keeper()
    keeper.look()
    keeper._registry = Away()
    keeper.look()
    assert keeper.lineup.champion.version == "1"
    assert "cannot be reached" in keeper.registry_problem


def test_a_start_without_a_registry_serves_the_last_good_model_and_says_so(make_keeper, world):
    make_keeper().look()
    keeper = make_keeper(registry_=Away())
    keeper.look()
    assert (keeper.lineup.champion.version, keeper.from_cache) == ("1", True)
    assert "cannot be reached" in keeper.registry_problem
    keeper._registry = registry(world.contract, world.settings)
    keeper.look()
    assert (keeper.from_cache, keeper.registry_problem) == (False, "")


def test_a_start_without_registry_and_cache_serves_nothing_until_the_registry_is_back(make_keeper, world):
    keeper = make_keeper(registry_=Away())
    keeper.look()
    assert keeper.lineup.champion is None
    keeper._registry = registry(world.contract, world.settings)
    keeper.look()
    assert keeper.lineup.champion.version == "1"


def test_the_cached_model_does_not_serve_where_the_registry_says_that_there_is_no_champion(make_keeper, world):
    make_keeper().look()

    class Empty:
        def version(self, alias):
            return None

    keeper = make_keeper(registry_=Empty())
    keeper.look()
    assert keeper.lineup.champion is None


def test_a_canary_joins_with_its_share_changes_it_and_leaves(make_keeper, world):
    keeper, client, name = make_keeper(), world.tracking.client, world.tracking.model_name
    client.set_model_version_tag(name, "2", "canary.share", "0.1")
    client.set_registered_model_alias(name, "canary", "2")
    keeper.look()
    assert (keeper.lineup.canary.version, keeper.lineup.share) == ("2", 0.1)
    client.set_model_version_tag(name, "2", "canary.share", "0.5")
    keeper.look()
    assert keeper.lineup.share == 0.5
    world.tracking.reinstate("2")  # promoted: it answers for everybody now
    keeper.look()
    assert (keeper.lineup.champion.version, keeper.lineup.canary, keeper.lineup.share) == ("2", None, 0.0)
    world.tracking.reinstate("1")
    keeper.look()
    assert keeper.lineup.canary.version == "2"
    client.delete_registered_model_alias(name, "canary")
    keeper.look()
    assert keeper.lineup.canary is None


@pytest.mark.parametrize("share", ["2", "-0.1", "0", "much", "nan"])
def test_a_share_that_is_none_makes_no_canary(make_keeper, world, share):
    keeper, client, name = make_keeper(), world.tracking.client, world.tracking.model_name
    client.set_model_version_tag(name, "2", "canary.share", share)
    client.set_registered_model_alias(name, "canary", "2")
    keeper.look()
    assert keeper.lineup.canary is None
    assert keeper.lineup.champion.version == "1"


def test_the_challenger_scores_in_the_shadow_where_the_contract_says_so(make_keeper, world):
    world.tracking.client.set_registered_model_alias(world.tracking.model_name, "challenger", "2")
    keeper = make_keeper()
    keeper.look()
    assert keeper.lineup.shadow is None
    keeper = make_keeper(contract=parse(SHADOW))
    keeper.look()
    assert keeper.lineup.shadow.version == "2"
    world.tracking.reinstate("2")
    keeper.look()
    assert keeper.lineup.shadow is None, "the champion is nobody's shadow"
