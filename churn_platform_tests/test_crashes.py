"""Processes that are killed at random moments: the next one finishes, with the result of one that nobody killed.

`CHURN_CRASH_KILLS=100` kills more often, `CHURN_CRASH_SEED` chooses other moments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from churn_platform import promotion
from churn_platform.settings import PROJECT
from churn_platform.sources.landing import LandingSource
from churn_platform_tests import graph, storm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # of many kills, on a machine that has other work to do
KILLS = int(os.environ.get("CHURN_CRASH_KILLS", "20"))
SEED = int(os.environ.get("CHURN_CRASH_SEED", "20231"))


@pytest.fixture(scope="module")
def storms(tmp_path_factory) -> Path:
    """Two storms of kills, over: homes that were finished, one that was played whole, and a log."""
    folder = tmp_path_factory.mktemp("storms")
    for name, until in storm.PLAYED.items():
        shop = graph.empty(folder / name / "pristine")
        shop.land(until)
        assert shop.settings.key  # made here, once: all copies mask alike
        shop.instance.dispose()  # its databases take seconds to make
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "churn_platform_tests.storm", str(folder), str(SEED), str(KILLS)]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    log = "".join(
        (folder / name / "log.txt").read_text() for name in storm.PLAYED if (folder / name / "log.txt").exists()
    )
    sys.stdout.write(f"seed {SEED}, {KILLS} kills\n{log}")  # pytest shows it where something fails
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def platforms(folder: Path) -> tuple[graph.Platform, list[graph.Platform]]:
    """The home that was played whole, and those that were finished after kills."""
    finished = sorted(folder.glob("finished-*"))
    assert finished
    whole, *others = (graph.make(path, graph.SIMULATED) for path in (folder / "whole", *finished))
    return whole, others


def content(shop: graph.Platform) -> dict[str, pd.DataFrame]:
    """Every table, in every column that does not say when or by whom it was made."""
    found = {}
    for name in shop.tables.names():
        rows = shop.rows(name)
        if name == promotion.LOG:  # a line whose action was killed, and the one that says so, are no result
            kept = {entry.id for entry in promotion.history(shop.tables, shop.tracking)}
            rows = rows[rows["id"].isin(kept)]
        columns = sorted(set(rows.columns) - storm.VOLATILE)
        found[name] = rows[columns].sort_values(columns, ignore_index=True)
    return found


def online(shop: graph.Platform) -> list[tuple[object, object]]:
    customers = sorted(shop.rows("customer_features")["buyer"].unique())
    return list(zip(customers, shop.store.online(customers), strict=True))


def champion(shop: graph.Platform) -> dict[str, object] | None:
    version = shop.tracking.version_of("champion")
    if version is None:
        return None
    return {name: version.tags[name] for name in ("window", "test_roc_auc", "train_rate", "labels_known_until")}


@pytest.mark.parametrize("name", storm.PLAYED)
def test_what_was_killed_is_finished_with_the_same_result(storms, name):
    whole, others = platforms(storms / name)
    expected, served, model = content(whole), online(whole), champion(whole)
    assert any(row is not None for _, row in served)
    assert (model is not None) == (name == "again")
    for shop in others:
        found = content(shop)
        assert set(found) == set(expected)
        for table, rows in expected.items():
            pd.testing.assert_frame_equal(found[table], rows, check_exact=True, obj=f"{shop.home}: {table}")
            assert shop.tables.windows(table) == whole.tables.windows(table) if "_window" in rows else True
        assert shop.tables.ledger() == whole.tables.ledger()
        assert online(shop) == served
        assert champion(shop) == model


def test_the_kills_were_spread_over_ingestion_features_materialization_and_training(storms):
    killed = [line for name in storm.PLAYED for line in (storms / name / "log.txt").read_text().splitlines()]
    killed = [line for line in killed if line.startswith("kill ")]
    assert len(killed) == KILLS + 4
    stages = {line.rpartition(" in ")[2].split()[0] for line in killed}
    assert len(stages & {"raw_transactions", "raw_customers", "validated_transactions", "validated_customers"}) >= 1
    assert stages >= {"customer_features", "feature_store", "candidate_model", "churn_scores"}
    assert len(stages) >= 6, stages


def test_no_reader_ever_saw_half_a_window(storms):
    whole, _ = platforms(storms / "again")
    seen = json.loads((storms / "again" / "seen.json").read_text())
    final = storm.fingerprints(whole.tables)
    assert seen["looks"] > 20
    assert set(seen["windows"]["customer_features"]) == set(final["customer_features"])
    for table, windows in seen["windows"].items():
        for window, digests in windows.items():
            assert digests == [final[table][window]], (table, window)


def test_a_landing_that_is_killed_is_landed_whole_by_the_next(storms):
    whole = graph.landed().source

    def landed_like_the_whole(source: LandingSource, keys: list[str]) -> None:
        for path in whole.landing.glob("*/*.parquet"):
            if path.name[: len("2023-01-01")] in keys:
                again = pd.read_parquet(source.landing / path.relative_to(whole.landing))
                pd.testing.assert_frame_equal(again, pd.read_parquet(path))

    contract = graph.landed().contract
    for folder in (storms / "landing").glob("after-*"):
        source = LandingSource(contract, folder)
        landed_like_the_whole(source, source.landed())  # what counts as landed is whole
    last = LandingSource(contract, storms / "landing" / "here" / "home" / "landing")
    assert last.landed() == whole.landed() == graph.keys(contract, storm.LANDED)
    landed_like_the_whole(last, last.landed())
    assert (storms / "landing" / "log.txt").read_text().count("kill ") >= 3
