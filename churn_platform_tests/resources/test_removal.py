"""Rows leave a table, its older versions and its exports, whatever is killed, and nothing else does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from churn_platform.engine import connection
from churn_platform.resources import exports, removal
from churn_platform.resources.storage import MissingTableError, TableStore
from churn_platform_tests.leaks import Scanner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import duckdb


@pytest.fixture
def tables(tmp_path: Path) -> TableStore:
    return TableStore(str(tmp_path / "warehouse"))


@pytest.fixture
def con(home: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with connection() as con:
        con.execute("SET VARIABLE erased_forms = ['someone-5519']")
        yield con


ROWS = removal.Rows({"client": "list_contains(getvariable('erased_forms'), client)"})


def rows(*clients: str) -> pa.Table:
    return pa.table({"client": list(clients), "amount": list(range(len(clients)))})


def traces(tables: TableStore, tmp_path: Path) -> list[str]:
    return [str(leak) for leak in Scanner(["someone-5519"]).tree(tmp_path / "warehouse")]


def clients(con: duckdb.DuckDBPyConnection, tables: TableStore, name: str) -> list[str]:
    tables.read(con, name)
    return [client for (client,) in con.execute(f"SELECT client FROM {name} ORDER BY ALL").fetchall()]


def test_rows_leave_a_table_and_every_older_version_of_it(con, tables, tmp_path):
    tables.write("purchases", rows("a", "someone-5519"), "2024-01-01")
    tables.write("purchases", rows("b", "someone-5519", "someone-5519"), "2024-02-01")
    tables.write("purchases", rows("a", "c", "someone-5519"), "2024-01-01")
    assert len(traces(tables, tmp_path)) >= 3
    assert removal.remove(con, tables, "purchases", ROWS) == removal.Removed(rows=3, versions=4)
    assert clients(con, tables, "purchases") == ["a", "b", "c"]
    assert traces(tables, tmp_path) == []
    with pytest.raises(MissingTableError):
        tables.read(con, "purchases", version=2)


def test_a_table_that_does_not_hold_the_rows_keeps_all_its_versions(con, tables):
    for clients_then in (("a",), ("a", "b")):
        tables.write("purchases", rows(*clients_then), "2024-01-01")
    before = tables.version("purchases")
    assert removal.remove(con, tables, "purchases", ROWS) is None
    assert tables.version("purchases") == before
    tables.read(con, "purchases", version=1)


def test_rows_that_only_an_older_version_holds_go_too(con, tables, tmp_path):
    tables.write("purchases", rows("a", "someone-5519"))
    tables.write("purchases", rows("a"))
    assert removal.remove(con, tables, "purchases", ROWS).rows == 0
    assert traces(tables, tmp_path) == []
    assert clients(con, tables, "purchases") == ["a"]


def test_a_window_that_held_nobody_else_stays_known_as_an_empty_one(con, tables):
    tables.write("purchases", rows("a"), "2024-01-01")
    tables.write("purchases", rows("someone-5519"), "2024-02-01")
    removal.remove(con, tables, "purchases", ROWS)
    assert tables.windows("purchases") == ["2024-01-01", "2024-02-01"]


def test_the_ledger_stays_so_that_no_window_has_to_be_computed_again(con, tables):
    tables.write("purchases", rows("a", "someone-5519"), "2024-01-01", made_of="m", content="c")
    before = tables.entries("purchases")
    removal.remove(con, tables, "purchases", ROWS)
    assert tables.entries("purchases") == before


def test_files_that_a_killed_write_left_behind_go_too(con, tables, tmp_path):
    tables.write("purchases", rows("a"), "2024-01-01")
    folder = tmp_path / "warehouse" / "purchases" / "_window=2024-01-01"
    (folder / "half.parquet").write_bytes(b"PAR1 someone-5519")
    pa.parquet.write_table(rows("someone-5519"), folder / "whole.parquet")
    removal.remove(con, tables, "purchases", ROWS)
    assert traces(tables, tmp_path) == []
    assert clients(con, tables, "purchases") == ["a"]


def test_what_another_process_appends_meanwhile_is_not_lost(con, tables, monkeypatch):
    tables.write("purchases", rows("a", "someone-5519"), "2024-01-01")
    appended = []

    def late(*arguments: object, **options: object) -> None:
        if not appended:
            appended.append(tables.write("purchases", rows("late"), "2024-01-01", keep=True))
        write_deltalake(*arguments, **options)

    monkeypatch.setattr(removal, "write_deltalake", late)
    removal.remove(con, tables, "purchases", ROWS)
    assert clients(con, tables, "purchases") == ["a", "late"]


def test_an_export_that_was_cut_or_left_half_written_is_deleted(con, tables, tmp_path):
    tables.write("purchases", rows("b"), "2024-01-01")
    exports.write(tables, "retention_list", "2024-01-01", rows("someone-5519", "b"))
    exports.write(tables, "retention_list", "2024-02-01", rows("someone-5519", "b"))
    folder = tmp_path / "warehouse" / "exports" / "retention_list"
    cut = folder / "2024-01-01.parquet"
    cut.write_bytes(cut.read_bytes()[:-20])
    (folder / "2024-03-01.parquet.part").write_bytes(b"PAR1")
    assert exports.remove(con, tables, ROWS) == removal.Removed(1, 0)
    assert not traces(tables, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["2024-02-01.csv", "2024-02-01.parquet"]
    assert exports.remove(con, tables, ROWS) is None


def test_an_export_that_fails_half_way_leaves_nothing_under_its_name(tables, tmp_path, monkeypatch):
    def full(_: pa.Table, stream: pa.NativeFile) -> None:
        stream.write(b"PAR1")
        raise OSError("no space left on device")

    tables.write("purchases", rows("b"), "2024-01-01")
    monkeypatch.setattr(exports.parquet, "write_table", full)
    with pytest.raises(OSError, match="no space"):
        exports.write(tables, "retention_list", "2024-01-01", rows("someone-5519"))
    assert not list((tmp_path / "warehouse" / "exports").glob("**/*.parquet"))


@pytest.mark.parametrize("moment", ["_rewrite", "_versions", "_data_files"])
def test_a_removal_that_was_killed_half_way_is_finished_by_the_next(con, tables, tmp_path, monkeypatch, moment):
    tables.write("purchases", rows("a", "someone-5519"), "2024-01-01")
    tables.write("purchases", rows("b", "someone-5519"), "2024-01-01")
    whole, calls = getattr(removal, moment), []

    def killed(*arguments: object) -> object:
        calls.append(moment)
        found = whole(*arguments)
        if len(calls) == (2 if moment == "_data_files" else 1):  # the second time: old files are gone, the log is not
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(removal, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            removal.remove(con, tables, "purchases", ROWS)
    removal.remove(con, tables, "purchases", ROWS)
    assert traces(tables, tmp_path) == []
    assert clients(con, tables, "purchases") == ["b"]
    assert removal.remove(con, tables, "purchases", ROWS) is None
