"""The newest windows are for judging, and nothing is learnt from what was not yet known."""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
import pytest

from churn_platform.contract import Contract
from churn_platform.ml.splits import NotEnoughDataError, folds, hashed_groups, split, why_not, window_keys
from churn_platform_tests.worlds import PURCHASES, WIDE, changed


def labelled(
    windows: int, horizon: int, customers: int = 10, frequency: str = "MS", start: str = "2024-02-01"
) -> pd.DataFrame:
    times = pd.date_range(start, periods=windows, freq=frequency, tz="UTC")
    rows = pd.DataFrame(
        [(f"c{n}", time) for time in times for n in range(customers)], columns=["client", "snapshot_time"]
    )
    return rows.assign(label_matured_at=rows["snapshot_time"] + timedelta(days=horizon), churned=0)


def spec(**model: int) -> Contract:
    written = ", ".join(f"{key}: {value}" for key, value in model.items())
    return changed(PURCHASES, ("label:", f"model: {{{written}}}\nlabel:"))


def test_the_newest_windows_are_for_the_test_those_before_for_validation() -> None:
    parts = split(spec(min_windows=4), labelled(6, 28))
    assert parts.by == "time"
    assert set(parts.test["snapshot_time"].dt.month) == {7}
    assert set(parts.validation["snapshot_time"].dt.month) == {6}
    assert set(parts.train["snapshot_time"].dt.month) == {2, 3, 4, 5}
    assert parts.left_out == 0


@pytest.mark.parametrize("horizon", [1, 28, 31, 45, 60])
@pytest.mark.parametrize(("validation", "test"), [(2, 2), (3, 1)])
def test_nothing_is_learnt_that_was_not_known_then(horizon: int, validation: int, test: int) -> None:
    rows = labelled(12, horizon)
    parts = split(spec(min_windows=7, validation_windows=validation, test_windows=test), rows)
    assert parts.train["label_matured_at"].max() <= parts.validation["snapshot_time"].min()
    assert parts.validation["label_matured_at"].max() <= parts.test["snapshot_time"].min()
    assert len(parts.train) + len(parts.validation) + len(parts.test) + parts.left_out == len(rows)
    assert (parts.left_out > 0) == (horizon > 28)


def test_with_a_horizon_of_several_windows_those_between_are_left_out() -> None:
    parts = split(spec(min_windows=4), labelled(8, 60))  # observed from February to September
    assert set(parts.test["snapshot_time"].dt.month) == {9}
    assert set(parts.validation["snapshot_time"].dt.month) == {7}
    assert set(parts.train["snapshot_time"].dt.month) == {2, 3, 4, 5}
    assert parts.left_out == 20  # June and August


@pytest.mark.parametrize("horizon", [0, 1])
def test_labels_that_are_known_at_once_are_not_judged_on_what_was_learnt(horizon: int) -> None:
    parts = split(spec(min_windows=4), labelled(6, horizon))
    months = [set(part["snapshot_time"].dt.month) for part in (parts.train, parts.validation, parts.test)]
    assert months == [{2, 3, 4, 5}, {6}, {7}]


def test_a_horizon_longer_than_the_history_says_what_to_do() -> None:
    with pytest.raises(NotEnoughDataError, match=r"none could have been trained on.*Wait for more windows"):
        split(spec(min_windows=4, validation_windows=2), labelled(4, 60))


def test_whether_a_split_is_possible_can_be_asked_beforehand() -> None:
    observations = labelled(6, 28, customers=1)
    assert why_not(spec(min_windows=4), observations) == ""
    assert "asks for 7" in why_not(spec(min_windows=7), observations)
    assert "trained on" in why_not(spec(min_windows=4), labelled(4, 90, customers=1))
    assert why_not(WITHOUT_DATES, members(1)) == ""


def test_too_few_windows_are_counted() -> None:
    with pytest.raises(NotEnoughDataError, match=r"3 windows are labelled.*asks for 4"):
        split(spec(min_windows=4), labelled(3, 28))


def test_only_the_newest_training_windows_are_used_when_asked() -> None:
    parts = split(spec(min_windows=4, train_windows=2), labelled(6, 28))
    assert set(parts.train["snapshot_time"].dt.month) == {4, 5}
    assert parts.left_out == 0  # left out by choice, not by the embargo


def test_a_window_is_never_split_up() -> None:
    rows = labelled(40, 3, frequency="W-WED", start="2024-01-03")
    contract = changed(
        PURCHASES,
        ("monthly", "weekly"),
        ("start: 2024-01-01", "start: 2024-01-03"),
        ("end: 2024-07-01", "end: 2024-07-03"),
    )
    keys = window_keys(contract, rows["snapshot_time"])
    assert keys.nunique() == 40
    week = pd.Series(pd.date_range("2024-01-03", periods=7, freq="D", tz="UTC"))
    assert window_keys(contract, week).nunique() == 1


