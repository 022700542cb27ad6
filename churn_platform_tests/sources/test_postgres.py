"""The source `postgres`, against a real PostgreSQL that the tests start and stop."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from churn_platform.contract import Contract
from churn_platform.ml import ingestion
from churn_platform.sources import base
from churn_platform.sources.base import SourceError
from churn_platform.sources.postgres import PostgresSource, _without_secrets
from churn_platform_tests.postgres import PASSWORD, QUOTED, PostgresServer
from churn_platform_tests.worlds import PURCHASES, WIDE, all_windows, changed, engine, instant

if TYPE_CHECKING:
    from collections.abc import Iterator

adbc = pytest.importorskip("adbc_driver_postgresql.dbapi", reason="adbc-driver-postgresql is not installed")
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL of our own."""
    found = PostgresServer()
    try:
        found.create()
        execute(found.url, *SCHEMA)
        yield found.url
    finally:
        found.remove()


def execute(url: str, *statements: str) -> None:
    with adbc.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


SCHEMA = [
    "CREATE TYPE colour AS ENUM ('north', 'south')",
    "CREATE SCHEMA sales",
    """CREATE TABLE sales.purchases (client_no bigint, receipt uuid DEFAULT gen_random_uuid(), bought_at timestamptz,
       "bought local" timestamp, paid numeric(12, 2), shop colour)""",
    """INSERT INTO sales.purchases VALUES
       (1, DEFAULT, '2024-01-05 10:00+00', '2024-01-05 10:00', 2.50, 'north'),
       (2, DEFAULT, '2024-02-05 10:00+00', '2024-02-05 10:00', 1234567890.12, 'south'),
       (3, DEFAULT, NULL, NULL, 1, NULL),
       (4, DEFAULT, '1999-01-01', '1999-01-01', 1, NULL),
       (5, DEFAULT, '2024-07-05', '2024-07-05', 1, NULL),
       (6, DEFAULT, '2999-01-01', '2999-01-01', 1, NULL),
       (7, DEFAULT, '2024-06-30 23:30+00', '2024-06-30 23:30', NULL, NULL)""",
    "CREATE TABLE nothing (client_no text, receipt text, bought_at timestamp, paid numeric, shop text)",
]


def of(*changes: tuple[str, str]) -> Contract:
    return changed(
        PURCHASES, ("kind: files", "kind: postgres"), ("path: purchases.csv", "relation: sales.purchases"), *changes
    )


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CHURN_SOURCE_URL", server)
    return server


def source(contract: Contract) -> PostgresSource:
    assert contract.source.kind == "postgres"
    return PostgresSource(contract, contract.source)


def read(contract: Contract) -> pd.DataFrame:
    with engine(contract) as con:
        parts = [
            ingestion.typed_rows(
                con, contract, "transactions", source(contract).rows(con, "transactions", window), window
            )
            .df()
            .assign(window=window.key)
            for window in all_windows(contract)
        ]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def test_every_row_of_the_table_arrives_once_misfits_with_the_first_window(url: str) -> None:
    rows = read(of())
    assert dict(zip(rows["client_no"], rows["window"], strict=True)) == {
        **dict.fromkeys(("1", "3", "4", "5", "6"), "2024-01-01"),
        "2": "2024-02-01",
        "7": "2024-06-01",
    }
    assert len(rows) == 7
    assert set(rows["_source"]) == {"sales.purchases"}


def test_numeric_uuid_and_enum_are_read(url: str) -> None:
    rows = read(of()).set_index("client_no")
    assert rows.loc["1", "paid"] == 2.5
    assert rows.loc["2", "paid"] == 1234567890.12
    assert pd.isna(rows.loc["7", "paid"])
    assert rows.loc["1", "shop"] == "north"
    assert len(rows.loc["1", "receipt"].replace("-", "")) == 32
    assert rows["receipt"].is_unique
    assert rows.loc[["1", "2"], "_issues"].isna().all()


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_a_time_without_a_zone_is_in_the_contracts(url: str, zone: str) -> None:
    contract = of(("bought_at: {type: timestamp}", "bought_at: {type: timestamp, from: bought local}"), ("UTC", zone))
    rows = read(contract).set_index("client_no")
    expected = pd.Timestamp("2024-01-05 10:00", tz=zone).tz_convert("UTC")
    assert rows.loc["1", "bought_at"] == expected
    assert rows.loc["7", "window"] == "2024-06-01"
    assert len(rows) == 7


