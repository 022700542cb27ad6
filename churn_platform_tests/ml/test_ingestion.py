"""Nothing is guessed and nothing is lost on the way from a source's rows to typed ones."""

from __future__ import annotations

import math
import re
import time
from datetime import UTC, date, datetime
from typing import Any

import pandas as pd
import pytest

from churn_platform.ml import ingestion
from churn_platform.sources.base import SourceError
from churn_platform_tests.worlds import PURCHASES, all_windows, changed, engine, instant, landed, one_value, typed

pytestmark = pytest.mark.usefixtures("home")

GOOD: list[tuple[str, Any, str, Any]] = [
    ("{type: integer, nullable: true}", "17", "VARCHAR", 17),
    ("{type: integer, nullable: true}", " 17850.0 ", "VARCHAR", 17850),
    ("{type: integer, nullable: true}", "9223372036854775807", "VARCHAR", 2**63 - 1),
    ("{type: integer, nullable: true}", "-3", "VARCHAR", -3),
    ("{type: integer, nullable: true}", "-9223372036854775808.00", "VARCHAR", -(2**63)),
    ("{type: integer, nullable: true}", "+007", "VARCHAR", 7),
    ("{type: integer, nullable: true}", "1e3", "VARCHAR", 1000),
    ("{type: integer, nullable: true}", 17850.0, "DOUBLE", 17850),
    ("{type: integer, nullable: true}", 2**63 - 1, "UBIGINT", 2**63 - 1),
    ("{type: integer, nullable: true}", 17, "HUGEINT", 17),
    ("{type: integer, nullable: true}", "17.00", "DECIMAL(9,2)", 17),
    ("{type: float, nullable: true}", "1e3", "VARCHAR", 1000.0),
    ("{type: float, nullable: true}", "-0.5", "VARCHAR", -0.5),
    ("{type: float, nullable: true}", "12.50", "DECIMAL(9,2)", 12.5),
    ("{type: string, nullable: true}", "  two words ", "VARCHAR", "two words"),
    ("{type: string, nullable: true}", "\u200b two words\u2060", "VARCHAR", "two words"),
    ("{type: string, nullable: true}", "Ko\u0308ln", "VARCHAR", "K\u00f6ln"),
    ("{type: string, nullable: true}", "a\0o\u0308", "VARCHAR", "a\0o\u0308"),
    ("{type: string, nullable: true}", "K\u00f6ln".encode(), "BLOB", "K\u00f6ln"),
    ("{type: string, nullable: true}", 17850.0, "DOUBLE", "17850"),
    ("{type: string, nullable: true}", 1.5, "DOUBLE", "1.5"),
    ("{type: string, nullable: true}", math.nan, "DOUBLE", None),
    ("{type: string, nullable: true}", 42, "BIGINT", "42"),
    ("{type: boolean, nullable: true}", "Yes", "VARCHAR", True),
    ("{type: boolean, nullable: true}", "NO", "VARCHAR", False),
    ("{type: boolean, nullable: true}", "t", "VARCHAR", True),
    ("{type: boolean, nullable: true}", 0, "BIGINT", False),
    ("{type: boolean, nullable: true}", 1.0, "DOUBLE", True),
    ("{type: boolean, nullable: true}", True, "BOOLEAN", True),
    ("{type: date, nullable: true}", "2024-02-29", "VARCHAR", date(2024, 2, 29)),
    ("{type: date, nullable: true}", "2024-02-29 13:00", "VARCHAR", date(2024, 2, 29)),
    ("{type: date, nullable: true, format: '%d.%m.%Y'}", "03.04.2024", "VARCHAR", date(2024, 4, 3)),
    ("{type: timestamp, nullable: true}", "2024-02-29T13:00:00", "VARCHAR", instant("2024-02-29T13:00")),
    ("{type: timestamp, nullable: true}", "2024-02-29 13:00:00+02:00", "VARCHAR", instant("2024-02-29T11:00")),
    ("{type: timestamp, nullable: true}", "2024-02-29 13:00:00Z", "VARCHAR", instant("2024-02-29T13:00")),
    ("{type: timestamp, format: '%d/%m/%Y %H:%M'}", "03/04/2024 05:06", "VARCHAR", instant("2024-04-03T05:06")),
    ("{type: timestamp, nullable: true}", date(2024, 2, 29), "DATE", instant("2024-02-29")),
]  # fmt: skip

