"""`churn score`: the champion's answers for the customers of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from churn_platform import local
from churn_platform.cli import app
from churn_platform.ml.models import frame, probabilities
from churn_platform_tests import graph

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "prepare", lambda *_: None)  # Dagster is not needed here
    return graph.played().copy(tmp_path).use(monkeypatch)


def score(source: Path, target: Path) -> Result:
    return CliRunner().invoke(app, ["score", str(source), str(target)])


def test_a_file_of_customers_is_scored_by_the_champion(shop, tmp_path):
    customers = graph.customers(80).assign(buyer=[f"c{number}" for number in range(80)])
    pq.write_table(pa.Table.from_pandas(customers, preserve_index=False), tmp_path / "in.parquet")
    result = score(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert result.exit_code == 0, result.output
    assert "80 customers scored by version 1" in result.output
    found = pq.read_table(tmp_path / "out.parquet").to_pandas()
    champion = shop.tracking.champion()
    expected = probabilities(champion.pipeline, frame(shop.contract, customers))
    assert found["churn_probability"].to_numpy() == pytest.approx(expected, abs=1e-9)
    assert found["buyer"].tolist() == customers["buyer"].tolist()


def test_customers_without_a_feature_are_refused_and_nothing_is_written(shop, tmp_path):
    customers = graph.customers(5).drop(columns="age").assign(buyer="c")
    pq.write_table(pa.Table.from_pandas(customers, preserve_index=False), tmp_path / "in.parquet")
    result = score(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert result.exit_code == 1
    assert "the customers lack the columns age." in result.output
    assert not (tmp_path / "out.parquet").exists()
