"""Raw tables: what a source holds for a window, given its types and masked.

Nothing is judged here. A value that does not fit its type is noted and its row goes on; validation, the next stage,
decides. What must not be stored is not stored: personal data is masked in the statement that reads it.
"""

import dagster as dg

from churn_platform import erasure
from churn_platform.assets.common import POOL, WRITES, column_schema, partitions, plot, share_known
from churn_platform.contract import Contract
from churn_platform.engine import connection, digest
from churn_platform.ml import ingestion, plots
from churn_platform.ml.masking import install_key, masked_type
from churn_platform.ml.rules import ISSUES
from churn_platform.resources.storage import TableStore
from churn_platform.settings import Settings
from churn_platform.sources import Source, SourceError
from churn_platform.windows import window


def assets(contract: Contract) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """For each table of the contract, the source as an external asset and the raw table read from it."""
    found: list[dg.AssetsDefinition | dg.AssetSpec] = []
    for name in contract.tables.items():
        source = dg.AssetSpec(
            dg.AssetKey(["source", name]),
            group_name="source",
            kinds={contract.source.kind.replace("complete_journey", "parquet").replace("simulated", "parquet")},
            owners=[contract.owner],
            description=f"The {name} of the source `{contract.source.kind}`, as they land.",
        )
        found += [source, _raw(contract, name, source)]
    return found


def _raw(contract: Contract, name: str, source_spec: dg.AssetSpec) -> dg.AssetsDefinition:
    table = contract.tables.items()[name]
    columns = {column: (masked_type(spec), spec.description) for column, spec in table.kept.items()}
    masked = {column: spec.pii for column, spec in table.columns.items() if spec.pii != "keep"}

    @dg.asset(
        name=f"raw_{name}",
        deps=[source_spec],
        partitions_def=partitions(contract),
        group_name="ingestion",
        kinds={"duckdb", "deltalake"},
        owners=[contract.owner],
        pool=POOL,
        op_tags=WRITES,
        metadata={"dagster/column_schema": column_schema(columns), "personal_data": masked},
        description=f"The {name} of a window as the source holds them: typed, personal data masked, nothing judged.",
    )
    def raw(
        context: dg.AssetExecutionContext,
        tables: dg.ResourceParam[TableStore],
        source: dg.ResourceParam[Source],
        settings: dg.ResourceParam[Settings],
    ) -> dg.MaterializeResult[None]:
        with connection(contract.time.timezone) as con:
            install_key(con, settings.key)
            try:
                chosen = window(contract, context.partition_key)
                made_of = source.digest(con, name, chosen)  # first: what changes while we read is seen at the next look
                rows = ingestion.typed_rows(con, contract, name, source.rows(con, name, chosen), chosen)
                rows, erased = erasure.without_erased(con, tables, settings, table, rows)
                version = tables.write(f"raw_{name}", rows, chosen.key, made_of=made_of, content=digest(rows))
            except SourceError as error:
                raise dg.Failure(description=str(error), allow_retries=False) from error
            tables.read(con, f"raw_{name}", [chosen.key])
            count, issues = con.execute(f"SELECT count(*), count({ISSUES}) FROM raw_{name}").fetchall()[0]
            known = share_known(con, f"raw_{name}", list(table.kept))
        context.log.info("%s rows of %s landed in window %s", f"{count:,}", name, chosen.key)
        return dg.MaterializeResult(
            metadata={
                "dagster/partition_row_count": count,
                "rows_with_issues": issues,
                "rows_of_erased_customers": erased,
                "known_values": plot(
                    plots.shares(list(known), list(known.values()), f"{name}, {chosen.key}", "share known")
                ),
                "table_version": version,
                "path": dg.MetadataValue.path(tables.path(f"raw_{name}")),
            },
            data_version=dg.DataVersion(f"{chosen.key}@{version}"),
        )

    return raw
