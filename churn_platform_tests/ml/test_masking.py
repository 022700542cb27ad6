"""Personal values are hashed with a key, put into buckets, or never read; nothing of them is left anywhere."""

from __future__ import annotations

import hashlib
import hmac

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn_platform.contract import Column
from churn_platform.engine import connection
from churn_platform.ml.masking import install_key, masked, masked_type, pseudonym
from churn_platform.settings import settings as platform_settings
from churn_platform_tests.worlds import KEY, PURCHASES, changed, typed

pytestmark = pytest.mark.usefixtures("home")
HASHED = Column(type="string", pii="hash")

PERSONAL = PURCHASES.replace(
    "client_no: {type: string}", "client_no: {type: string, pii: hash, pattern: 'c[0-9]+'}"
).replace(
    "      shop:",
    "      phone: {type: string, pii: drop}\n"
    "      age: {type: integer, min: 18, max: 99, pii: bucket, bucket: 10}\n      shop:",
)


def in_sql(key: bytes, values: list[str]) -> list[str]:
    with connection() as con:
        install_key(con, key)
        con.execute(
            "CREATE TABLE t AS SELECT unnest(?::VARCHAR[]) AS v, generate_subscripts(?::VARCHAR[], 1) AS n",
            [values, values],
        )
        return [found for (found,) in con.execute(f"SELECT {masked(HASHED, 'v')} FROM t ORDER BY n").fetchall()]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.binary(max_size=200),
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1, max_size=5),
)
def test_the_hash_in_sql_is_the_one_in_python(key: bytes, values: list[str]) -> None:
    assert in_sql(key, values) == [pseudonym(key, value) for value in values]


def test_the_hash_is_hmac_sha256_cut_to_128_bits() -> None:
    for key in (b"", b"k" * 63, b"k" * 64, b"k" * 65, b"k" * 500):
        for value in ("", "17850", "Zoë 🦊", "x" * 10_000):
            expected = hmac.new(key, value.encode(), hashlib.sha256).hexdigest()[:32]
            assert in_sql(key, [value]) == [pseudonym(key, value)] == [expected]


def test_another_key_gives_other_pseudonyms() -> None:
    assert pseudonym(b"one", "c1") != pseudonym(b"two", "c1")


def personal(**columns: object) -> pd.DataFrame:
    base = {
        "client_no": "c77",
        "receipt": "r1",
        "bought_at": "2024-01-05",
        "paid": "1",
        "phone": "0151-555",
        "age": "37",
        "shop": "north",
    }
    return typed(changed(PERSONAL), pd.DataFrame([{**base, **columns}]))


def test_what_is_stored_is_the_hash_the_bucket_and_nothing_of_what_is_dropped() -> None:
    rows = personal()
    assert rows["client_no"].tolist() == [pseudonym(KEY, "c77")]
    assert rows["age"].tolist() == [30]
    assert "phone" not in rows.columns
    assert rows["_issues"].isna().all()


@pytest.mark.parametrize(
    "secret",
    [
        {"client_no": "alice@example.com"},
        {"age": "thirtyseven"},
        {"age": "137"},
        {"phone": "alice's phone"},
        {"client_no": "c77; x"},
    ],
    ids=str,
)
def test_a_raw_personal_value_appears_nowhere_even_when_it_is_wrong(secret: dict[str, str]) -> None:
    rows = personal(**secret)
    (value,) = secret.values()
    assert value not in rows.to_json()
    assert ("phone" in secret) == bool(rows["_issues"].isna().all())


def test_a_masked_value_is_judged_before_it_is_masked() -> None:
    assert "age is below 18 or above 99" in personal(age="137")["_issues"][0]
    assert "client_no does not match its pattern" in personal(client_no="x")["_issues"][0]
    assert "client_no is missing" in personal(client_no=" ")["_issues"][0]


@pytest.mark.parametrize(("value", "floor"), [("18", 10), ("20", 20), ("29", 20), ("30", 30)])
def test_a_bucket_is_named_by_its_lower_end(value: str, floor: int) -> None:
    assert personal(age=value)["age"].tolist() == [floor]


def test_the_stored_types_are_what_masked_type_says() -> None:
    rows = personal()
    columns = changed(PERSONAL).tables.items()["transactions"].columns
    assert masked_type(columns["client_no"]) == "string"
    assert isinstance(rows["client_no"][0], str)
    assert masked_type(columns["age"]) == "float"
    assert rows["age"].dtype == "float64"


def test_the_key_is_in_no_error_message() -> None:
    with connection() as con:
        install_key(con, b"very secret key!")
        with pytest.raises(Exception, match="nowhere") as caught:
            con.execute(f"SELECT {masked(HASHED, 'v')} FROM nowhere")
    assert b"very secret key!".hex() not in str(caught.value)
    assert "very secret" not in str(caught.value)
    assert platform_settings() is not None
