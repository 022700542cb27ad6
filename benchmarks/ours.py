"""Our way: the functions that the platform's assets call, in their order, with nothing left out but Dagster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.measure import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    import duckdb

    from benchmarks.world import World
    from churn_platform.ml import expectations


def features(world: World) -> Callable[[], Outcome]:
    """Features at every observation: validated tables in, SQL, features table out."""
    from churn_platform.engine import connection
    from churn_platform.ml import features as platform
    from churn_platform.ml import inputs
    from churn_platform.resources.storage import TableStore

    contract = world.contract
    tables = TableStore(world.settings.tables_of(contract))

    def work() -> Outcome:
        rows, before = 0, ""
        for window in world.observations:
            with connection() as con:
                for name, keys in inputs.needed_for_features(contract, window, bool(before)).items():
                    tables.read(con, f"validated_{name}", keys)
                previous = tables.read(con, "customer_features", [before], view="previous") if before else None
                built = platform.build(con, contract, window, previous)
                tables.write("customer_features", built, window.key)
                tables.read(con, "customer_features", [window.key])
                rows += con.execute("SELECT count(*) FROM customer_features").fetchall()[0][0]
            before = window.key
        return Outcome(rows)

    return work


def join(world: World) -> Callable[[], Outcome]:
    """The point-in-time join of every customer and observation."""
    import pandas as pd

    from churn_platform.resources.feature_store import FeatureStore
    from churn_platform.resources.storage import TableStore

    store = FeatureStore(world.contract, world.settings)
    store.apply(TableStore(world.settings.tables_of(world.contract)).path("customer_features"))

    def work() -> Outcome:
        found = store.historical(pd.read_parquet(world.entities))
        return Outcome(len(found), rows=found)

    return work


def validation(world: World) -> Callable[[], Outcome]:
    """The rules on every row in SQL, and Great Expectations' report."""
    import great_expectations  # noqa: F401 - its import is not part of the step, for either way

    from churn_platform.engine import connection, literal
    from churn_platform.ml import validation as platform
    from churn_platform.resources.storage import TableStore

    contract = world.contract
    tables = TableStore(world.settings.tables_of(contract))

    def work() -> Outcome:
        with connection(contract.time.timezone) as con:
            con.execute(f"CREATE VIEW raw AS SELECT * FROM read_parquet({literal(str(world.raw))})")
            divided = platform.split(con, contract, "transactions", "raw")
            verdict = _verdict(con, world, divided.rows)
            findings = platform.table_findings(contract, "transactions", divided)
            tables.write("quarantine_transactions", divided.quarantined)
        passed = verdict.passed and all(finding.passed for finding in findings)
        return Outcome(divided.rows, facts={"passed": passed, "bad_rows": divided.bad})

    return work


def _verdict(con: duckdb.DuckDBPyConnection, world: World, rows: int) -> expectations.Verdict:
    """As the asset chooses: Great Expectations judges few rows, and the engine, by the same rules, many."""
    from churn_platform.engine import identifier
    from churn_platform.ml import expectations
    from churn_platform.ml.rules import ISSUES

    columns = [*world.contract.tables.items()["transactions"].kept, ISSUES]
    con.execute(f"CREATE TEMP VIEW judged AS SELECT {', '.join(map(identifier, columns))} FROM raw")
    if rows > expectations.LIMIT:
        return expectations.count(con, world.contract, "transactions", "judged")
    return expectations.judge(world.contract, "transactions", con.table("judged").df())


def drift(world: World) -> Callable[[], Outcome]:
    """The contract's distances, on its sample of the customers of the same two snapshots."""
    import evidently  # noqa: F401 - its import is not part of the step, for either way

    from churn_platform.engine import connection
    from churn_platform.ml import drift as platform
    from churn_platform.resources.storage import TableStore

    tables = TableStore(world.settings.tables_of(world.contract))

    def work() -> Outcome:
        with connection() as con:
            frames = []
            for window in (world.observations[0], world.observations[-1]):
                tables.read(con, "customer_features", [window.key])
                frames.append(con.sql("SELECT * FROM customer_features").df())
        platform.compare(world.contract, frames[0], frames[1], world.folder / "ours-drift.html")
        return Outcome(sum(map(len, frames)))

    return work


def materialize(world: World) -> Callable[[], Outcome]:
    """The newest snapshot into the online store that the settings name."""
    from churn_platform.engine import connection
    from churn_platform.resources.feature_store import FeatureStore
    from churn_platform.resources.storage import TableStore

    tables = TableStore(world.settings.tables_of(world.contract))
    store = FeatureStore(world.contract, world.settings)
    store.apply(tables.path("customer_features"))
    newest = world.observations[-1]

    def work() -> Outcome:
        with connection() as con:
            tables.read(con, "customer_features", [newest.key])
            return Outcome(store.materialize(con, "customer_features").customers)

    return work


STEPS: dict[str, Callable[[World], Callable[[], Outcome]]] = {
    "features": features,
    "join": join,
    "validation": validation,
    "drift": drift,
    "materialize": materialize,
    "materialize_redis": materialize,
}
