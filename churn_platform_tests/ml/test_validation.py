"""Bad rows go to quarantine with every reason; good and bad together are all rows; a bad window is refused whole."""

from __future__ import annotations

from typing import Any

import duckdb
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn_platform.contract import Contract
from churn_platform.ml import ingestion, validation
from churn_platform.ml.masking import pseudonym
from churn_platform_tests.worlds import KEY, PURCHASES, WIDE, all_windows, changed, engine, landed

pytestmark = pytest.mark.usefixtures("home")

RULES = (
    PURCHASES.replace(
        "shop: {type: string, nullable: true}", "shop: {type: string, nullable: true, allowed: [north, south]}"
    )
    .replace("receipt: {type: string}", "receipt: {type: string, pattern: 'r[0-9]+'}")
    .replace("paid: {type: float, min: 0}", "paid: {type: float, min: 0, max: 100}")
    .replace("bought_at: {type: timestamp}", "bought_at: {type: timestamp, min: 2024-01-02, max: 2024-06-01}")
)
BASE = {"client_no": "c1", "receipt": "r1", "bought_at": "2024-01-05", "paid": "1", "shop": "north"}


def divide(
    contract: Contract, frame: pd.DataFrame, table: str = "transactions"
) -> tuple[pd.DataFrame, pd.DataFrame, validation.Split]:
    """Good rows, quarantined rows and the split, by way of the ingestion."""
    with engine(contract) as con:
        return _divide(con, contract, frame, table)


def _divide(
    con: duckdb.DuckDBPyConnection, contract: Contract, frame: pd.DataFrame, table: str
) -> tuple[pd.DataFrame, pd.DataFrame, validation.Split]:
    typed = ingestion.typed_rows(con, contract, table, landed(con, frame), all_windows(contract)[0])
    typed.create_view("raw", replace=True)
    found = validation.split(con, contract, table, "raw")
    return found.good.df(), found.quarantined.df(), found


def reason(contract: Contract, **columns: Any) -> str:
    _, quarantined, _ = divide(contract, pd.DataFrame([{**BASE, **columns}]))
    assert len(quarantined) == 1
    return str(quarantined["_reason"][0])


CONTRACT = changed(RULES)


def test_a_good_row_passes() -> None:
    good, quarantined, found = divide(CONTRACT, pd.DataFrame([BASE]))
    assert (len(good), len(quarantined), found.rows, found.bad) == (1, 0, 1, 0)
    assert list(good.columns) == list(CONTRACT.tables.items()["transactions"].kept)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"paid": "-1"}, "paid is below 0 or above 100"),
        ({"paid": "100.01"}, "paid is below 0 or above 100"),
        ({"paid": ""}, "paid is missing"),
        ({"paid": "free"}, "paid: 'free' is not a finite number"),
        ({"shop": "east"}, "shop is not one of the allowed values"),
        ({"receipt": "x1"}, "receipt does not match its pattern"),
        ({"receipt": "r1\nr2"}, "receipt does not match its pattern"),
        ({"client_no": None}, "client_no is missing"),
        ({"bought_at": "2024-01-01 12:00"}, "bought_at is below 2024-01-02 or above 2024-06-01"),
        ({"bought_at": "1999-01-01"}, "bought_at lies outside the history that the contract describes"),
        ({"bought_at": "2999-01-01"}, "bought_at lies outside the history that the contract describes"),
        ({"bought_at": "2024-07-01"}, "bought_at lies outside the history that the contract describes"),
    ],
    ids=str,
)
def test_every_rule_has_its_reason(columns: dict[str, Any], expected: str) -> None:
    assert expected in reason(CONTRACT, **columns)


@pytest.mark.parametrize(
    "columns", [{"paid": "0"}, {"paid": "100"}, {"shop": None}, {"bought_at": "2024-01-02"}], ids=str
)
def test_what_lies_on_a_bound_is_good(columns: dict[str, Any]) -> None:
    good, _, _ = divide(CONTRACT, pd.DataFrame([{**BASE, **columns}]))
    assert len(good) == 1


def test_an_amount_too_large_to_be_summed_exactly_is_quarantined() -> None:
    assert "too large" in reason(changed(PURCHASES), paid="1e300")


def test_a_value_of_the_wrong_type_is_not_called_missing_as_well() -> None:
    assert "missing" not in reason(CONTRACT, paid="free")


def test_a_column_whose_name_ends_like_another_does_not_hide_its_reason() -> None:
    contract = changed(RULES, ("      shop:", "      prepaid: {type: float}\n      shop:"))
    found = reason(contract, prepaid="x", paid="")
    assert "prepaid: 'x' is not a finite number" in found
    assert "; paid is missing" in f"; {found}"


def test_a_row_that_is_wrong_twice_has_both_reasons() -> None:
    found = reason(CONTRACT, paid="free", shop="east", receipt="x").split("; ")
    assert len(found) == 3


