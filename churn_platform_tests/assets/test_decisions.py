"""The retention list at work: who is on it, what was sent, and what follows from it for everything else."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow import csv, parquet
from typer.testing import CliRunner

from churn_platform import treatments
from churn_platform.assets.replay import read_history
from churn_platform.cli import app
from churn_platform.engine import connection
from churn_platform.ml import decisions, retention
from churn_platform.ml.explanations import Explainer
from churn_platform.ml.models import frame
from churn_platform.provenance import recorded
from churn_platform.reproduce import reproduce
from churn_platform.resources.tracking import REFERENCE
from churn_platform.windows import window
from churn_platform_tests import graph

APRIL, MAY, JUNE = "2023-04-01", "2023-05-01", "2023-06-01"
VALUE = """\
value:
  {customer_value: spent_90d, value_factor: 0.5, offer_cost: 4, acceptance: 0.3, capacity: 60, hold_out: 0.3,
  rest_days: 45}
retraining:"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A played platform whose contract has learnt since what a customer is worth."""
    return graph.played().copy(tmp_path, ("retraining:", VALUE)).use(monkeypatch)


def listed(shop, key: str = MAY):
    """Make a window's list; what its asset says, and the rows."""
    result = shop.materialize("retention_list", key=key)
    assert result.success, graph.why(result)
    return graph.metadata(result, "retention_list"), shop.rows("retention_list", key)


