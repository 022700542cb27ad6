"""The checks that a window of a table must pass before it is published.

They are declared here and judged inside the validated asset (`assets.validation`): a separate check could only run
after the bad window had been published.
"""

import dagster as dg

_PROPERTIES = {
    "has_enough_rows": "The window holds at least the contract's number of good rows.",
    "bad_rows_are_few": "The share of quarantined rows is within the contract's bound.",
    "great_expectations_suite_passes": "The Great Expectations suite derived from the contract passes.",
}


def specs(asset_name: str) -> list[dg.AssetCheckSpec]:
    """The blocking checks of a validated table."""
    return [
        dg.AssetCheckSpec(name, asset=asset_name, blocking=True, description=words)
        for name, words in _PROPERTIES.items()
    ]
