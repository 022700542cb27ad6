"""The index of source files: what it knows is right, it is never asked in vain, and no row is lost or taken twice."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn_platform.contract import Contract
from churn_platform.contract_file import ContractError
from churn_platform.explain import explain
from churn_platform.ml import ingestion
from churn_platform.resources.storage import TableStore
from churn_platform.sources import files as module
from churn_platform.sources.base import SourceError, changed, horizon
from churn_platform.sources.files import FilesSource
from churn_platform.sources.index import Index
from churn_platform_tests import worlds
from churn_platform_tests.worlds import KEY, PURCHASES, all_windows, engine, instant

if TYPE_CHECKING:
    import duckdb

    from churn_platform.windows import Window

pytestmark = pytest.mark.usefixtures("home")
HEADER = "client_no,receipt,bought_at,paid,shop\n"
MANY = ("path: purchases.csv", "path: '*.csv'")
ARRIVED = ("    amount: paid\n", "    arrived: seen_at\n    amount: paid\n")
SEEN = ("      paid: {type: float, min: 0}\n", "      paid: {type: float, min: 0}\n      seen_at: {type: timestamp}\n")


def of(*changes: tuple[str, str]) -> Contract:
    return worlds.changed(PURCHASES, MANY, *changes)


def purchases(folder: Path, name: str, *rows: tuple[str, str]) -> Path:
    """A file of receipts and their times."""
    path = folder / name
    path.write_text(HEADER + "".join(f"c,{receipt},{time},1,x\n" for receipt, time in rows))
    return path


def source_of(contract: Contract, folder: Path, store: Path | None = None) -> FilesSource:
    """A source as a process of its own has it; with a store, what it finds out is remembered there."""
    return FilesSource(contract, folder, Index(TableStore(str(store)) if store else None, lambda: KEY))


def digests(source: FilesSource) -> dict[str, str]:
    with engine(source.contract) as con:
        return source.digests(con, source.contract.main_table)


def receipts(con: duckdb.DuckDBPyConnection, source: FilesSource, window: Window) -> list[str]:
    name = source.contract.main_table
    view = source.rows(con, name, window)
    typed = ingestion.typed_rows(con, source.contract, name, view, window)
    return sorted(row[0] for row in typed.project("receipt").fetchall())


def read(source: FilesSource) -> dict[str, list[str]]:
    """Window to the receipts that it holds, of the windows that hold any."""
    with engine(source.contract) as con:
        found = {window.key: receipts(con, source, window) for window in all_windows(source.contract)}
    return {key: rows for key, rows in found.items() if rows}


def spoil(path: Path) -> None:
    """Make a file unreadable without its size or time of change telling."""
    state = path.stat()
    path.write_bytes(b"\xff" * state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


# ------------------------------------------------------------------------------------ nothing is lost, nothing twice

TIMES = st.sampled_from(
    [
        "2024-01-01 00:00",
        "2024-02-01 00:00",
        "2024-01-31 23:59:59",
        "2024-03-31 02:30",
        "2024-06-30 23:59:59",
        "2024-07-01 00:00",
        "2023-12-31 23:59:59",
        "1999-01-01",
        "2999-01-01",
        "infinity",
        "-infinity",
        "soon",
        "",
        "2024-05-05 05:05+05:00",
        "2024-04-04",
        "2024-10-27 02:30",
        "2024-04-26 00:00",
        "2024-04-25 21:59:59Z",
        "2024-04-25 22:00Z",
    ]
)  # fmt: skip; in Cairo clocks changed at midnight of 26 April


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    landings=st.lists(
        st.lists(st.tuples(TIMES, TIMES, st.sampled_from(["a", "b", "c"])), max_size=6), min_size=1, max_size=4
    ),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Africa/Cairo"]),
    cadence=st.sampled_from(["monthly", "weekly", "daily"]),
    end=st.booleans(),
    arrived=st.booleans(),
)
def test_however_rows_are_divided_and_late_every_one_is_held_exactly_once_when_all_has_been_processed(
    landings: list[list[tuple[str, str, str]]], zone: str, cadence: str, end: bool, arrived: bool
) -> None:
    """Rows land in files, or are added to files that are there; after each landing a platform processes what is due."""
    contract = of(
        ("timezone: UTC", f"timezone: {zone}"),
        ("monthly", cadence),
        *([] if end else [(", end: 2024-07-01", "")]),
        *([ARRIVED, SEEN] if arrived else []),
    )
    windows = {window.key: window for window in all_windows(contract)}
    held: dict[str, list[str]] = {}
    recorded: dict[str, str] = {}
    landed: list[str] = []
    with tempfile.TemporaryDirectory() as folder, engine(contract) as con:
        for landing in landings:
            for time, seen, file in [("2024-01-09", "2024-01-09", "a"), *landing]:
                path = Path(folder) / f"{file}.csv"
                if not path.exists():
                    path.write_text(HEADER.replace("\n", ",seen_at\n"))
                with path.open("a") as opened:
                    opened.write(f"c,{len(landed)},{time},1,x,{seen}\n")
                landed.append(str(len(landed)))
            source = source_of(contract, Path(folder), Path(folder) / "tables")
            for key, digest in source.digests(con, "transactions").items():
                if changed(recorded.get(key, ""), digest):
                    held[key] = receipts(con, source, windows[key])
                    recorded[key] = digest
    assert sorted(row for rows in held.values() for row in rows) == sorted(landed)


def test_a_misfit_travels_with_the_first_window_of_its_file(tmp_path: Path) -> None:
    purchases(
        tmp_path,
        "b.csv",
        ("march", "2024-03-05"),
        ("unreadable", "some day"),
        ("too early", "1999-01-01"),
        ("april", "2024-04-05"),
    )
    purchases(tmp_path, "c.csv", ("alone", "never"))
    assert read(source_of(of(), tmp_path)) == {
        "2024-01-01": ["alone"],
        "2024-03-01": ["march", "too early", "unreadable"],
        "2024-04-01": ["april"],
    }


def test_a_row_in_the_future_is_a_misfit_until_its_window_comes_near_and_then_moves_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    purchases(tmp_path, "a.csv", ("now", "2024-02-05"), ("typo", "2031-05-05"))
    contract = of((", end: 2024-07-01", ""))
    source = source_of(contract, tmp_path, tmp_path / "tables")
    before = digests(source)
    windows = [window for window in worlds.windows(contract, instant("2031-07-01")) if window.key >= "2024-02"]
    at_first, at_last = windows[0], windows[-2]
    assert (at_first.key, at_last.key) == ("2024-02-01", "2031-05-01")

    def held() -> list[list[str]]:
        with engine(contract) as con:
            return [receipts(con, source, window) for window in (at_first, at_last)]

    assert list(before) == ["2024-02-01"]
    assert held() == [["now", "typo"], []]

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2031, 6, 2, tzinfo=tz)

    for used in (module, ingestion):
        monkeypatch.setattr(used, "datetime", Later)
    spoiled = source_of(contract, tmp_path, tmp_path / "tables")
    after = digests(spoiled)
    assert list(after) == ["2024-02-01", "2031-05-01"]
    assert changed(before["2024-02-01"], after["2024-02-01"])
    assert held() == [["now"], ["typo"]]


@pytest.mark.parametrize(
    ("cadence", "now", "expected"),
    [
        ("monthly", "2024-03-05T12:00", "2024-04-01"),
        ("monthly", "2024-03-30T12:00", "2024-04-01"),
        ("monthly", "2024-03-31T12:00", "2024-05-01"),
        ("weekly", "2024-03-05T12:00", "2024-03-11"),
        ("daily", "2024-03-05T12:00", "2024-03-07"),
        ("daily", "2024-06-30T12:00", "2024-07-01"),
    ],
)
def test_the_future_begins_with_a_window_that_is_more_than_a_day_away(cadence: str, now: str, expected: str) -> None:
    assert horizon(of(("monthly", cadence)), instant(now)) == instant(expected)


# ------------------------------------------------------------------------------------------------------- late rows


def test_a_late_row_changes_the_digest_of_exactly_its_window(tmp_path: Path) -> None:
    for month in range(1, 6):
        purchases(tmp_path, f"{month}.csv", (f"r{month}", f"2024-0{month}-05"))
    source = source_of(of(), tmp_path)
    before = digests(source)
    purchases(tmp_path, "6.csv", ("late", "2024-02-20"), ("new", "2024-06-02"))
    after = digests(source)
    assert [key for key in after if changed(before.get(key, ""), after[key])] == ["2024-02-01", "2024-06-01"]
    assert read(source)["2024-02-01"] == ["late", "r2"]


def test_a_corrected_value_changes_the_digest_and_a_repeated_row_does_too(tmp_path: Path) -> None:
    path = purchases(tmp_path, "a.csv", ("r1", "2024-01-05"), ("r2", "2024-02-05"))
    source = source_of(of(), tmp_path)
    first = digests(source)
    path.write_text(path.read_text().replace("02-05,1,x", "02-05,2,x"))
    os.utime(path, ns=(1, 1))
    second = digests(source)
    assert [key for key in first if changed(first[key], second[key])] == ["2024-02-01"]
    purchases(tmp_path, "b.csv", ("r1", "2024-01-05"))
    assert [key for key in first if changed(second[key], digests(source)[key])] == ["2024-01-01"]


def test_a_digest_does_not_depend_on_how_rows_lie_in_files_nor_on_the_kind_of_file(tmp_path: Path) -> None:
    rows = [(f"r{n}", f"2024-0{1 + n % 6}-0{1 + n % 9} 10:30") for n in range(40)]
    one, many, typed = tmp_path / "one", tmp_path / "many", tmp_path / "typed"
    for folder in (one, many, typed):
        folder.mkdir()
    purchases(one, "a.csv", *rows)
    for n in range(4):
        purchases(many, f"{n}.csv", *reversed(rows[n::4]))
    pd.DataFrame(
        {
            "client_no": "c",
            "receipt": [receipt for receipt, _ in rows],
            "bought_at": pd.to_datetime([time for _, time in rows]),
            "paid": 1,
            "shop": "x",
        }
    ).to_parquet(typed / "a.parquet")
    found = [digests(source_of(of(), folder)) for folder in (one, many)]
    found.append(digests(source_of(worlds.changed(PURCHASES, ("purchases.csv", "a.parquet")), typed)))
    assert found[0] == found[1]
    counted = [{key: digest.split(":")[1] for key, digest in part.items()} for part in found]
    assert counted[0] == counted[2]
    assert len(found[0]) == 6


def test_a_digest_of_the_same_values_is_the_same_whatever_types_the_file_gives_them(tmp_path: Path) -> None:
    shop = {"client_no": ["1", "2"], "receipt": ["r", "s"], "paid": [2.0, 3.0], "shop": ["x", None]}
    times = ["2024-01-05 10:30", "2024-02-05"]
    plain = pd.DataFrame({**shop, "bought_at": pd.to_datetime(times, format="ISO8601")})
    other = plain.assign(
        client_no=[1.0, 2.0],
        paid=[2, 3],
        bought_at=plain["bought_at"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"),
    )
    contract = worlds.changed(PURCHASES, ("purchases.csv", "a.parquet"))
    found = []
    for name, frame in (("plain", plain), ("other", other)):
        (tmp_path / name).mkdir()
        frame.to_parquet(tmp_path / name / "a.parquet")
        found.append(digests(source_of(contract, tmp_path / name)))
    assert found[0] == found[1]


def test_digests_under_another_reading_of_the_contract_are_not_compared(tmp_path: Path) -> None:
    purchases(tmp_path, "a.csv", ("r1", "2024-01-05"))
    plain = digests(source_of(of(), tmp_path))["2024-01-01"]
    judged = digests(source_of(of(("{type: float, min: 0}", "{type: float, min: 0, max: 9}")), tmp_path))["2024-01-01"]
    assert judged == plain, "a rule changes what is thought of rows, not what is read"
    read_otherwise = digests(source_of(of(("shop: {type: string", "shop: {type: string, from: paid")), tmp_path))
    assert read_otherwise["2024-01-01"] != plain
    assert not changed(plain, read_otherwise["2024-01-01"])


def test_what_is_not_known_or_no_longer_there_is_no_change() -> None:
    assert not changed(None, "a:1:f")
    assert not changed("a:1:f", "")
    assert not changed("a:1:f", "a:1:f")
    assert changed("", "a:1:f")
    assert changed("a:1:f", "a:2:f")


def test_a_digest_tells_nothing_to_whoever_does_not_hold_the_key(tmp_path: Path) -> None:
    purchases(tmp_path, "a.csv", ("r1", "2024-01-05"))
    contract = of()
    mine, another = (
        digests(FilesSource(contract, tmp_path, Index(None, lambda key=key: key)))  # type: ignore[misc]
        for key in (KEY, b"another key")
    )
    assert mine["2024-01-01"].split(":")[2] != another["2024-01-01"].split(":")[2]


def test_a_table_without_a_time_has_no_digests(tmp_path: Path) -> None:
    who = "      who: {type: string}\n"
    contract = worlds.changed(
        PURCHASES,
        ("features:\n", f"  customers:\n    path: who.csv\n    customer: who\n    columns:\n{who}features:\n"),
    )
    purchases(tmp_path, "purchases.csv", ("r1", "2024-01-05"))
    (tmp_path / "who.csv").write_text("who\nc\n")
    with engine(contract) as con:
        source = source_of(contract, tmp_path)
        assert source.digests(con, "customers", thorough=True) == {}
        assert source.digest(con, "customers", all_windows(contract)[0]) == ""


# ------------------------------------------------------------------------------- files are opened when they have to be


def test_files_that_are_known_are_not_opened_again_not_even_by_another_process(tmp_path: Path) -> None:
    paths = [purchases(tmp_path, f"{n}.csv", (f"r{n}", f"2024-0{n}-30")) for n in range(1, 5)]
    first = source_of(of(), tmp_path, tmp_path / "tables")
    known = digests(first)
    for path in paths:
        spoil(path)
    for source in (first, source_of(of(), tmp_path, tmp_path / "tables")):
        assert digests(source) == known
        with engine(source.contract) as con:
            assert source.watermark(con) == instant("2024-05-01")


def test_a_new_file_is_scanned_alone_and_a_window_is_read_from_its_own_files(tmp_path: Path) -> None:
    old = purchases(tmp_path, "1.csv", ("r1", "2024-01-05"))
    source = source_of(of(), tmp_path, tmp_path / "tables")
    digests(source)
    spoil(old)
    purchases(tmp_path, "2.csv", ("r2", "2024-02-05"))
    assert list(digests(source)) == ["2024-01-01", "2024-02-01"]
    february = all_windows(source.contract)[1]
    with engine(source.contract) as con:
        assert receipts(con, source, february) == ["r2"]


def test_nothing_is_written_while_nothing_changes(tmp_path: Path) -> None:
    purchases(tmp_path, "1.csv", ("r1", "2024-01-05"))
    store = TableStore(str(tmp_path / "tables"))
    versions = []
    for _ in range(3):
        digests(source_of(of(), tmp_path, tmp_path / "tables"))
        versions.append(store.version("_source_index_transactions"))
    purchases(tmp_path, "2.csv", ("r2", "2024-02-05"))
    digests(source_of(of(), tmp_path, tmp_path / "tables"))
    assert versions == [versions[0]] * 3
    assert store.version("_source_index_transactions") == versions[0] + 1


def test_the_stored_index_holds_no_value_of_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "planted@example.com,plantedreceipt,2024-01-05,77.25,plantedshop\n")
    digests(source_of(of(), tmp_path, tmp_path / "tables"))
    stored = pd.concat(pd.read_parquet(path) for path in (tmp_path / "tables").rglob("*.parquet"))
    assert len(stored) == 1
    assert not [word for word in ("planted", "77.25") if word in stored.to_csv()]


def test_a_file_that_is_taken_away_takes_its_rows_with_it(tmp_path: Path) -> None:
    purchases(tmp_path, "1.csv", ("r1", "2024-01-05"), ("r2", "2024-02-05"))
    gone = purchases(tmp_path, "2.csv", ("r3", "2024-02-06"), ("r4", "2024-03-06"))
    source = source_of(of(), tmp_path, tmp_path / "tables")
    before = digests(source)
    gone.unlink()
    after = digests(source)
    assert [key for key in before if changed(before[key], after.get(key, ""))] == ["2024-02-01"]
    assert "2024-03-01" not in after


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    purchases(tmp_path, "a.csv", ("r1", "2024-01-05"))
    times = [0]

    def meanwhile(*arguments: Any) -> Any:
        found = ingestion.surveyed(*arguments)
        if not times[0]:
            purchases(tmp_path, "a.csv", ("r1", "2024-01-05"), ("r2", "2024-02-05"))
        times[0] += 1
        return found

    monkeypatch.setattr(module, "surveyed", meanwhile)
    assert list(digests(source_of(of(), tmp_path))) == ["2024-01-01", "2024-02-01"]
    assert times == [2]


def test_a_file_that_never_comes_to_rest_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = purchases(tmp_path, "a.csv", ("r1", "2024-01-05"))

    def meanwhile(*arguments: Any) -> Any:
        with path.open("a") as file:
            file.write("c,r,2024-01-06,1,x\n")
        return ingestion.surveyed(*arguments)

    monkeypatch.setattr(module, "surveyed", meanwhile)
    with pytest.raises(SourceError, match=r"somebody is still writing there.*rename them when they are whole"):
        digests(source_of(of(), tmp_path))


def test_a_file_that_vanishes_while_it_is_read_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    purchases(tmp_path, "a.csv", ("r1", "2024-01-05"))
    gone = purchases(tmp_path, "b.csv", ("r2", "2024-02-05"))

    def meanwhile(*arguments: Any) -> Any:
        gone.unlink(missing_ok=True)
        return ingestion.surveyed(*arguments)

    monkeypatch.setattr(module, "surveyed", meanwhile)
    assert list(digests(source_of(of(), tmp_path))) == ["2024-01-01"]


def test_processes_that_look_at_the_same_time_agree(tmp_path: Path) -> None:
    for n in range(1, 7):
        purchases(tmp_path, f"{n}.csv", (f"r{n}", f"2024-0{n}-05"))
    found: list[dict[str, str]] = []
    looks = [
        threading.Thread(target=lambda: found.append(digests(source_of(of(), tmp_path, tmp_path / "tables"))))
        for _ in range(4)
    ]
    for look in looks:
        look.start()
    for look in looks:
        look.join()
    assert found == [digests(source_of(of(), tmp_path, tmp_path / "tables"))] * 4
    assert len(found[0]) == 6


def test_a_window_is_read_although_its_files_lack_a_column_that_files_of_other_windows_have(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("client_no,receipt,bought_at,paid\nc,r1,2024-01-05,1\n")
    purchases(tmp_path, "2.csv", ("r2", "2024-02-05"))
    contract = of(("shop: {type: string,", "shop: {type: string, from: 'coalesce(shop, NULL)',"))
    source = source_of(contract, tmp_path, tmp_path / "tables")
    assert read(source) == {"2024-01-01": ["r1"], "2024-02-01": ["r2"]}
    (tmp_path / "3.csv").write_text("client_no,receipt,bought_at,paid\nc,r3,2024-03-05,1\n")
    assert read(source)["2024-03-01"] == ["r3"]


@pytest.mark.parametrize("zone", ["UTC", None])
def test_of_a_sorted_parquet_file_only_the_row_groups_of_the_window_are_read(tmp_path: Path, zone: str | None) -> None:
    rows = 120_000
    pd.DataFrame(
        {
            "client_no": "c",
            "receipt": [str(n) for n in range(rows)],
            "bought_at": pd.date_range("2024-01-01", "2024-06-30", periods=rows, tz=zone),
            "paid": 1.0,
            "shop": "x",
        }
    ).to_parquet(tmp_path / "a.parquet", row_group_size=2_000)
    contract = worlds.changed(PURCHASES, ("purchases.csv", "a.parquet"))
    source = source_of(contract, tmp_path)
    with engine(contract) as con:
        view = source.rows(con, "transactions", all_windows(contract)[2])
        con.execute("SET enable_profiling = 'no_output'")
        con.execute(f"SELECT count(receipt) FROM {view}")
        profile = json.loads(con.get_profiling_information(format="json"))
    assert 0 < min(_read_by_scans(profile)) < rows / 3


def _read_by_scans(operator: dict[str, Any]) -> list[int]:
    """How many rows each scan in a query's plan handed on."""
    found = [operator["operator_cardinality"]] if operator.get("operator_type") == "TABLE_SCAN" else []
    return found + [count for child in operator["children"] for count in _read_by_scans(child)]