def test_a_query_can_stand_in_for_a_table(url: str) -> None:
    columns = "client_no::text AS Buyer, receipt, bought_at, paid * 2 AS paid, NULL AS shop"
    query = f"SELECT {columns} FROM sales.purchases WHERE paid > 2;"
    contract = of(
        ("relation: sales.purchases", f"query: {query!r}"),
        ("client_no: {type: string}", "client_no: {type: string, from: Buyer}"),
    )
    assert sorted(read(contract)["paid"]) == [5.0, 2469135780.24]


def test_the_time_may_be_an_expression_or_in_another_case(url: str) -> None:
    for written in ("BOUGHT_AT", "bought_at + INTERVAL '1 month'"):
        contract = of(("bought_at: {type: timestamp}", f'bought_at: {{type: timestamp, from: "{written}"}}'))
        assert len(read(contract)) == 7


def test_only_the_rows_of_the_window_leave_the_database(url: str) -> None:
    contract = of()
    with engine(contract) as con:
        counts = []
        for window in all_windows(contract):
            view = source(contract).rows(con, "transactions", window)
            counts.append(con.execute(f"SELECT count(*) FROM {view}").fetchall()[0][0])
    assert counts == [5, 1, 0, 0, 0, 1]


def test_the_watermark_is_a_day_after_the_newest_row_that_is_not_in_the_future(url: str) -> None:
    with engine(of()) as con:
        assert source(of()).watermark(con) == instant("2024-07-06")
        local = of(
            ("bought_at: {type: timestamp}", "bought_at: {type: timestamp, from: bought local}"),
            ("UTC", "Europe/Berlin"),
        )
        assert source(local).watermark(con) == instant("2024-07-05T22:00")
        empty = of(("relation: sales.purchases", "relation: nothing"))
        assert source(empty).watermark(con) is None
        until = of(("kind: postgres", "kind: postgres, complete_until: 2024-03-01"))
        assert source(until).watermark(con) == instant("2024-03-01")


def test_the_watermark_of_a_table_without_dates_needs_no_database() -> None:
    contract = changed(
        WIDE,
        ("kind: files", "kind: postgres"),
        ("path: members.csv", "relation: m"),
        ("time: as_of", "observed_at: 2024-02-01"),
    )
    with engine(contract) as con:
        assert source(contract).watermark(con) == instant("2024-04-01")  # 30 days later is in March
    assert datetime.now(UTC) - timedelta(days=1) > instant("2024-04-01")


def refusal(contract: Contract) -> str:
    with pytest.raises(SourceError) as caught:
        read(contract)
    with engine(contract) as con, pytest.raises(SourceError):
        source(contract).watermark(con)
    assert PASSWORD not in str(caught.value)
    assert QUOTED not in str(caught.value)
    return str(caught.value)


def test_a_missing_relation_is_named(url: str) -> None:
    said = refusal(of(("relation: sales.purchases", "relation: sales.purchase")))
    assert "tables.transactions" in said
    assert "purchase" in said


def test_a_missing_time_column_is_named(url: str) -> None:
    assert "bought_on" in refusal(of(("bought_at: {type: timestamp}", "bought_at: {type: timestamp, from: bought_on}")))


def test_a_missing_column_lists_what_is_there(url: str) -> None:
    contract = of(("paid: {type: float, min: 0}", "paid: {type: float, from: payed}"))
    with pytest.raises(SourceError, match=r"Did you mean 'paid'"):
        read(contract)


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHURN_SOURCE_URL", raising=False)
    assert "CHURN_SOURCE_URL is not set" in refusal(of())


