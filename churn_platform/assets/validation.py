"""Validated tables: the good rows of a window; the others go to quarantine with the reason.

A window that fails a check as a whole is not published: the checks run before the table is written, so no reader,
in this run or a later one, ever meets it. The window's last good version stays. Beside each table stands one of
profiles, a few numbers a window, with which later windows are compared.
"""

from collections.abc import Iterator
from datetime import datetime

import dagster as dg
import duckdb
from matplotlib.figure import Figure

from churn_platform.assets.common import POOL, WRITES, advice, column_schema, linked, partitions, plot, require_window
from churn_platform.checks.data_quality import specs
from churn_platform.contract import Contract
from churn_platform.engine import connection, digest, identifier
from churn_platform.ml import comparison, expectations, plots, validation, validation_page
from churn_platform.ml.masking import masked_type
from churn_platform.ml.rules import ISSUES
from churn_platform.resources.reports import Reports
from churn_platform.resources.storage import Entry, TableStore
from churn_platform.settings import Settings
from churn_platform.windows import window


def assets(contract: Contract) -> list[dg.AssetsDefinition]:
    """For each table of the contract, its validated rows."""
    return [_validated(contract, name) for name in contract.tables.items()]


def _validated(contract: Contract, name: str) -> dg.AssetsDefinition:
    table = contract.tables.items()[name]
    asset_name, raw_name, quarantine = f"validated_{name}", f"raw_{name}", f"quarantine_{name}"
    profiles = f"profile_{name}"
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
        pool=POOL,
        op_tags=WRITES,
        output_required=False,  # a window that fails its checks yields no materialization at all
        check_specs=specs(asset_name, table),
        metadata={"dagster/column_schema": column_schema(columns)},
        description=f"The good rows of {name}. Bad rows go to the table {quarantine} with the reason; a window that "
        "fails a check as a whole is not published.",
    )
    def validated(
        context: dg.AssetExecutionContext,
        tables: dg.ResourceParam[TableStore],
        settings: dg.ResourceParam[Settings],
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        key = context.partition_key
        require_window(key, tables.windows(raw_name), raw_name)
        with connection(contract.time.timezone) as con:
            # first: what changes while we read shows as a difference later
            made_of = tables.entries(raw_name).get(key, Entry("", "")).content
            tables.read(con, raw_name, [key], view="raw")
            divided = validation.split(con, contract, name, "raw", _earlier(con, contract, tables, name, key))
            verdict = _verdict(con, contract, name, divided.rows)
            past = _past(con, tables, profiles)
            before = comparison.neighbours(contract, key, tables.windows(asset_name))
            if before:
                tables.read(con, asset_name, before, view="before")
            here = comparison.profile(
                con, contract, name, divided, window=window(contract, key), before="before" if before else None
            )
            findings = [
                *validation.findings(con, contract, name, "raw", divided),
                validation.suite_finding(name, verdict),
                *comparison.findings(contract, name, key, here, past),
            ]
            tables.write(quarantine, divided.quarantined, key)
            passed = all(finding.passed for finding in findings)
            if passed:
                content = digest(divided.good)
                tables.write(profiles, comparison.as_rows(con, here), key)
                # last: with it the ledger says that the window is done
                version = tables.write(asset_name, divided.good, key, made_of=made_of, content=content)
        volumes = {earlier: past[earlier].rows for earlier in comparison.compared(contract, key, past)}
        page = validation_page.render(
            contract, name, key, divided, findings=findings, verdict=verdict, volumes={**volumes, key: here.rows}
        )
        report = {
            **linked(Reports(contract, settings).keep(f"validation-{name}-{key}.html", page)),
            "tables_of_the_report": dg.MetadataValue.md(validation_page.as_markdown(divided, findings, verdict)),
        }
        for finding in findings:
            yield dg.AssetCheckResult(
                check_name=finding.name,
                passed=finding.passed,
                metadata=advice(finding.passed, finding.words, finding.remedy, {**finding.metadata, **report}),
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
                    **report,
                    "table_version": version,
                    "path": dg.MetadataValue.path(tables.path(asset_name)),
                },
                data_version=dg.DataVersion(f"{key}@{version}"),
            )

    return validated


def _earlier(
    con: duckdb.DuckDBPyConnection, contract: Contract, tables: TableStore, name: str, key: str
) -> tuple[str, datetime] | None:
    """What late rows of the view `raw` may repeat, as `validation.split` takes it."""
    chosen = window(contract, key)
    since = validation.late_since(con, contract, name, "raw", chosen)
    held = tables.windows(f"validated_{name}")
    looked_at = [k for k in held if since is not None and k < key and window(contract, k).end > since]
    if not looked_at:
        return None
    return tables.read(con, f"validated_{name}", looked_at, view="earlier"), chosen.start


def _verdict(con: duckdb.DuckDBPyConnection, contract: Contract, name: str, rows: int) -> expectations.Verdict:
    """The verdict on the view `raw`, by Great Expectations or, for more rows than pandas should see, by the engine."""
    columns = ", ".join(map(identifier, [*contract.tables.items()[name].kept, ISSUES]))
    con.execute(f"CREATE OR REPLACE TEMP VIEW judged AS SELECT {columns} FROM raw")
    if rows > expectations.LIMIT:
        return expectations.count(con, contract, name, "judged")
    return expectations.judge(contract, name, con.table("judged").df())


def _past(con: duckdb.DuckDBPyConnection, tables: TableStore, profiles: str) -> dict[str, comparison.Profile]:
    """What is remembered of the windows of a table."""
    if tables.version(profiles) is None:
        return {}
    return comparison.from_rows(con, tables.read(con, profiles))


def _kept(name: str, key: str, divided: validation.Split) -> Figure:
    """Which share of the rows is good, and which share each reason sent to quarantine."""
    rows = max(divided.rows, 1)
    parts = {"good": divided.rows - divided.bad, **divided.reasons}
    return plots.shares(list(parts), [count / rows for count in parts.values()], f"{name}, {key}", "share of the rows")
