"""An online store in memory and a model that answers as it is told, for what real ones cannot be brought to do."""

import asyncio
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from serving.lineup import LineUp, Served
from serving.online import Found, StoreUnavailableError

AT = 1_709_251_200.0  # 2024-03-01
VALUES = [2.0, None, 3.5, "gold"]  # in the order of the tiny contract's features


class MemoryStore:
    """Knows customers "1" to "9". It can be away, and it can take its time."""

    def __init__(self, known=None):
        self.known = known if known is not None else {str(number): Found(list(VALUES), AT) for number in range(1, 10)}
        self.asked = []
        self.away = False
        self.seconds = 0.0

    async def read(self, customers):
        self.asked.append(list(customers))
        if self.seconds:
            await asyncio.sleep(self.seconds)
        if self.away:
            raise StoreUnavailableError("It is away.")
        return [self.known.get(customer) for customer in customers]

    async def sample(self):
        return None

    async def close(self):
        pass


class Model:
    """Answers one probability, or what a function of the numbers says."""

    features = ("purchases_30d", "amount_30d", "copy", "segment")
    numeric = (0, 1, 2)
    categorical = (3,)
    usual: ClassVar = {"purchases_30d": 3.0, "amount_30d": 40.0, "copy": 8.0}

    def __init__(self, probability=0.8, threshold=0.5):
        self.probability = probability
        self.threshold = threshold
        self.calls = 0

    def probabilities(self, numbers, texts):
        self.calls += 1
        assert numbers.shape == (len(texts[0]), 3)
        if isinstance(self.probability, Exception):
            raise self.probability
        found = self.probability(numbers) if callable(self.probability) else self.probability
        return np.broadcast_to(np.asarray(found, dtype="float64"), (len(numbers),))

    def contributions(self, numbers, texts):
        return np.tile([0.3, -0.1, 0.0, 0.2], (len(numbers), 1))


def served(version="3", **options):
    """A version in the line-up."""
    return Served(
        version, f"run-{version}", {"trained_at": "2024-03-02T10:00:00+00:00"}, {"auc": 0.8}, Model(**options)
    )


class Upkeep:
    """What the endpoints ask of the upkeep."""

    def __init__(self, lineup=None):
        self.lineup = lineup if lineup is not None else LineUp(champion=served())
        self.problems, self.warnings, self.store_answers, self.from_cache = [], [], True, False


def namespace(**fields):
    """An object with some attributes."""
    return SimpleNamespace(**fields)
