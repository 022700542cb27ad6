"""The generator's promises: determinism, an untouched past, BG/NBD moments, drift of the kind it says."""

from __future__ import annotations

import resource
import sys
from datetime import UTC, date, datetime, timedelta
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from churn_platform.sources import simulated_process as process
from churn_platform.sources.simulated_process import Drift, DriftKind, Simulation

START = date(2023, 1, 1)
END = date(2024, 7, 1)
DRIFT_AT = date(2023, 10, 12)  # within a month, to see that the month is cut properly
KINDS: tuple[DriftKind, ...] = ("covariate", "concept", "label")
CUSTOMERS = 20_000


def simulation(*drift: Drift, customers: int = 2_000, end: date = END, seed: int = 3) -> Simulation:
    return Simulation(customers, START, end, seed, drift, chunk_customers=customers // 2)


def instant(day: date) -> pd.Timestamp:
    return pd.Timestamp(day, tz="UTC")


def customers_of(wanted: Simulation) -> pd.DataFrame:
    return pd.concat([chunk.customers.to_pandas() for chunk in process.simulate(wanted)], ignore_index=True)


def purchases_of(wanted: Simulation, before: date | None = None) -> pd.DataFrame:
    purchases = pd.concat([chunk.purchases.to_pandas() for chunk in process.simulate(wanted)], ignore_index=True)
    if before is not None:
        purchases = purchases[purchases["purchase_time"] < instant(before)]
    return purchases.reset_index(drop=True)


# ---------------------------------------------------------------------------------------- what stays the same


def test_the_same_simulation_gives_the_same_chunks() -> None:
    first, second = (list(process.simulate(simulation())) for _ in range(2))
    assert len(first) == 2
    assert all(
        a.customers.equals(b.customers) and a.purchases.equals(b.purchases) for a, b in zip(first, second, strict=True)
    )


def test_another_seed_gives_other_purchases() -> None:
    assert not purchases_of(simulation(seed=1)).equals(purchases_of(simulation(seed=2)))


@pytest.mark.parametrize("earlier_end", [date(2023, 2, 1), date(2023, 8, 17), date(2024, 2, 29)])
def test_extending_the_end_changes_nothing_before_it(earlier_end: date) -> None:
    long = simulation(end=date(2026, 3, 1))  # past the first period of sign-ups
    short = simulation(end=earlier_end)
    pd.testing.assert_frame_equal(purchases_of(short), purchases_of(long, before=earlier_end))
    customers = customers_of(long)
    customers = customers[customers["signup_time"] < instant(earlier_end)].reset_index(drop=True)
    pd.testing.assert_frame_equal(customers_of(short), customers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [(), (Drift("concept", date(2023, 10, 5)), Drift("label", date(2023, 8, 3)))])
def test_drift_leaves_the_past_untouched(kind: DriftKind, before: tuple[Drift, ...]) -> None:
    plain = simulation(*before)
    drifted = simulation(Drift(kind, DRIFT_AT), *before)
    pd.testing.assert_frame_equal(purchases_of(drifted, DRIFT_AT), purchases_of(plain, DRIFT_AT))
    assert not purchases_of(drifted).equals(purchases_of(plain))
    expected, customers = (
        table[table["signup_time"] < instant(DRIFT_AT)] for table in (customers_of(plain), customers_of(drifted))
    )
    pd.testing.assert_frame_equal(customers, expected)


# --------------------------------------------------------------------------------------------- what comes out


def test_the_tables_have_the_schemas_and_hold_what_they_should() -> None:
    numbers: set[int] = set()
    for chunk in process.simulate(simulation()):
        assert chunk.customers.schema.equals(process.CUSTOMERS_SCHEMA)
        assert chunk.purchases.schema.equals(process.PURCHASES_SCHEMA)
        customers, purchases = chunk.customers.to_pandas(), chunk.purchases.to_pandas()
        assert customers["customer_id"].is_unique
        assert customers["customer_id"].str.fullmatch(r"C\d{7}").all()
        assert customers["age"].between(18, 90).all()
        assert set(customers["customer_segment"]) == set(process.SEGMENTS)
        assert customers["email"].is_unique
        assert customers["email"].str.endswith("@example.com").all()
        assert customers["signup_time"].between(instant(START) - timedelta(days=180), instant(END)).all()

        assert purchases["purchase_time"].is_monotonic_increasing
        assert (purchases["purchase_time"] < instant(END)).all()
        assert (purchases["amount"] > 0).all()
        np.testing.assert_allclose(purchases["amount"], purchases["amount"].round(2), rtol=0, atol=1e-9)
        first = purchases.groupby("customer_id")["purchase_time"].min()
        pd.testing.assert_series_equal(
            first, customers.set_index("customer_id")["signup_time"].sort_index(), check_names=False
        )
        assert not numbers & set(purchases["order_id"])
        assert purchases["order_id"].is_unique
        numbers |= set(purchases["order_id"])


def test_customers_sign_up_at_a_constant_rate_from_before_the_start_until_the_end() -> None:
    days = (customers_of(simulation(customers=CUSTOMERS))["signup_time"] - instant(START)).dt.days
    per_day = days.groupby(days // 60).size().iloc[:-1] / 60  # the last of these spans is cut by the end
    expected = CUSTOMERS / process.SIGNUP_PERIOD_DAYS
    assert per_day.index.min() == -3
    assert (abs(per_day - expected) < 5 * (expected / 60) ** 0.5).all()


def test_purchases_are_made_in_the_daytime() -> None:
    hour = purchases_of(simulation())["purchase_time"].dt.hour
    assert (hour < 6).mean() < 0.05
    assert hour.between(12, 20).mean() > 0.5
    assert hour.nunique() == 24


def test_december_is_high_and_summer_is_low() -> None:
    purchases = purchases_of(simulation(customers=CUSTOMERS, end=date(2024, 2, 1)))
    time = purchases.loc[purchases["customer_id"].duplicated(), "purchase_time"]  # sign-ups have no season
    months = [(2023, 5, 31), (2023, 7, 31), (2023, 9, 30), (2023, 11, 30), (2023, 12, 31), (2024, 1, 31)]
    per_day = {
        (year, month): ((time.dt.year == year) & (time.dt.month == month)).sum() / days for year, month, days in months
    }
    # Customers become more month by month; the mean of a month before and one after cancels that.
    around_july = (per_day[2023, 5] + per_day[2023, 9]) / 2
    around_december = (per_day[2023, 11] + per_day[2024, 1]) / 2
    assert per_day[2023, 7] / around_july == pytest.approx(0.80 / ((1.00 + 1.00) / 2), rel=0.08)
    assert per_day[2023, 12] / around_december == pytest.approx(1.40 / ((1.25 + 0.95) / 2), rel=0.08)


def test_purchases_between_takes_the_start_and_leaves_the_end() -> None:
    chunk = next(process.simulate(simulation()))
    times = chunk.purchases["purchase_time"].to_pylist()
    part = process.purchases_between(chunk, times[10], times[25])
    assert part["purchase_time"].to_pylist() == times[10:25]
    march, april, may = (datetime(2023, month, 1, tzinfo=UTC) for month in (3, 4, 5))
    both = process.purchases_between(chunk, march, may).num_rows
    assert both == sum(process.purchases_between(chunk, *m).num_rows for m in ((march, april), (april, may)))
    assert process.purchases_between(chunk, march, march).num_rows == 0


# ------------------------------------------------------------------------------------------- the BG/NBD model


@pytest.fixture
def one_segment_without_season(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the process the paper's own: constant rates, and one segment (plus), whose age has no effect."""
    monkeypatch.setattr(process, "SEASONALITY", np.ones(12))
    monkeypatch.setattr(process, "SEGMENT_SHARES", np.array([0.0, 1.0, 0.0]))
    monkeypatch.setattr(process, "AGE_EFFECT", 0.0)


def hypergeometric(a: float, b: float, c: float, z: float) -> float:
    """Gauss's 2F1 as its power series, for 0 <= z < 1."""
    n = np.arange(2_000.0)
    return 1 + float(np.cumprod((a + n) * (b + n) / ((c + n) * (n + 1)) * z).sum())


@pytest.mark.usefixtures("one_segment_without_season")
@pytest.mark.parametrize("weeks", [4, 39])
def test_repeat_purchases_have_the_mean_and_the_zero_share_of_the_paper(weeks: int) -> None:
    wanted = simulation(customers=40_000, end=date(2023, 10, 1))
    customers, purchases = customers_of(wanted), purchases_of(wanted)
    watched = customers[customers["signup_time"] < instant(date(2023, 1, 1))].set_index("customer_id")
    since_signup = purchases["purchase_time"] - purchases["customer_id"].map(watched["signup_time"])
    repeats = purchases[(since_signup > timedelta(0)) & (since_signup < timedelta(weeks=weeks))]
    counts = repeats.groupby("customer_id").size().reindex(watched.index, fill_value=0)

    r, alpha, a, b = (float(parameter[1]) for parameter in (process.R, process.ALPHA, process.A, process.B))
    # Fader, Hardie and Lee (2005), equations 8 (for x = 0) and 9.
    shrink = (alpha / (alpha + weeks)) ** r
    expected_zeros = shrink
    expected_mean = (a + b - 1) / (a - 1) * (1 - shrink * hypergeometric(r, b, a + b - 1, weeks / (alpha + weeks)))
    error = counts.std() / len(counts) ** 0.5
    assert abs(counts.mean() - expected_mean) < 4 * error
    assert abs((counts == 0).mean() - expected_zeros) < 4 * (shrink / len(counts)) ** 0.5


# --------------------------------------------------------------------------------------------- the wide table


def test_the_wide_table_uses_only_what_was_known_on_its_date() -> None:
    wanted = simulation(customers=500)
    days = [date(2023, 5, 1), date(2023, 9, 15)]
    wide = process.wide_table(wanted, days)
    assert wide.schema.equals(process.WIDE_SCHEMA)
    rows = wide.to_pandas().set_index(["user_id", "event_timestamp"])
    assert rows.index.is_unique
    purchases, customers = purchases_of(wanted), customers_of(wanted)
    eligible = 0
    for customer in customers.itertuples():
        own = purchases[purchases["customer_id"] == customer.customer_id]
        for day in days:
            now = instant(day)
            past = own[own["purchase_time"] < now]
            if not (past["purchase_time"] >= now - timedelta(days=60)).any():
                assert (customer.customer_id, now) not in rows.index
                continue
            eligible += 1
            row = rows.loc[(customer.customer_id, now)]
            later = own["purchase_time"].between(now, now + timedelta(days=28), inclusive="left")
            assert row["total_purchases"] == len(past)
            assert row["avg_purchase_amount"] == pytest.approx(past["amount"].mean())
            assert row["tenure_months"] == pytest.approx((now - customer.signup_time).total_seconds() / 2629800)
            assert row["target"] == int(not later.any())
            assert (row["age"], row["customer_segment"]) == (customer.age, customer.customer_segment)
    assert eligible == len(rows) > 100


def test_the_features_do_not_change_when_the_future_does() -> None:
    day = date(2023, 10, 12)
    plain, drifted = (
        process.wide_table(s, [day]).to_pandas() for s in (simulation(), simulation(Drift("concept", day)))
    )
    pd.testing.assert_frame_equal(plain.drop(columns="target"), drifted.drop(columns="target"))
    assert not plain["target"].equals(drifted["target"])


# -------------------------------------------------------------------------------------------------- the drift

TRAINING_DAYS = [date(2023, month, 1) for month in range(4, 10)]
LATER_DAYS = [date(2023, 12, 1), date(2024, 1, 1)]


def observed(*drift: Drift) -> pd.DataFrame:
    """The wide table with one more feature, the days since the last purchase."""
    wanted = simulation(*drift, customers=CUSTOMERS, end=date(2024, 2, 1))
    wide = process.wide_table(wanted, TRAINING_DAYS + LATER_DAYS).to_pandas()
    purchases = purchases_of(wanted)[["customer_id", "purchase_time"]]
    wide = pd.merge_asof(
        wide.sort_values("event_timestamp"),
        purchases.sort_values("purchase_time"),
        left_on="event_timestamp",
        right_on="purchase_time",
        left_by="user_id",
        right_by="customer_id",
        allow_exact_matches=False,
    )
    wide["recency"] = (wide["event_timestamp"] - wide["purchase_time"]).dt.total_seconds() / 86_400
    return wide


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return {"none": observed()} | {kind: observed(Drift(kind, DRIFT_AT)) for kind in KINDS}


def later(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["event_timestamp"] >= instant(LATER_DAYS[0])]


def inputs(table: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.column_stack(
        [
            np.log(table[["total_purchases", "avg_purchase_amount", "recency"]]),
            np.log1p(table["tenure_months"]),
            table["age"],
            table["customer_segment"] == "plus",
            table["customer_segment"] == "premium",
        ]
    ).astype(np.float64)


@pytest.fixture(scope="module")
def model(tables: dict[str, pd.DataFrame]) -> Pipeline:
    training = tables["none"]
    training = training[training["event_timestamp"] < instant(LATER_DAYS[0])]
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(inputs(training), training["target"])


def auc(model: Pipeline, table: pd.DataFrame) -> float:
    return float(roc_auc_score(table["target"], model.predict_proba(inputs(table))[:, 1]))


def test_churn_is_neither_rare_nor_common_and_can_be_predicted(
    tables: dict[str, pd.DataFrame], model: Pipeline
) -> None:
    table = later(tables["none"])
    assert 0.25 < table["target"].mean() < 0.45
    assert 0.7 < auc(model, table) < 0.85
    assert np.corrcoef(table["age"], table["target"])[0, 1] < -0.1
    churn = table.groupby("customer_segment")["target"].mean()
    assert churn["premium"] < churn["plus"] < churn["standard"]


def test_without_drift_amounts_and_the_mix_stay_as_they_are(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["none"]
    earlier = table[table["event_timestamp"] == instant(TRAINING_DAYS[2])]
    assert later(table)["avg_purchase_amount"].mean() == pytest.approx(earlier["avg_purchase_amount"].mean(), rel=0.05)
    assert later(table)["age"].mean() == pytest.approx(earlier["age"].mean(), abs=2)


def test_covariate_drift_moves_the_features_and_keeps_the_relation_to_churn(
    tables: dict[str, pd.DataFrame], model: Pipeline
) -> None:
    plain, drifted = later(tables["none"]), later(tables["covariate"])
    assert drifted["avg_purchase_amount"].mean() > 1.15 * plain["avg_purchase_amount"].mean()
    assert drifted["age"].mean() < plain["age"].mean() - 1
    premium = [(table["customer_segment"] == "premium").mean() for table in (plain, drifted)]
    assert premium[1] > 1.2 * premium[0]
    assert drifted["target"].mean() == pytest.approx(plain["target"].mean(), abs=0.03)
    assert auc(model, drifted) == pytest.approx(auc(model, plain), abs=0.02)
    # The model that was trained before still says how many churn, amounts apart, which it must not lean on.
    assert model.predict_proba(inputs(drifted))[:, 1].mean() == pytest.approx(drifted["target"].mean(), abs=0.04)


def test_covariate_drift_changes_only_the_amounts_of_existing_customers() -> None:
    plain, drifted = (purchases_of(s) for s in (simulation(), simulation(Drift("covariate", DRIFT_AT, 0.5))))
    customers = customers_of(simulation())
    existing = customers.loc[customers["signup_time"] < instant(DRIFT_AT), "customer_id"]
    plain, drifted = (p[p["customer_id"].isin(existing)].reset_index(drop=True) for p in (plain, drifted))
    pd.testing.assert_frame_equal(plain[["customer_id", "purchase_time"]], drifted[["customer_id", "purchase_time"]])
    factor = np.where(plain["purchase_time"] >= instant(DRIFT_AT), np.exp(0.25), 1.0)
    np.testing.assert_allclose(drifted["amount"], plain["amount"] * factor, atol=0.02)


def test_concept_drift_turns_the_relation_around_and_keeps_who_signs_up(
    tables: dict[str, pd.DataFrame], model: Pipeline
) -> None:
    plain, drifted = later(tables["none"]), later(tables["concept"])
    assert auc(model, drifted) < auc(model, plain) - 0.1
    assert np.corrcoef(drifted["age"], drifted["target"])[0, 1] > 0.05
    churn = drifted.groupby("customer_segment")["target"].mean()
    assert churn["premium"] > churn["standard"]
    pd.testing.assert_frame_equal(customers_of(simulation()), customers_of(simulation(Drift("concept", DRIFT_AT))))
    assert drifted["avg_purchase_amount"].mean() == pytest.approx(plain["avg_purchase_amount"].mean(), rel=0.05)


def test_concept_drift_hardly_moves_the_churn_rate_at_first() -> None:
    plain, drifted = (
        process.wide_table(simulation(*drift, customers=CUSTOMERS), [DRIFT_AT]).to_pandas()["target"].mean()
        for drift in ((), (Drift("concept", DRIFT_AT),))
    )
    assert drifted == pytest.approx(plain, abs=0.05)


def test_label_drift_raises_churn_for_everybody_and_keeps_the_ranking(
    tables: dict[str, pd.DataFrame], model: Pipeline
) -> None:
    plain, drifted = later(tables["none"]), later(tables["label"])
    rise = drifted["target"].mean() - plain["target"].mean()
    assert rise > 0.1
    for column in ("customer_segment", "older"):
        rises = [table.assign(older=table["age"] > 45).groupby(column)["target"].mean() for table in (plain, drifted)]
        assert ((rises[1] - rises[0]) > 0.5 * rise).all()
    assert auc(model, drifted) == pytest.approx(auc(model, plain), abs=0.04)
    assert drifted["age"].mean() == pytest.approx(plain["age"].mean(), abs=1)
    assert drifted["avg_purchase_amount"].mean() == pytest.approx(plain["avg_purchase_amount"].mean(), rel=0.05)
    pd.testing.assert_frame_equal(customers_of(simulation()), customers_of(simulation(Drift("label", DRIFT_AT))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stronger_drift_moves_more(kind: DriftKind) -> None:
    def effect(*drift: Drift) -> float:
        table = process.wide_table(simulation(*drift, customers=8_000), [date(2023, 12, 1)]).to_pandas()
        effects = {
            "covariate": table["avg_purchase_amount"].mean(),
            "concept": np.corrcoef(table["age"], table["target"])[0, 1],
            "label": table["target"].mean(),
        }
        return float(effects[kind])

    weak, pronounced, strong = (effect(Drift(kind, DRIFT_AT, strength)) for strength in (0.25, 1.0, 3.0))
    assert effect() < weak < pronounced
    # The reversal of a concept is complete at some point; the others go on.
    assert strong > pronounced or kind == "concept"


# ------------------------------------------------------------------------------------ refusals, size and time


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"customers": 0}, "at least one customer"),
        ({"chunk_customers": 0}, "at least one customer"),
        ({"seed": -1}, "0 or above"),
        ({"end": START}, "set a later end"),
        ({"start": datetime(2023, 1, 1, tzinfo=UTC)}, "pass a datetime.date"),
        ({"drift": (Drift("label", date(2022, 12, 31)),)}, "drift later, or start earlier"),
    ],
)
def test_a_simulation_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Simulation(**({"customers": 10, "start": START, "end": END, "seed": 0} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sudden", START), "use one of covariate, concept, label"),
        (("label", START, 0.0), "must be above 0"),
        (("label", START, float("nan")), "must be above 0"),
        (("label", datetime(2023, 1, 1, tzinfo=UTC)), "pass a datetime.date"),
    ],
)
def test_a_drift_that_makes_no_sense_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Drift(*arguments)


@pytest.mark.parametrize(
    ("days", "options", "message"),
    [
        ([END - timedelta(days=27)], {}, "choose a date inside, or simulate longer"),
        ([START - timedelta(days=1)], {}, "choose a date inside"),
        ([date(2023, 5, 1)] * 2, {}, "each date once"),
        ([date(2023, 5, 1)], {"horizon_days": 0}, "at least 1"),
    ],
)
def test_an_observation_that_cannot_be_made_is_refused(days: list[date], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        process.wide_table(simulation(customers=10), days, **options)


def test_a_span_of_time_that_makes_no_sense_is_refused() -> None:
    chunk = next(process.simulate(simulation(customers=10)))
    march, april = datetime(2023, 3, 1, tzinfo=UTC), datetime(2023, 4, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="time zone"):
        process.purchases_between(chunk, march.replace(tzinfo=None), april)
    with pytest.raises(ValueError, match="swap them"):
        process.purchases_between(chunk, april, march)


def test_one_customer_can_be_simulated() -> None:
    (chunk,) = process.simulate(Simulation(1, START, END, 0))
    assert chunk.customers.num_rows <= 1
    assert chunk.customers.schema.equals(process.CUSTOMERS_SCHEMA)


def test_a_hundred_thousand_customers_take_little_time_and_memory() -> None:
    def peak_megabytes() -> float:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux, bytes on macOS
        return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)

    before, began = peak_megabytes(), perf_counter()
    chunks = process.simulate(Simulation(100_000, START, date(2025, 1, 1), 7, chunk_customers=50_000))
    purchases = sum(chunk.purchases.num_rows for chunk in chunks)
    assert purchases > 700_000
    assert perf_counter() - began < 10  # takes about half a second; a loaded machine gets some room
    assert peak_megabytes() - before < 500
