"""Erasure: nothing of a person is left, nothing of anybody else is lost, and the person does not come back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pandas as pd
import pytest

from churn_platform import erasure, prediction_log
from churn_platform.engine import connection
from churn_platform.ml.masking import derived, pseudonym
from churn_platform.resources.tracking import REFERENCE
from churn_platform.settings import PROJECT
from churn_platform_tests import answers, graph, people
from churn_platform_tests.people import KEY, NOBODY, ZOE

WINDOWS = [f"2024-{month:02}-01" for month in range(1, 6)]
TRACES = [pseudonym(KEY.encode(), ZOE[column]) for column in ("client_no", "email", "card")] + list(ZOE.values())
HELD = (
    "raw_transactions",
    "validated_transactions",
    "raw_customers",
    "customer_features",
    "churn_labels",
    "churn_scores",
    "prediction_log",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop() -> people.World:
    return people.world()


def of_others(shop: people.World, who: str) -> dict[str, pd.DataFrame]:
    """The rows of everybody else, table by table."""
    found = {}
    with connection() as con:
        for name in HELD:
            shop.tables.read(con, name)
            key = "client_no" if name.startswith(("raw", "validated")) else "client"
            found[name] = con.execute(f"SELECT * FROM {name} WHERE {key} <> ? ORDER BY ALL", [who]).df()
    return found


@pytest.fixture(scope="module")
def erased(shop: people.World) -> people.World:
    """Zoe is erased, by the command; the erasure is killed once on the way."""
    with pytest.MonkeyPatch.context() as patch:
        graph.point_at(shop.settings, patch)
        leave_answers(shop)
        shop.before = of_others(shop, TRACES[0])
        shop.reference = len(reference(shop))
        shop.found = [str(leak) for leak in shop.scan(TRACES[:1])[0]]
        versions = {name: shop.tables.version(name) for name in shop.tables.names()}
        shop.unknown = shop.churn("erase", NOBODY, "--yes")
        shop.unchanged = versions == {name: shop.tables.version(name) for name in shop.tables.names()}
        killed = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", KILLED],
            env=shop.environment,
            cwd=PROJECT,
            check=False,
            input=ZOE["client_no"],
            text=True,
            capture_output=True,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        shop.half = [str(leak) for leak in shop.scan(TRACES[:1])[0]]
        shop.said = shop.churn("erase", "-", "--yes", "--by", "the data protection officer", typed=ZOE["client_no"])
        assert shop.said.returncode == 0, shop.said.stdout + shop.said.stderr
        shop.after = of_others(shop, TRACES[0])
        shop.left = [str(leak) for leak in shop.scan(TRACES)[0]]
    graph.forget()
    return shop


def leave_answers(shop: people.World) -> None:
    """Answers that have landed, and segments that have not: finished, rejected, and left by a killed process."""
    zoe, other = (
        answers.line(n, customer=who) for n, who in enumerate((TRACES[0], pseudonym(KEY.encode(), "client-7")))
    )
    broken = zoe.replace(b'"arm"', b"arm")
    answers.segment(shop, zoe, other, broken)
    prediction_log.land(shop.tables, shop.contract, shop.settings, lambda _: None)
    answers.segment(shop, zoe, other, number=2)
    answers.segment(shop, other, zoe[:120], number=3, ending=".jsonl.open", age=3600)


KILLED = """
import os, signal, sys
from churn_platform import cli
from churn_platform.resources import exports, removal
whole, done = removal.remove, []
def remove(*arguments):
    if len(done) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    found = whole(*arguments)
    done.extend([found] if found else [])
    return found