BLANK = ["", "   ", "\t", "\r\n", "\u00a0", "\ufeff"]

BAD: list[tuple[str, Any, str]] = [
    ("{type: integer, nullable: true}", "1.5", "VARCHAR"),
    ("{type: integer, nullable: true}", "1.0000000001", "VARCHAR"),
    ("{type: integer, nullable: true}", "9223372036854775808", "VARCHAR"),
    ("{type: integer, nullable: true}", 2**63, "UBIGINT"),
    ("{type: integer, nullable: true}", "17.50", "DECIMAL(9,2)"),
    ("{type: integer, nullable: true}", "ten", "VARCHAR"),
    ("{type: integer, nullable: true}", "1,000", "VARCHAR"),
    ("{type: integer, nullable: true}", "1_000", "VARCHAR"),
    ("{type: float, nullable: true}", "1_000.5", "VARCHAR"),
    ("{type: string, nullable: true}", [1], "INTEGER[]"),
    ("{type: string, nullable: true}", {"a": 1}, "STRUCT(a INTEGER)"),
    ("{type: string, nullable: true}", b"\xff\xfe", "BLOB"),
    ("{type: integer, nullable: true}", 1.5, "DOUBLE"),
    ("{type: integer, nullable: true}", math.nan, "DOUBLE"),
    ("{type: integer, nullable: true}", math.inf, "DOUBLE"),
    ("{type: integer, nullable: true}", date(2024, 1, 1), "DATE"),
    ("{type: integer, nullable: true}", [1], "INTEGER[]"),
    ("{type: float, nullable: true}", "nan", "VARCHAR"),
    ("{type: float, nullable: true}", "inf", "VARCHAR"),
    ("{type: float, nullable: true}", "-Infinity", "VARCHAR"),
    ("{type: float, nullable: true}", math.nan, "DOUBLE"),
    ("{type: float, nullable: true}", -math.inf, "DOUBLE"),
    ("{type: float, nullable: true}", "1,5", "VARCHAR"),
    ("{type: float, nullable: true}", "$5", "VARCHAR"),
    ("{type: boolean, nullable: true}", "maybe", "VARCHAR"),
    ("{type: boolean, nullable: true}", 2, "BIGINT"),
    ("{type: date, nullable: true}", "2024-02-30", "VARCHAR"),
    ("{type: date, nullable: true}", "2024-02-28 and so on", "VARCHAR"),
    ("{type: date, nullable: true}", "28/02/2024", "VARCHAR"),
    ("{type: timestamp, nullable: true}", "yesterday", "VARCHAR"),
    ("{type: timestamp, nullable: true}", "2024-02-28 25:00", "VARCHAR"),
    ("{type: timestamp, nullable: true}", 1709164800, "BIGINT"),
    ("{type: timestamp, nullable: true, format: '%d/%m/%Y'}", "2024-02-28", "VARCHAR"),
    ("{type: date, nullable: true, format: '%Y%m%d'}", 20240230, "BIGINT"),
]  # fmt: skip


@pytest.mark.parametrize(("column", "value", "kind", "expected"), GOOD)
def test_a_value_that_fits_its_type_is_read(column: str, value: Any, kind: str, expected: Any) -> None:
    assert one_value(column, value, kind) == (expected, None)


@pytest.mark.parametrize("column", ["string", "integer", "float", "boolean", "date", "timestamp"])
@pytest.mark.parametrize("value", BLANK, ids=repr)
def test_blank_text_is_a_missing_value_and_no_issue(column: str, value: str) -> None:
    assert one_value(f"{{type: {column}, nullable: true}}", value) == (None, None)


@pytest.mark.parametrize(("column", "value", "kind"), BAD)
def test_a_value_that_does_not_fit_becomes_null_with_an_issue(column: str, value: Any, kind: str) -> None:
    found, issue = one_value(column, value, kind)
    assert found is None
    assert issue is not None
    assert issue.startswith("shop: '")
    assert re.search(" is not (a|true or false|text)", issue)