def send(shop, key: str = MAY, *options: str):
    done = CliRunner().invoke(app, ["retention", "sent", key, *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_list_is_who_earns_most_best_first_up_to_the_capacity(shop):
    said, rows = listed(shop)
    rows = rows.sort_values("rank")
    assert rows["rank"].tolist() == list(range(1, len(rows) + 1))
    assert rows["expected_profit"].is_monotonic_decreasing
    assert rows["expected_profit"].min() > 0
    assert (rows["arm"] == "contact").sum() == said["to_contact"] == 60
    assert said["held_out"] == (rows["arm"] == "hold_out").sum() > 5
    scores = shop.rows("churn_scores", MAY)
    both = scores.merge(shop.rows("customer_features", MAY), on="buyer")
    profit = 0.3 * both["churn_probability"] * both["spent_90d"] * 0.5 - 4
    assert rows["expected_profit"].to_numpy() == pytest.approx(profit.nlargest(len(rows)).to_numpy())
    assert said["expected_profit"] == pytest.approx(rows.loc[rows["arm"] == "contact", "expected_profit"].sum())
    assert "image/png" in said["profit"]


def test_the_lot_decides_and_nothing_else_and_the_list_comes_out_the_same_again(shop):
    _, rows = listed(shop)
    lot = decisions.held_out(shop.contract, MAY, rows["buyer"])
    assert (np.where(lot, "hold_out", "contact") == rows["arm"]).all()
    _, again = listed(shop)
    pd.testing.assert_frame_equal(rows, again)


def test_the_reasons_are_those_of_the_model_that_scored(shop):
    _, rows = listed(shop)
    champion = shop.tracking.champion()
    reference = pd.read_parquet(shop.tracking.artifact(champion.run_id, REFERENCE))
    explainer = Explainer(shop.contract, champion.pipeline, reference)
    features = rows[["buyer"]].merge(shop.rows("customer_features", MAY), on="buyer")
    reasons = explainer.reasons(frame(shop.contract, features))
    assert rows["reasons"].tolist() == ["; ".join(reason.words for reason in found) for found in reasons]
    assert rows["reasons"].str.contains("no purchase for").any()


def test_the_files_hold_those_to_contact_and_nobody_who_is_held_out(shop):
    said, rows = listed(shop)
    contact = rows[rows["arm"] == "contact"]
    for read, path in ((parquet.read_table, said["parquet"]), (csv.read_csv, said["csv"])):
        exported = read(path).to_pandas()
        assert exported["buyer"].tolist() == contact.sort_values("rank")["buyer"].tolist()
        assert "arm" not in exported.columns
        assert exported["reasons"].str.len().min() > 10
    assert "exports" not in shop.tables.names()


def test_who_is_suppressed_is_on_no_list_and_is_counted(shop, tmp_path):
    _, rows = listed(shop)
    never = rows["buyer"].head(7).tolist()
    (tmp_path / "never.csv").write_text("customer_id,since\n" + "".join(f"{who},2020\n" for who in [*never, "nobody"]))
    careful = shop.other(("hold_out: 0.3", "hold_out: 0.3, suppression: never.csv"))
    said, rows = listed(careful)
    assert said["suppressed"] == 7
    assert not set(rows["buyer"]) & set(never)


def test_without_the_suppression_list_there_is_no_list(shop):
    careful = shop.other(("hold_out: 0.3", "hold_out: 0.3, suppression: never.csv"))
    result = careful.materialize("retention_list", key=MAY)
    assert not result.success
    assert "never.csv cannot be read" in graph.why(result)
    assert "retention_list" not in shop.tables.names()


def test_a_suppression_list_with_an_id_that_can_be_nobodys_is_refused_and_the_id_is_not_repeated(tmp_path, monkeypatch):
    value = "value: {customer_value: 10, offer_cost: 1, acceptance: 0.3, suppression: never.txt}\n"
    gym = graph.make(tmp_path, graph.WIDE + value).use(monkeypatch)
    (tmp_path / "never.txt").write_text("17\n0018\nA-19\n")
    with connection() as con:
        with pytest.raises(treatments.TreatmentError, match=r"holds 3 ids, and 2 of them are usable: number 3") as said:
            treatments.suppressed(con, gym.contract, gym.settings)
        assert "A-19" not in str(said.value)
        (tmp_path / "never.txt").write_text("17\n0018\n")
        assert treatments.suppressed(con, gym.contract, gym.settings) == [17, 18]


def test_a_list_that_was_not_sent_changes_nothing(shop):
    listed(shop)
    _, june = listed(shop, JUNE)
    assert treatments.sent_on(shop.tables) == {}
    said = graph.metadata(shop.materialize("retention_list", key=JUNE), "retention_list")
    assert said["resting"] == 0
    assert len(june) > 60


def test_who_was_contacted_or_held_out_rests(shop):
    _, may = listed(shop)
    said = send(shop)
    assert f"sent on 2023-06-01: 60 of 60 customers were contacted, {len(may) - 60} are held out" in said
    said, june = listed(shop, JUNE)  # 30 days later, and they rest for 45
    assert not set(june["buyer"]) & set(may["buyer"])
    assert 0 < said["resting"] <= len(may)
    assert treatments.resting(shop.contract, shop.tables, window(shop.contract, MAY)) == []
    awake = shop.other(("rest_days: 45", "rest_days: 28"))
    assert treatments.resting(awake.contract, shop.tables, window(shop.contract, JUNE)) == []


def test_what_was_sent_stays_as_it_was_sent(shop):
    _, rows = listed(shop)
    send(shop)
    version = shop.tables.version("retention_list")
    said = graph.metadata(shop.materialize("retention_list", key=MAY), "retention_list")
    assert said["sent_on"] == "2023-06-01"
    assert shop.tables.version("retention_list") == version
    assert len(shop.rows("retention_list", MAY)) == len(rows)


def test_what_was_sent_can_be_told_by_a_file_and_corrected(shop, tmp_path):
    _, rows = listed(shop)
    contact, held_out = (rows.loc[rows["arm"] == arm, "buyer"].tolist() for arm in ("contact", "hold_out"))
    other = min(set(shop.rows("customer_features", MAY)["buyer"]) - set(rows["buyer"]))
    path = tmp_path / "sent.txt"
    path.write_text("\n".join([*contact[:50], held_out[0], other, "nobody"]))
    said = send(shop, MAY, "--contacted", str(path), "--on", "2023-06-10")
    assert "50 of 60 customers were contacted" in said
    assert "1 of those held out were contacted all the same" in said
    assert "1 were contacted who were not on the list" in said
    assert "1 ids are of nobody" in said
    found = shop.rows("treatments")
    assert found["contacted"].sum() == 52
    assert found.loc[found["buyer"] == other, "arm"].item() == "unlisted"
    assert found["contacted_at"].unique().tolist() == [pd.Timestamp("2023-06-10", tz="UTC")]
    send(shop)
    assert shop.rows("treatments")["contacted"].sum() == 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["2023-02-01"], "there is no retention list of the window 2023-02-01. There are lists of: 2023-05-01."),
        (["2023-05-02"], "no monthly window starts on 2023-05-02"),
        ([MAY, "--on", "2023-05-20"], "cannot have been sent on 2023-05-20"),
        ([MAY, "--on", "2199-01-01"], "cannot have been sent on 2199-01-01"),
        ([MAY, "--contacted", "no/such/file"], "no/such/file cannot be read"),
    ],
)
def test_what_cannot_have_been_sent_is_refused(shop, arguments, words):
    listed(shop)
    done = CliRunner().invoke(app, ["retention", "sent", *arguments])
    assert done.exit_code == 1
    assert words in done.output
    assert "treatments" not in shop.tables.names()


