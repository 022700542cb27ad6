"""The asset graph at work: what is published and what is not, and what each stage makes of the one before."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from churn_platform.assets.common import history, partitions, require_windows
from churn_platform.windows import windows
from churn_platform_tests import graph
from churn_platform_tests.worlds import changed

MAY, JUNE = "2023-05-01", "2023-06-01"


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A played platform, for a test to change."""
    return graph.played().copy(tmp_path).use(monkeypatch)


@pytest.fixture
def new_shop(tmp_path, monkeypatch):
    """A platform whose data has landed, and nothing more."""
    return graph.landed().copy(tmp_path).use(monkeypatch)


def members(month: str, rows: int = 60, seed: int = 1) -> pd.DataFrame:
    """What a gym exports for a month; who comes seldom leaves."""
    random = np.random.default_rng(seed)
    visits = random.integers(0, 20, rows)
    days = pd.to_timedelta(random.integers(0, 20 * 24 * 60, rows), unit="m")
    left = random.random(rows) < 1 / (1 + np.exp((visits - 8) / 3))
    return pd.DataFrame(
        {
            "member_id": range(rows),
            "as_of": pd.Timestamp(month, tz="UTC") + days,
            "plan": random.choice(["basic", "gold"], rows),
            "visits": visits,
            "left": np.where(left, "Yes", "No"),
        }
    )


@pytest.fixture(scope="module")
def _january(tmp_path_factory):
    """A gym of which January is prepared."""
    with pytest.MonkeyPatch.context() as patch:
        found = graph.empty(tmp_path_factory.mktemp("gym"), graph.WIDE).use(patch)
        export(found, {month: members(month, seed=n) for n, month in enumerate(MONTHS)})
        assert found.run("prepare_window", MONTHS[0]).success
    graph.forget()
    return found


@pytest.fixture
def january(_january, tmp_path, monkeypatch):
    """A gym of which January is prepared, for a test to change."""
    found = _january.copy(tmp_path).use(monkeypatch)
    export(found, {month: members(month, seed=n) for n, month in enumerate(MONTHS)})
    return found


@pytest.fixture
def gym(tmp_path, monkeypatch):
    """A wide table in one CSV, four months long."""
    found = graph.empty(tmp_path, graph.WIDE).use(monkeypatch)
    export(found, {month: members(month, seed=n) for n, month in enumerate(MONTHS)})
    return found


MONTHS = ["2024-01-01", "2024-02-01", "2024-03-01", "2024-04-01"]


def export(gym, months: dict[str, pd.DataFrame]) -> None:
    pd.concat(months.values()).to_csv(gym.settings.contract.parent / "members.csv", index=False)


# -- validated tables


def spoilt(kind: str, month: pd.DataFrame) -> pd.DataFrame:
    if kind == "too many bad rows":
        bad = month.index[:10]
        month.loc[bad, "visits"] = -1
        month.loc[bad[:3], "plan"] = "silver"
        return month
    if kind == "too few rows":
        return month[:30]
    if kind == "labels of one kind":
        return month.assign(left="No")
    return month.rename(columns={"visits": "times"})


@pytest.mark.parametrize(
    ("kind", "check", "words"),
    [
        ("too many bad rows", "bad_rows_are_few", "10 of 60 rows (16.67%) are bad"),
        ("too few rows", "has_enough_rows", "30 good rows, at least 50 are needed"),
        ("labels of one kind", "label_has_both_values", "0 of 60 labelled rows have left = 'Yes'"),
        ("a missing column", None, "visits: the source has no 'visits'"),
    ],
)
def test_a_bad_window_is_not_published_and_passes_once_the_source_is_corrected(january, kind, check, words):
    gym = january
    before = {name: gym.rows(name) for name in ("validated_snapshots", "customer_features", "churn_labels")}

    export(gym, {MONTHS[0]: spoilt(kind, members(MONTHS[0]))})
    result = gym.run("prepare_window", MONTHS[0])
    assert not result.success
    if check is None:
        assert words in graph.why(result)
        assert graph.materialized(result) == []
    else:
        verdict = next(found for found in result.get_asset_check_evaluations() if found.check_name == check)
        assert not verdict.passed
        assert words in verdict.metadata["verdict"].value
        assert verdict.metadata["what_to_do"].value
        assert graph.materialized(result) == ["raw_snapshots"]
    for name, rows in before.items():
        pd.testing.assert_frame_equal(gym.rows(name), rows)
    if kind == "too many bad rows":
        quarantined = gym.rows("quarantine_snapshots", MONTHS[0])
        assert len(quarantined) == 10
        assert quarantined["_reason"].str.contains("visits is below 0").all()
        assert quarantined["_reason"].str.contains("plan is not one of").sum() == 3

    corrected = members(MONTHS[0], seed=5)
    export(gym, {MONTHS[0]: corrected})
    first = gym.run("prepare_window", MONTHS[0])
    assert first.success, graph.why(first)
    assert gym.rows("validated_snapshots")["visits"].sum() == corrected["visits"].sum()
    assert len(gym.rows("quarantine_snapshots", MONTHS[0])) == 0