@pytest.mark.parametrize("kind", ["INTEGER", "BIGINT", "DECIMAL(18,2)", "VARCHAR"])
def test_whole_numbers_are_read_about_as_fast_as_text(kind: str) -> None:
    def seconds(column: str, kind: str) -> float:
        contract = changed(PURCHASES, ("shop: {type: string, nullable: true}", f"shop: {column}"))
        with engine(contract) as con:
            con.execute(
                "CREATE TEMP TABLE landed AS SELECT 'c' || n AS client_no, 'r' || n AS receipt, "
                f"CAST(n AS {kind}) AS shop, 1.0 AS paid, TIMESTAMPTZ '2024-01-05' AS bought_at, 'a' AS _source "
                "FROM range(200000) r(n)"
            )
            begun = time.process_time()
            ingestion.typed_rows(con, contract, "transactions", "landed", all_windows(contract)[0])
            return time.process_time() - begun

    assert seconds("{type: integer}", kind) < 2 * seconds("{type: string}", "VARCHAR")


def test_an_issue_quotes_the_value_without_what_would_break_it_up() -> None:
    _, issue = one_value("{type: integer}", "a; b'c\nd" + "x" * 100)
    assert issue is not None
    assert "; " not in issue
    assert issue.count("'") == 2
    assert len(issue) < 80


def test_where_a_column_is_masked_no_column_is_quoted_since_a_row_may_have_shifted() -> None:
    masked = (
        "      receipt: {type: string}\n",
        "      receipt: {type: string}\n      mail: {type: string, pii: drop}\n",
    )
    _, issue = one_value("{type: integer}", "zoe@example.com", contract=[masked])
    assert issue == "shop: a value is not a whole number"
    contract = changed(PURCHASES, masked)
    frame = row(bought_at="zoe@example.com")
    with engine(contract) as con, pytest.raises(SourceError) as caught:
        ingestion.newest_time(con, contract, "transactions", landed(con, frame))
    assert "zoe" not in str(caught.value)


COMMA = {"contract": [("    order: receipt\n", "    order: receipt\n    decimal: ','\n")]}


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,5", 1.5), ("1.234,5", 1234.5), ("1.234.567", 1234567.0), ("7", 7.0), ("-0,25", -0.25), (",5", 0.5)],
)
def test_a_decimal_comma_is_read(text: str, number: float) -> None:
    assert one_value("{type: float}", text, **COMMA) == (number, None)


@pytest.mark.parametrize("text", ["1.5", "12.34", "1.2345", "1,234,5", "1,2.3"])
def test_with_a_decimal_comma_a_point_is_not_guessed_away(text: str) -> None:
    found, issue = one_value("{type: float}", text, **COMMA)
    assert found is None
    assert issue is not None


def test_whole_numbers_are_read_with_a_decimal_comma_too() -> None:
    assert one_value("{type: integer}", "1.234,0", **COMMA) == (1234, None)
    assert one_value("{type: integer}", "1.234", **COMMA) == (1234, None)
    assert one_value("{type: integer}", "1.5", **COMMA)[0] is None


BERLIN = ("timezone: UTC", "timezone: Europe/Berlin")


def times(*texts: str, changes: tuple[tuple[str, str], ...] = (BERLIN,)) -> list[datetime | None]:
    contract = changed(
        PURCHASES.replace("start: 2024-01-01, end: 2024-07-01", "start: 2024-01-01, end: 2025-01-01"), *changes
    )
    frame = pd.DataFrame(
        [
            {"client_no": "c", "receipt": str(n), "bought_at": text, "paid": "1", "shop": "n"}
            for n, text in enumerate(texts)
        ]
    )
    with engine(contract) as con:
        view = landed(con, frame)
        found: dict[int, datetime] = {}
        for window in all_windows(contract):
            for row in ingestion.typed_rows(con, contract, "transactions", view, window).fetchall():
                found[int(row[1])] = row[2]
    return [found[n].astimezone(UTC) if found[n] else None for n in range(len(texts))]