def test_the_lists_are_shown_with_what_became_of_them(shop):
    assert "no retention list yet" in CliRunner().invoke(app, ["retention"]).output
    listed(shop)
    listed(shop, JUNE)
    send(shop)
    first, second = CliRunner().invoke(app, ["retention"]).output.splitlines()
    assert first.startswith(f"{MAY}       60 to contact")
    assert first.endswith("sent on 2023-06-01")
    assert second.endswith("not sent")


# ------------------------------------------------------------------------------------- what follows for the models


def measured(shop, key: str = MAY):
    return graph.metadata(shop.materialize("model_performance", key=key), "model_performance")


def save(shop, key: str) -> list[str]:
    """Let every customer who was contacted stay, whatever the labels said; returns who would have left."""
    labels = shop.rows("churn_labels", key).drop(columns="_window")
    found = shop.rows("treatments")
    contacted = labels["buyer"].isin(found.loc[found["arm"] == "contact", "buyer"])
    saved = labels.loc[contacted & (labels["churned"] == 1), "buyer"].tolist()
    labels.loc[contacted, "churned"] = 0
    import pyarrow as pa

    shop.tables.write("churn_labels", pa.Table.from_pandas(labels, preserve_index=False), key)
    return saved


def test_a_saved_customer_is_no_false_alarm(shop):
    before = measured(shop)
    listed(shop, APRIL)
    send(shop, APRIL)
    assert len(save(shop, MAY)) > 5
    after = measured(shop)
    assert after["treated_left_out"] == 60
    assert after["customers"] == before["customers"] - 60
    # those held out stand for the others, so it is about what it was: without them it would look much worse
    assert after["roc_auc"] == pytest.approx(before["roc_auc"], abs=0.05)
    assert "drop" in after


def test_who_was_held_out_and_contacted_all_the_same_counts_nothing_and_the_others_stand_in(shop, tmp_path):
    _, rows = listed(shop, APRIL)
    contact, held_out = (rows.loc[rows["arm"] == arm, "buyer"].tolist() for arm in ("contact", "hold_out"))
    path = tmp_path / "sent.txt"
    path.write_text("\n".join([*contact, *held_out[:3]]))
    send(shop, APRIL, "--contacted", str(path))
    with connection() as con:
        shop.tables.read(con, "treatments")
        shop.tables.read(con, "churn_labels", [MAY])
        found = con.sql(f"SELECT buyer, _weight FROM ({retention.weighted(shop.contract, 'churn_labels')})").df()
    weights = found.set_index("buyer")["_weight"]
    assert (weights[[*contact, *held_out[:3]]] == 0).all()
    assert weights[held_out[3:]].tolist() == pytest.approx([len(rows) / (len(held_out) - 3)] * (len(held_out) - 3))