def test_few_bad_rows_are_quarantined_with_their_reason_and_the_others_published(gym):
    months = {month: members(month) for month in MONTHS}
    months[MONTHS[0]].loc[3, "visits"] = -1
    export(gym, months)
    result = gym.run("prepare_window", MONTHS[0])
    assert result.success
    said = graph.metadata(result, "validated_snapshots")
    assert said["quarantined_rows"] == 1
    assert said["quarantine_reasons"] == {"visits is below 0": 1}
    assert gym.rows("quarantine_snapshots")["member_id"].tolist() == [3]
    assert sorted(gym.rows("validated_snapshots")["member_id"]) == [n for n in range(60) if n != 3]


# -- features, labels and the feature store


def test_a_gap_in_the_history_is_refused_and_named(new_shop):
    result = new_shop.run("prepare_window", "2023-02-01")
    assert not result.success
    assert "lacks the window 2023-01-01. Materialize validated_transactions for it first" in graph.why(result)
    assert {"validated_transactions", "validated_customers"} <= set(graph.materialized(result))
    assert not {"customer_features", "churn_labels"} & set(graph.materialized(result))
    assert new_shop.tables.version("customer_features") is None


@pytest.mark.parametrize(
    ("asset", "lacks"),
    [
        ("validated_snapshots", "raw_snapshots lacks the window 2024-03-01"),
        ("customer_features", "validated_snapshots lacks the window 2024-03-01"),
        ("churn_labels", "validated_snapshots lacks the windows 2024-02-01, 2024-03-01"),
        ("feature_store", "customer_features lacks the window 2024-03-01"),
    ],
)
def test_a_window_that_is_not_there_is_not_taken_for_one_without_customers(january, asset, lacks):
    gym = january
    result = gym.materialize(asset, key="2024-03-01", checks=asset != "feature_store")
    assert not result.success
    assert lacks in graph.why(result)
    assert "2024-03-01" not in gym.tables.windows(asset)


def test_an_older_window_materialized_again_leaves_the_newer_values_online(shop):
    buyers = shop.rows("customer_features", MAY)["buyer"].tolist()[:50]
    before = shop.store.online(buyers)
    result = shop.materialize("customer_features", "feature_store", key=MAY)
    assert result.success
    assert graph.metadata(result, "feature_store")["online"] is False
    assert graph.verdicts(result) == {"online_equals_offline": True}
    after = shop.other().store.online(buyers)
    assert after == before
    assert {row["snapshot_time"] for row in after} == {datetime(2023, 7, 1, tzinfo=UTC)}


def test_the_newest_window_materialized_again_gives_the_same_features(shop):
    before = shop.rows("customer_features")
    assert shop.materialize("customer_features", "feature_store", key=JUNE).success
    pd.testing.assert_frame_equal(shop.rows("customer_features"), before)


def test_the_training_set_has_a_row_for_each_label_and_no_other(shop):
    assert shop.materialize("training_set").success
    labels, rows = shop.rows("churn_labels"), shop.rows("training_set")
    key = ["buyer", "snapshot_time", "churned"]
    assert rows[key].sort_values(key).to_numpy().tolist() == labels[key].sort_values(key).to_numpy().tolist()
    features = shop.rows("customer_features")
    joined = rows.merge(features, on=["buyer", "snapshot_time"], how="left", suffixes=("", "_then"))
    for name in shop.contract.feature_names:
        left, right = joined[name], joined[f"{name}_then"]
        assert ((left == right) | (left.isna() & right.isna())).all(), name


@pytest.mark.parametrize("retries", [None, dg.RetryPolicy(max_retries=3)])
def test_a_permanent_failure_is_not_retried_however_many_retries_there_are(tmp_path, monkeypatch, retries):
    empty = graph.empty(tmp_path).use(monkeypatch)
    nothing = pa.schema([("buyer", pa.string()), ("snapshot_time", pa.timestamp("us", "UTC"))]).empty_table()
    empty.tables.write("churn_labels", nothing, "2023-01-01")
    result = empty._select(dg.AssetSelection.assets("training_set"), None, retries)
    assert not result.success
    assert "no label is mature yet" in graph.why(result)
    kinds = [event.event_type_value for event in result.all_events]
    assert kinds.count("STEP_FAILURE") == 1
    assert "STEP_UP_FOR_RETRY" not in kinds


