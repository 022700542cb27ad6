"""Tables are written whole or not at all, a window at a time, and old versions stay readable."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pytest
from deltalake.exceptions import CommitFailedError

from churn_platform.engine import connection
from churn_platform.resources import removal, retention
from churn_platform.resources.storage import (
    LEDGER,
    ChangedTypeError,
    MissingTableError,
    MissingVersionError,
    TableStore,
)
from churn_platform.settings import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store(tmp_path: Path) -> TableStore:
    return TableStore(str(tmp_path / "warehouse"))


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


def table(*values: int) -> pa.Table:
    return pa.table({"n": pa.array(values, pa.int64())})


def read(
    store: TableStore, con: duckdb.DuckDBPyConnection, name: str = "t", **options: object
) -> list[tuple[int, str]]:
    store.read(con, name, **options)  # type: ignore[arg-type]
    return con.execute(f"SELECT n, _window FROM {name} ORDER BY ALL").fetchall()


JANUARY, FEBRUARY = "2024-01-01", "2024-02-01"


def test_writing_a_window_again_has_the_result_of_writing_it_once(
    store: TableStore, con: duckdb.DuckDBPyConnection
) -> None:
    for _ in range(3):
        store.write("t", table(1, 2), JANUARY)
        store.write("t", table(3), FEBRUARY)
    assert read(store, con) == [(1, JANUARY), (2, JANUARY), (3, FEBRUARY)]


def test_a_window_is_replaced_and_the_others_stay(store: TableStore, con: duckdb.DuckDBPyConnection) -> None:
    store.write("t", table(1, 2), JANUARY)
    store.write("t", table(3), FEBRUARY)
    store.write("t", table(9), JANUARY)
    assert read(store, con) == [(3, FEBRUARY), (9, JANUARY)]
    assert read(store, con, windows=[JANUARY]) == [(9, JANUARY)]
    assert read(store, con, windows=[]) == []


def test_rows_can_be_added(store: TableStore, con: duckdb.DuckDBPyConnection) -> None:
    store.write("t", table(1), JANUARY, keep=True)
    store.write("t", table(1), JANUARY, keep=True)
    assert read(store, con) == [(1, JANUARY), (1, JANUARY)]


def test_a_table_without_windows_is_replaced_whole(store: TableStore, con: duckdb.DuckDBPyConnection) -> None:
    store.write("t", table(1, 2))
    store.write("t", pa.table({"other": ["x"]}))
    store.read(con, "t")
    assert con.execute("SELECT * FROM t").fetchall() == [("x",)]
    store.write("t", pa.table({"other": ["y"]}), keep=True)
    store.read(con, "t")
    assert con.execute("SELECT * FROM t ORDER BY 1").fetchall() == [("x",), ("y",)]


def test_an_old_version_stays_readable(store: TableStore, con: duckdb.DuckDBPyConnection) -> None:
    first = store.write("t", table(1), JANUARY)
    second = store.write("t", table(2), JANUARY)
    assert second > first
    assert store.version("t") == second
    assert read(store, con, version=first) == [(1, JANUARY)]
    assert read(store, con) == [(2, JANUARY)]


def test_a_reader_keeps_what_it_began_with(store: TableStore, con: duckdb.DuckDBPyConnection) -> None:
    store.write("t", table(1), JANUARY)
    store.read(con, "t")
    store.write("t", table(2), JANUARY)
    assert con.execute("SELECT n FROM t").fetchall() == [(1,)]


def test_a_missing_table_says_what_to_do(store: TableStore, con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(MissingTableError, match="materialize the asset scores first"):
        store.read(con, "scores")
    assert store.version("scores") is None
    assert store.windows("scores") == []


def test_an_empty_window_is_there_and_empty(store: TableStore, con: duckdb.DuckDBPyConnection) -> None:
    store.write("t", table(), JANUARY)
    assert store.windows("t") == [JANUARY]
    assert read(store, con, windows=[JANUARY]) == []
    store.write("t", table(1), FEBRUARY)
    store.write("t", table(), FEBRUARY)
    assert store.windows("t") == [JANUARY, FEBRUARY]
    assert read(store, con) == []
    store.write("t", table(5), JANUARY)
    assert read(store, con) == [(5, JANUARY)]
    assert store.windows("t") == [JANUARY, FEBRUARY]
    assert store.windows("another") == []


def test_times_are_stored_in_utc(store: TableStore, con: duckdb.DuckDBPyConnection) -> None:
    con.execute("SET TimeZone = 'Europe/Berlin'")
    store.write(
        "t",
        con.sql("SELECT TIMESTAMPTZ '2024-07-01 12:00:00+02' AS aware, TIMESTAMP '2024-07-01 12:00:00' AS naive"),
        JANUARY,
    )
    from deltalake import DeltaTable

    stored = DeltaTable(store.path("t")).to_pyarrow_table()
    assert stored.schema.field("aware").type == pa.timestamp("us", "UTC")
    assert stored.column("aware").to_pylist() == [datetime(2024, 7, 1, 10, tzinfo=UTC)]
    assert stored.column("naive").to_pylist() == [datetime(2024, 7, 1, 12, tzinfo=UTC)]


def test_a_relation_larger_than_a_batch_is_written_whole(store: TableStore, con: duckdb.DuckDBPyConnection) -> None:
    store.write("t", con.sql("SELECT range AS n FROM range(250001)"), JANUARY)
    store.read(con, "t")
    assert con.execute("SELECT count(*), sum(n) FROM t").fetchall() == [(250_001, 250_000 * 250_001 // 2)]


def test_a_write_that_fails_half_way_leaves_the_old_table(store: TableStore, con: duckdb.DuckDBPyConnection) -> None:
    store.write("t", table(1), JANUARY)
    before = store.version("t")
    failing = con.sql(
        "SELECT CASE WHEN range < 200000 THEN range ELSE error('broken pipe') END AS n FROM range(300000)"
    )
    with pytest.raises(Exception, match="broken pipe"):
        store.write("t", failing, JANUARY)
    assert store.version("t") == before
    assert read(store, con) == [(1, JANUARY)]


def test_a_column_that_the_contract_gained_is_null_in_older_windows(
    store: TableStore, con: duckdb.DuckDBPyConnection
) -> None:
    store.write("t", table(1), JANUARY)
    store.write("t", table(2).append_column("m", pa.array([7], pa.int64())), FEBRUARY)
    store.read(con, "t")
    assert con.execute("SELECT n, m FROM t ORDER BY n").fetchall() == [(1, None), (2, 7)]


def column(*values: object) -> pa.Table:
    return pa.table({"n": pa.array(values)})


CHANGES: list[tuple[list[object], list[object], list[object]]] = [
    ([1, 2], [1.7], [1.0, 2.0, 1.7]),
    ([7, None], ["007", "A7"], ["7", None, "007", "A7"]),
    (["7", "8"], [9], [7, 8, 9]),
    ([1.5], ["x"], ["1.5", "x"]),
    ([None], [datetime(2024, 1, 5, tzinfo=UTC)], [None, datetime(2024, 1, 5, tzinfo=UTC)]),
]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_column_of_another_type_has_it_in_all_windows_where_nothing_is_lost(
    store: TableStore,
    con: duckdb.DuckDBPyConnection,
    change: tuple[list[object], list[object], list[object]],
    keep: bool,
) -> None:
    before, now, expected = change
    first = column(*before) if any(v is not None for v in before) else pa.table({"n": pa.array(before, pa.int64())})
    store.write("t", first, JANUARY)
    version = store.write("t", column(*now), FEBRUARY, keep=keep)
    assert version == 2, "a reader between two commits would see half of the change"
    con.execute("SET TimeZone = 'UTC'")
    store.read(con, "t")
    assert con.execute("SELECT list(n ORDER BY _window) FROM t").fetchall()[0][0] == expected
    configured = store.open("t").metadata().configuration
    assert configured["delta.dataSkippingNumIndexedCols"] == "0"
    store.read(con, "t", version=1)
    assert con.execute("SELECT count(*) FROM t").fetchall() == [(len(before),)]


LOSSES: list[tuple[list[object], list[object]]] = [
    ([1.7, 2.2], [1, 2]),
    (["007"], [7]),
    (["A7"], [7]),
    ([2**53 + 1], [0.5]),
    ([datetime(2024, 1, 5, tzinfo=UTC)], ["2024-01-05"]),
    (["2024-01-05"], [datetime(2024, 1, 5, tzinfo=UTC)]),
]


@pytest.mark.parametrize(("before", "now"), LOSSES, ids=str)
def test_a_change_of_type_that_would_lose_values_of_other_windows_is_refused_with_advice(
    store: TableStore, con: duckdb.DuckDBPyConnection, before: list[object], now: list[object]
) -> None:
    store.write("t", column(*before), JANUARY)
    with pytest.raises(ChangedTypeError, match=r"n of t was .* rows of other windows .* give the column another name"):
        store.write("t", column(*now), FEBRUARY)
    assert store.windows("t") == [JANUARY]
    con.execute("SET TimeZone = 'UTC'")
    store.read(con, "t")
    assert con.execute("SELECT n FROM t").fetchall() == [(value,) for value in before]


def test_a_window_that_is_replaced_need_not_fit_the_new_type(store: TableStore, con: duckdb.DuckDBPyConnection) -> None:
    store.write("t", column(1.7, 2.2), JANUARY)
    store.write("t", column("A7"), JANUARY)
    store.read(con, "t")
    assert con.execute("SELECT n FROM t").fetchall() == [("A7",)]


def test_a_view_can_have_another_name(store: TableStore, con: duckdb.DuckDBPyConnection) -> None:
    store.write("t", table(1), JANUARY)
    assert store.read(con, "t", view="odd name") == "odd name"
    assert con.execute('SELECT n FROM "odd name"').fetchall() == [(1,)]


WRITER = """
import sys, time
import pyarrow as pa
from churn_platform.resources.storage import TableStore
root, who, start = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
while time.time() < start:
    time.sleep(0.001)
