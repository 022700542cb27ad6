"""A model comes out the same from what was recorded of it; where it does not, it is said what differs and why."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from churn_platform import maintenance, provenance
from churn_platform.cli import app
from churn_platform.engine import connection
from churn_platform.reproduce import ReproductionError, reproduce
from churn_platform.resources import retention
from churn_platform.resources.storage import LEDGER
from churn_platform.resources.tracking import RegistryError
from churn_platform_tests import graph
from churn_platform_tests.ageing import age

STAGES = ["labels", "features", "training set", "metrics", "predictions"]
INPUTS = {"training_set", "churn_labels", "customer_features", "validated_transactions", "validated_customers", LEDGER}


@pytest.fixture
def shop(tmp_path, monkeypatch):
    return graph.played().copy(tmp_path).use(monkeypatch)


def findings(shop, version=None):
    said: list[str] = []
    return {found.what: found for found in reproduce(shop.contract, shop.settings, version, said.append)}, said


def versions(shop) -> dict[str, int | None]:
    return {name: shop.tables.version(name) for name in shop.tables.names()}


def rewrite(shop, table: str, key: str, columns: str) -> int:
    """Write a window of a table with some columns changed; returns the new version."""
    with connection() as con:
        shop.tables.read(con, table, [key])
        rows = con.sql(f"SELECT * EXCLUDE (_window) REPLACE ({columns}) FROM {table}")
        return shop.tables.write(table, rows, key)


def retell(shop, **changed: int) -> None:
    """Let the champion have been made of other versions."""
    champion = shop.tracking.version_of("champion")
    made_of = json.dumps({**provenance.recorded(champion), **changed})
    shop.tracking.client.set_model_version_tag(shop.tracking.model_name, champion.version, "inputs", made_of)


def test_every_model_knows_what_it_was_made_of(shop):
    champion = shop.tracking.version_of("champion")
    assert set(provenance.recorded(champion)) == INPUTS
    assert champion.tags["code"].startswith("0.1.0")
    assert json.loads(champion.tags["libraries"])["scikit-learn"]
    run = shop.tracking.client.get_run(champion.run_id)
    assert run.data.params["seed"] == str(shop.contract.model.seed)


def test_the_champion_comes_out_the_same_to_the_last_bit(shop):
    before = versions(shop)
    found, said = findings(shop)
    assert list(found) == STAGES
    assert all(finding.same for finding in found.values()), said
    for stage in STAGES[:3]:
        assert "equal bit by bit" in found[stage].words
    assert "equal to the last digit" in found["predictions"].words
    assert versions(shop) == before


def test_it_comes_out_the_same_after_the_tables_have_moved_on(shop):
    rewrite(shop, "validated_transactions", "2023-03-01", "amount * 2 AS amount")
    rewrite(shop, "customer_features", "2023-03-01", "spent_90d + 1 AS spent_90d")
    rewrite(shop, "churn_labels", "2023-04-01", "1 - churned AS churned")
    found, said = findings(shop, "1")
    assert all(finding.same for finding in found.values()), said


def test_one_changed_bit_of_a_feature_is_found_and_placed(shop):
    one = "CASE WHEN buyer = (SELECT min(buyer) FROM customer_features) THEN spent_90d + 1e-12 * spent_90d"
    retell(
        shop,
        customer_features=rewrite(shop, "customer_features", "2023-02-01", f"{one} ELSE spent_90d END AS spent_90d"),
    )
    found, said = findings(shop)
    assert not found["features"].same
    assert "1 values of spent_90d; observed at 2023-03-01" in found["features"].words
    assert found["training set"].same  # the recorded one is of the true features
    assert any("DIFFERENT" in line for line in said)


def test_other_input_is_found_in_what_is_computed_from_it(shop):
    retell(shop, validated_transactions=rewrite(shop, "validated_transactions", "2023-02-01", "amount * 2 AS amount"))
    found, _ = findings(shop)
    assert not found["features"].same
    assert not found["training set"].same
    assert "values of spent_90d" in found["training set"].words
    assert found["labels"].same  # amounts do not matter for them


def test_a_customer_more_or_less_is_counted(shop):
    with connection() as con:
        shop.tables.read(con, "churn_labels", ["2023-04-01"])
        rows = con.sql("SELECT * EXCLUDE (_window) FROM churn_labels ORDER BY buyer OFFSET 3")
        retell(shop, churn_labels=shop.tables.write("churn_labels", rows, "2023-04-01"))
    found, _ = findings(shop)
    assert "3 rows were computed anew and are not recorded" in found["labels"].words


def test_a_model_that_was_fitted_on_something_else_is_found(shop):
    from churn_platform.ml import models

    rows = graph.customers(200)
    other = models.fit(shop.contract, models.frame(shop.contract, rows), graph.outcomes(rows))
    champion = shop.tracking.version_of("champion")
    version = graph.challenge(shop, other)
    kept = shop.tracking.version(version)
    text = Path(shop.tracking.artifact(champion.run_id, "contract.json")).read_text()
    shop.tracking.client.log_text(kept.run_id, text, "contract.json")
    found, _ = findings(shop, version)
    assert found["training set"].same
    assert not found["metrics"].same
    assert not found["predictions"].same


def test_what_the_champion_was_made_of_survives_pruning(shop, monkeypatch):
    for key in ("2023-02-01", "2023-03-01"):
        rewrite(shop, "validated_transactions", key, "amount * 2 AS amount")
        rewrite(shop, "customer_features", key, "spent_90d + 1 AS spent_90d")
        rewrite(shop, "churn_labels", key, "1 - churned AS churned")
    shop.tables.write("training_set", pa.table({"n": [1]}))
    kept = provenance.recorded(shop.tracking.version_of("champion"))
    for name in shop.tables.names():
        age(shop.tables, 60, name)
    said: list[str] = []
    dry = maintenance.prune(shop.contract, shop.settings, said.append, dry_run=True)
    assert "model 1 (champion, challenger) was made of" in said[1]
    report = maintenance.prune(shop.contract, shop.settings)
    assert {name: pruned.files for name, pruned in report.tables.items()} == {
        name: pruned.files for name, pruned in dry.tables.items()
    }
    for name, version in kept.items():
        assert report.tables[name].missing == []
        shop.tables.require_version(name, version)
    found, words = findings(shop)
    assert all(finding.same for finding in found.values()), words


def test_a_pruned_version_is_named_with_the_policy_that_pruned_it(shop):
    version = provenance.recorded(shop.tracking.version_of("champion"))["customer_features"]
    rewrite(shop, "customer_features", "2023-02-01", "spent_90d + 1 AS spent_90d")
    age(shop.tables, 60, "customer_features")
    retention.prune(shop.tables, "customer_features", pinned=[], days=30)
    with pytest.raises(
        ReproductionError, match=f"version {version} of customer_features.*\n.*CHURN_KEEP_VERSIONS_DAYS"
    ):
        findings(shop)
    said: list[str] = []
    maintenance.prune(shop.contract, shop.settings, said.append)
    assert any(f"version {version} is gone already: model 1" in line for line in said)


def test_an_erasure_since_then_is_named_as_the_reason(shop):
    from churn_platform.erasure import erase

    with connection() as con:
        shop.tables.read(con, "churn_labels")
        (customer,) = con.execute("SELECT min(buyer) FROM churn_labels").fetchall()[0]
    erase(shop.contract, shop.settings, customer)
    with pytest.raises(ReproductionError, match="1 customers were erased since it was trained") as refused:
        findings(shop)
    assert customer not in str(refused.value)


def test_a_model_of_before_the_record_says_so(shop):
    champion = shop.tracking.version_of("champion")
    shop.tracking.client.delete_model_version_tag(shop.tracking.model_name, champion.version, "inputs")
    with pytest.raises(ReproductionError, match=r"trained before the versions of .*customer_features"):
        findings(shop)


def test_a_model_that_is_not_there_is_refused(shop):
    with pytest.raises(RegistryError, match="has no version 99"):
        findings(shop, "99")


def test_the_command_ends_with_1_where_a_model_is_not_reproduced(shop, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(shop.home / "dagster"))
    good = CliRunner().invoke(app, ["reproduce"])
    assert good.exit_code == 0, good.output
    assert "reproduced in" in good.output
    assert CliRunner().invoke(app, ["reproduce", "99"]).exit_code == 1
    retell(shop, customer_features=rewrite(shop, "customer_features", "2023-02-01", "age + 1 AS age"))
    bad = CliRunner().invoke(app, ["reproduce", "1"])
    assert bad.exit_code == 1
    assert "DIFFERENT" in bad.output


def test_leftovers_of_killed_processes_go_when_they_are_a_day_old(shop):
    dead, alive = 4_000_000, os.getpid()  # beyond the largest process id
    spilled = shop.home / "spill" / f"{dead}-abcd" / "blocks.tmp"
    ours = shop.home / "spill" / f"{alive}-abcd" / "blocks.tmp"
    landing = shop.settings.landing / shop.contract.name / "transactions" / f".2023-07-01-000.parquet.{dead}"
    for path in (spilled, ours, landing):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    assert maintenance.prune(shop.contract, shop.settings).leftovers == 0
    yesterday = time.time() - 25 * 3600
    for path in (spilled, spilled.parent, ours, ours.parent, landing):
        os.utime(path, (yesterday, yesterday))
    report = maintenance.prune(shop.contract, shop.settings)
    assert (report.leftovers, report.leftover_bytes) == (2, 2000)
    assert (spilled.parent.exists(), ours.exists(), landing.exists()) == (False, True, False)