# -- scores and monitoring


def test_scores_are_of_the_customers_at_risk_and_of_no_other(shop):
    features, scores = shop.rows("customer_features", JUNE), shop.rows("churn_scores", JUNE)
    at_risk = features[features["_at_risk"]]
    assert 0 < len(at_risk) < len(features)
    assert sorted(scores["buyer"]) == sorted(at_risk["buyer"])
    assert set(scores["model_version"]) == {"1"}
    assert scores["churn_probability"].between(0, 1).all()
    high = scores["churn_probability"] >= shop.contract.model.threshold
    assert (scores["prediction"] == np.where(high, "High Risk", "Low Risk")).all()
    assert high.nunique() == 2


def test_without_a_champion_nothing_is_scored(new_shop):
    assert new_shop.run("prepare_window", "2023-01-01").success
    result = new_shop.materialize("churn_scores", key="2023-01-01")
    assert not result.success
    assert "has no champion yet: launch the job `retrain`" in graph.why(result)
    assert new_shop.tables.version("churn_scores") is None


def test_a_window_without_customers_at_risk_has_no_scores_and_no_drift(shop):
    key = "2023-07-01"
    rows = shop.rows("customer_features", JUNE).drop(columns="_window")
    rows["_at_risk"] = False
    rows["snapshot_time"] = pd.Timestamp("2023-08-01", tz="UTC")
    shop.tables.write("customer_features", pa.Table.from_pandas(rows, preserve_index=False), key)
    result = shop.materialize("churn_scores", "drift_report", key=key)
    assert result.success, graph.why(result)
    assert len(shop.rows("churn_scores", key)) == 0
    assert key in shop.tables.windows("churn_scores")
    said = graph.metadata(result, "drift_report")
    assert said["drifted"] is False
    assert "the window has 0 rows" in said["why"]
    assert said["model_version"] == "1"
    assert key in shop.tables.windows("drift_report")


def test_drift_is_measured_against_what_the_champion_was_trained_on(shop):
    """A champion that was trained on June's customers finds no drift in June; the first one's distances differ."""
    before = shop.rows("drift_report", JUNE).set_index("column")
    june = shop.rows("customer_features", JUNE).query("_at_risk")
    scores = shop.rows("churn_scores", JUNE)["churn_probability"].to_numpy()
    reference = june[shop.contract.feature_names].assign(churn_probability=scores)
    champion = shop.tracking.champion()
    folder = shop.home / "stand_in"
    folder.mkdir()
    reference.to_parquet(folder / "reference.parquet")
    tracking = shop.tracking
    with tracking.run("trained on June", "june"):
        known = {name: value for name, value in champion.tags.items() if not name.startswith("gate.")}
        version = tracking.log_model(champion.pipeline, reference[shop.contract.feature_names], folder, known)
    assert shop.check("candidate_model").success
    assert shop.materialize("champion").success
    result = shop.materialize("drift_report", key=JUNE)
    assert result.success, graph.why(result)
    after = shop.rows("drift_report", JUNE).set_index("column")
    assert after["score"].max() < 1e-6
    assert before.loc["tenure_months", "score"] > 1
    assert set(after["model_version"]) == {str(version.version)}
    assert graph.metadata(result, "drift_report")["scored_by"] == "1"


def test_the_report_of_a_window_is_a_page_that_is_there(shop):
    result = shop.materialize("drift_report", key=JUNE)
    found = graph.metadata(result, "drift_report")
    page = Path(found["report_path"])
    assert found["report"] == f"http://127.0.0.1:8081/{shop.contract.name}/{page.name}"
    assert page.is_relative_to(shop.home / "reports")
    assert page.name == f"drift-{JUNE}.html"
    assert page.stat().st_size > 100_000


def test_performance_is_measured_on_labels_that_the_model_had_not_seen(shop):
    measured = shop.rows("model_performance")
    known_until = pd.Timestamp(shop.tracking.version("1").tags["labels_known_until"])
    assert len(measured) == 2
    assert (measured["snapshot_time"] >= known_until).all()
    for _, row in measured.iterrows():
        labels = shop.rows("churn_labels")
        labels = labels[labels["snapshot_time"] == row["snapshot_time"]]
        assert row["rows"] == len(labels)
        assert row["churn_rate"] == labels["churned"].mean()


def test_a_label_that_the_model_had_seen_is_never_counted(shop):
    """Old windows scored again by today's champion would make it look as good as its memory."""
    assert shop.materialize("churn_scores", key="2023-02-01").success
    result = shop.materialize("model_performance", key="2023-03-01")
    assert result.success
    said = graph.metadata(result, "model_performance")
    assert said["measured"] is False
    assert "drop" not in said
    assert len(shop.rows("model_performance", "2023-03-01")) == 0