def test_a_time_without_a_zone_is_in_the_contracts_zone() -> None:
    assert times("2024-02-01 10:00", "2024-08-01 10:00") == [instant("2024-02-01T09:00"), instant("2024-08-01T08:00")]


def test_a_time_with_an_offset_keeps_it() -> None:
    assert times("2024-02-01 10:00:00-05:00", "2024-02-01T10:00:00Z") == [
        instant("2024-02-01T15:00"),
        instant("2024-02-01T10:00"),
    ]


def test_a_time_in_the_gap_or_the_overlap_of_the_clocks_is_one_of_the_two_instants_it_can_mean() -> None:
    gap, overlap = times("2024-03-31 02:30", "2024-10-27 02:30")
    assert gap in (instant("2024-03-31T01:30"), instant("2024-03-31T00:30"))
    assert overlap in (instant("2024-10-27T00:30"), instant("2024-10-27T01:30"))


def test_a_typed_time_without_a_zone_is_in_the_contracts_zone_as_well() -> None:
    contract = changed(PURCHASES, BERLIN)
    frame = pd.DataFrame(
        {
            "client_no": ["c"],
            "receipt": ["r"],
            "bought_at": [pd.Timestamp("2024-01-10 10:00")],
            "paid": [1.0],
            "shop": ["n"],
        }
    )
    assert typed(contract, frame)["bought_at"][0] == pd.Timestamp("2024-01-10 09:00", tz="UTC")


def test_a_row_at_local_midnight_belongs_to_the_window_that_begins_there() -> None:
    contract = changed(PURCHASES, BERLIN)
    frame = pd.DataFrame(
        {
            "client_no": ["c", "d"],
            "receipt": ["1", "2"],
            "bought_at": ["2024-02-01 00:00", "2024-01-31 23:59:59.999999"],
            "paid": ["1", "1"],
            "shop": ["n", "n"],
        }
    )
    january, february, *_ = all_windows(contract)
    assert typed(contract, frame, window=february)["client_no"].tolist() == ["c"]
    assert typed(contract, frame, window=january)["client_no"].tolist() == ["d"]


def test_misfits_come_with_the_view_that_holds_them_and_rows_of_other_windows_do_not() -> None:
    frame = pd.DataFrame(
        [
            ("march", "2024-03-05"),
            ("april", "2024-04-05"),
            ("unreadable", "some day"),
            ("missing", None),
            ("too early", "1999-01-01"),
            ("too late", "2024-07-01"),
            ("in the future", "2999-01-01"),
            ("for ever", "infinity"),
        ],
        columns=["receipt", "bought_at"],
    ).assign(client_no="c", paid="1", shop="n")
    contract = changed(PURCHASES)
    (march,) = [window for window in all_windows(contract) if window.key == "2024-03-01"]
    assert set(typed(contract, frame, window=march)["receipt"]) == set(frame["receipt"]) - {"april"}


def test_a_table_without_a_time_lands_whole_with_every_window() -> None:
    text = PURCHASES.replace(
        "features:\n",
        "  customers:\n    path: c.csv\n    customer: client_no\n    columns:\n      client_no: {type: string}\n"
        "features:\n",
    )
    contract = changed(text)
    frame = pd.DataFrame({"client_no": ["a", "b"]})
    assert [len(typed(contract, frame, "customers", window)) for window in all_windows(contract)] == [2] * 6


def row(**columns: Any) -> pd.DataFrame:
    base = {"client_no": "c", "receipt": "r", "bought_at": "2024-01-05", "paid": "1", "shop": "n"}
    return pd.DataFrame([{**base, **columns}])


def paid_from(expression: str, **columns: Any) -> tuple[Any, str | None]:
    contract = changed(
        PURCHASES, ("paid: {type: float, min: 0}", f'paid: {{type: float, nullable: true, from: "{expression}"}}')
    )
    found = typed(contract, row(**columns).drop(columns="paid"))
    value = found["paid"][0]
    return (None if pd.isna(value) else value), found["_issues"][0]