def test_periods_are_local() -> None:
    contract = changed(PURCHASES, ("timezone: UTC", "timezone: Europe/Berlin"))
    times = pd.Series(pd.to_datetime(["2024-01-31 22:59", "2024-01-31 23:00"], utc=True))
    assert window_keys(contract, times).tolist() == ["2024-01", "2024-02"]


def members(n: int, repeats: int = 2) -> pd.DataFrame:
    rows = pd.DataFrame({"member": [f"m{i}" for i in range(n)] * repeats})
    return rows.assign(
        snapshot_time=pd.Timestamp("2024-02-01", tz="UTC"), label_matured_at=pd.Timestamp("2024-02-01", tz="UTC")
    )


WITHOUT_DATES = changed(WIDE, ("time: as_of", "observed_at: 2024-02-01"))


def test_one_date_alone_is_split_by_customer_always_alike() -> None:
    rows = members(2_000)
    parts = split(WITHOUT_DATES, rows)
    assert parts.by == "customer"
    names = [set(part["member"]) for part in (parts.train, parts.validation, parts.test)]
    assert not names[0] & names[1]
    assert not names[1] & names[2]
    assert not names[0] & names[2]
    assert sum(map(len, names)) == 2_000
    assert [round(len(name) / 2_000, 1) for name in names] == [0.6, 0.2, 0.2]
    again = split(WITHOUT_DATES, rows.sample(frac=1, random_state=1))
    assert set(again.test["member"]) == names[2]


def test_a_table_with_dates_waits_for_its_windows_however_few_are_labelled_yet() -> None:
    with pytest.raises(NotEnoughDataError, match=r"only 2024-02 is labelled.*asks for 4.*`observed_at`"):
        split(changed(WIDE), members(2_000))
    assert "asks for 4" in why_not(changed(WIDE), members(1))


def test_three_customers_are_too_few() -> None:
    with pytest.raises(NotEnoughDataError, match="too few"):
        split(WITHOUT_DATES, members(2))


def test_a_split_describes_itself() -> None:
    said = split(spec(min_windows=4), labelled(6, 28)).describe()
    assert said["split_by"] == "time"
    assert said["train_rows"] == 40
    assert said["test_first"] == "2024-07-01 00:00:00+00:00"


@pytest.mark.parametrize("windows", [2, 3, 6, 12])
@pytest.mark.parametrize("horizon", [0, 28, 45, 60])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_fold_is_fitted_on_the_past_of_some_customers_and_judged_on_others(
    windows: int, horizon: int, n: int
) -> None:
    rows = labelled(windows, horizon, customers=60)
    if windows == 2 and horizon > 28:
        with pytest.raises(NotEnoughDataError, match="no two folds"):
            folds(spec(), rows, n)
        return
    found = folds(spec(), rows, n)
    assert len(found) == n
    for fold in found:
        train, valid = rows.iloc[fold.train], rows.iloc[fold.valid]
        assert train["label_matured_at"].max() <= valid["snapshot_time"].min()
        assert train["snapshot_time"].max() < valid["snapshot_time"].min()
        assert not set(train["client"]) & set(valid["client"])
    judged = [set(rows["client"].iloc[fold.valid]) for fold in found]
    assert sum(map(len, judged)) == len(set.union(*judged)) == 60  # every customer is judged in one fold


def test_the_folds_are_judged_on_the_newer_windows_each_on_its_own_part_of_them() -> None:
    rows = labelled(12, 28, customers=60)
    months = [set(rows["snapshot_time"].iloc[fold.valid].dt.month) for fold in folds(spec(), rows, 3)]
    assert months == [{8, 9}, {10, 11}, {12, 1}]
    fitted = [rows["snapshot_time"].iloc[fold.train].max().month for fold in folds(spec(), rows, 3)]
    assert fitted == [7, 9, 11]


def test_where_windows_are_fewer_than_folds_several_folds_share_one() -> None:
    rows = labelled(2, 28, customers=60)
    assert {rows["snapshot_time"].iloc[fold.valid].dt.month.min() for fold in folds(spec(), rows, 5)} == {3}


def test_folds_are_the_same_whatever_other_customers_there_are() -> None:
    customers = pd.Series([f"c{n}" for n in range(200)])
    groups = hashed_groups(customers, 4)
    assert (hashed_groups(customers.iloc[::-1], 4)[::-1] == groups).all()
    assert sorted(set(groups)) == [0, 1, 2, 3]
    assert min((groups == group).sum() for group in range(4)) > 30


def test_a_table_without_dates_is_folded_by_customer() -> None:
    rows = members(300)
    found = folds(WITHOUT_DATES, rows, 3)
    assert len(found) == 3
    for fold in found:
        assert not set(rows["member"].iloc[fold.train]) & set(rows["member"].iloc[fold.valid])
        assert len(fold.train) + len(fold.valid) == len(rows)


def test_one_customer_gives_no_folds() -> None:
    with pytest.raises(NotEnoughDataError, match="no two folds"):
        folds(spec(), labelled(6, 28, customers=1), 3)