# ---------------------------------------------------------------------------------------------- when rows became known


def arrivals(folder: Path, *rows: tuple[str, str, str]) -> None:
    lines = "".join(f"c,{receipt},{time},1,x,{seen}\n" for receipt, time, seen in rows)
    (folder / "a.csv").write_text(HEADER.replace("\n", ",seen_at\n") + lines)


def test_a_row_belongs_to_the_window_in_which_it_became_known(tmp_path: Path) -> None:
    arrivals(
        tmp_path,
        ("prompt", "2024-01-05", "2024-01-06"),
        ("late", "2024-01-05", "2024-03-06"),
        ("ordered ahead", "2024-02-05", "2024-01-06"),
        ("no time", "never", "2024-02-06"),
        ("no arrival", "2024-04-05", ""),
    )
    source = source_of(of(ARRIVED, SEEN), tmp_path)
    assert read(source) == {
        "2024-01-01": ["no arrival", "prompt"],
        "2024-02-01": ["no time", "ordered ahead"],
        "2024-03-01": ["late"],
    }
    with engine(source.contract) as con:
        assert source.watermark(con) == instant("2024-03-07")


def test_with_arrivals_a_late_row_changes_no_window_of_the_past(tmp_path: Path) -> None:
    prompt = ("prompt", "2024-01-05", "2024-01-06")
    arrivals(tmp_path, prompt)
    source = source_of(of(ARRIVED, SEEN), tmp_path)
    before = digests(source)
    arrivals(tmp_path, prompt, ("late", "2024-01-05", "2024-03-06"))
    after = digests(source)
    assert before["2024-01-01"] == after["2024-01-01"]
    assert list(after) == ["2024-01-01", "2024-03-01"]


