"""The Great Expectations suite: it must see what the SQL rules see, and must not pass what it cannot see."""

from __future__ import annotations

from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from churn_platform.engine import connection
from churn_platform.ml import expectations
from churn_platform.ml.rules import row_rules
from churn_platform.ml.validation import suite_finding
from churn_platform_tests.worlds import PURCHASES, changed

COLUMNS = """\
      client_no: {type: string, pattern: "c[0-9]+"}
      receipt: {type: integer, min: 1, max: 900}
      bought_at: {type: timestamp, min: 2024-01-10, max: 2024-06-20}
      paid: {type: float, min: 0, max: 80.5}
      shop: {type: string, nullable: true, allowed: [north, south]}
      day: {type: date, min: 2024-01-10, max: 2024-06-20, nullable: true}
      returned: {type: boolean, nullable: true}
"""


def contract_with(*changes: tuple[str, str]):
    start, end = PURCHASES.index("      client_no:"), PURCHASES.index("features:")
    return changed(PURCHASES[:start] + COLUMNS + PURCHASES[end:], *changes)


CONTRACT = contract_with()


@pytest.fixture(autouse=True)
def _in_a_home_of_its_own(home):
    return home


def rows(seed: int, count: int = 200, bad: float = 0.1) -> pd.DataFrame:
    """Typed rows of which a share breaks each rule in turn."""
    random = np.random.default_rng(seed)

    def mixed(good, *wrong):
        values = [good(n) for n in range(count)]
        for n in np.flatnonzero(random.random(count) < bad):
            values[n] = wrong[random.integers(len(wrong))]
        return values

    def times(n: int) -> pd.Timestamp:
        return pd.Timestamp("2024-02-01", tz="UTC") + pd.Timedelta(hours=7 * n)

    early, late = pd.Timestamp("2024-01-09 23:59:59", tz="UTC"), pd.Timestamp("2024-06-20 00:00:01", tz="UTC")
    return pd.DataFrame(
        {
            "client_no": mixed(lambda n: f"c{n}", None, "d1", "c", "c1\n", " c1", "xc12", "c1x"),
            "receipt": pd.array(mixed(lambda n: n + 1, None, 0, 901, -5), dtype="Int64"),
            "bought_at": pd.Series(mixed(times, None, early, late), dtype="datetime64[us, UTC]"),
            "paid": pd.array(mixed(lambda n: n / 4, None, -0.01, 80.51), dtype="Float64"),
            "shop": mixed(lambda n: ["north", "south", None][n % 3], "North", "", "west"),
            "day": mixed(lambda n: date(2024, 1 + n % 5, 15), None, date(2024, 1, 9), date(2024, 6, 21)),
            "returned": mixed(lambda n: n % 2 == 0, None),
        }
    )


def as_stored(contract, frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[tuple[str, str], int]]:
    """The frame as it comes out of the engine, and how many rows break each SQL rule there."""
    with connection(contract.time.timezone) as con:
        con.register("given", frame)
        con.execute(
            "CREATE TABLE t AS SELECT client_no::VARCHAR AS client_no, receipt::BIGINT AS receipt, "
            "bought_at::TIMESTAMPTZ AS bought_at, paid::DOUBLE AS paid, shop::VARCHAR AS shop, day::DATE AS day, "
            "returned::BOOLEAN AS returned, NULL::VARCHAR AS _issues FROM given"
        )
        broken = {
            (rule.expectation, rule.column): con.execute(f"SELECT count(*) FROM t WHERE NOT ({rule.good})").fetchall()[
                0
            ][0]
            for rule in row_rules(contract.tables.items()["transactions"])
        }
        return con.sql("SELECT * FROM t").df(), broken