def test_a_list_that_is_said_to_be_sent_after_its_labels_matured_is_measured_again(shop):
    before = measured(shop)
    listed(shop, APRIL)
    said = send(shop, APRIL)
    assert f"[measure] score_window    {MAY}" in said
    after = shop.rows("model_performance", MAY)
    assert after["treated"].sum() == 60
    assert after["rows"].sum() == before["customers"] - 60


def test_without_a_hold_out_a_fall_is_no_reason_to_retrain(shop):
    bold = shop.other(("hold_out: 0.3", "hold_out: 0"))
    assert bold.materialize("retention_list", key=APRIL).success
    treatments.record(bold.contract, bold.settings, window(bold.contract, APRIL))
    after = measured(bold)
    assert after["treated_left_out"] == 60
    assert "drop" not in after


def test_a_training_set_leaves_out_who_was_contacted_and_is_reproduced_so(shop):
    assert shop.materialize("training_set").success
    before = shop.rows("training_set")
    listed(shop, APRIL)
    send(shop, APRIL)
    done = shop.materialize("training_set")
    assert graph.metadata(done, "training_set")["treated_left_out"] == len(before) - len(shop.rows("training_set"))
    rows, found = shop.rows("training_set"), shop.rows("treatments")
    gone = set(map(tuple, before[["buyer", "snapshot_time"]].to_numpy())) - set(
        map(tuple, rows[["buyer", "snapshot_time"]].to_numpy())
    )
    at = pd.Timestamp("2023-05-01", tz="UTC")
    contacted = set(found.loc[found["contacted"], "buyer"])
    # what came 45 days after the contact is theirs again; what was known before it, too
    assert {who for who, _ in gone} <= contacted
    assert contacted <= {who for who, observed in gone if pd.Timestamp(observed) == at}
    held_out = found.loc[found["arm"] == "hold_out", "buyer"]
    assert held_out.isin(rows.loc[rows["snapshot_time"] == at, "buyer"]).all()

    history = read_history(shop.contract, shop.tables)  # nor does the replay know what became of them
    at_risk = history[(history["snapshot_time"] == at) & history["buyer"].isin({who for who, _ in gone})]
    assert len(at_risk) > 0
    assert at_risk["churned"].isna().all()
    assert history.loc[(history["snapshot_time"] == at) & history["buyer"].isin(held_out), "churned"].notna().all()

    result = shop.materialize("candidate_model", checks=False)
    assert result.success, graph.why(result)
    version = shop.tracking.version_of("challenger")
    assert "treatments" in recorded(version)
    findings = reproduce(shop.contract, shop.settings, str(version.version))
    assert all(finding.same for finding in findings), [str(finding) for finding in findings]


def test_a_model_from_before_anybody_was_contacted_is_still_reproduced(shop):
    listed(shop)
    send(shop)
    then = graph.Platform(graph.played().contract, shop.settings)
    assert "treatments" not in recorded(shop.tracking.version_of("champion"))
    assert all(finding.same for finding in reproduce(then.contract, then.settings, "1"))


# ------------------------------------------------------------------------------------------------------ the effect


def effect(shop, key: str = MAY):
    result = shop.materialize("retention_effect", key=key)
    assert result.success, graph.why(result)
    return graph.metadata(result, "retention_effect"), shop.rows("retention_effect", key)


def test_before_a_list_was_sent_and_its_labels_are_known_no_effect_is_claimed(shop):
    listed(shop, APRIL)
    said, rows = effect(shop)
    assert len(rows) == 0
    assert "no list that was sent" in said["by_lot"]


