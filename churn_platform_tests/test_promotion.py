"""Promotion and rollback: one champion and a true log, whatever is asked for and whatever is killed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import urlparse

import pytest
from typer.testing import CliRunner

from churn_platform import promotion
from churn_platform.cli import app
from churn_platform.ml import gates
from churn_platform.ml.models import fit, frame
from churn_platform.resources.tracking import RegistryError
from churn_platform.settings import PROJECT
from churn_platform_tests import graph


@cache
def fitted():
    rows = graph.labelled(60, 1)
    return fit(graph.parse(graph.SIMULATED), frame(graph.parse(graph.SIMULATED), rows), rows["churned"].to_numpy())


def candidate(shop, *, passed: bool = True) -> str:
    """A version that every gate has judged."""
    tracking = shop.tracking
    folder = shop.home / "plots"
    folder.mkdir(exist_ok=True)
    tags = {"window": "2023-04-01", "inputs": json.dumps({"training_set": 3}), "test_roc_auc": "0.71"}
    with tracking.run("a test", f"run-{len(tracking.versions())}"):
        version = str(tracking.log_model(fitted(), frame(shop.contract, graph.customers(60)), folder, tags).version)
    for gate in gates.names(shop.contract):
        tracking.record_gate(version, gate, passed, "for the test", shop.alias())
    return version


@pytest.fixture(scope="module")
def _three(tmp_path_factory):
    """Three versions that were promoted one after the other, and one that was refused."""
    shop = graph.empty(tmp_path_factory.mktemp("three"))
    for _ in range(3):
        promotion.promote(shop.tables, shop.tracking, candidate(shop), "the fixture")
    candidate(shop, passed=False)
    return shop


@pytest.fixture
def shop(_three, tmp_path, monkeypatch):
    return _three.copy(tmp_path).use(monkeypatch)


def log(shop) -> list[tuple[str, str | None, str | None]]:
    return [(entry.event, entry.previous, entry.version) for entry in promotion.history(shop.tables, shop.tracking)]


def lines(shop) -> int:
    return len(promotion.entries(shop.tables))


THREE = [("promotion", None, "1"), ("promotion", "1", "2"), ("promotion", "2", "3")]


def test_the_log_says_who_when_from_which_version_on_what_evidence_and_data(shop):
    newest = promotion.history(shop.tables, shop.tracking)[-1]
    assert log(shop) == THREE
    assert newest.by == "the fixture"
    assert newest.promoted_at.tzinfo is not None
    assert newest.window == "2023-04-01"
    assert newest.test_roc_auc == 0.71
    assert json.loads(newest.data_versions) == {"training_set": 3}
    assert set(json.loads(newest.evidence)["gates"]) == set(gates.names(shop.contract))


def test_promoting_the_champion_again_changes_and_logs_nothing(shop):
    assert promotion.promote(shop.tables, shop.tracking, "3", "somebody") is None
    assert lines(shop) == 3


def test_a_version_that_failed_is_neither_promoted_nor_logged(shop):
    with pytest.raises(RegistryError, match=r"beats_the_base_rate \(failed\)"):
        promotion.promote(shop.tables, shop.tracking, "4", "somebody")
    assert (shop.alias(), lines(shop)) == ("3", 3)


def test_rolling_back_goes_one_champion_further_back_each_time(shop):
    assert promotion.rollback(shop.tables, shop.tracking, by="ann", why="complaints").version == "2"
    assert shop.alias() == "2"
    promotion.rollback(shop.tables, shop.tracking)
    assert shop.alias() == "1"
    with pytest.raises(RegistryError, match="version 1 is the first champion"):
        promotion.rollback(shop.tables, shop.tracking)
    assert log(shop) == [*THREE, ("rollback", "3", "2"), ("rollback", "2", "1")]
    assert promotion.history(shop.tables, shop.tracking)[3].why == "complaints"


def test_a_version_that_was_rolled_back_from_is_promoted_by_a_person_only(shop):
    promotion.rollback(shop.tables, shop.tracking)
    with pytest.raises(RegistryError, match=r"rolled back from on .*bring this one back with `churn rollback 3`"):
        promotion.promote(shop.tables, shop.tracking, "3", "the retrain sensor")
    assert shop.alias() == "2"
    new = candidate(shop)
    promotion.promote(shop.tables, shop.tracking, new, "the retrain sensor")
    assert shop.alias() == new
    promotion.rollback(shop.tables, shop.tracking, "3")
    assert shop.alias() == "3"
    assert promotion.promote(shop.tables, shop.tracking, "3", "somebody") is None


def test_verdicts_that_compare_hold_for_the_champion_that_they_compared_with_and_no_other(shop):
    new = candidate(shop)
    promotion.rollback(shop.tables, shop.tracking)
    compared = r"not_worse_than_the_champion \(was compared with version 3, which is not champion now\)"
    with pytest.raises(RegistryError, match=compared):
        promotion.promote(shop.tables, shop.tracking, new, "the retrain sensor")
    assert shop.alias() == "2"
    for gate in gates.COMPARING:
        shop.tracking.record_gate(new, gate, True, "compared again", "2")
    promotion.promote(shop.tables, shop.tracking, new, "the retrain sensor")
    assert shop.alias() == new


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("9", "has no version 9"),
        ("nonsense", "has no version nonsense"),
        ("3", "version 3 is the champion already"),
        ("4", "version 4 never was champion.*Former champions: 1, 2"),
    ],
)
def test_a_bad_target_of_a_rollback_is_refused_and_nothing_changes(shop, target, words):
    with pytest.raises(RegistryError, match=words):
        promotion.rollback(shop.tables, shop.tracking, target)
    assert (shop.alias(), lines(shop)) == ("3", 3)


def test_a_former_champion_of_other_features_is_no_target(shop):
    other = shop.other(("    gap_90d: {kind: mean_gap_days, window_days: 90}\n", ""))
    with pytest.raises(RegistryError, match=r"trained on other features.*gap_90d"):
        promotion.rollback(other.tables, other.tracking, "1")
    assert (shop.alias(), lines(shop)) == ("3", 3)


def test_a_former_champion_whose_files_are_gone_is_no_target(shop, tmp_path):
    model = shop.tracking.client.get_logged_model(shop.tracking.version("1").source.rpartition("/")[2])
    stored = Path(urlparse(model.artifact_location).path)
    shutil.move(stored, tmp_path / "gone")
    try:
        with pytest.raises(RegistryError, match=r"version 1 of .* cannot serve"):
            promotion.rollback(shop.tables, shop.tracking, "1")
    finally:
        shutil.move(tmp_path / "gone", stored)
    assert (shop.alias(), lines(shop)) == ("3", 3)


def test_without_a_champion_there_is_nothing_to_roll_back_from(tmp_path, monkeypatch):
    empty = graph.empty(tmp_path).use(monkeypatch)
    with pytest.raises(RegistryError, match="there is no champion to roll back from"):
        promotion.rollback(empty.tables, empty.tracking)
    assert promotion.history(empty.tables, empty.tracking) == []


def test_an_alias_that_was_moved_by_other_means_is_entered_as_that(shop):
    tracking = shop.tracking
    tracking.client.set_registered_model_alias(tracking.model_name, "champion", "2")
    assert log(shop) == [*THREE, ("outside", "3", "2")]
    assert lines(shop) == 3  # looking writes nothing
    promotion.promote(shop.tables, tracking, "3", "somebody")
    assert log(shop) == [*THREE, ("outside", "3", "2"), ("promotion", "2", "3")]
    assert lines(shop) == 5


def test_a_log_from_before_there_were_events_is_read_and_goes_on(shop):
    import pyarrow as pa

    old = pa.Table.from_pylist(
        [{"version": "3", "previous": None, "by": "then", "promoted_at": promotion.datetime.now(promotion.UTC)}]
    )
    shutil.rmtree(shop.tables.path(promotion.LOG))
    shop.tables.write(promotion.LOG, old)
    assert log(shop) == [("promotion", None, "3")]
    promotion.promote(shop.tables, shop.tracking, candidate(shop), "now")
    assert log(shop) == [("promotion", None, "3"), ("promotion", "3", "5")]


# -- several machines


def test_of_two_machines_that_act_at_the_same_moment_none_or_one_has_its_way(shop, monkeypatch):
    new, append = candidate(shop), promotion._append

    def meanwhile(tables, entry, lines=None):
        monkeypatch.setattr(promotion, "_append", append)
        append(tables, promotion.Entry("rollback", "1", "3", by="ann", host="another"), lines)
        return append(tables, entry, lines)

    monkeypatch.setattr(promotion, "_append", meanwhile)
    with pytest.raises(RegistryError, match="nothing was changed: ann on another acted at the same moment"):
        promotion.promote(shop.tables, shop.tracking, new, "somebody")
    assert shop.alias() == "3"
    shop.tracking.reinstate("1")  # and ann goes on
    assert log(shop) == [*THREE, ("rollback", "3", "1")]


def test_what_another_machine_has_announced_is_waited_for_a_minute_before_it_counts_as_cut_short(shop):
    begun = promotion.Entry("rollback", "1", "3", by="ann", host="another")
    promotion._append(shop.tables, begun)
    with pytest.raises(RegistryError, match="a rollback to version 1 by ann on another is under way"):
        promotion.rollback(shop.tables, shop.tracking)
    assert (shop.alias(), lines(shop)) == ("3", 4)
    promotion._append(
        shop.tables, dataclasses.replace(begun, id="old", promoted_at=begun.promoted_at - promotion.IN_FLIGHT)
    )
    assert promotion.rollback(shop.tables, shop.tracking).version == "2"


# -- killed processes


@pytest.mark.slow
def test_a_kill_at_any_point_leaves_one_champion_and_a_true_log(shop):
    candidate(shop)
    candidate(shop)
    kills = int(os.environ.get("CHURN_CRASH_KILLS", "20")) // 10
    command = [sys.executable, "-m", "churn_platform_tests.promotion_kills", str(shop.home.parent), "20231", str(kills)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cases) == 7 + kills
    moved = []
    for case in cases:
        event, target = case["action"]
        tried, then = [event, "3", target], case["after"]
        assert then["alias"] in ("3", target), case
        moved.append(then["alias"] == target)
        true = [*map(list, THREE)] + ([tried] if moved[-1] else [])
        assert then["log"] == true, case
        assert case["next"]["alias"] == "6", case
        assert case["next"]["log"] == [*true, ["promotion", then["alias"], "6"]], case
        # a line whose action never happened stays, and another one says so: nothing is ever removed from the log
        assert case["next"]["lines"] - then["lines"] == (1 if then["lines"] == len(true) else 2), case
        assert case["killed"] or case["point"] == "chance", case
    by_point = {(case["point"], case["action"][0]): was for case, was in zip(cases, moved, strict=True)}
    for event in ("promotion", "rollback"):
        assert by_point["before the log", event] is by_point["between log and alias", event] is False
        assert by_point["between alias and confirmation", event] is True


# -- the commands


def churn(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_the_commands_roll_back_and_print_the_log(shop):
    done = churn("rollback", "--why", "complaints")
    assert done.exit_code == 0, done.output
    assert "version 2 is champion again, after version 3" in done.output
    assert "the endpoint does not run on this machine" in done.output
    assert shop.alias() == "2"
    said = churn("history").output.splitlines()
    assert len(said) == 5
    assert "rollback   3 -> 2" in said[3]
    assert "(complaints)" in said[3]
    assert said[4] == "champion: 2"
    evidence = churn("history", "--evidence").output
    assert "passed  beats_the_base_rate: for the test" in evidence
    assert "training_set@3" in evidence


def test_the_command_refuses_a_bad_target_in_words_and_with_a_status(shop):
    refused = churn("rollback", "4")
    assert refused.exit_code == 1
    assert "nothing was changed: version 4 never was champion" in refused.output
    assert shop.alias() == "3"


def test_the_command_says_that_there_is_no_history_yet(tmp_path, monkeypatch):
    graph.empty(tmp_path).use(monkeypatch)
    assert churn("history").output.strip() == "No version has been champion yet."