def test_reasons_are_counted_without_the_values_themselves() -> None:
    frame = pd.DataFrame([{**BASE, "paid": value} for value in ("a", "b; c", "d'e", "-1", "2")])
    _, _, found = divide(CONTRACT, frame)
    assert found.reasons == {"paid: a value is not a finite number": 3, "paid is below 0 or above 100": 1}


def test_personal_values_are_in_no_reason() -> None:
    contract = changed(RULES, ("client_no: {type: string}", "client_no: {type: string, pii: hash, pattern: 'c[0-9]+'}"))
    _, quarantined, found = divide(contract, pd.DataFrame([{**BASE, "client_no": "alice@example.com", "paid": "x"}]))
    assert "alice" not in quarantined.to_json()
    assert "alice" not in str(found.reasons)
    assert quarantined["client_no"].tolist() == [pseudonym(KEY, "alice@example.com")]
    assert "client_no does not match its pattern" in quarantined["_reason"][0]


KEYED = changed(PURCHASES, ("    order: receipt\n", "    order: receipt\n    unique: [receipt]\n"))


def test_of_duplicates_one_is_kept_and_always_the_same() -> None:
    rows = [{**BASE, "paid": str(n), "shop": shop} for n in range(5) for shop in ("north", "south")]
    kept = set()
    for seed in range(5):
        good, quarantined, _ = divide(KEYED, pd.DataFrame(rows).sample(frac=1, random_state=seed))
        assert len(good) == 1
        assert len(quarantined) == 9
        assert quarantined["_reason"].str.contains("duplicate of another row with the same receipt").all()
        kept.add(tuple(good.loc[0].astype(str)))
    assert len(kept) == 1


def test_a_bad_row_does_not_push_its_good_twin_out() -> None:
    rows = [{**BASE, "paid": "-5"}, {**BASE, "paid": "7"}, {**BASE, "paid": ""}]
    good, quarantined, _ = divide(KEYED, pd.DataFrame(rows))
    assert good["paid"].tolist() == [7.0]
    assert quarantined["_reason"].str.contains("duplicate").all()


def test_rows_without_a_key_are_not_duplicates_of_each_other() -> None:
    _, quarantined, _ = divide(KEYED, pd.DataFrame([{**BASE, "receipt": None}] * 3))
    assert not quarantined["_reason"].str.contains("duplicate").any()


def test_a_customer_stands_once_only_at_each_time_of_a_snapshots_table() -> None:
    rows = [
        {"member_id": "m1", "as_of": day, "plan": "gold", "visits": "1", "left": "No"}
        for day in ("2024-01-05", "2024-01-05", "2024-01-06")
    ]
    good, quarantined, _ = divide(changed(WIDE), pd.DataFrame(rows), "snapshots")
    assert (len(good), len(quarantined)) == (2, 1)


@pytest.mark.parametrize(
    ("column", "positive", "negative", "fitting", "other"),
    [
        ("string", '"Yes"', '"No"', ["Yes", "No"], "perhaps"),
        ("string", "1", "0", ["1", "0"], "2"),
        ("integer", "1", "0", ["1", "0", "1.0"], "2"),
        ("float", "1", "0", ["1", "0.0"], "0.5"),
        ("integer", "-1", "1", ["1", "-1"], "0"),
    ],
)
def test_a_label_that_is_neither_value_is_quarantined(
    column: str, positive: str, negative: str, fitting: list[str], other: str
) -> None:
    contract = changed(
        WIDE,
        ('positive: "Yes", negative: "No"', f"positive: {positive}, negative: {negative}"),
        ("left: {type: string", f"left: {{type: {column}"),
    )
    rows = [
        {"member_id": f"m{n}", "as_of": "2024-01-05", "plan": "gold", "visits": "1", "left": value}
        for n, value in enumerate([*fitting, other, None])
    ]
    good, quarantined, _ = divide(contract, pd.DataFrame(rows), "snapshots")
    assert len(good) == len(fitting) + 1  # the one without a label is good: it is simply not labelled
    assert quarantined["_reason"].tolist() == ["left is neither label"]


MESS = st.fixed_dictionaries(
    {
        "client_no": st.sampled_from(["c1", "c2", "", None]),
        "receipt": st.sampled_from(["r1", "r2", "x", None]),
        "bought_at": st.sampled_from(["2024-01-05", "2024-01-31 23:59:59", "never", "1999-01-01", None]),
        "paid": st.sampled_from(["1", "-1", "1e300", "nan", "a; b", "'", None]),
        "shop": st.sampled_from(["north", "east", None]),
    }
)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(MESS, min_size=1, max_size=25))
def test_the_split_loses_nothing_and_doubles_nothing(rows: list[dict[str, str | None]]) -> None:
    contract = changed(RULES, ("    order: receipt\n", "    order: receipt\n    unique: [receipt]\n"))
    frame = pd.DataFrame(rows, dtype=object).assign(shop=[row["shop"] for row in rows])
    good, quarantined, found = divide(contract, frame)
    assert len(good) + len(quarantined) == found.rows == len(rows)
    assert len(quarantined) == found.bad
    assert quarantined["_reason"].notna().all()
    assert good["receipt"].is_unique
    assert not good[["client_no", "receipt", "bought_at", "paid"]].isna().any().any()