def by_rule(verdict) -> dict[tuple[str, str], tuple[bool, int]]:
    return {(found.expectation, found.column): (found.passed, found.unexpected) for found in verdict.results}


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("bad", [0.0, 0.15])
def test_great_expectations_counts_the_same_bad_rows_as_the_sql_rules(zone, bad):
    contract = contract_with(("timezone: UTC", f"timezone: {zone}"))
    for seed in (1, 2):
        frame, broken = as_stored(contract, rows(seed, bad=bad))
        found = by_rule(expectations.judge(contract, "transactions", frame))
        assert {rule: found[rule][1] for rule in broken} == broken
        assert len(broken) == 10
        assert (min(broken.values()) > 0) == (bad > 0)


def test_days_on_the_bounds_are_within_them_in_every_zone():
    for zone in ("Pacific/Auckland", "America/New_York"):
        contract = contract_with(("timezone: UTC", f"timezone: {zone}"))
        edge = rows(1, 2, bad=0).assign(day=[date(2024, 1, 10), date(2024, 6, 20)])
        frame, broken = as_stored(contract, edge)
        verdict = expectations.judge(contract, "transactions", frame)
        assert broken["expect_column_values_to_be_between", "day"] == 0
        assert verdict.passed, verdict.failures


def test_a_rule_fails_when_more_rows_break_it_than_the_contract_bears():
    contract = contract_with(("order: receipt\n", "order: receipt\n    max_quarantined: 0.1\n"))
    frame, _ = as_stored(contract, rows(1, 100, bad=0))
    for bad, passes in ((10, True), (11, False)):
        broken = frame.copy()
        broken.loc[: bad - 1, "paid"] = -1.0
        verdict = expectations.judge(contract, "transactions", broken)
        assert verdict.passed is passes
        assert suite_finding("transactions", verdict).passed is passes
    assert "expect_column_values_to_be_between on paid (11 rows)" in verdict.failures


def test_a_column_of_which_nothing_is_known_does_not_pass_unless_it_may_be_missing():
    frame, _ = as_stored(CONTRACT, rows(1, bad=0))
    for column in CONTRACT.tables.transactions.columns:
        empty, _ = as_stored(CONTRACT, frame.assign(**{column: None}))
        verdict = expectations.judge(CONTRACT, "transactions", empty)
        may_be_missing = CONTRACT.tables.transactions.columns[column].nullable
        assert verdict.passed is may_be_missing, column
        if not may_be_missing:
            assert by_rule(verdict)["expect_column_values_to_not_be_null", column] == (False, len(frame))


def test_an_empty_frame_does_not_pass():
    frame, _ = as_stored(CONTRACT, rows(1, 3))
    verdict = expectations.judge(CONTRACT, "transactions", frame[:0])
    assert not verdict.passed
    assert verdict.rows == 0
    assert "expect_table_row_count_to_be_between" in verdict.failures


def test_an_empty_frame_passes_where_the_contract_needs_no_row():
    contract = contract_with(("order: receipt\n", "order: receipt\n    min_rows: 0\n"))
    frame, _ = as_stored(contract, rows(1, 3))
    assert expectations.judge(contract, "transactions", frame[:0]).passed


def test_fewer_rows_than_the_contract_asks_for_do_not_pass():
    contract = contract_with(("order: receipt\n", "order: receipt\n    min_rows: 20\n"))
    frame, _ = as_stored(contract, rows(1, 20, bad=0))
    assert expectations.judge(contract, "transactions", frame).passed
    assert not expectations.judge(contract, "transactions", frame[1:]).passed


@pytest.mark.parametrize("change", ["a missing column", "a column too many"])
def test_other_columns_than_the_contracts_do_not_pass(change):
    frame, _ = as_stored(CONTRACT, rows(1, bad=0))
    other = frame.drop(columns="paid") if change == "a missing column" else frame.assign(colour="blue")
    verdict = expectations.judge(CONTRACT, "transactions", other)
    assert not verdict.passed
    assert "expect_table_columns_to_match_set" in verdict.failures


