"""Our way alone, on more purchases than the specification's way could hold in memory.

Three figures: all purchases from their files to one snapshot of features (read, typed, masked, digested, judged,
compared with the months before and written month by month, then aggregated); the features alone; and what a new month
costs on top of that history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.measure import Measurement, Outcome
from benchmarks.measure import measure as run
from benchmarks.ours import judged

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.world import World


def measure(world: World, memory: float) -> dict[str, Any]:
    """Seconds and GB of each step, and the number of purchases in all."""
    steps = {step: run("large", step, world, timeout=3600, memory=memory) for step in STEPS}
    return {"purchases": int(world.done.read_text()), **{step: _plain(one) for step, one in steps.items()}}


def _plain(one: Measurement) -> dict[str, Any]:
    if one.failed:
        return {"wall": None, "peak": None, "failed": one.failed}
    return {"wall": one.wall, "cpu": one.cpu, "peak": one.peak, "rows": one.size}


def features(world: World, place: int = -2, previous: int | None = None) -> Callable[[], Outcome]:
    """The features at the end of the window at a place; without a previous one, from all purchases before it."""
    from churn_platform.engine import connection
    from churn_platform.ml import features as platform
    from churn_platform.ml import inputs
    from churn_platform.resources.storage import TableStore

    contract, window = world.contract, world.windows[place]
    tables = TableStore(world.settings.tables_of(contract))

    def work() -> Outcome:
        with connection() as con:
            before = None
            if previous is not None:
                before = tables.read(con, "customer_features", [world.windows[previous].key], view="previous")
            for name, keys in inputs.needed_for_features(contract, window, previous is not None).items():
                tables.read(con, f"validated_{name}", keys)
            tables.write("customer_features", platform.build(con, contract, window, before), window.key)
            tables.read(con, "customer_features", [window.key])
            return Outcome(con.execute("SELECT count(*) FROM customer_features").fetchall()[0][0])

    return work


def through(world: World) -> Callable[[], Outcome]:
    """Every month from its files to its validated rows, and the features of one snapshot from all of them."""
    months = [new_window(world, place) for place in range(len(world.windows))]
    last = features(world)

    def work() -> Outcome:
        rows = sum(month().size for month in months)
        last()
        return Outcome(rows)

    return work


def new_window(world: World, place: int = -1) -> Callable[[], Outcome]:
    """A month, by default the newest, from its files to its validated rows."""
    from churn_platform.engine import connection, digest, identifier, literal
    from churn_platform.ml import ingestion, masking
    from churn_platform.resources.storage import TableStore

    contract, window = world.contract, world.windows[place]
    tables = TableStore(world.settings.tables_of(contract))
    files = literal(str(world.landed("transactions") / f"{window.key}-*.parquet"))

    def work() -> Outcome:
        with connection(contract.time.timezone) as con:
            masking.install_key(con, b"a key for a benchmark")
            con.execute(f"CREATE VIEW landed AS SELECT *, 'landed' AS _source FROM read_parquet({files})")
            typed = ingestion.typed_rows(con, contract, "transactions", "landed", window)
            tables.write("raw_transactions", typed, window.key, content=digest(typed))
            tables.read(con, "raw_transactions", [window.key], view="raw")
            known = ", ".join(f"count({identifier(column)})" for column in typed.columns)
            con.execute(f"SELECT count(*), {known} FROM raw").fetchall()
            divided, _ = judged(con, world, tables, window)
            tables.write("validated_transactions", divided.good, window.key, content=digest(divided.good))
            return Outcome(divided.rows)

    return work


def new_features(world: World) -> Callable[[], Outcome]:
    """The features of the newest month, from the snapshot before it."""
    return features(world, -1, -2)


STEPS: dict[str, Callable[[World], Callable[[], Outcome]]] = {
    "through": through,
    "features": features,
    "new_window": new_window,
    "new_features": new_features,
}