def findings(rows: int, bad: int, **changes: str) -> dict[str, validation.Finding]:
    contract = changed(
        PURCHASES,
        (
            "    order: receipt\n",
            f"    order: receipt\n    min_rows: {changes.get('min_rows', 1)}\n    max_quarantined: 0.1\n",
        ),
    )
    frame = pd.DataFrame([{**BASE, "paid": "-1" if n < bad else "1"} for n in range(rows)], columns=list(BASE))
    with engine(contract) as con:
        if not rows:
            frame = frame.astype(str)
        _, _, found = _divide(con, contract, frame, "transactions")
        return {finding.name: finding for finding in validation.table_findings(contract, "transactions", found)}


def test_a_window_with_too_few_good_rows_is_refused() -> None:
    assert findings(10, 0, min_rows="10")["has_enough_rows"].passed
    refused = findings(10, 1, min_rows="10")["has_enough_rows"]
    assert not refused.passed
    assert "9 good rows, at least 10" in refused.words
    assert "tables.transactions.min_rows" in refused.remedy


def test_a_window_with_too_many_bad_rows_is_refused_and_the_worst_reason_is_named() -> None:
    assert findings(10, 1)["bad_rows_are_few"].passed
    refused = findings(10, 2)["bad_rows_are_few"]
    assert not refused.passed
    assert "2 of 10 rows (20.00%)" in refused.words
    assert "2 x paid is below 0" in refused.words


def test_an_empty_window_does_not_pass_unless_the_contract_says_so() -> None:
    assert not findings(0, 0)["has_enough_rows"].passed
    assert findings(0, 0, min_rows="0")["has_enough_rows"].passed
    assert findings(0, 0)["bad_rows_are_few"].passed


def test_a_sample_is_the_same_at_every_run() -> None:
    contract = changed(PURCHASES)
    drawn = []
    for _ in range(2):
        with engine(contract) as con:
            con.execute("CREATE TABLE many AS SELECT range AS n FROM range(5000)")
            drawn.append(validation.sample(con, "many", ["n"], 100)["n"].tolist())
            assert len(validation.sample(con, "many", ["n"], 6000)) == 5000
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 100


def test_an_empty_window_is_told_what_it_may_mean() -> None:
    assert "move time.start" in findings(0, 0)["has_enough_rows"].remedy


def test_the_remedy_names_what_in_the_contract_may_be_wrong() -> None:
    assert "(`min` and `max` bound the values)" in findings(10, 2)["bad_rows_are_few"].remedy


@pytest.mark.parametrize(
    ("labels", "passed"),
    [(["Yes", "No"], True), (["No", "No"], False), (["Yes", "Yes"], False), (["yes", "No"], False), ([], True)],
)
def test_a_label_of_one_kind_only_is_noticed(labels: list[str], passed: bool) -> None:
    contract = changed(WIDE)
    with engine(contract) as con:
        found = validation.label_finding(con, contract, landed(con, pd.DataFrame({"left": labels * 5}, dtype="str")))
        few = validation.label_finding(con, contract, landed(con, pd.DataFrame({"left": ["No"] * 9}, dtype="str")))
    assert found.passed == passed
    if "yes" in labels:
        assert found.words == "0 of 10 labelled rows have left = 'Yes'; the column holds 'No' (5 rows), 'yes' (5 rows)"
    assert few.passed, "of so few rows it may be chance"


def test_more_rows_than_the_contract_allows_are_refused() -> None:
    contract = changed(PURCHASES, ("    order: receipt\n", "    order: receipt\n    max_rows: 3\n"))
    for rows, passes in ((3, True), (4, False)):
        with engine(contract) as con:
            _, _, found = _divide(con, contract, pd.DataFrame([BASE] * rows), "transactions")
            first = validation.table_findings(contract, "transactions", found)[0]
        assert first.passed is passes
    assert "4 good rows, at least 1 and at most 3 are needed" in first.words
    assert "raise tables.transactions.max_rows" in first.remedy


def test_rows_without_a_flaw_are_not_looked_at_twice() -> None:
    """Where no row is bad the good rows are the view itself, with no rule to judge once more."""
    with engine(CONTRACT) as con:
        good, quarantined, found = _divide(con, CONTRACT, pd.DataFrame([BASE] * 3), "transactions")
        assert "regexp" not in str(found.good.explain())
        assert (len(good), len(quarantined)) == (3, 0)
        _, _, found = _divide(con, CONTRACT, pd.DataFrame([BASE, {**BASE, "receipt": "x"}]), "transactions")
        assert "regexp" in str(found.good.explain())
