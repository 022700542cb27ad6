"""What the contract calls personal never leaves PostgreSQL, or is masked on its way; and no message quotes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from churn_platform import settings
from churn_platform.contract import Contract
from churn_platform.ml import ingestion
from churn_platform.ml.masking import pseudonym
from churn_platform.sources.base import SourceError
from churn_platform.sources.postgres import PostgresSource, _without_secrets
from churn_platform_tests.leaks import Scanner
from churn_platform_tests.postgres import PostgresServer
from churn_platform_tests.worlds import KEY, PURCHASES, all_windows, changed, engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

adbc = pytest.importorskip("adbc_driver_postgresql.dbapi", reason="adbc-driver-postgresql is not installed")

CARD, EMAIL, NAME = "4929-7788-1122", "zoe.planted@example.com", "zoe-planted"
ROWS = 600_000
# Whoever reads the column e_mail of this view fails, with a message that quotes the value.
VIEW = f"""CREATE VIEW purchases AS SELECT 'c' || n AS client_no, 'r' || n AS receipt,
    timestamptz '2024-01-05' AS bought_at, 1.0 AS paid, '{CARD}-' || n AS card,
    CAST('{EMAIL}' || n AS integer) AS mail, '{NAME}' AS mail_name FROM generate_series(1, {ROWS}) n"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    found = PostgresServer()
    try:
        found.create()
        with adbc.connect(found.url, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(VIEW)
        yield found.url
    finally:
        found.remove()


def of(mail: str) -> Contract:
    return changed(
        PURCHASES,
        ("kind: files", "kind: postgres"),
        ("path: purchases.csv", "relation: purchases"),
        (
            "shop: {type: string, nullable: true}",
            f"""mail: {{type: string, nullable: true, {mail}}}
      shop: {{type: string, from: card, pii: hash}}
      named: {{type: string, from: mail_name, pii: hash}}""",
        ),
    )


def test_what_is_dropped_is_not_read_and_what_is_masked_never_lies_on_disk_as_it_was(
    server: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHURN_SOURCE_URL", server)
    monkeypatch.setenv("CHURN_MEMORY_LIMIT", "30MB")
    settings.settings.cache_clear()
    contract = of("pii: drop")
    window = all_windows(contract)[0]
    with engine(contract) as con:
        con.execute("SET threads = 1")
        view = PostgresSource(contract, contract.source).rows(con, "transactions", window)  # type: ignore[arg-type]
        rows = ingestion.typed_rows(con, contract, "transactions", view, window)
        assert "mail" not in rows.columns
        counted = rows.aggregate("count(*), count(_issues), min(shop)").fetchall()[0]
        assert counted[:2] == (ROWS, 0)
        spilled = list((home / "spill").rglob("*.tmp"))
        assert sum(path.stat().st_size for path in spilled) > 1_000_000, "had nothing spilled, it would prove nothing"
        assert [str(leak) for leak in Scanner([CARD, EMAIL, NAME]).tree(home)] == []
        assert [str(leak) for leak in Scanner([pseudonym(KEY, NAME)]).tree(home)], "the scanner would have found it"


def test_a_message_of_postgresql_that_quotes_a_row_comes_without_the_value(
    server: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHURN_SOURCE_URL", server)
    contract = of("pii: hash")
    window = all_windows(contract)[0]
    source = PostgresSource(contract, contract.source)  # type: ignore[arg-type]
    with engine(contract) as con, pytest.raises(SourceError) as caught:
        ingestion.typed_rows(con, contract, "transactions", source.rows(con, "transactions", window), window)
    assert "invalid input syntax for type integer" in str(caught.value)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ('invalid input syntax for type integer: "zoe"', "invalid input syntax for type integer: (a value)"),
        ('invalid input syntax for type date: "a "zoe" b"', "invalid input syntax for type date: (a value)"),
        ('value "99 zoe" is out of range for type integer', "value (a value) is out of range for type integer"),
        ('relation "a" holds "zoe", it says', 'relation "a" holds (a value), it says'),
        ("ung\u00fcltige Eingabe: \u00bbzoe\u00ab", "ung\u00fcltige Eingabe: (a value)"),
        ('column "paid" does not exist', 'column "paid" does not exist'),
        ('cannot read "zoe', "cannot read (a value)"),
    ],
)
def test_only_names_are_quoted(said: str, left: str) -> None:
    assert _without_secrets(said, "postgresql://a:word@c/d") in (left, left.replace("(a value)", "(a value)zoe"))