@pytest.mark.parametrize(
    ("unique", "passes"), [("[receipt]", False), ("[client_no, receipt]", False), ("[client_no, day]", True)]
)
def test_a_key_that_appears_twice_does_not_pass(unique, passes):
    contract = contract_with(("order: receipt\n", f"order: receipt\n    max_quarantined: 0\n    unique: {unique}\n"))
    frame, _ = as_stored(contract, rows(1, 50, bad=0))
    assert expectations.judge(contract, "transactions", frame).passed
    frame.loc[1, ["client_no", "receipt"]] = frame.loc[0, ["client_no", "receipt"]]
    assert expectations.judge(contract, "transactions", frame).passed is passes


def test_personal_data_is_judged_before_it_is_masked_and_not_again_after():
    contract = contract_with(('pattern: "c[0-9]+"', 'pattern: "c[0-9]+", pii: hash'))
    frame, _ = as_stored(contract, rows(1, 50, bad=0))
    assert expectations.judge(contract, "transactions", frame.assign(client_no="9f86d081")).passed


def test_the_report_names_every_expectation_with_its_verdict():
    frame, _ = as_stored(CONTRACT, rows(1, 100))
    verdict = expectations.judge(CONTRACT, "transactions", frame)
    lines = verdict.table().splitlines()
    assert len(lines) == 2 + len(verdict.results)
    assert any("| paid | **failed** |" in line for line in lines)
    assert any("| (table) | passed | 0 |" in line for line in lines)


# -- the engine's counts are Great Expectations' counts


def troubled(unique: str):
    return contract_with(
        ("timezone: UTC", "timezone: America/New_York"),
        ("order: receipt\n", f"order: receipt\n    max_quarantined: 0.2\n    unique: {unique}\n"),
        ('pattern: "c[0-9]+"', r"pattern: '(?i)c[\w\d]+ ?'"),
        ("shop: {type: string, nullable: true, allowed: [north, south]}", "shop: {type: string, allowed: [nörd, süd]}"),
    )


TROUBLE, KEYED_BY_ONE = troubled("[receipt, shop]"), troubled("[receipt]")
EDGES = [
    "2024-01-10 00:00:00-05",
    "2024-01-09 23:59:59.999999-05",
    "2024-06-20 00:00:00-04",
    "2024-06-20 04:00:00.000001+00",
]
MESS = st.fixed_dictionaries(
    {
        "client_no": st.sampled_from(["c1", "C٣", "cé", "c_1", "c1 ", "c1\n", "", "x", None]) | st.text(max_size=3),
        "receipt": st.sampled_from([1, 900, 0, 901, None]),
        "bought_at": st.sampled_from([*EDGES, "2024-03-10 02:30:00-05", None]),
        "paid": st.sampled_from([0.0, -0.0, 80.5, 80.50000000000001, -5e-324, float("nan"), float("inf"), None]),
        "shop": st.sampled_from(["nörd", "no\u0308rd", "süd", "SÜD", "", None]),
        "day": st.sampled_from(["2024-01-10", "2024-01-09", "2024-06-20", "2024-06-21", None]),
        "returned": st.sampled_from([True, False, None]),
        "_issues": st.sampled_from([None, None, "paid: 'x' is not a finite number"]),
    }
)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MESS, max_size=12), st.booleans())
def test_the_engine_gives_the_verdicts_of_great_expectations_one_by_one(messy, keyed_by_one):
    contract = KEYED_BY_ONE if keyed_by_one else TROUBLE
    with connection(contract.time.timezone) as con:
        con.execute(
            "CREATE TABLE t (client_no VARCHAR, receipt BIGINT, bought_at TIMESTAMPTZ, paid DOUBLE, shop VARCHAR, "
            "day DATE, returned BOOLEAN, _issues VARCHAR)"
        )
        if messy:
            columns = [*contract.tables.transactions.columns, "_issues"]
            rows_of = [[row[column] for column in columns] for row in messy]
            con.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows_of)
        theirs = expectations.judge(contract, "transactions", con.table("t").df())
        ours = expectations.count(con, contract, "transactions", "t")
    assert ours.results == theirs.results
    assert (ours.passed, ours.rows) == (theirs.passed, theirs.rows)
    assert len(ours.results) == 15
