"""Validated tables: the good rows of a window; the others go to quarantine with the reason.

A window that fails a check as a whole is not published: the checks run before the table is written, so no reader,
in this run or a later one, ever meets it. The window's last good version stays.
"""

from collections.abc import Iterator

import dagster as dg
from matplotlib.figure import Figure

from churn_platform.assets.common import WRITES, advice, column_schema, partitions, plot, require_window
from churn_platform.checks.data_quality import specs
from churn_platform.contract import Contract
from churn_platform.engine import connection
from churn_platform.ml import expectations, plots, validation
from churn_platform.ml.masking import masked_type
from churn_platform.resources.storage import TableStore


def assets(contract: Contract) -> list[dg.AssetsDefinition]:
    """For each table of the contract, its validated rows."""
    return [_validated(contract, name) for name in contract.tables.items()]


def _validated(contract: Contract, name: str) -> dg.AssetsDefinition:
    table = contract.tables.items()[name]
    asset_name, raw_name, quarantine = f"validated_{name}", f"raw_{name}", f"quarantine_{name}"
    columns = {column: (masked_type(spec), spec.description) for column, spec in table.kept.items()}
    lineage = dg.TableColumnLineage(
        {column: [dg.TableColumnDep(dg.AssetKey(raw_name), column)] for column in table.kept}
    )

    @dg.asset(
        name=asset_name,
        deps=[raw_name],
        partitions_def=partitions(contract),
        group_name="validation",
        kinds={"greatexpectations", "duckdb", "deltalake"},
        owners=[contract.owner],
        op_tags=WRITES,
        output_required=False,  # a window that fails its checks yields no materialization at all
        check_specs=specs(asset_name),
        metadata={"dagster/column_schema": column_schema(columns)},
        description=f"The good rows of {name}. Bad rows go to the table {quarantine} with the reason; a window that "
        "fails a check as a whole is not published.",
    )
    def validated(
        context: dg.AssetExecutionContext, tables: dg.ResourceParam[TableStore]
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        key = context.partition_key
        require_window(key, tables.windows(raw_name), raw_name)
        with connection(contract.time.timezone) as con:
            tables.read(con, raw_name, [key], view="raw")
            divided = validation.split(con, contract, name, "raw")
            looked_at = validation.sample(con, "raw", list(table.kept), expectations.LIMIT)
            verdict = expectations.judge(contract, name, looked_at)
            findings = [*validation.table_findings(contract, name, divided), validation.suite_finding(name, verdict)]
            tables.write(quarantine, divided.quarantined, key)
            passed = all(finding.passed for finding in findings)
            if passed:
                version = tables.write(asset_name, divided.good, key)
        for finding in findings:
            yield dg.AssetCheckResult(
                check_name=finding.name,
                passed=finding.passed,
                metadata=advice(finding.passed, finding.words, finding.remedy, finding.metadata),
            )
        if passed:
            if divided.bad:
                context.log.warning("%s rows of %s quarantined: %s", f"{divided.bad:,}", name, divided.reasons)
            yield dg.MaterializeResult(
                metadata={
                    "dagster/partition_row_count": divided.rows - divided.bad,
                    "dagster/column_lineage": lineage,
                    "quarantined_rows": divided.bad,
                    "quarantine_reasons": divided.reasons,
                    "kept": plot(_kept(name, key, divided)),
                    "great_expectations": dg.MetadataValue.md(verdict.table()),
                    "table_version": version,
                    "path": dg.MetadataValue.path(tables.path(asset_name)),
                },
                data_version=dg.DataVersion(f"{key}@{version}"),
            )

    return validated


def _kept(name: str, key: str, divided: validation.Split) -> Figure:
    """Which share of the rows is good, and which share each reason sent to quarantine."""
    rows = max(divided.rows, 1)
    parts = {"good": divided.rows - divided.bad, **divided.reasons}
    return plots.shares(list(parts), [count / rows for count in parts.values()], f"{name}, {key}", "share of the rows")
