"""Batch scores: what the champion says of every customer at risk at the end of a window."""

import dagster as dg
import numpy as np
import pyarrow as pa

from churn_platform.assets.common import WRITES, column_schema, partitions, plot, require_window
from churn_platform.contract import MODEL_VERSION, PREDICTION, PROBABILITY, SNAPSHOT_TIME, Contract
from churn_platform.engine import connection
from churn_platform.ml import models, plots
from churn_platform.ml.features import AT_RISK
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import RegistryError, Tracking


def assets(contract: Contract) -> list[dg.AssetsDefinition]:
    """The scores."""
    columns = {
        contract.customer.name: (contract.customer.type, "the customer"),
        SNAPSHOT_TIME: ("timestamp", "as of when the customer is scored"),
        PROBABILITY: ("float", "of churning within the label's horizon"),
        PREDICTION: ("string", "High Risk from the threshold on, else Low Risk"),
        MODEL_VERSION: ("string", "the champion that said so"),
    }

    @dg.asset(
        deps=["customer_features", "champion"],
        partitions_def=partitions(contract),
        group_name="serving",
        kinds={"scikitlearn", "deltalake"},
        owners=[contract.owner],
        op_tags=WRITES,
        metadata={"dagster/column_schema": column_schema(columns)},
        description="The champion's probability for every customer at risk at the end of the window.",
    )
    def churn_scores(
        context: dg.AssetExecutionContext, tables: dg.ResourceParam[TableStore], tracking: dg.ResourceParam[Tracking]
    ) -> dg.MaterializeResult[None]:
        key = context.partition_key
        require_window(key, tables.windows("customer_features"), "customer_features")
        try:
            champion = tracking.champion()
        except RegistryError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from error
        with connection() as con:
            tables.read(con, "customer_features", [key])
            rows = con.sql(f"SELECT * FROM customer_features WHERE {AT_RISK} ORDER BY ALL").df()
        probability = (
            models.probabilities(champion.pipeline, models.frame(contract, rows)) if len(rows) else np.zeros(0)
        )
        high = probability >= champion.threshold
        scores = pa.table(
            {
                contract.customer.name: pa.array(
                    rows[contract.customer.name], pa.int64() if contract.customer.type == "integer" else pa.string()
                ),
                SNAPSHOT_TIME: pa.array(rows[SNAPSHOT_TIME], pa.timestamp("us", "UTC")),
                PROBABILITY: probability,
                PREDICTION: pa.array(np.where(high, "High Risk", "Low Risk").tolist(), pa.string()),
                MODEL_VERSION: pa.array([champion.version] * len(rows), pa.string()),
            }
        )
        version = tables.write("churn_scores", scores, key)
        return dg.MaterializeResult(
            metadata={
                "dagster/partition_row_count": len(rows),
                "dagster/column_lineage": dg.TableColumnLineage(
                    {
                        contract.customer.name: [dg.TableColumnDep("customer_features", contract.customer.name)],
                        PROBABILITY: [dg.TableColumnDep("customer_features", name) for name in contract.feature_names],
                    }
                ),
                "model_version": champion.version,
                "high_risk": int(high.sum()),
                "mean_probability": float(probability.mean()) if len(rows) else 0.0,
                "scores": plot(plots.histogram(probability, champion.threshold, f"scores at the end of {key}")),
                "table_version": version,
            },
            data_version=dg.DataVersion(f"{key}@{version}"),
        )

    return [churn_scores]