for day in range(1, 9):
    TableStore(root).write("t", pa.table({"n": [who * 100 + day]}), f"2024-0{who}-0{day}", content=f"c{day}")
"""


def write_at_once(root: str) -> list[tuple[int, str]]:
    """Let three processes write eight windows each; returns all the rows that there must be."""
    start = str(time.time() + 2.5)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, root, str(who), start], cwd=PROJECT, stderr=subprocess.PIPE, text=True
        )
        for who in (1, 2, 3)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    return sorted((who * 100 + day, f"2024-0{who}-0{day}") for who in (1, 2, 3) for day in range(1, 9))


def test_processes_that_write_different_windows_at_once_all_land(
    store: TableStore, con: duckdb.DuckDBPyConnection
) -> None:
    expected = write_at_once(store.root)
    assert read(store, con) == expected
    assert store.windows("t") == [window for _, window in expected]
    assert store.entries("t") == {window: ("", f"c{window[-1]}") for _, window in expected}


def test_of_several_who_replace_a_new_table_whole_one_remains(tmp_path: Path) -> None:
    for attempt in range(5):
        store = TableStore(str(tmp_path / f"{attempt}"))
        together = threading.Barrier(4)

        def write(who: int, store: TableStore = store, together: threading.Barrier = together) -> None:
            together.wait()
            with suppress(CommitFailedError):
                store.write("t", table(who))

        writers = [threading.Thread(target=write, args=(who,)) for who in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert store.open("t").count() == 1


def test_in_s3_concurrent_commits_are_safe_and_versions_are_kept(bucket: Any, con: duckdb.DuckDBPyConnection) -> None:
    from botocore.exceptions import ClientError

    store = TableStore("s3://tables/warehouse/shop")
    expected = write_at_once(store.root)
    assert read(store, con) == expected
    assert store.entries("t") == {window: ("", f"c{window[-1]}") for _, window in expected}
    assert store.names() == [LEDGER, "t"]
    # what it rests on: a commit is an object that is put only where there is none
    (first, *_) = bucket.list_objects_v2(Bucket="tables", Prefix="warehouse/shop/t/_delta_log/")["Contents"]
    with pytest.raises(ClientError, match="PreconditionFailed"):
        bucket.put_object(Bucket="tables", Key=first["Key"], Body=b"another commit", IfNoneMatch="*")

    version = store.write("u", table(1), JANUARY, record={"from": "here"})
    store.write("u", table(2), JANUARY)
    store.require_version("u", version)
    assert store.recorded("u", version) == {"from": "here"}
    assert read(store, con, "u", version=version) == [(1, JANUARY)]
    assert retention.prune(store, "u", pinned=[version], days=30)[:4] == (0, 0, 0, [])
    (old,) = store.open("u", version).file_uris()
    bucket.delete_object(Bucket="tables", Key=old.removeprefix("s3://tables/"))
    with pytest.raises(MissingVersionError, match=f"version {version} of u lacks 1 of its 1 files"):
        store.require_version("u", version)


@pytest.mark.usefixtures("home")
def test_in_s3_no_object_holds_what_was_removed(bucket: Any) -> None:
    store = TableStore("s3://tables/warehouse/shop")
    for who in (["someone-5519", "a"], ["b", "someone-5519"]):
        store.write("t", pa.table({"client": who}), JANUARY)
    store.write("t", pa.table({"client": ["c"]}), FEBRUARY)

    def holding() -> list[str]:
        listed = bucket.list_objects_v2(Bucket="tables")["Contents"]
        keys = [entry["Key"] for entry in listed]
        return [key for key in keys if b"someone-5519" in bucket.get_object(Bucket="tables", Key=key)["Body"].read()]

    assert len(holding()) == 2
    with connection() as con:
        removed = removal.remove(con, store, "t", removal.Rows({"client": "client = 'someone-5519'"}))
        assert removed == removal.Removed(rows=1, versions=4)
        store.read(con, "t")
        assert con.execute("SELECT client FROM t ORDER BY ALL").fetchall() == [("b",), ("c",)]
    assert holding() == []
    with pytest.raises(MissingVersionError):
        store.require_version("t", 1)
