"""The prediction log: each answer lands once, whatever the segments hold and whatever is killed."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from churn_platform import erasure, maintenance, prediction_log
from churn_platform.contract_file import ContractError, parse
from churn_platform.ml.masking import derived, pseudonym
from churn_platform.resources.segments import FINISHED, REJECTED, Segments
from churn_platform.settings import PROJECT, Settings
from churn_platform_tests import graph, prediction_kills
from churn_platform_tests.ageing import age
from churn_platform_tests.answers import FEATURES, folder, line, segment
from churn_platform_tests.leaks import Scanner
from serving.prediction_log import Answered, PredictionLog


@pytest.fixture
def shop(tmp_path, monkeypatch):
    return graph.make(tmp_path).use(monkeypatch)


def land(shop) -> prediction_log.Landed:
    return prediction_log.land(shop.tables, shop.contract, shop.settings, lambda _: None)


def ids(shop) -> list[str]:
    return sorted(shop.rows("prediction_log")["answer_id"])


def left(shop) -> list[str]:
    return sorted(path.name.partition("-a-host-77-")[2] for path in folder(shop).iterdir())


# ------------------------------------------------------------------------------------------------- what is landed


def test_an_answer_lands_with_all_that_was_said_of_it(shop):
    segment(shop, line(7, shadow_version="2", shadow_probability=0.31), line(8, arm="canary", stale=True))
    landed = land(shop)
    assert (landed.segments, landed.rows, landed.days) == (1, 2, {"2026-11-20": 2})
    first, second = shop.rows("prediction_log").to_dict("records")
    assert first | {"features": json.loads(first["features"])} == {
        "answer_id": "a-7",
        "answered_at": pd.Timestamp("2026-11-20T20:15:00.123456Z"),
        "buyer": "c7",
        "model_version": "1",
        "arm": "champion",
        "churn_probability": 0.2056,
        "threshold": 0.5,
        "prediction": "Low Risk",
        "feature_timestamp": pd.Timestamp("2026-10-01T00:00:00Z"),
        "stale": False,
        "features": FEATURES,
        "shadow_version": "2",
        "shadow_probability": 0.31,
        "_window": "2026-11-20",
    }
    assert (second["arm"], second["stale"], second["shadow_version"]) == ("canary", True, None)
    assert left(shop) == []


def test_what_the_endpoint_writes_is_what_is_landed(shop):
    said = {"customer": "c1", "version": "3", "probability": 0.25, "threshold": 0.5, "decision": "Low Risk"}
    said |= {"feature_timestamp": "2026-10-01T00:00:00+00:00", "stale": False, "features": FEATURES}
    log = PredictionLog(shop.settings.predictions_of(shop.contract), shop.home / "spool")
    log.start()
    log.add(
        [
            Answered(id="a", at="2026-11-20T20:15:00.123456Z", arm="champion", **said),
            Answered(id="b", at="2026-11-20T20:15:01Z", arm="canary", shadow_version="4", **said),
            Answered(id="c", at="2026-11-20T20:15:02Z", arm="champion", **said | {"customer": 'Z\u00fc"\n'}),
        ]
    )
    log.close()
    landed = land(shop)
    assert (landed.rows, landed.rejected, landed.cut) == (3, 0, 0)
    rows = shop.rows("prediction_log")
    assert rows["answer_id"].tolist() == ["a", "b", "c"]
    assert rows["buyer"].tolist() == ["c1", "c1", 'Z\u00fc"\n']
    assert json.loads(rows["features"][0]) == FEATURES
    assert left(shop) == []


def test_an_answer_is_filed_under_its_day_in_utc_whatever_zone_the_contract_has(tmp_path, monkeypatch):
    text = graph.SIMULATED.replace("timezone: UTC", "timezone: Pacific/Auckland")
    shop = graph.make(tmp_path, text).use(monkeypatch)
    segment(shop, line(1, at="2026-11-20T23:59:59.9Z"), line(2, at="2026-11-21T00:00:00Z"))
    assert land(shop).days == {"2026-11-20": 1, "2026-11-21": 1}
    assert prediction_log.rows_per_day(shop.tables) == {"2026-11-20": 1, "2026-11-21": 1}


def test_an_integer_key_stays_an_integer(tmp_path, monkeypatch):
    gym = graph.make(tmp_path, graph.WIDE).use(monkeypatch)
    segment(gym, line(1, customer=9007199254740993), line(2, customer="5"), line(3, customer=2**63))
    landed = land(gym)
    assert gym.rows("prediction_log")["member"].tolist() == [9007199254740993]
    assert landed.rejected == 2


def test_a_customer_who_is_called_like_another_column_is_refused_by_the_contract():
    for name in set(prediction_log.columns(parse(graph.SIMULATED))) - {"buyer"}:
        with pytest.raises(ContractError, match=r"another column of the prediction log"):
            parse(graph.SIMULATED.replace("name: buyer", f"name: {name}"))


def test_landings_add_to_the_table_and_nothing_to_land_changes_nothing(shop):
    assert land(shop).rows == 0
    assert prediction_log.rows_per_day(shop.tables) == {}
    assert prediction_log.daily(shop.tables).empty
    for number in range(3):
        segment(shop, line(number), number=number)
        assert land(shop).rows == 1
    version = shop.tables.version("prediction_log")
    assert land(shop) == prediction_log.Landed()
    assert shop.tables.version("prediction_log") == version
    assert ids(shop) == ["a-0", "a-1", "a-2"]


def test_a_line_that_comes_again_is_in_the_table_once(shop):
    segment(shop, line(1), line(2), line(2))
    assert land(shop).duplicates == 1
    segment(shop, line(2), line(3))
    assert land(shop).duplicates == 1
    assert ids(shop) == ["a-1", "a-2", "a-3"]


def test_segments_that_have_piled_up_are_landed_part_by_part(shop, monkeypatch):
    monkeypatch.setattr(prediction_log, "_AT_A_TIME", 2 * len(line(1)))
    for number in range(5):
        segment(shop, line(number), number=number)
    assert land(shop).segments == 5
    assert len(ids(shop)) == 5
    assert shop.tables.version("prediction_log") == 3  # three commits after the one that makes the table


# ------------------------------------------------------------------------------------------- what cannot be read


BAD: dict[str, bytes] = {
    "no JSON": b"{oops}\n",
    "no object": b'["a"]\n',
    "no UTF-8": line(1).replace(b"Low", b"L\xffw"),
    "two answers in one line": line(1)[:-1] + line(2),
    "no id": line(1, id=""),
    "a time that is none": line(1, at="yesterday"),
    "a time to come": line(1, at="2199-01-01T00:00:00Z"),
    "no customer": line(1, customer=None),
    "a customer of another type": line(1, customer=["c1"]),
    "no version": line(1, version=None),
    "an arm that there is not": line(1, arm="control"),
    "a probability above one": line(1, probability=1.01),
    "a probability that is no number": line(1, probability=float("nan")),
    "a threshold that is missing": line(1, threshold=None),
    "another decision": line(1, decision="Medium Risk"),
    "features that are no object": line(1, features=[1, 2]),
    "features of no time": line(1, feature_timestamp="once"),
    "a shadow beyond all bounds": line(1, shadow_version="2", shadow_probability=-0.1),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_line_that_cannot_be_read_is_kept_beside_and_the_others_land(shop, bad):
    segment(shop, line(7), bad, line(8))
    landed = land(shop)
    assert (landed.rows, landed.rejected, landed.cut) == (2, 1, 0)
    assert ids(shop) == ["a-7", "a-8"]
    assert left(shop) == ["1.rejected"]
    (rejected,) = folder(shop).iterdir()
    assert rejected.read_text() == bad.decode(errors="backslashreplace")


@pytest.mark.parametrize("length", [1, 40, len(line(8)) - 3])
def test_a_line_that_was_cut_is_counted_and_nothing_else_is_lost(shop, length):
    segment(shop, line(7), line(8)[:length])
    landed = land(shop)
    assert (landed.rows, landed.rejected, landed.cut) == (1, 0, 1)
    assert left(shop) == []
    assert "1 cut lines of killed processes" in landed.words()


def test_a_last_line_that_lacks_nothing_but_its_end_is_an_answer(shop):
    segment(shop, line(7), line(8)[:-1])
    assert land(shop).rows == 2


def test_empty_segments_and_empty_lines_are_nothing(shop):
    segment(shop, number=1)
    segment(shop, b"\n", line(1), b"\r\n", number=2)
    landed = land(shop)
    assert (landed.segments, landed.rows, landed.rejected, landed.cut) == (2, 1, 0, 0)


# ------------------------------------------------------------------------------------------------------ the shadow


def test_what_was_said_in_the_shadow_is_told_by_version_and_beside_the_champion_alone(shop):
    assert prediction_log.in_shadow(shop.tables, "2", "1")[:2] == (0, 0)
    beside = {"shadow_version": "2", "shadow_probability": 0.3}
    segment(
        shop,
        line(1, **beside, probability=0.1),
        line(2, **beside | {"shadow_probability": None}),
        line(3, **beside, version="4", arm="canary"),  # another answered: it is not compared with the champion there
        line(4, **beside | {"shadow_probability": None}, version="4", arm="canary"),
        line(5, **beside, version="0"),  # beside the champion before
        line(6, **beside | {"shadow_version": "3"}),
        line(7),
        line(8, **beside | {"shadow_probability": 0.4}, probability=0.2, at="2026-11-21T00:00:00Z"),
    )
    land(shop)
    count, failed, own, other = prediction_log.in_shadow(shop.tables, "2", "1")
    assert (count, failed) == (2, 2)
    assert (own.tolist(), other.tolist()) == ([0.4, 0.3], [0.2, 0.1])
    assert prediction_log.in_shadow(shop.tables, "2", "1", most=1)[2].tolist() == [0.4]


# --------------------------------------------------------------------------------------------- what is still written


def test_a_segment_that_is_being_written_is_left_alone(shop):
    path = segment(shop, line(1), ending=".jsonl.open", age=3600)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as its writer does
        assert land(shop).segments == 0
    assert left(shop) == ["1.jsonl.open"]


def test_a_segment_that_was_just_made_is_left_alone_though_nobody_has_locked_it_yet(shop):
    segment(shop, line(1), ending=".jsonl.open")
    assert land(shop).segments == 0


def test_what_a_killed_process_was_writing_is_landed_as_well(shop):
    segment(shop, line(1), line(2)[:30], ending=".jsonl.open", age=3600)
    landed = land(shop)
    assert (landed.rows, landed.cut) == (1, 1)
    assert left(shop) == []


# ----------------------------------------------------------------------------------------------------------- kills


def test_killed_anywhere_the_next_landing_leaves_each_line_exactly_once(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "churn_platform_tests.prediction_kills", str(tmp_path), "1", "2"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    cases = [json.loads(told) for told in done.stdout.splitlines()]
    assert [case["point"] for case in cases if case["killed"]][: len(prediction_kills.POINTS)] == [
        *prediction_kills.POINTS
    ]
    wanted = sorted(f"a-{number}" for number in range(prediction_kills.LINES, 3 * prediction_kills.LINES))
    for case in cases:
        assert case["ids"] == wanted, case["point"]
        assert sorted(case["left"].values()) == ["no json\n"] * 2, case["point"]
        assert all(name.endswith(REJECTED) for name in case["left"]), case["point"]


def test_two_landings_at_once_double_nothing(shop):
    for number in range(4):
        segment(shop, *(line(10 * number + n) for n in range(10)), number=number)
    script = (
        "from churn_platform import prediction_log, settings\n"
        "from churn_platform.resources.storage import TableStore\n"
        "found, contract = settings.settings(), settings.contract()\n"
        "prediction_log.land(TableStore(found.tables_of(contract)), contract, found)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", script], cwd=PROJECT, stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    assert len(ids(shop)) == 40


# --------------------------------------------------------------------------------------------------------- erasure


def suppress(shop, *customers: str) -> None:
    """Put customers on the list of those who were erased."""
    key = derived(shop.settings.key, "erased customers")
    entries = [{"token": pseudonym(key, customer), "reference": "r"} for customer in customers]
    shop.tables.write(erasure.SUPPRESSED, pa.Table.from_pylist(entries), keep=True)


def test_answers_about_somebody_who_was_erased_do_not_land_and_are_not_kept_beside(shop):
    suppress(shop, "c1", "c3")
    segment(shop, line(1), line(2), line(3, probability=7), line(4, probability=7))
    landed = land(shop)
    assert (landed.rows, landed.erased, landed.rejected) == (1, 2, 1)
    assert shop.rows("prediction_log")["buyer"].tolist() == ["c2"]
    (rejected,) = folder(shop).iterdir()
    assert rejected.read_bytes() == line(4, probability=7)


def test_erasing_reaches_finished_rejected_and_left_segments_and_spares_everybody_else(shop):
    segment(shop, line(1), line(2), number=1)
    segment(shop, b'{"customer": "c1", broken\n', b'{"customer": "c11", broken\n', number=2, ending=REJECTED)
    segment(shop, line(1), number=3, ending=REJECTED)
    segment(shop, line(1, id="x"), line(4), line(1)[:90], number=4, ending=".jsonl.open", age=3600)
    place = Segments(shop.settings.predictions_of(shop.contract))
    assert place.erase(["c1"]) == 5  # with the line that was cut, which names her still
    assert {path.name.rpartition("-")[2]: path.read_bytes() for path in folder(shop).iterdir()} == {
        "1.jsonl": line(2),
        "2.rejected": b'{"customer": "c11", broken\n',
        "3.rejected": b"",
        "4.jsonl": line(4),
    }
    assert place.holding(["c1"]) == []


def test_erasing_lets_a_process_that_writes_go_on_and_its_segment_lands_without_the_person(shop):
    path = segment(shop, line(1), ending=".jsonl.open", age=3600)
    place = Segments(shop.settings.predictions_of(shop.contract))
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert place.erase(["c1"]) == 0
        suppress(shop, "c1")
        file.write(line(2))
        path.rename(path.with_suffix(""))
    landed = land(shop)
    assert (landed.rows, landed.erased) == (1, 1)


def test_erasing_a_person_leaves_no_byte_of_them_in_table_or_segments(tmp_path, monkeypatch):
    """Also one of whom nothing but the log knows."""
    shop = graph.empty(tmp_path).use(monkeypatch)
    zoe, other = line(1, customer="zoe-5519"), line(2)
    segment(shop, zoe, other, zoe.replace(b'"arm"', b"arm"), zoe[:130])
    land(shop)
    segment(shop, zoe, line(3), zoe[:100], number=2)
    with pytest.raises(erasure.UnknownCustomerError):
        erasure.erase(shop.contract, shop.settings, "zoe-551")
    assert len(Scanner(["zoe-5519"]).tree(tmp_path)) >= 3
    report = erasure.erase(shop.contract, shop.settings, "zoe-5519")
    assert {name: removed.rows for name, removed in report.tables.items()} == {
        "prediction_log": 1,
        "answers not landed": 3,
    }
    assert Scanner(["zoe-5519"]).tree(tmp_path) == []
    assert shop.rows("prediction_log")["buyer"].tolist() == ["c2"]
    segment(shop, zoe, line(3), number=2)
    assert land(shop).rows == 1  # the endpoint answers about her once more, and it does not land
    assert shop.rows("prediction_log")["buyer"].tolist() == ["c2", "c3"]


# ---------------------------------------------------------------------------------------------------------- upkeep


def test_old_days_and_rejected_lines_go_and_what_landed_in_pieces_is_put_together(tmp_path, monkeypatch):
    shop = graph.empty(tmp_path).use(monkeypatch)
    now = datetime.now(UTC)
    ages = {"today": 0, "yesterday": 1, "kept": 399, "gone": 401, "long gone": 800}
    for number in range(3):
        at = {name: (now - timedelta(days=days)).isoformat() for name, days in ages.items()}
        segment(shop, *(line(number, id=f"{name}-{number}", at=when) for name, when in at.items()), number=number)
        land(shop)
    for number, days in ((1, 399), (2, 401)):
        segment(shop, b"broken\n", number=number, ending=REJECTED, age=days * 86_400)
    files = len(shop.tables.open("prediction_log").file_uris())
    said: list[str] = []
    maintenance.prune(shop.contract, shop.settings, said.append, dry_run=True)
    assert "would remove 2 days older than 400 days, 1 rejected segments" in "\n".join(said)
    assert len(ids(shop)) == 15
    maintenance.prune(shop.contract, shop.settings, said.append)
    assert {name.rpartition("-")[0] for name in ids(shop)} == {"today", "yesterday", "kept"}
    assert len(ids(shop)) == 9
    assert (files, len(shop.tables.open("prediction_log").file_uris())) == (15, 5)  # of today they stay as they are
    assert left(shop) == ["1.rejected"]
    before = shop.tables.version("prediction_log")
    maintenance.prune(shop.contract, shop.settings)
    assert shop.tables.version("prediction_log") == before


def test_what_was_removed_leaves_the_disk_with_the_tables_old_versions(tmp_path, monkeypatch):
    shop = graph.empty(tmp_path).use(monkeypatch)
    segment(shop, line(1, at="2024-01-01T00:00:00Z"), line(2, at=datetime.now(UTC).isoformat()))
    land(shop)
    place = prediction_log.segments(shop.contract, shop.settings)
    assert prediction_log.prune(shop.tables, place, 400) == (["2024-01-01"], 0)
    folder_of_day = shop.home / "warehouse" / "toy_shop" / "prediction_log" / "_window=2024-01-01"
    assert list(folder_of_day.iterdir())
    age(shop.tables, 60, "prediction_log")
    maintenance.prune(shop.contract, shop.settings)
    assert not list(folder_of_day.glob("*"))
    assert ids(shop) == ["a-2"]


# -------------------------------------------------------------------------------------------------------------- S3


def test_in_s3_segments_land_are_rejected_and_erased_the_same(tmp_path, monkeypatch, bucket: Any):
    pytest.importorskip("s3fs", reason="s3fs is not installed: s3:// segments are not tested")
    shop = graph.make(tmp_path).use(monkeypatch)
    settings = Settings(
        home=shop.home, contract=shop.settings.contract, prediction_log="s3://tables/answers", warehouse="s3://tables/w"
    )
    tables = graph.TableStore(settings.tables_of(shop.contract))
    place = prediction_log.segments(shop.contract, settings)
    assert prediction_log.land(tables, shop.contract, settings).segments == 0
    for number in (1, 2):
        body = line(number) + line(number + 10) + b"broken\n" + line(3)[:20]
        bucket.put_object(Bucket="tables", Key=f"answers/toy_shop/2026-h-1-{number}.jsonl", Body=body)
    assert place.erase(["c11"]) == 1
    landed = prediction_log.land(tables, shop.contract, settings)
    assert (landed.rows, landed.rejected, landed.cut) == (3, 2, 0)  # what was cut went with the erasure
    assert list(place.names(FINISHED)) == []
    assert list(place.names(REJECTED)) == ["2026-h-1-1.rejected", "2026-h-1-2.rejected"]
    assert prediction_log.rows_per_day(tables) == {"2026-11-20": 3}
    assert prediction_log.prune(tables, place, 400, dry_run=True) == ([], 0)
