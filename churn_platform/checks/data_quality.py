"""The checks that a window of a table must pass before it is published.

They are declared here and judged inside the validated asset (`assets.validation`): a separate check could only run
after the bad window had been published.
"""

import dagster as dg

from churn_platform.contract import Snapshots, Table
from churn_platform.ml import comparison

_PROPERTIES = {
    "has_enough_rows": "The window holds as many good rows as the contract says, not fewer and not more.",
    "bad_rows_are_few": "The share of quarantined rows is within the contract's bound.",
    "great_expectations_suite_passes": "The Great Expectations suite derived from the contract passes.",
}
_OF_LABELS = {"label_has_both_values": "Among the labelled rows there are customers who left and some who stayed."}


def specs(asset_name: str, table: Table) -> list[dg.AssetCheckSpec]:
    """The blocking checks of a validated table."""
    found = _PROPERTIES | (_OF_LABELS if isinstance(table, Snapshots) else {}) | comparison.names(table)
    return [
        dg.AssetCheckSpec(name, asset=asset_name, blocking=True, description=words) for name, words in found.items()
    ]
