"""The contract is read strictly, and every error names the line, the key and the remedy."""

from __future__ import annotations

import copy
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from churn_platform.contract import Contract, Kind, as_utc, days_after
from churn_platform.contract_file import ContractError, load, parse
from churn_platform.settings import PROJECT
from churn_platform_tests.worlds import PURCHASES, WIDE

SHIPPED = (PROJECT / "contract.yaml").read_text(encoding="utf-8")


def message(text: str, *changes: tuple[str, str]) -> str:
    """The error of a text in which something is written otherwise."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    with pytest.raises(ContractError) as caught:
        parse(text)
    assert "contract.yaml" in str(caught.value)
    return str(caught.value)


def test_the_shipped_contract_loads() -> None:
    contract = load(PROJECT / "contract.yaml")
    assert contract.name == "complete_journey"
    assert contract.main_table == "transactions"


@pytest.mark.parametrize("text", [PURCHASES, WIDE], ids=["purchases", "wide"])
def test_the_contracts_of_these_tests_load(text: str) -> None:
    assert isinstance(parse(text), Contract)


PRICED = PURCHASES + "value: {customer_value: spent_90d, offer_cost: 5, acceptance: 0.2}\n"

BROKEN: dict[str, tuple[str, tuple[str, str], list[str]]] = {
    "an unknown key": (
        PURCHASES,
        ("owner:", "ownr: x\nowner:"),
        ["line 3: ownr:", "not known", "Did you mean `owner`?"],
    ),
    "an unknown key with no likeness": (
        PURCHASES,
        ("owner:", "zzz: x\nowner:"),
        ["line 3: zzz:", "known here: contract"],
    ),
    "a customer worth nothing": (
        PRICED,
        ("customer_value: spent_90d", "customer_value: -5"),
        ["line 32: value.customer_value", "not worth keeping", "above 0"],
    ),
    "a value by a feature that there is not": (
        PRICED,
        ("customer_value: spent_90d", "customer_value: spent_9d"),
        ["value.customer_value", "no feature 'spent_9d'", "Did you mean `spent_90d`?"],
    ),
    "a value by a feature that is no number": (
        WIDE + "value: {customer_value: plan, offer_cost: 5, acceptance: 0.2}\n",
        ("owner:", "owner:"),
        ["value.customer_value", "'plan' is no number", "Choose one of: visits"],
    ),
    "a value that is neither number nor name": (
        PRICED,
        ("customer_value: spent_90d", "customer_value: [1]"),
        ["value.customer_value", "Write a number or a text"],
    ),
    "a factor of a number": (
        PRICED,
        ("customer_value: spent_90d", "customer_value: 80, value_factor: 2"),
        ["value.value_factor", "goes with a feature"],
    ),
    "a rest that ends before the outcome is known": (
        PRICED,
        ("acceptance: 0.2", "acceptance: 0.2, rest_days: 27"),
        ["value.rest_days", "known after 28 days only", "Write 28 or more."],
    ),
    "an acceptance of more than everybody": (
        PRICED,
        ("acceptance: 0.2", "acceptance: 20"),
        ["value.acceptance", "less than or equal to 1"],
    ),
    "a customer called like a column of the list": (
        PRICED,
        ("name: client,", "name: rank,"),
        ["customer.name", "another column of the retention list"],
    ),
    "an unknown key of a column named like a key": (
        PURCHASES,
        ("paid: {type: float, min: 0}", "paid: {type: float, min: 0}\n      min: {type: float, nulable: true}"),
        ["line 19: tables.transactions.columns.min.nulable", "Did you mean `nullable`?"],
    ),
    "an unknown table that is called like a source": (
        PURCHASES,
        ("tables:\n", "tables:\n  postgres: {}\n"),
        ["line 8: tables.postgres: this key is not known"],
    ),
    "a duplicate key": (
        PURCHASES,
        ("owner:", "name: other\nowner:"),
        ["line 3: name:", "stands twice (first on line 2)", "Keep one"],
    ),
    "a missing key": (
        PURCHASES,
        ("    amount: paid\n", ""),
        ["line 8: tables.transactions.amount", "missing", "Add `amount:`"],
    ),
    "a missing section": (
        PURCHASES,
        ("customer: {name: client, type: string}\n", ""),
        ["customer: this key is required"],
    ),
    "a number that is text": (
        PURCHASES,
        ("horizon_days: 28", "horizon_days: soon"),
        ["line 31: label.horizon_days", "'soon'"],
    ),
    "true for a number": (
        PURCHASES,
        ("horizon_days: 28", "horizon_days: true"),
        ["line 31: label.horizon_days", "True"],
    ),
    "not a number": (PURCHASES, ("min: 0}", "min: .nan}"), ["line 18: tables.transactions.columns.paid.min"]),
    "an infinite gate": (
        PURCHASES,
        ("label:", "gates: {maximum: {brier: .inf}}\nlabel:"),
        ["gates.maximum.brier", "finite"],
    ),
    "a gate beyond reach": (
        PURCHASES,
        ("label:", "gates: {minimum: {roc_auc: 80}}\nlabel:"),
        ["gates.minimum.roc_auc", "0.8"],
    ),
    "a metric with a typo": (
        PURCHASES,
        ("label:", "gates: {minimum: {roc_auk: 0.8}}\nlabel:"),
        ["Did you mean `roc_auc`?"],
    ),
    "a bound of the wrong type, once": (
        PURCHASES,
        ("min: 0}", "min: low}"),
        ["has 1 problem", "paid.min: wrong type. Write a number or a date"],
    ),
    "a date that does not exist": (
        PURCHASES,
        ("2024-01-01", "2024-02-30"),
        ["line 6: time.start: '2024-02-30'", "out of range"],
    ),
    "a date in quotes": (PURCHASES, ("2024-01-01", '"2024-01-01"'), ["line 6: time.start", "without quotes"]),
    "allowed values that YAML reads as booleans": (
        WIDE,
        ("[basic, gold]", "[yes, no]"),
        ["plan.allowed.0", "Put it in quotes"],
    ),
    "an empty list of allowed values": (WIDE, ("[basic, gold]", "[]"), ["plan.allowed"]),
    "a kind with a typo": (
        PURCHASES,
        ("kind: recency_days", "kind: recency_day"),
        ["quiet_days.kind", "Did you mean `recency_days`?"],
    ),
    "a source with a typo": (
        PURCHASES,
        ("kind: files", "kind: file"),
        ["line 4: source.kind", "Did you mean `files`?"],
    ),
    "a type with a typo": (PURCHASES, ("type: float", "type: flaot"), ["Did you mean `float`?"]),
    "a cadence with a typo": (PURCHASES, ("monthly", "montly"), ["time.cadence", "Did you mean `monthly`?"]),
    "a time zone that is none": (
        PURCHASES,
        ("timezone: UTC", "timezone: Europe/Berln"),
        ["line 6: time.timezone", "IANA"],
    ),
    "a time zone that each machine has its own of": (
        PURCHASES,
        ("timezone: UTC", "timezone: localtime"),
        ["time.timezone"],
    ),
    "an end before the start": (
        PURCHASES,
        ("end: 2024-07-01", "end: 2023-07-01"),
        ["line 6: time.end", "not after start"],
    ),
    "a month that starts on the second": (PURCHASES, ("start: 2024-01-01", "start: 2024-01-02"), ["first of a month"]),
    "an end within a week": (PURCHASES, ("monthly", "weekly"), []),
    "a customer column that is not there": (
        PURCHASES,
        ("customer: client_no", "customer: client_np"),
        ["Did you mean `client_no`?"],
    ),
    "a dropped customer": (
        PURCHASES,
        ("client_no: {type: string}", "client_no: {type: string, pii: drop}"),
        ["dropped as personal"],
    ),
    "an amount that is text": (
        PURCHASES,
        ("paid: {type: float, min: 0}", "paid: {type: string}"),
        ["paid.type", "the amount is a string"],
    ),
    "a hashed time": (
        PURCHASES,
        ("bought_at: {type: timestamp}", "bought_at: {type: timestamp, pii: hash}"),
        ["cannot be hashed"],
    ),
    "a nullable order, which would merge purchases": (
        PURCHASES,
        ("receipt: {type: string}", "receipt: {type: string, nullable: true}"),
        ["receipt.nullable"],
    ),
    "a bucket without a width": (PURCHASES, ("paid: {type: float", "paid: {pii: bucket, type: float"), ["go together"]),
    "fewer rows at most than at least": (
        PURCHASES,
        ("    order: receipt\n", "    order: receipt\n    min_rows: 9\n    max_rows: 8\n"),
        ["max_rows 8 is less than min_rows 9"],
    ),
    "silence without time": (
        WIDE,
        ("    time: as_of\n", "    observed_at: 2024-03-15\n    max_silence_days: 3\n"),
        ["max_silence_days: this table has no time column"],
    ),
    "min above max": (PURCHASES, ("min: 0", "min: 5, max: 2"), ["min 5.0 is larger than max 2.0"]),
    "columns that differ in case": (
        PURCHASES,
        ("      shop:", "      Paid: {type: float}\n      shop:"),
        ["only in upper and lower case"],
    ),
    "features that differ in case": (
        PURCHASES,
        ("    months:", "    Pace: {kind: recency_days}\n    months:"),
        ["only in upper and lower case"],
    ),
    "a reserved name in capitals": (
        PURCHASES,
        ("      shop:", "      Churned: {type: float}\n      shop:"),
        ["uses this name itself"],
    ),
    "a pattern on a number": (PURCHASES, ("min: 0}", "pattern: '[0-9]+'}"), ["only text has a pattern"]),
    "a pattern that the engine does not know": (
        PURCHASES,
        ("receipt: {type: string}", "receipt: {type: string, pattern: '(?=r).*'}"),
        ["RE2"],
    ),
    "a pattern that is none": (
        PURCHASES,
        ("receipt: {type: string}", "receipt: {type: string, pattern: '('}"),
        ["no regular expression"],
    ),
    "a date format without codes": (
        PURCHASES,
        ("bought_at: {type: timestamp}", "bought_at: {type: timestamp, format: dd/mm/yyyy}"),
        ["bought_at.format", "%d/%m/%Y"],
    ),
    "a date format with an unknown code": (
        PURCHASES,
        ("bought_at: {type: timestamp}", "bought_at: {type: timestamp, format: '%Y-%Q'}"),
        ["%Q is not a code"],
    ),
    "a feature without its window": (
        PURCHASES,
        ("visits_30d: {kind: count, window_days: 30}", "visits_30d: {kind: count}"),
        ["Add window_days"],
    ),
    "a feature of a table that is not there": (
        PURCHASES,
        ("{kind: recency_days}", "{kind: recency_days, table: contacts}"),
        ["no table 'contacts'"],
    ),
    "a slice that is no feature": (
        PURCHASES,
        ("label:", "slices: [nobody]\nlabel:"),
        ["slices.0: there is no feature 'nobody'"],
    ),
    "a URL where a variable's name belongs": (
        PURCHASES,
        ("{kind: files}", "{kind: postgres, url_variable: 'postgresql://me:hidden@host/db'}"),
        ["source.url_variable", "environment"],
    ),
    "a file's path for another source": (
        PURCHASES,
        ("kind: files", "kind: simulated, present: 2024-03-01"),
        ["does not use this key"],
    ),
    "a positive label that YAML reads as true": (
        WIDE,
        ('positive: "Yes"', "positive: Yes"),
        ["label.positive", "In YAML, Yes means true"],
    ),
    "a label that is both": (WIDE, ('negative: "No"', 'negative: "Yes"'), ["label.negative", "same as `positive`"]),
    "a label's value of another type": (
        WIDE,
        ("left: {type: string", "left: {type: integer"),
        ["label.positive", "can never stand"],
    ),
    "a snapshot with two dates": (
        WIDE,
        ("time: as_of", "time: as_of\n    observed_at: 2024-02-01"),
        ["Give exactly one"],
    ),
    "the label among the features": (
        WIDE,
        ("tables:", "features: {definitions: {x: {kind: column, table: snapshots, column: left}}}\ntables:"),
        ["learn it by heart"],
    ),
    "a date as a feature": (
        WIDE,
        ("tables:", "features: {definitions: {x: {kind: column, table: snapshots, column: as_of}}}\ntables:"),
        ["learn the calendar"],
    ),
    "a column that takes the customer's name": (
        WIDE,
        ("      plan:", "      member: {type: string}\n      plan:"),
        ["columns.member", "customer.name"],
    ),
    "no windows left to train on": (
        PURCHASES,
        ("label:", "model: {min_windows: 3, test_windows: 2}\nlabel:"),
        ["model.min_windows"],
    ),
    "a search of one trial, which is no search": (
        PURCHASES,
        ("label:", "model: {search: {trials: 1}}\nlabel:"),
        ["model.search.trials", "greater than or equal to 2"],
    ),
    "a search by what is no ranking": (
        PURCHASES,
        ("label:", "model: {search: {metric: accuracy}}\nlabel:"),
        ["model.search.metric", "'roc_auc', 'pr_auc' or 'brier'"],
    ),
    "a calibration that there is not": (
        PURCHASES,
        ("label:", "model: {calibration: platt}\nlabel:"),
        ["model.calibration", "Use one of: 'auto'"],
    ),
    "three of the last two windows": (
        PURCHASES,
        ("label:", "retraining: {drifted_windows: 3, of_last: 2}\nlabel:"),
        ["can never be"],
    ),
    "an owner that is nobody": (PURCHASES, ("owner: team:shop", "owner: shop"), ["line 3: owner", "team:name"]),
}
del BROKEN["an end within a week"]


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_with_line_key_and_remedy(case: str) -> None:
    text, change, expected = BROKEN[case]
    said = message(text, change)
    for words in expected:
        assert words in said
    assert " line " in said


def test_a_url_with_a_password_is_not_repeated() -> None:
    said = message(PURCHASES, ("{kind: files}", "{kind: postgres, url_variable: 'postgresql://me:hidden@host/db'}"))
    assert "hidden" not in said


def test_a_weekly_history_ends_with_a_week() -> None:
    said = message(PURCHASES, ("monthly", "weekly"), ("end: 2024-07-01", "end: 2024-07-02"))
    assert "time.end" in said
    parse(PURCHASES.replace("monthly", "weekly"))


def test_all_problems_are_listed_at_once() -> None:
    said = message(
        PURCHASES,
        ("owner: team:shop", "owner: shop"),
        ("time: bought_at", "time: bought"),
        ("horizon_days: 28", "horizon_days: 2800"),
    )
    assert "3 problems" in said
    for key in ("owner", "tables.transactions.time", "label.horizon_days"):
        assert key in said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "- a\n- b\n",
        "just text",
        "42",
        "null",
        "a: &a [*a]",
        "[" * 5000,
        "a: [",
        "\x00",
        "a: !!python/object:os.x {}",
        "a: 1\n---\nb: 2",
        "? [a]\n: b",
        "a: 2024-13-45",
        "9" * 5000,
    ],
)
def test_what_is_no_contract_at_all_is_one_error(text: str) -> None:
    message(text)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ContractError, match=r"(?s)/nowhere/contract.yaml.*no such file.*CHURN_CONTRACT"):
        load(Path("/nowhere/contract.yaml"))


def test_a_file_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    path.write_bytes("owner: Größe".encode("latin-1"))
    with pytest.raises(ContractError, match="UTF-8"):
        load(path)


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="cannot be read"):
        load(tmp_path)


def test_a_snapshots_contract_derives_its_features() -> None:
    contract = parse(WIDE)
    assert contract.feature_names == ["plan", "visits"]
    assert contract.categorical_features == ["plan"]
    assert contract.numeric_features == ["visits"]
    assert contract.feature_definitions["plan"].kind is Kind.column


def test_personal_columns_do_not_become_features_of_a_snapshots_contract() -> None:
    masked = WIDE.replace(
        "      left:", "      email: {type: string, pii: hash}\n      phone: {type: string, pii: drop}\n      left:"
    )
    assert parse(masked).feature_names == ["plan", "visits"]


def test_a_hashed_number_is_a_category() -> None:
    text = PURCHASES.replace(
        "features:\n",
        "  customers:\n    path: c.csv\n    customer: client_no\n    columns:\n      client_no: {type: string}\n"
        "      zip: {type: integer, pii: hash}\nfeatures:\n",
    )
    text = text.replace("    months:", "    zip: {kind: column, table: customers, column: zip}\n    months:")
    assert parse(text).categorical_features == ["zip"]


def test_what_grows_with_tenure_is_not_watched_for_drift() -> None:
    watched = parse(PURCHASES).watched_features
    assert "months" not in watched
    assert "pace" not in watched
    assert "visits_30d" in watched


def test_the_fingerprint_is_stable_and_changes_with_the_content() -> None:
    first = parse(PURCHASES).fingerprint
    assert parse("# a remark\n" + PURCHASES).fingerprint == first
    assert parse(PURCHASES.replace("horizon_days: 28", "horizon_days: 29")).fingerprint != first
    assert len(first) == 12


def test_a_day_begins_at_local_midnight() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert as_utc(date(2024, 7, 1), berlin) == datetime(2024, 6, 30, 22, tzinfo=UTC)
    assert as_utc(datetime(2024, 7, 1, 12), berlin) == datetime(2024, 7, 1, 10, tzinfo=UTC)  # noqa: DTZ001
    assert as_utc(datetime(2024, 7, 1, 12, tzinfo=UTC), berlin) == datetime(2024, 7, 1, 12, tzinfo=UTC)


def test_days_are_calendar_days_across_a_change_of_clocks() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    midnight = as_utc(date(2024, 3, 20), berlin)
    assert days_after(midnight, 28, berlin) == as_utc(date(2024, 4, 17), berlin)
    assert days_after(as_utc(date(2024, 4, 17), berlin), -28, berlin) == midnight


def _places(data: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, value in children for place in [(*path, key), *_places(value, (*path, key))]]


_DATA = yaml.safe_load(SHIPPED)
_NONSENSE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.just([]), st.just({}),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(_places(_DATA)), st.sampled_from(["delete", "rename", "mistype"]), _NONSENSE),
        min_size=1,
        max_size=4,
    )
)
def test_a_mutilated_contract_is_valid_or_a_contract_error(
    changes: list[tuple[tuple[object, ...], str, object]],
) -> None:
    data = copy.deepcopy(_DATA)
    for place, what, value in changes:
        parent = data
        try:
            for key in place[:-1]:
                parent = parent[key]
            old = parent[place[-1]]
        except (KeyError, IndexError, TypeError):
            continue
        if what == "mistype":
            parent[place[-1]] = value
        else:
            del parent[place[-1]]
            if what == "rename" and isinstance(parent, dict):
                parent[f"{place[-1]}x"] = old
    problems = None
    try:
        assert parse(yaml.safe_dump(data, sort_keys=False)).feature_names is not None
    except ContractError as error:
        problems = error.problems
    assert problems is None or problems
    assert all(problem.line for problem in problems or ())
    assert all(problem.remedy for problem in problems or ())