removal.remove = remove
cli.erase("-", yes=True, by="", wait=60.0)
"""


def reference(shop: people.World) -> pd.DataFrame:
    version = shop.tracking.version_of("champion")
    return pd.read_parquet(shop.tracking.artifact(version.run_id, REFERENCE))


def test_before_the_erasure_the_pseudonym_stands_in_tables_logs_and_the_online_store(erased):
    places = " ".join(erased.found)
    for table in HELD:
        assert f"/{table}/" in places
    assert "online_store.db" in places
    for segment in ("-1.rejected", "-2.jsonl", "-3.jsonl.open"):
        assert segment in places


def test_after_the_erasure_no_byte_tells_of_the_person(erased):
    """Neither the id nor its pseudonym, nor those of the e-mail address and the card, in any table, version or log."""
    assert erased.half != []  # after the kill there was something left to do
    assert erased.left == []


def test_nobody_else_lost_a_row(erased):
    for name in HELD:
        pd.testing.assert_frame_equal(erased.before[name], erased.after[name])


def test_answers_about_others_that_had_not_landed_are_there_still(erased):
    left = [path.read_bytes() for path in sorted(answers.folder(erased).glob("*host-77-*"))]
    other = answers.line(1, customer=pseudonym(KEY.encode(), "client-7"))
    assert left == [b"", other, other]


def test_the_command_says_what_it_did_without_naming_the_person(erased):
    said = erased.said.stdout
    assert "Erased under the reference" in said
    assert "training_set" in said  # the tables before it were done when the first call was killed
    assert "Models trained on rows of this customer: version 1" in said
    assert ZOE["client_no"] not in said


def test_the_log_names_who_erased_and_what_and_nobody_who_was_erased(erased):
    with connection() as con:
        erased.tables.read(con, erasure.LOG)
        (entry,) = con.sql(f"SELECT * FROM {erasure.LOG}").df().to_dict("records")
    assert entry["by"] == "the data protection officer"
    assert len(entry["reference"]) == 16
    assert entry["online"] == 1
    assert entry["versions"] > 0
    # the killed erasure had removed some already, and what it did is not counted twice
    assert set(json.loads(entry["tables"])) <= {*erased.tables.names(), "answers not landed"}
    assert json.loads(entry["models"])


def test_the_reference_of_drift_lost_the_rows_of_the_person(erased):
    assert 0 < len(reference(erased)) < erased.reference


def test_an_unknown_customer_is_said_to_be_unknown_and_nothing_changes(erased):
    assert erased.unknown.returncode == 1
    assert "no such customer" in erased.unknown.stderr
    assert NOBODY not in erased.unknown.stdout + erased.unknown.stderr
    assert erased.unchanged


def test_the_list_that_keeps_the_person_out_holds_no_pseudonym(erased):
    with connection() as con:
        erased.tables.read(con, erasure.SUPPRESSED)
        tokens = {token for (token,) in con.execute(f"SELECT token FROM {erasure.SUPPRESSED}").fetchall()}
    assert tokens & {pseudonym(derived(KEY.encode(), "erased customers"), TRACES[0])}
    assert not tokens & set(TRACES)


def test_the_person_does_not_come_back_with_the_next_export_nor_with_a_play_of_everything(erased, monkeypatch):
    graph.point_at(erased.settings, monkeypatch)
    june = people.purchases("2024-06-01", 1)
    assert (june["client_no"] == ZOE["client_no"]).any()
    erased.land("purchases-2024-06.csv", june)
    played = erased.churn("play")
    assert played.returncode == 0, played.stdout + played.stderr
    assert "1 windows to process" in played.stdout  # what was erased makes no earlier window out of date
    assert erased.tables.windows("customer_features") == [*WINDOWS, "2024-06-01"]
    again = erased.churn("play", "--anew")
    assert again.returncode == 0, again.stdout + again.stderr
    with connection() as con:
        erased.tables.read(con, "raw_transactions", ["2024-06-01"])
        (landed,) = con.execute("SELECT count(*) FROM raw_transactions").fetchall()[0]
    assert landed == (june["client_no"] != ZOE["client_no"]).sum()
    assert [str(leak) for leak in erased.scan(TRACES)[0]] == []


def test_a_person_who_was_erased_can_be_erased_again_and_nothing_is_left_to_do(erased, monkeypatch):
    graph.point_at(erased.settings, monkeypatch)
    report = erasure.erase(erased.contract, erased.settings, ZOE["client_no"])
    assert report.again
    assert not report.removed_anything
    assert "erased before" in report.words()


def test_a_key_that_does_not_fit_its_type_is_found_where_issues_quote_it(tmp_path, monkeypatch):
    """Of an integer key that is text in the source nothing is stored but the words of the issue."""
    gym = graph.empty(tmp_path, graph.WIDE).use(monkeypatch)
    gym.settings.contract.with_name("members.csv").write_text(
        "member_id,as_of,plan,visits,left\n"
        + "".join(f"{n},2024-01-10,gold,3,{'Yes' if n % 3 else 'No'}\n" for n in range(60))
        + "M-5519,2024-01-10,gold,3,No\nM-55190,2024-01-10,gold,3,No\n"
    )
    assert gym.materialize("raw_snapshots", key="2024-01-01").success
    report = erasure.erase(gym.contract, gym.settings, "M-5519")
    assert {name: removed.rows for name, removed in report.tables.items()} == {"raw_snapshots": 1}
    result = gym.materialize("raw_snapshots", key="2024-01-01")
    assert graph.metadata(result, "raw_snapshots")["rows_of_erased_customers"] == 1
    assert gym.rows("raw_snapshots")["_issues"].notna().sum() == 1