def test_an_arrival_without_a_time_of_day_is_a_day(tmp_path: Path) -> None:
    arrivals(tmp_path, ("r1", "2024-01-31 23:00", "2024-01-31"), ("r2", "2024-01-31 23:00", "2024-02-01"))
    contract = of(ARRIVED, (SEEN[0], SEEN[1].replace("seen_at: {type: timestamp}", "seen_at: {type: date}")))
    assert read(source_of(contract, tmp_path)) == {"2024-01-01": ["r1"], "2024-02-01": ["r2"]}


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("{type: string}", "the arrived column is a string"),
        ("{type: timestamp, nullable: true}", "the arrived column cannot be nullable"),
        ("{type: timestamp, pii: drop}", "is dropped as personal data"),
        ("{type: timestamp, pii: hash}", "the arrived cannot be hashed"),
    ],
)
def test_a_column_that_cannot_say_when_a_row_arrived_is_refused(column: str, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        of(ARRIVED, (SEEN[0], SEEN[1].replace("seen_at: {type: timestamp}", f"seen_at: {column}")))


def test_the_column_of_arrivals_has_to_be_there_and_goes_with_a_time() -> None:
    with pytest.raises(ContractError, match="there is no column 'seen_at'"):
        of(ARRIVED)
    customers = (
        "  customers:\n    path: who.csv\n    customer: who\n    arrived: since\n    columns:\n"
        "      who: {type: string}\n      since: {type: timestamp}\nfeatures:\n"
    )
    with pytest.raises(ContractError, match=r"tables\.customers\.arrived: a table without `time` lands whole"):
        of(("features:\n", customers))


def test_the_contract_in_words_says_which_column_holds_the_arrival() -> None:
    assert "time in bought_at, arrived in seen_at" in explain(of(ARRIVED, SEEN))


def test_the_watermark_is_not_moved_by_a_time_in_the_future_of_the_window_that_runs(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    last_month = (now.replace(day=1) - timedelta(days=5)).strftime("%Y-%m-%d %H:%M")
    purchases(
        tmp_path, "a.csv", ("r1", last_month), ("tomorrow", (now + timedelta(hours=23)).strftime("%Y-%m-%d %H:%M"))
    )
    contract = of((", end: 2024-07-01", ""))
    with engine(contract) as con:
        found = source_of(contract, tmp_path).watermark(con)
    assert found == datetime.strptime(last_month, "%Y-%m-%d %H:%M").replace(tzinfo=UTC) + timedelta(days=1)