def test_performance_that_fell_is_reported_as_a_drop(shop):
    """Labels turned round: what was promised is not what came."""
    labels = shop.rows("churn_labels", JUNE).drop(columns="_window")
    labels["churned"] = 1 - labels["churned"]
    shop.tables.write("churn_labels", pa.Table.from_pandas(labels, preserve_index=False), JUNE)
    said = graph.metadata(shop.materialize("model_performance", key=JUNE), "model_performance")
    promised = float(shop.tracking.version("1").tags["test_roc_auc"])
    assert said["drop"] == pytest.approx(promised - said["roc_auc"])
    assert said["drop"] > 0.3
    assert said["model_version"] == "1"


def test_performance_on_a_handful_of_customers_is_shown_and_is_no_reason_to_retrain(shop):
    labels = shop.rows("churn_labels", JUNE).drop(columns="_window").groupby("churned").head(5)
    shop.tables.write("churn_labels", pa.Table.from_pandas(labels, preserve_index=False), JUNE)
    said = graph.metadata(shop.materialize("model_performance", key=JUNE), "model_performance")
    assert said["measured"] is True
    assert said["customers"] == 10
    assert "drop" not in said


# -- a wide table, all the way


@pytest.mark.slow
def test_a_wide_table_goes_all_the_way_from_a_csv_to_scores_drift_and_performance(january):
    gym = january
    for month in MONTHS[1:3]:
        assert gym.run("prepare_window", month).success
    retrained = gym.run("retrain")
    assert retrained.success, graph.why(retrained)
    assert gym.run("score_window", MONTHS[2]).success
    last = gym.run("window_cycle", MONTHS[3])
    assert last.success, graph.why(last)
    assert len(gym.rows("churn_scores", MONTHS[3])) == 60
    measured = gym.rows("model_performance", MONTHS[3])
    assert len(measured) == 1  # the rows of a month have times of their own, and are judged together
    assert measured["rows"].item() > 10
    known_until = pd.Timestamp(gym.tracking.version("1").tags["labels_known_until"])
    labels = gym.rows("churn_labels", MONTHS[3])
    assert measured["rows"].item() == (labels["snapshot_time"] >= known_until).sum()
    assert graph.metadata(last, "drift_report")["drifted"] is False
    assert gym.store.online([0])[0]["plan"] in ("basic", "gold")


# -- partitions


@pytest.mark.parametrize(
    "time",
    [
        "start: 2023-01-01, end: 2024-01-01, cadence: monthly, timezone: UTC",
        "start: 2023-01-01, end: 2024-01-01, cadence: monthly, timezone: America/New_York",
        "start: 2023-01-04, end: 2023-05-03, cadence: weekly, timezone: Europe/Berlin",
        "start: 2023-01-01, end: 2023-03-05, cadence: weekly, timezone: UTC",
        "start: 2023-03-01, end: 2023-04-20, cadence: daily, timezone: Europe/Berlin",
    ],
)
def test_dagsters_partitions_are_the_contracts_windows(time):
    contract = changed(
        graph.SIMULATED,
        ("start: 2023-01-01, end: 2024-01-01, cadence: monthly, timezone: UTC", time),
        ("present: 2023-07-01", "present: 2023-12-01"),
    )
    ours = list(windows(contract, datetime(2025, 1, 1, tzinfo=UTC)))
    found = partitions(contract)
    assert found.get_partition_keys() == [window.key for window in ours]
    for window in ours:
        bounds = found.time_window_for_partition_key(window.key)
        assert (bounds.start, bounds.end) == (window.start, window.end)


def test_a_window_needs_as_many_before_it_as_its_longest_feature_or_label_looks_back():
    contract = changed(graph.SIMULATED)
    assert history(contract).start_offset == -4  # 90 days in months of at least 28
    assert history(changed(graph.SIMULATED, ("cadence: monthly", "cadence: daily"))).start_offset == -90
    longer = changed(graph.SIMULATED, ("horizon_days: 28", "horizon_days: 200"))
    assert history(longer).start_offset == -10


def test_all_windows_up_to_one_are_needed_and_later_ones_are_not():
    contract = changed(graph.SIMULATED)
    known = graph.keys(contract, date(2023, 5, 1))
    require_windows(known[:3], known, "t")
    with pytest.raises(dg.Failure) as refused:
        require_windows(known[:3], [known[1]], "t")
    assert "t lacks the windows 2023-01-01, 2023-03-01" in str(refused.value.description)
    assert refused.value.allow_retries is False
