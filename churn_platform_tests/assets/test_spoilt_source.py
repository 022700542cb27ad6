"""The graph under a source that was spoilt: what is refused changes nothing downstream, in any table or store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from churn_platform_tests import graph

JUNE = "2023-06-01"
DOWNSTREAM = ["validated_transactions", "validated_customers", "customer_features", "churn_labels", "churn_scores"]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> graph.Platform:
    """A played platform whose June is about to be read again."""
    return graph.played().copy(tmp_path).use(monkeypatch)


def landed(shop: graph.Platform) -> Path:
    """The file of June's purchases."""
    (file,) = sorted((shop.settings.landing / shop.contract.name / "transactions").glob(f"{JUNE}*.parquet"))
    return file


def standing(shop: graph.Platform) -> dict[str, Any]:
    """All that a window that is refused must leave alone."""
    found: dict[str, Any] = {name: shop.tables.version(name) for name in DOWNSTREAM}
    buyers = shop.rows("customer_features", "2023-05-01")["buyer"].tolist()[:40]
    return {**found, "online": shop.other().store.online(buyers), "champion": shop.alias()}


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def copied(file: Path) -> None:
    shutil.copy(file, file.with_name(f"copy-of-{file.name}"))


def commas(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(with_column(table, "amount", pa.array([f"{v},5" for v in range(len(table))])), file)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "damaged or was only half written"),
        (copied, "hold the same"),
        (commas, "amount: a value is not a finite number"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_refused_changes_nothing_downstream(
    shop: graph.Platform, spoil: Callable[[Path], None], words: str
) -> None:
    before = standing(shop)
    spoil(landed(shop))
    result = shop.run("prepare_window", JUNE)
    assert not result.success
    verdicts = [
        str(check.metadata["verdict"].value) for check in result.get_asset_check_evaluations() if not check.passed
    ]
    assert words in "\n".join([graph.why(result), *verdicts])
    assert "validated_transactions" not in graph.materialized(result)
    after = standing(shop)
    # the customers came in a file of their own, which was good: only their own table may be written anew
    assert {name: after[name] for name in before if name != "validated_customers"} == {
        name: before[name] for name in before if name != "validated_customers"
    }


def test_what_is_quarantined_leaves_the_other_rows_as_they_were(shop: graph.Platform) -> None:
    before = shop.rows("validated_transactions", JUNE)
    frame = pq.read_table(landed(shop)).to_pandas()
    amounts = frame["amount"].to_numpy().copy()
    amounts[:5] = [-1.0, np.nan, np.inf, -np.inf, 1e13]
    frame["amount"] = amounts
    frame.loc[5, "purchase_time"] = pd.Timestamp("2100-01-01", tz="UTC")
    bad = frame.loc[:5, "order_id"].tolist()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), landed(shop))
    result = shop.run("prepare_window", JUNE)
    assert result.success, graph.why(result)
    aside = shop.rows("quarantine_transactions", JUNE)
    assert sorted(aside["order_id"]) == sorted(bad)
    assert aside["_reason"].notna().all()
    after = shop.rows("validated_transactions", JUNE)
    expected = before[~before["order_id"].isin(bad)].reset_index(drop=True)
    pd.testing.assert_frame_equal(after, expected)
    assert len(after) + len(aside) == len(frame)


def test_what_is_harmless_gives_the_same_features(shop: graph.Platform) -> None:
    before = {name: shop.rows(name) for name in ("validated_transactions", "customer_features", "churn_labels")}
    table = pq.read_table(landed(shop))
    table = with_column(table, "purchase_time", table["purchase_time"].cast(pa.timestamp("ns", "Asia/Tokyo")))
    table = with_column(table, "customer_id", table["customer_id"].dictionary_encode())
    table = table.append_column("something_else", pa.array(["what"] * len(table)))
    pq.write_table(table.select(table.column_names[::-1]), landed(shop))
    result = shop.run("prepare_window", JUNE)
    assert result.success, graph.why(result)
    for name, rows in before.items():
        pd.testing.assert_frame_equal(shop.rows(name), rows)