@pytest.mark.parametrize(
    ("expression", "columns", "expected"),
    [
        ("Quantity * UnitPrice", {"Quantity": "3", "UnitPrice": "2.5"}, 7.5),
        ("Quantity * UnitPrice", {"Quantity": 3, "UnitPrice": 2.5}, 7.5),
        ("quantity * unitprice", {"Quantity": "3", "UnitPrice": "2.5"}, 7.5),
        ("-Discount", {"Discount": "2"}, -2.0),
        ("round(Quantity * UnitPrice / 3, 1)", {"Quantity": "1", "UnitPrice": "1"}, 0.3),
        ("CAST(Price AS DOUBLE) / 100", {"Price": "250"}, 2.5),
        ("CASE WHEN kind = 'refund' THEN -amount ELSE 2 * amount END", {"kind": "refund", "amount": "4"}, -4.0),
    ],
)
def test_an_expression_calculates_with_the_sources_columns(
    expression: str, columns: dict[str, Any], expected: float
) -> None:
    assert paid_from(expression, **columns) == (expected, None)


@pytest.mark.parametrize(
    ("expression", "columns"),
    [
        ("Quantity * UnitPrice", {"Quantity": "three", "UnitPrice": "2.5"}),
        ("CAST(Price AS DOUBLE) / 100", {"Price": "a lot"}),
        ("ln(Price)", {"Price": -1.0}),
    ],
)
def test_an_expression_that_cannot_be_computed_is_null_with_an_issue(expression: str, columns: dict[str, Any]) -> None:
    value, issue = paid_from(expression, **columns)
    assert value is None
    assert issue is not None
    assert expression[:8] in issue


def test_an_expression_whose_result_is_null_is_simply_missing() -> None:
    assert paid_from("Quantity * UnitPrice", Quantity="", UnitPrice="2") == (None, None)
    assert paid_from("nullif(Price, -1)", Price=-1.0) == (None, None)


@pytest.mark.parametrize("expression", ["sum(Price)", "count(*)", "lag(Price) OVER ()", "unnest([Price, Price])"])
def test_an_expression_that_does_not_give_one_value_for_one_row_is_refused(expression: str) -> None:
    with pytest.raises(SourceError, match="does not fit the contract"):
        paid_from(expression, Price=1.0)


@pytest.mark.parametrize("there", ["Customer ID", "CUSTOMER ID"])
def test_a_name_with_spaces_or_other_case_is_found(there: str) -> None:
    contract = changed(PURCHASES, ("client_no: {type: string}", "client_no: {type: string, from: Customer ID}"))
    assert typed(contract, row().rename(columns={"client_no": there}))["client_no"].tolist() == ["c"]


def test_a_column_is_found_whatever_its_case() -> None:
    assert typed(changed(PURCHASES), row().rename(columns=str.upper))["client_no"].tolist() == ["c"]


@pytest.mark.parametrize(
    ("mark", "shown"), [(";", '";"'), ("  ", '"whitespace"'), (",", '","'), ("\t", '"\\t"'), ("|", '"|"')]
)
def test_a_line_that_was_read_as_one_column_asks_for_the_delimiter(mark: str, shown: str) -> None:
    frame = pd.DataFrame({mark.join(row().columns): ["c"]})
    with pytest.raises(
        SourceError, match=rf"read as one column. Set tables.transactions.delimiter .* {re.escape(shown)}"
    ):
        typed(changed(PURCHASES), frame)


def test_a_first_line_of_values_asks_for_the_header() -> None:
    frame = row().rename(columns={"bought_at": "2024-01-05", "paid": "2.50"})
    with pytest.raises(SourceError, match=r"tables.transactions.header to false"):
        typed(changed(PURCHASES), frame)


def test_missing_columns_are_all_listed_with_what_is_there_and_what_was_meant() -> None:
    frame = row().rename(columns={"client_no": "Client_Nr", "paid": "zzz"})
    with pytest.raises(SourceError) as caught:
        typed(changed(PURCHASES), frame)
    said = str(caught.value)
    assert "client_no: the source has no 'client_no'. Did you mean 'Client_Nr'?" in said
    assert "paid: the source has no 'paid'" in said
    assert "It has the columns: Client_Nr, receipt, bought_at, zzz, shop" in said
    assert "tables.transactions.columns.<column>.from" in said


