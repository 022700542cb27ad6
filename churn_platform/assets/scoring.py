"""Batch scores: what the champion says of every customer at risk at the end of a window."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa

from churn_platform.assets.common import WRITES, column_schema, partitions, plot, require_window
from churn_platform.contract import MODEL_VERSION, PREDICTION, PROBABILITY, SNAPSHOT_TIME, Contract
from churn_platform.engine import connection
from churn_platform.ml import batch, plots
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

    schema = pa.schema(
        {
            contract.customer.name: pa.int64() if contract.customer.type == "integer" else pa.string(),
            SNAPSHOT_TIME: pa.timestamp("us", "UTC"),
            PROBABILITY: pa.float64(),
            PREDICTION: pa.string(),
            MODEL_VERSION: pa.string(),
        }
    )

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
            champion = tracking.champion_version()
            model = tracking.compiled(champion)
        except RegistryError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from error
        said: list[np.ndarray[Any, np.dtype[np.float64]]] = []

        def scored(customers: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
            for scores in batch.score(customers, contract, model, str(champion.version)):
                said.append(scores.column(PROBABILITY).to_numpy())
                yield scores.cast(schema)

        with connection() as con, tempfile.TemporaryDirectory() as folder:
            tables.read(con, "customer_features", [key])
            at_risk = con.sql(f"SELECT * FROM customer_features WHERE {AT_RISK} ORDER BY ALL")
            # by way of a file: a write that meets another one is done again, and a stream comes but once
            rows = batch.write(scored(at_risk.to_arrow_reader(batch.BATCH)), schema, Path(folder) / "scores.parquet")
            version = tables.write("churn_scores", con.read_parquet(str(Path(folder) / "scores.parquet")), key)
        probability = np.concatenate([np.zeros(0), *said])
        high = probability >= model.threshold
        return dg.MaterializeResult(
            metadata={
                "dagster/partition_row_count": rows,
                "dagster/column_lineage": dg.TableColumnLineage(
                    {
                        contract.customer.name: [dg.TableColumnDep("customer_features", contract.customer.name)],
                        PROBABILITY: [dg.TableColumnDep("customer_features", name) for name in contract.feature_names],
                    }
                ),
                "model_version": str(champion.version),
                "high_risk": int(high.sum()),
                "mean_probability": float(probability.mean()) if rows else 0.0,
                "scores": plot(plots.histogram(probability, model.threshold, f"scores at the end of {key}")),
                "table_version": version,
            },
            data_version=dg.DataVersion(f"{key}@{version}"),
        )

    return [churn_scores]
