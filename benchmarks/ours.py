"""Our way: the functions that the platform's assets call, in their order.

Left out are Dagster, and what the assets show in its pages: plots, and the counts that these are drawn from.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from benchmarks.measure import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    import duckdb

    from benchmarks.world import World
    from churn_platform.ml import expectations
    from churn_platform.ml.validation import Finding, Split
    from churn_platform.resources.storage import TableStore
    from churn_platform.windows import Window


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

    from churn_platform.engine import connection, digest, literal
    from churn_platform.resources.storage import TableStore

    contract = world.contract
    tables = TableStore(world.settings.tables_of(contract))
    for written in ("quarantine_transactions", "profile_transactions"):  # each repeat makes them
        shutil.rmtree(tables.path(written), ignore_errors=True)

    def work() -> Outcome:
        with connection(contract.time.timezone) as con:
            con.execute(f"CREATE VIEW raw AS SELECT * FROM read_parquet({literal(str(world.raw))})")
            divided, findings = judged(con, world, tables, world.windows[-1])
            digest(divided.good)
        passed = all(finding.passed for finding in findings)
        return Outcome(divided.rows, facts={"passed": passed, "bad_rows": divided.bad})

    return work


def judged(
    con: duckdb.DuckDBPyConnection, world: World, tables: TableStore, window: Window
) -> tuple[Split, list[Finding]]:
    """What the validated asset does with the view `raw` before it publishes: quarantine and profile are written.

    Returns the division of the rows and the verdicts on them. Those beside earlier windows are come to and not among
    them: the specification's way has none.
    """
    from churn_platform.ml import comparison
    from churn_platform.ml import validation as platform

    contract, name = world.contract, "transactions"
    divided = platform.split(con, contract, name, "raw")
    verdict = _verdict(con, world, divided.rows)
    before = comparison.neighbours(contract, window.key, tables.windows(f"validated_{name}"))
    if before:
        tables.read(con, f"validated_{name}", before, view="before")
    here = comparison.profile(con, contract, name, divided, window=window, before="before" if before else None)
    findings = [*platform.findings(con, contract, name, "raw", divided), platform.suite_finding(name, verdict)]
    comparison.findings(contract, name, window.key, here, {})
    tables.write(f"quarantine_{name}", divided.quarantined, window.key)
    tables.write(f"profile_{name}", comparison.as_rows(con, here), window.key)
    return divided, findings


def _verdict(con: duckdb.DuckDBPyConnection, world: World, rows: int) -> expectations.Verdict:
    """As the asset chooses: Great Expectations judges few rows, and the engine, by the same rules, many."""
    from churn_platform.engine import identifier
    from churn_platform.ml import expectations
    from churn_platform.ml.rules import ISSUES

    columns = [*world.contract.tables.items()["transactions"].kept, ISSUES]
    con.execute(f"CREATE OR REPLACE TEMP VIEW judged AS SELECT {', '.join(map(identifier, columns))} FROM raw")
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
    store.online(["nobody"])  # Feast imports what it reads with at its first read
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
