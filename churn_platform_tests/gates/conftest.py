"""One world for all cases; and what became of each of them, for the table."""

from __future__ import annotations

import pickle

import pytest

from churn_platform.ml import equality, retrials, training
from churn_platform_tests import graph
from churn_platform_tests.gates.outcomes import Outcome
from churn_platform_tests.gates.world import World, text


@pytest.fixture(scope="package")
def world(tmp_path_factory):
    """A platform with a champion that serves. Training is deterministic, so what was trained once is remembered."""
    remembered: dict[bytes, training.Trained] = {}

    def once(contract, rows, **options):
        key = pickle.dumps((contract.fingerprint, rows.to_dict("list"), sorted(options.items())))
        if key not in remembered:
            remembered[key] = training.train(contract, rows, **options)
        return remembered[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrials, "train", once)
        patch.setattr(equality, "ROWS", 4000)
        made = World(graph.empty(tmp_path_factory.mktemp("world"), text()).use(patch))
        made.begin()
        made.shop.use(patch)
        yield made
    graph.forget()


@pytest.fixture(scope="package")
def outcomes() -> dict[str, Outcome]:
    """What became of the cases so far."""
    return {}