@pytest.mark.parametrize("name", ["user", "current_date", "session_user", "landed"])
def test_a_missing_column_is_not_made_up_by_the_engine(name: str) -> None:
    contract = changed(PURCHASES, ("      shop:", f"      {name}: {{type: string}}\n      shop:"))
    with pytest.raises(SourceError, match=f"has no '{name}'"):
        typed(contract, row())


def test_the_newest_time_is_not_one_in_the_future() -> None:
    contract = changed(PURCHASES)
    with engine(contract) as con:
        frame = pd.concat(
            [
                row(bought_at=text)
                for text in ("2024-01-05", "2024-03-05 10:00", "2999-01-01", "rubbish", "infinity", "-infinity", None)
            ]
        )
        assert ingestion.newest_time(con, contract, "transactions", landed(con, frame)) == instant("2024-03-05T10:00")
        assert ingestion.newest_time(con, contract, "transactions", landed(con, frame[:0], view="none")) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("31/01/2024", r"bought_at: none of its 1 times can be read, such as '31/01/2024'.*format"),
        (None, "none of its 1 times can be read. Name"),
        ("2999-01-01", "lie in the future"),
    ],
)
def test_times_that_nobody_can_read_are_no_empty_source(text: str | None, words: str) -> None:
    contract = changed(PURCHASES)
    with engine(contract) as con, pytest.raises(SourceError, match=words):
        ingestion.newest_time(con, contract, "transactions", landed(con, row(bought_at=text).astype(object)))


def test_no_issue_is_made_of_good_rows() -> None:
    assert typed(changed(PURCHASES), row())["_issues"].isna().all()


@pytest.mark.parametrize("mark", ["\u200b", "\u200d", "\u00ad", "\u202e", "\u00a0", "\ufffd", "\0", "\x1b"])
def test_an_id_with_a_character_inside_that_nobody_sees_has_an_issue(mark: str) -> None:
    for column in ("client_no", "receipt"):
        (issue,) = typed(changed(PURCHASES), row(**{column: f"c{mark}1"}))["_issues"]
        assert issue == f"{column} holds a character that nobody sees"
    assert typed(changed(PURCHASES), row(shop=f"c{mark}1"))["_issues"].isna().all()


def test_two_forms_of_one_id_are_one_customer() -> None:
    frame = pd.concat([row(client_no="Zoe\u0308"), row(client_no="\u00a0Zo\u00eb\ufeff")])
    for kind in ("{type: string}", "{type: string, pii: hash}"):
        contract = changed(PURCHASES, ("client_no: {type: string}", f"client_no: {kind}"))
        assert typed(contract, frame)["client_no"].nunique() == 1


def test_a_header_among_the_rows_has_an_issue_even_where_all_is_text() -> None:
    text = PURCHASES.replace("paid: {type: float, min: 0}", "paid: {type: float, nullable: true}")
    frame = pd.concat([row(), row(**{name: name for name in row()})]).astype(str)
    issues = typed(changed(text), frame)["_issues"]
    assert issues.str.contains("the header stands here once more").sum() == 1


@pytest.mark.parametrize("unique", [False, True])
def test_a_window_of_which_every_row_stands_there_twice_is_refused_where_no_key_tells_copies(unique: bool) -> None:
    contract = changed(
        PURCHASES, *([("    order: receipt\n", "    order: receipt\n    unique: [receipt]\n")] if unique else [])
    )
    frame = pd.concat([row(receipt=f"r{number}") for number in range(12)])
    twice = pd.concat([frame, frame])
    if unique:
        assert len(typed(contract, twice)) == 24, "validation puts the copies into quarantine"
        return
    with pytest.raises(SourceError, match=r"every row of tables.transactions .* 24 rows, 12 different ones"):
        typed(contract, twice)
    assert len(typed(contract, pd.concat([twice, row(receipt="other")]))) == 25