def test_a_wrong_password_is_refused_and_not_repeated(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = "wr0ng-Pa55"
    monkeypatch.setenv("CHURN_SOURCE_URL", url.replace(QUOTED, wrong))
    said = refusal(of())
    assert "password authentication failed" in said
    assert wrong not in said


@pytest.mark.parametrize(
    "address",
    [
        "postgresql+psycopg2://team:hidden@127.0.0.1:1/x",
        "postgres//team:hidden@127.0.0.1/x",
        "postgresql://team:hidden@127.0.0.1:notaport/x",
        "postgresql://team:hidden@127.0.0.1:1/x",
        "postgresql://team:hidd%ZZen@127.0.0.1:1/x",
        "host=127.0.0.1 port=1 user=team password=hidden nonsense",
    ],
)
def test_an_address_that_does_not_work_is_not_repeated_with_its_password(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHURN_SOURCE_URL", address)
    said = refusal(of())
    assert "hidd" not in said
    assert "tables.transactions" in said


def test_a_message_keeps_what_helps_and_loses_what_is_secret() -> None:
    assert (
        _without_secrets('relation "x" does not exist\nLINE 1', "postgresql://a:b@c/d") == 'relation "x" does not exist'
    )
    assert "p@ss" not in _without_secrets("cannot use p@ss", "postgresql://a:p%40ss@c/d")
    assert _without_secrets("", "postgresql://a:b@c/d") == "no reason given"


# ------------------------------------------------------------------------------------------------- late rows, arrivals


def digests(contract: Contract, thorough: bool = True) -> dict[str, str]:
    with engine(contract) as con:
        return source(contract).digests(con, "transactions", thorough)


LATE = """CREATE TABLE {} (client_no bigint, receipt text, bought_at timestamptz, seen_at timestamptz, paid numeric,
          shop text, synced_at timestamptz DEFAULT now())"""
MONTHS = """INSERT INTO {} SELECT 1, 'r' || n, make_date(2024, n, 5), make_date(2024, n, 6), n, 'x'
            FROM generate_series(1, 6) n"""
ROW = "INSERT INTO {} VALUES (1, '{}', {}, {}, 1, 'x')"


@pytest.fixture
def late(url: str) -> Iterator[str]:
    """A table with a purchase a month."""
    execute(url, LATE.format("late"), MONTHS.format("late"))
    yield url
    execute(url, "DROP TABLE late")


RELATION = ("relation: sales.purchases", "relation: late")
BACK = ("kind: postgres", "kind: postgres, look_back_windows: 2")


def test_a_late_row_changes_the_digest_of_exactly_its_window_when_one_looks_thoroughly(late: str) -> None:
    contract = of(RELATION)
    before = digests(contract)
    assert list(before) == ["2024-01-01", "2024-04-01", "2024-05-01", "2024-06-01"]
    assert digests(contract, thorough=False) == {}
    execute(late, ROW.format("late", "late", "'2024-05-20'", "'2024-07-01'"))
    after = digests(contract)
    assert [key for key in before if base.changed(before[key], after[key])] == ["2024-05-01"]


def test_a_misfit_that_comes_late_changes_the_first_window_with_which_it_travels(late: str) -> None:
    contract = of(RELATION, BACK)
    before = digests(contract)
    assert list(before) == ["2024-01-01", "2024-05-01", "2024-06-01"]
    for moment in ("NULL", "'1999-01-01'", "'2999-01-01'"):
        execute(late, ROW.format("late", "odd", moment, "NULL"))
        after = digests(contract)
        assert [key for key in before if base.changed(before[key], after[key])] == ["2024-01-01"]
        before = after


def test_what_the_contract_does_not_read_changes_no_digest_and_what_an_expression_reads_does(late: str) -> None:
    contract = of(RELATION, ("paid: {type: float, min: 0}", "paid: {type: float, from: paid * 2}"))
    before = digests(contract)
    execute(late, "UPDATE late SET synced_at = '2024-09-09'")
    assert digests(contract) == before
    execute(late, "UPDATE late SET paid = 77 WHERE receipt = 'r6'")
    after = digests(contract)
    assert [key for key in before if base.changed(before[key], after[key])] == ["2024-06-01"]


def test_the_digest_of_a_window_is_that_which_is_found_later(late: str) -> None:
    contract = of(RELATION, BACK)
    found = digests(contract)
    with engine(contract) as con:
        asked = {window.key: source(contract).digest(con, "transactions", window) for window in all_windows(contract)}
    assert {key: digest for key, digest in asked.items() if digest} == found


def test_without_looking_back_no_window_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHURN_SOURCE_URL", raising=False)  # nobody is asked
    contract = of(("kind: postgres", "kind: postgres, look_back_windows: 0"))
    assert digests(contract) == {}
    with engine(contract) as con:
        assert source(contract).digest(con, "transactions", all_windows(contract)[-1]) == ""


def test_a_row_of_postgresql_belongs_to_the_window_in_which_it_became_known(late: str) -> None:
    execute(
        late,
        ROW.format("late", "late", "'2024-01-05'", "'2024-03-20'"),
        ROW.format("late", "no time", "NULL", "'2024-02-20'"),
        ROW.format("late", "no arrival", "'2024-04-05'", "NULL"),
        ROW.format("late", "ahead", "'2024-05-05'", "'2024-04-20'"),
    )
    contract = of(
        RELATION,
        ("    amount: paid\n", "    arrived: seen_at\n    amount: paid\n"),
        ("      paid: {type", "      seen_at: {type: timestamp}\n      paid: {type"),
    )
    rows = read(contract)
    assert dict(zip(rows["receipt"], rows["window"], strict=True)) == {
        **{f"r{n}": f"2024-0{n}-01" for n in range(1, 7)},
        "late": "2024-03-01",
        "no time": "2024-02-01",
        "no arrival": "2024-01-01",
        "ahead": "2024-05-01",
    }
    with engine(contract) as con:
        assert source(contract).watermark(con) == instant("2024-06-07")
