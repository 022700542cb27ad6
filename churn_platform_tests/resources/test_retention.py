"""Old versions go by policy; what a model was trained on, a reader reads or a writer writes never does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from churn_platform.resources import retention
from churn_platform.resources.storage import LEDGER, MissingVersionError, TableStore
from churn_platform_tests.ageing import age

JANUARY, FEBRUARY = "2024-01-01", "2024-02-01"


@pytest.fixture
def store(tmp_path: Path) -> TableStore:
    return TableStore(str(tmp_path / "warehouse"))


def table(*values: int) -> pa.Table:
    return pa.table({"n": pa.array(values, pa.int64())})


def numbers(store: TableStore, version: int | None = None) -> list[int]:
    with duckdb.connect() as con:
        store.read(con, "t", version=version)
        return [n for (n,) in con.execute("SELECT n FROM t ORDER BY n").fetchall()]


def data_files(store: TableStore, name: str = "t") -> set[Path]:
    return {path for path in Path(store.path(name)).rglob("*.parquet") if "_delta_log" not in path.parts}


def log_files(store: TableStore) -> list[str]:
    return sorted(path.name for path in (Path(store.path("t")) / "_delta_log").glob("*.json"))


def test_versions_that_were_replaced_long_ago_go_and_the_newest_stays(store: TableStore) -> None:
    for value in range(5):
        version = store.write("t", table(value), JANUARY)
    age(store, 40)
    pruned = retention.prune(store, "t", pinned=[], days=30)
    assert (pruned.files, pruned.missing) == (4, [])
    assert pruned.bytes > 0
    assert len(data_files(store)) == 1
    assert numbers(store) == numbers(store, version) == [4]
    with pytest.raises(MissingVersionError):
        store.require_version("t", version - 1)


def test_a_version_is_kept_as_long_after_it_was_replaced_as_the_policy_says(store: TableStore) -> None:
    first = store.write("t", table(1), JANUARY)
    age(store, 100)  # written long ago, but the newest until just now
    store.write("t", table(2), JANUARY)
    age(store, 20)
    assert retention.prune(store, "t", pinned=[], days=30).files == 0
    assert numbers(store, first) == [1]
    age(store, 11)
    assert retention.prune(store, "t", pinned=[], days=30).files == 1
    with pytest.raises(MissingVersionError):
        store.require_version("t", first)


def test_a_pinned_version_is_readable_after_files_and_log_before_it_are_gone(store: TableStore) -> None:
    written = [store.write("t", table(value), JANUARY) for value in range(1, 9)]
    written.append(store.write("t", table(100), FEBRUARY))
    pinned = written[2]
    age(store, 60)
    pruned = retention.prune(store, "t", pinned=[pinned], days=30)
    assert pruned.oldest == pinned
    assert pruned.files == 6
    assert pruned.log_files == pinned
    assert log_files(store)[0] == f"{pinned:020}.json"
    assert numbers(store, pinned) == [3]
    assert numbers(store) == [8, 100]
    for gone in (written[1], written[3]):
        with pytest.raises(MissingVersionError):
            store.require_version("t", gone)
    # the platform goes on, past Delta's own checkpoints and what it does at each of them
    for value in range(120):
        store.write("t", table(value), JANUARY)
    assert numbers(store, pinned) == [3]
    assert numbers(store) == [100, 119]
    assert f"{pinned:020}.json" in log_files(store)


def test_a_log_that_delta_would_drop_by_itself_stays(store: TableStore) -> None:
    first = store.write("t", table(1), JANUARY)
    for value in range(150):
        store.write("t", table(value), JANUARY)
        if value == 90:
            age(store, 60)
    assert any("checkpoint" in path.name for path in (Path(store.path("t")) / "_delta_log").iterdir())
    assert numbers(store, first) == [1]


def test_a_table_without_windows_keeps_its_pinned_versions_too(store: TableStore) -> None:
    first = store.write("t", table(1), record={"made_of": {"other": 7}})
    for value in range(2, 6):
        store.write("t", table(value))
    age(store, 60)
    assert retention.prune(store, "t", pinned=[first], days=30).files == 3
    assert numbers(store, first) == [1]
    assert store.recorded("t", first) == {"made_of": {"other": 7}}
    assert store.recorded("t", first + 1) == {}
    store.write("t", table(9))
    assert numbers(store, first) == [1]


def test_the_ledger_is_pruned_and_says_what_it_said(store: TableStore) -> None:
    for value in range(4):
        store.write("t", table(value), JANUARY, made_of=f"m-1.{value}", content=f"c{value}")
    age(store, 60, LEDGER)
    entries = store.entries("t")
    assert retention.prune(store, LEDGER, pinned=[], days=30).files == 3
    assert store.entries("t") == entries == {JANUARY: ("m-1.3", "c3")}


def test_files_of_a_killed_write_go_after_a_day_and_not_before(store: TableStore) -> None:
    store.write("t", table(1), JANUARY)
    orphan = Path(store.path("t")) / f"_window={JANUARY}" / "part-00000-killed-c000.snappy.parquet"
    orphan.write_bytes(b"half a file")
    assert retention.prune(store, "t", pinned=[], days=1).files == 0
    assert orphan.exists()
    yesterday = time.time() - (retention.SAFE_HOURS + 1) * 3600
    os.utime(orphan, (yesterday, yesterday))
    pruned = retention.prune(store, "t", pinned=[], days=1, dry_run=True)
    assert (pruned.files, pruned.bytes) == (1, len(b"half a file"))
    assert orphan.exists()
    assert retention.prune(store, "t", pinned=[], days=1).files == 1
    assert not orphan.exists()
    assert numbers(store) == [1]


def test_pruning_again_finds_nothing_and_adds_no_version(store: TableStore) -> None:
    for value in range(3):
        store.write("t", table(value), JANUARY)
    age(store, 60)
    assert retention.prune(store, "t", pinned=[], days=30).files == 2
    before = store.version("t")
    assert retention.prune(store, "t", pinned=[], days=30)[:3] == (0, 0, 0)
    assert store.version("t") == before


def test_a_pinned_version_that_is_gone_is_named_and_hinders_nothing(store: TableStore) -> None:
    first = store.write("t", table(1), JANUARY)
    store.write("t", table(2), JANUARY)
    age(store, 60)
    retention.prune(store, "t", pinned=[], days=30)
    store.write("t", table(3), JANUARY)
    age(store, 60)
    pruned = retention.prune(store, "t", pinned=[first, 999], days=30)
    assert pruned.missing == [first, 999]
    assert pruned.files == 1
    assert numbers(store) == [3]


def test_a_reader_and_a_writer_at_work_are_not_disturbed(store: TableStore) -> None:
    for value in range(3):
        store.write("t", table(value), JANUARY)
    age(store, 60)
    pruned = []

    class Slowly:
        """Rows that are long in coming: the table is pruned between one batch and the next."""

        columns = ("n",)

        def to_arrow_reader(self, size: int) -> pa.RecordBatchReader:
            def batches() -> Iterator[pa.RecordBatch]:
                for start in range(0, 300_000, 100_000):
                    with ThreadPoolExecutor(1) as other:
                        pruned.append(other.submit(retention.prune, store, "t", pinned=[], days=30).result())
                    yield pa.record_batch({"n": pa.array(range(start, start + 100_000), pa.int64())})

            return pa.RecordBatchReader.from_batches(pa.schema([("n", pa.int64())]), batches())

    with duckdb.connect() as con:
        store.read(con, "t")  # opens no file of it yet
        store.write("t", table(7), JANUARY)
        store.write("t", Slowly(), FEBRUARY)  # type: ignore[arg-type]
        assert con.execute("SELECT n FROM t").fetchall() == [(2,)]
    assert sum(found.files for found in pruned) == 2
    assert numbers(store) == sorted([7, *range(300_000)])
