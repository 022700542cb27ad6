"""A late row that comes once more, in another window, counts once; and a window is done when all of it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg
import pandas as pd
import pytest

from churn_platform.assets import validation as stage
from churn_platform.ml import comparison, ingestion
from churn_platform.resources.storage import TableStore
from churn_platform.settings import Settings
from churn_platform_tests.worlds import PURCHASES, all_windows, changed, engine, landed

if TYPE_CHECKING:
    from pathlib import Path

CONTRACT = changed(
    PURCHASES,
    (
        "    order: receipt\n",
        "    order: receipt\n    arrived: seen_at\n    unique: [receipt]\n    max_quarantined: 1\n    min_rows: 0\n",
    ),
    ("      shop: {", "      seen_at: {type: timestamp}\n      shop: {"),
)
JANUARY, FEBRUARY, MARCH = all_windows(CONTRACT)[:3]


def row(receipt: str | None, bought: str, seen: str | None = None) -> dict[str, str | None]:
    return {
        "client_no": "c1",
        "receipt": receipt,
        "bought_at": f"2024-{bought}",
        "paid": "1",
        "seen_at": f"2024-{seen or bought}",
        "shop": "north",
    }


class Shop:
    """The stage that validates purchases, with raw windows of ours."""

    def __init__(self, folder: Path) -> None:
        self.tables = TableStore(str(folder / "warehouse"))
        self.settings = Settings(home=folder / "home")
        (self.asset,) = stage.assets(CONTRACT)

    def take_in(self, *rows: dict[str, str | None]) -> list[bool]:
        """Land rows in the windows in which they arrived and validate these, oldest first; whether each succeeded."""
        found = []
        with dg.DagsterInstance.ephemeral() as instance:
            for window in (JANUARY, FEBRUARY, MARCH):
                with engine(CONTRACT) as con:
                    view = landed(con, pd.DataFrame(list(rows)))
                    typed = ingestion.typed_rows(con, CONTRACT, "transactions", view, window)
                    self.tables.write("raw_transactions", typed, window.key, made_of="m", content="c")
                found.append(
                    dg.materialize(
                        [self.asset],
                        partition_key=window.key,
                        instance=instance,
                        resources={"tables": self.tables, "settings": self.settings},
                        raise_on_error=False,
                    ).success
                )
        return found

    def read(self, table: str, column: str) -> list[str]:
        with engine(CONTRACT) as con:
            self.tables.read(con, table)
            return [value for (value,) in con.execute(f"SELECT {column} FROM {table} ORDER BY ALL").fetchall()]


@pytest.fixture
def shop(home: Path) -> Shop:
    return Shop(home.parent)


def test_a_late_row_that_was_sent_before_is_quarantined_in_whatever_window_it_comes_again(shop: Shop) -> None:
    shop.take_in(
        row("r1", "01-05"),
        row("r1", "01-05", "02-10"),  # once more in February
        row("r1", "01-05", "03-10"),  # and in March
        row("r2", "01-06", "02-10"),  # late, and new
        row("r2", "01-06", "03-10"),
        row("r4", "01-09"),
        row("r4", "02-07"),  # a number that is used again, of this window: not late
        row(None, "01-08", "02-11"),
    )
    good = shop.read("validated_transactions", "_window || ' ' || receipt")
    assert good == ["2024-01-01 r1", "2024-01-01 r4", "2024-02-01 r2", "2024-02-01 r4"]
    words = "an earlier window has a row with the same receipt"
    assert shop.read("quarantine_transactions", "_window || ' ' || _reason") == [
        f"2024-02-01 {words}",
        "2024-02-01 receipt is missing",
        f"2024-03-01 {words}",
        f"2024-03-01 {words}",
    ]


def test_a_window_is_not_done_before_its_profile_is_written(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "as_rows", fail)
        assert not any(shop.take_in(row("r1", "01-05"), row("r2", "02-05"), row("r3", "03-05")))
    assert shop.tables.windows("validated_transactions") == []
    assert all(shop.take_in(row("r1", "01-05"), row("r2", "02-05"), row("r3", "03-05")))
    assert len(shop.tables.windows("profile_transactions")) == 3
