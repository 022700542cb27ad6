"""What the endpoint is served must be what a model is trained on."""

import dagster as dg

from churn_platform.assets.common import advice
from churn_platform.contract import SNAPSHOT_TIME, Contract
from churn_platform.engine import connection, identifier
from churn_platform.resources.feature_store import FeatureStore
from churn_platform.resources.storage import TableStore

SAMPLE = 50  # customers


def checks(contract: Contract) -> list[dg.AssetChecksDefinition]:
    """The check on the feature store."""

    @dg.asset_check(
        asset="feature_store",
        blocking=True,
        description=f"For {SAMPLE} customers, the online store serves exactly the newest window's offline features.",
    )
    def online_equals_offline(
        tables: dg.ResourceParam[TableStore], store: dg.ResourceParam[FeatureStore]
    ) -> dg.AssetCheckResult:
        key = identifier(contract.customer.name)
        with connection() as con:
            newest = tables.windows("customer_features")[-1]
            tables.read(con, "customer_features", [newest])
            # the newest row of each customer, for snapshots tables with several in a window; then a fixed sample
            offline = con.sql(
                f"SELECT * FROM customer_features QUALIFY row_number() OVER (PARTITION BY {key} "
                f"ORDER BY {SNAPSHOT_TIME} DESC) = 1 ORDER BY hash({key}) LIMIT {SAMPLE}"
            ).df()
        served = store.online(offline[contract.customer.name].tolist())
        different = []
        for row, answer in zip(offline.to_dict("records"), served, strict=True):
            if answer is None:
                different.append("(missing online)")
            elif answer[SNAPSHOT_TIME] != row[SNAPSHOT_TIME].to_pydatetime():
                different.append(SNAPSHOT_TIME)
            else:
                different += [name for name in contract.feature_names if not _same(row[name], answer[name])]
        words = (
            f"{len(offline)} customers of window {newest} are served as they were computed"
            if not different
            else f"of {len(offline)} customers, different: {', '.join(sorted(set(different)))}"
        )
        remedy = (
            "Materialize feature_store for the newest window again. If that does not help, look for a second writer."
        )
        return dg.AssetCheckResult(passed=not different, metadata=advice(not different, words, remedy))

    return [online_equals_offline]


def _same(offline: object, online: object) -> bool:
    """Equal values; a missing one is NaN in a frame and None in the online store."""
    missing = [value is None or value != value for value in (offline, online)]  # noqa: PLR0124
    if any(missing):
        return all(missing)
    return offline == online
