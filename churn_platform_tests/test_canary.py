"""The canary: who may be one, a true log, and how its arm compares with the champion's."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from churn_platform import canary, prediction_log, promotion, treatments
from churn_platform.cli import app
from churn_platform.ml import gates
from churn_platform.registered import CANARY, CANARY_SHARE
from churn_platform.resources.tracking import RegistryError
from churn_platform_tests import answers, graph
from churn_platform_tests.test_promotion import _three, candidate, lines, log  # noqa: F401 (a fixture among them)

OBSERVED = "2023-05-01T00:00:00Z"


@pytest.fixture(scope="module")
def _five(_three):  # noqa: F811
    """Three champions one after the other; version 4 was refused, version 5 has passed every gate."""
    assert candidate(_three) == "5"
    return _three


@pytest.fixture
def shop(_five, tmp_path, monkeypatch):
    return _five.copy(tmp_path).use(monkeypatch)


def start(shop, version: str | None = None, share: float = 0.1) -> promotion.Entry:
    return promotion.start_canary(shop.tables, shop.tracking, version, share, by="ann", why="a try")


def canaries(shop) -> list[tuple[str, str | None, str | None]]:
    kept = (promotion.CANARY_STARTED, promotion.CANARY_STOPPED)
    return [(e.event, e.previous, e.version) for e in promotion.entries(shop.tables) if e.event in kept]


# -------------------------------------------------------------------------------------------------- start and stop


def test_the_challenger_becomes_canary_with_its_share_and_the_champion_stays(shop):
    entry = start(shop, share=0.25)
    assert (shop.alias(CANARY), shop.alias()) == ("5", "3")
    assert shop.tracking.version("5").tags[CANARY_SHARE] == "0.25"
    assert (entry.by, entry.why) == ("ann", "25.0% of the customers: a try")
    assert canaries(shop) == [("canary_started", "3", "5")]
    assert set(json.loads(entry.evidence)["gates"]) == set(gates.names(shop.contract))


def test_stopping_takes_the_title_and_the_share_away_and_is_logged(shop):
    start(shop)
    promotion.stop_canary(shop.tables, shop.tracking, by="bob", why="enough seen")
    assert shop.alias(CANARY) is None
    assert CANARY_SHARE not in shop.tracking.version("5").tags
    assert canaries(shop) == [("canary_started", "3", "5"), ("canary_stopped", "3", "5")]
    with pytest.raises(RegistryError, match="no canary to stop"):
        promotion.stop_canary(shop.tables, shop.tracking)


def test_the_history_of_champions_knows_nothing_of_canaries(shop):
    before = log(shop)
    start(shop)
    assert log(shop) == before
    promotion.stop_canary(shop.tables, shop.tracking)
    assert log(shop) == before
    assert promotion.rollback(shop.tables, shop.tracking).version == "2"
    assert log(shop) == [*before, ("rollback", "3", "2")]
    assert lines(shop) == 6  # and nobody took the canary's lines for an action that was cut short


REFUSED = [
    ("4", 0.1, r"version 4 may not be champion: .*beats_the_base_rate \(failed\)"),
    ("3", 0.1, "version 3 is the champion: it answers for everybody already"),
    ("9", 0.1, "has no version 9"),
    ("5", 0.0, r"a share between 0 and 1, such as 0.1, and not for 0\."),
    ("5", 1.0, "a share between 0 and 1"),
    ("5", float("nan"), "a share between 0 and 1"),
]


def test_who_may_not_be_canary_is_told_why_and_nothing_changes(shop):
    before = lines(shop)
    for version, share, words in REFUSED:
        with pytest.raises(RegistryError, match=words):
            start(shop, version, share)
        assert (shop.alias(CANARY), lines(shop)) == (None, before)


def test_a_version_that_was_never_judged_is_no_canary(shop):
    tracking = shop.tracking
    for gate in gates.names(shop.contract):
        tracking.client.delete_model_version_tag(tracking.model_name, "5", f"gate.{gate}")
    with pytest.raises(RegistryError, match="was not judged"):
        start(shop)
    assert shop.alias(CANARY) is None


def test_a_version_of_other_features_is_no_canary(shop):
    other = shop.other(("    gap_90d: {kind: mean_gap_days, window_days: 90}\n", ""))
    for gate in gates.names(other.contract):
        other.tracking.record_gate("5", gate, True, "for the test", "3")
    with pytest.raises(RegistryError, match=r"trained on other features.*gap_90d"):
        start(other)
    assert shop.alias(CANARY) is None


def test_one_canary_at_a_time_and_its_share_can_be_changed(shop):
    start(shop, share=0.05)
    start(shop, "5", share=0.5)
    assert shop.tracking.version("5").tags[CANARY_SHARE] == "0.5"
    assert candidate(shop) == "6"
    with pytest.raises(RegistryError, match="version 5 is the canary"):
        start(shop, "6")
    assert shop.alias(CANARY) == "5"


def test_without_a_champion_there_is_no_canary(tmp_path, monkeypatch):
    empty = graph.empty(tmp_path).use(monkeypatch)
    with pytest.raises(RegistryError, match="no champion beside which"):
        start(empty)


def test_a_canary_that_is_promoted_loses_the_title(shop):
    start(shop)
    promotion.promote(shop.tables, shop.tracking, "5", "the test")
    assert (shop.alias(), shop.alias(CANARY)) == ("5", None)
    assert canaries(shop)[-1] == ("canary_stopped", "5", "5")
    assert log(shop)[-1] == ("promotion", "3", "5")


def test_a_canary_stays_when_another_version_is_promoted(shop):
    start(shop)
    other = candidate(shop)
    promotion.promote(shop.tables, shop.tracking, other, "the test")
    assert (shop.alias(), shop.alias(CANARY)) == (other, "5")


def test_a_promotion_that_was_killed_before_it_took_the_title_away_is_finished_by_the_next_action(shop):
    start(shop)
    tracking = shop.tracking
    entry = promotion._append(shop.tables, promotion.Entry(promotion.PROMOTION, "5", "3"))
    tracking.reinstate("5")
    tracking.confirm("5", entry.id)
    assert shop.alias(CANARY) == "5"
    promotion.rollback(shop.tables, tracking, "2")
    assert (shop.alias(), shop.alias(CANARY)) == ("2", None)  # the old champion answers for nobody by accident
    assert canaries(shop)[-1] == ("canary_stopped", "5", "5")


# ------------------------------------------------------------------------------------------------------- how it does


def leave(shop, rows: int = 400, wrong: bool = False) -> pd.DataFrame:
    """Answers of both arms about other customers, each twice; returns them with what became of each.

    The champion answers the true risk; the canary too, or the opposite.
    """
    people = graph.customers(rows)
    risk = graph.risk(people)
    told = pd.DataFrame({"buyer": [f"c{n}" for n in range(rows)], "risk": risk, "churned": graph.outcomes(people)})
    told["arm"] = np.where(np.arange(rows) % 4 == 0, "canary", "champion")
    told["said"] = np.where((told["arm"] == "canary") & wrong, 1 - risk, risk)
    for again in (1, 2):
        answers.segment(
            shop,
            *(
                answers.line(
                    n,
                    id=f"{again}-{n}",
                    at=pd.Timestamp.now("UTC").isoformat(),
                    customer=row.buyer,
                    arm=row.arm,
                    version="5" if row.arm == "canary" else "3",
                    probability=row.said,
                    decision="High Risk" if row.said >= 0.5 else "Low Risk",
                    feature_timestamp=OBSERVED,
                )
                for n, row in enumerate(told.itertuples())
            ),
            number=again,
        )
    prediction_log.land(shop.tables, shop.contract, shop.settings, lambda _: None)
    return told


def mature(shop, told: pd.DataFrame) -> None:
    """Let the labels of the customers mature."""
    observed = pd.Timestamp(OBSERVED)
    times = {"snapshot_time": observed, "label_matured_at": observed + pd.Timedelta(days=28)}
    labels = told[["buyer", "churned"]].astype({"churned": "int64"}).assign(**times)
    shop.tables.write("churn_labels", pa.Table.from_pandas(labels, preserve_index=False), "2023-06-01")


def test_the_arms_are_counted_before_any_label_is_known(shop):
    told = leave(shop)
    champion, tried = canary.arms(shop.contract, shop.tables)
    assert (champion.arm, champion.version, champion.answers, champion.customers) == ("champion", "3", 600, 300)
    assert (tried.arm, tried.version, tried.answers, tried.customers) == ("canary", "5", 200, 100)
    assert tried.mean_probability == pytest.approx(told.loc[told["arm"] == "canary", "said"].mean())
    assert tried.high_risk == pytest.approx((told.loc[told["arm"] == "canary", "said"] >= 0.5).mean())
    assert "no label has matured yet" in tried.words()


def test_outcomes_tell_a_canary_that_is_wrong_from_one_that_is_as_good(shop):
    told = leave(shop, wrong=True)
    mature(shop, told)
    champion, tried = canary.arms(shop.contract, shop.tables)
    mine = told[told["arm"] == "canary"]
    assert (tried.matured, tried.churners) == (100, int(mine["churned"].sum()))  # each customer once
    assert tried.brier.value == pytest.approx(((mine["said"] - mine["churned"]) ** 2).mean())
    assert champion.brier.low < champion.brier.value < champion.brier.high < tried.brier.low
    assert tried.roc_auc.high < 0.5 < champion.roc_auc.low
    assert f"Brier {tried.brier.value:.4f} [{tried.brier.low:.4f}, {tried.brier.high:.4f}]" in tried.words()


def test_a_canary_as_good_as_the_champion_looks_as_good(shop):
    mature(shop, leave(shop))
    champion, tried = canary.arms(shop.contract, shop.tables)
    assert tried.brier.low < champion.brier.value < tried.brier.high


def test_customers_who_were_contacted_count_for_no_arm(shop):
    mature(shop, leave(shop))
    contact = {
        "buyer": "c0",
        "contacted_at": pd.Timestamp("2023-05-02", tz="UTC"),
        "arm": "unlisted",
        "contacted": True,
    }
    shop.tables.write(treatments.TABLE, pa.Table.from_pylist([contact]), "2023-05-01")
    _, tried = canary.arms(shop.contract, shop.tables)
    assert tried.matured == 99


def test_of_one_kind_of_customers_nothing_is_measured(shop):
    mature(shop, leave(shop).assign(churned=0))
    assert "too few of both kinds to measure" in canary.arms(shop.contract, shop.tables)[0].words()


def test_only_answers_since_the_start_count(shop):
    leave(shop)
    assert canary.arms(shop.contract, shop.tables, pd.Timestamp.now("UTC") + pd.Timedelta(minutes=1)) == []
    assert canary.arms(graph.parse(graph.SIMULATED), graph.TableStore(str(shop.home / "nowhere"))) == []


# -------------------------------------------------------------------------------------------------------- the commands


def churn(*arguments: str):
    return CliRunner().invoke(app, ["canary", *arguments])


def test_the_commands_start_tell_and_stop(shop):
    assert "There is no canary" in churn("status").output
    started = churn("start", "--share", "0.2", "--why", "a try")
    assert started.exit_code == 0, started.output
    assert "version 5 answers for 20.0% of the customers, version 3 for the others" in started.output
    assert "No answer has landed since" in churn("status").output
    mature(shop, leave(shop))
    told = churn("status").output
    assert "version 5 is the canary, for 20.0% of the customers, since" in told
    assert "champion  version 3          600 answers about 300 customers" in told
    assert "100 labels have matured" in told
    assert "version 5 is no canary any more" in churn("stop").output
    refused = churn("stop")
    assert refused.exit_code == 1
    assert "nothing was changed: there is no canary to stop" in refused.output


def test_the_command_refuses_in_words_and_with_a_status(shop):
    refused = churn("start", "4")
    assert refused.exit_code == 1
    assert "nothing was changed: version 4 may not be champion" in refused.output
    assert shop.alias(CANARY) is None
