"""What the endpoint answered, as it lands."""

from datetime import UTC, datetime

import dagster as dg
import pandas as pd

from churn_platform import prediction_log as answers
from churn_platform.assets.common import WRITES, column_schema, plot
from churn_platform.contract import MODEL_VERSION, Contract
from churn_platform.ml import plots
from churn_platform.resources.storage import TableStore
from churn_platform.settings import Settings


def assets(contract: Contract) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The endpoint, which Dagster does not run, and its log."""
    endpoint = dg.AssetSpec(
        "churn_service",
        deps=["champion", "feature_store"],
        group_name="serving",
        kinds={"bentoml"},
        owners=[contract.owner],
        description="The endpoint: answers by the champion, with the features that the feature store has online.",
    )

    @dg.asset(
        deps=[endpoint],
        group_name="serving",
        kinds={"duckdb", "deltalake"},
        owners=[contract.owner],
        op_tags=WRITES,
        metadata={"dagster/column_schema": column_schema(answers.columns(contract))},
        description="Every answer of the endpoint: when, whom about, by which version and arm, on which features, and "
        "what a challenger said in its shadow. Appended to every five minutes, a partition for each UTC day.",
    )
    def prediction_log(
        context: dg.AssetExecutionContext, tables: dg.ResourceParam[TableStore], settings: dg.ResourceParam[Settings]
    ) -> dg.MaterializeResult[None]:
        landed = answers.land(tables, contract, settings, context.log.info)
        days = answers.rows_per_day(tables)
        newest = answers.daily(tables)
        lag = 0.0 if landed.oldest is None else (datetime.now(UTC) - landed.oldest).total_seconds()
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": sum(days.values()),
                "landed": landed.rows,
                "landed_by_day": dg.MetadataValue.json(landed.days),
                "lag_seconds": round(lag, 1),  # of the oldest answer that landed
                "segments": landed.segments,
                "segments_open": answers.open_segments(answers.segments(contract, settings)),
                "were_there_already": landed.duplicates,
                "of_erased_customers": landed.erased,
                "cut_lines": landed.cut,
                "rejected_lines": landed.rejected,
                "days": len(days),
                **({} if newest.empty else _shown(newest)),
                "table_version": tables.version(answers.TABLE) or 0,
            }
        )

    return [endpoint, prediction_log]


def _shown(newest: pd.DataFrame) -> dict[str, dg.MetadataValue]:
    """The newest days as a table and as a plot."""
    lines = [
        "| day | version | arm | answers | High Risk | mean probability | stale |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.day} | {row.model_version} | {row.arm} | {row.answers:,} | {row.high_risk:.1%} | {row.mean:.4f} | "
        f"{row.stale:.1%} |"
        for row in newest.itertuples()
    ]
    counts = newest.pivot_table(index="day", columns=MODEL_VERSION, values="answers", aggfunc="sum", fill_value=0)
    weighed = newest.assign(high=newest["high_risk"] * newest["answers"]).groupby("day")[["high", "answers"]].sum()
    figure = plots.answers(
        list(counts.index),
        {str(version): counts[version].tolist() for version in counts.columns},
        (weighed["high"] / weighed["answers"]).tolist(),
    )
    return {"newest_days": dg.MetadataValue.md("\n".join(lines)), "answers": plot(figure)}