def test_the_effect_is_the_difference_that_the_lot_shows(shop):
    listed(shop, APRIL)
    send(shop, APRIL)
    saved = save(shop, MAY)
    said, rows = effect(shop)
    found, labels = shop.rows("treatments"), shop.rows("churn_labels", MAY)
    held_out = found.loc[found["arm"] == "hold_out", ["buyer"]].merge(labels, on="buyer")
    (row,) = rows.to_dict("records")
    assert (row["of"], row["treated"], row["control"]) == ("hold_out", 60, len(held_out))
    assert row["treated_rate"] == 0
    assert row["control_rate"] == row["saved"] == held_out["churned"].mean()
    assert row["low"] > 0
    assert row["high"] > len(saved) / 60
    assert row["profit_low"] < row["profit"] < row["profit_high"]
    assert "held out by lot" in said["by_lot"]
    assert "the contract assumes 30%" in said["by_lot"]
    assert "image/png" in said["effect"]


# ------------------------------------------------------------------------------------------------- personal data


def test_a_person_who_is_erased_leaves_lists_treatments_and_files(shop):
    from churn_platform.erasure import erase

    said, rows = listed(shop)
    send(shop)
    person = rows.sort_values("rank").loc[rows["arm"] == "contact", "buyer"].iloc[0]
    report = erase(shop.contract, shop.settings, person)
    assert {"retention_list", "treatments", "exports"} <= set(report.tables)
    assert person not in set(shop.rows("retention_list")["buyer"]) | set(shop.rows("treatments")["buyer"])
    for path in (said["csv"], said["parquet"]):
        assert person.encode() not in Path(path).read_bytes()
    left = parquet.read_table(said["parquet"]).to_pandas()
    assert len(left) == len(csv.read_csv(said["csv"])) == 59
    assert not erase(shop.contract, shop.settings, person).removed_anything


def test_dagster_is_told_numbers_and_no_row(shop):
    said, rows = listed(shop)
    told = json.dumps({name: str(value) for name, value in said.items()})
    assert not [who for who in rows["buyer"] if f'"{who}"' in told or f" {who} " in told]


def test_where_customers_are_hashed_files_of_ids_are_hashed_as_well(tmp_path, monkeypatch):
    text = graph.SIMULATED.replace("customer_id: {type: string}", "customer_id: {type: string, pii: hash}")
    shop = graph.make(tmp_path, text.replace("retraining:", VALUE)).use(monkeypatch)
    with connection() as con:
        known = treatments.stored(con, shop.contract, shop.settings, ["17", "18", "17"])
    from churn_platform.ml.masking import pseudonym

    assert known == {who: pseudonym(shop.settings.key, who) for who in ("17", "18")}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a\nb\n\n", ["a", "b"]),
        ("customer_id\na\nb", ["a", "b"]),
        ("\ufeffcustomer_id;name\n a ;x\nb;y", ["a", "b"]),
        ('name,customer_id\n"x, y",a', ["a"]),
        ("", []),
    ],
)
def test_ids_are_read_from_lines_and_from_a_named_column(tmp_path, monkeypatch, text, found):
    shop = graph.make(tmp_path)
    (tmp_path / "ids.csv").write_text(text, encoding="utf-8")
    assert treatments.ids(shop.contract, str(tmp_path / "ids.csv"), "a test") == found


def test_a_file_of_which_nobody_can_tell_where_the_ids_are_is_refused(tmp_path):
    shop = graph.make(tmp_path)
    (tmp_path / "ids.csv").write_text("number,name\n1,x\n")
    with pytest.raises(treatments.TreatmentError, match="call that column customer_id in its first line"):
        treatments.ids(shop.contract, str(tmp_path / "ids.csv"), "a test")


def test_a_live_company_sends_today(shop, monkeypatch):
    listed(shop)
    monkeypatch.setattr(type(shop.contract), "is_demonstration", property(lambda _: False))
    found = treatments.record(shop.contract, shop.settings, window(shop.contract, MAY), today=date(2023, 6, 5))
    assert found.on == date(2023, 6, 5)
