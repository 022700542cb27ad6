"""What those who write the online store and those who read it agree on. Plain Python: the endpoint has no Feast."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from churn_platform.contract import Contract

Value = float | str | None

# Where samples lie: in SQL a table with the columns project, view and sample; in Redis a hash with a field per view.
SAMPLES = "churn_samples"


def view_name(contract: Contract) -> str:
    """The feature view's name, with the version of the definitions."""
    return f"customer_features_v{contract.features.version}"


@dataclass(frozen=True)
class Layout:
    """What Feast derives its names from: the project, the feature view and its features, and the customer's key."""

    project: str
    view: str
    features: tuple[str, ...]
    customer: str
    integer_customers: bool

    @classmethod
    def of(cls, contract: Contract) -> Layout:
        """The layout of a contract's features."""
        return cls(
            project=contract.name,
            view=view_name(contract),
            features=tuple(contract.feature_names),
            customer=contract.customer.name,
            integer_customers=contract.customer.type == "integer",
        )

    @property
    def table(self) -> str:
        """The table of the view, where the store has tables."""
        return f"{self.project}_{self.view}"

    @property
    def samples(self) -> str:
        """The key of the project's samples in Redis."""
        return f"{SAMPLES}:{self.project}"


@dataclass(frozen=True)
class SampleRow:
    """A customer as Feast read it."""

    key: str  # the entity key, in hexadecimal
    at: float  # seconds since 1970, UTC, of the newest of the values
    values: list[Value]  # in the order of the sample's features


@dataclass(frozen=True)
class Sample:
    """What Feast itself read of a few customers; kept beside the features, for readers without Feast to compare."""

    feast: str  # its version
    features: list[str]
    rows: list[SampleRow]

    def to_json(self) -> str:
        """As it is kept. Infinite numbers are written as Python writes and reads them."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Sample:
        """What `to_json` wrote."""
        read = json.loads(text)
        return cls(read["feast"], read["features"], [SampleRow(**row) for row in read["rows"]])
