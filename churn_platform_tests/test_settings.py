"""The environment is read once, typed, and what is wrong in it is said all at once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from churn_platform.engine import connection, identifier, literal
from churn_platform.settings import Settings, SettingsError, contract, settings
from churn_platform_tests.worlds import PURCHASES

SECRET = "a secret of sufficient length"
PRODUCTION = {
    "CHURN_ENVIRONMENT": "production",
    "CHURN_WAREHOUSE": "s3://bucket/tables",
    "CHURN_MLFLOW_TRACKING_URI": "http://mlflow",
    "CHURN_REPORTS": "s3://bucket/reports",
    "CHURN_FEAST_REGISTRY": "postgresql+psycopg2://host/feast",
    "CHURN_PREDICTION_LOG": "s3://bucket/predictions",
    "CHURN_REDIS": "redis:6379",
    "CHURN_PII_KEY": SECRET,
}


def test_on_a_laptop_nothing_has_to_be_set(home: Path) -> None:
    found = settings()
    assert found.environment == "local"
    assert found.tables == str(home.resolve() / "warehouse")
    assert found.tracking_uri.startswith("sqlite:///")


def test_production_lists_everything_that_is_missing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHURN_ENVIRONMENT", "production")
    with pytest.raises(SettingsError) as caught:
        settings()
    for name in list(PRODUCTION)[1:]:
        assert name in str(caught.value)


def test_production_with_all_its_servers_is_accepted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)
    assert settings().tables == "s3://bucket/tables"


@pytest.mark.parametrize("name", list(PRODUCTION)[1:])
def test_an_empty_variable_counts_as_missing(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for each, value in PRODUCTION.items():
        monkeypatch.setenv(each, "" if each == name else value)
    with pytest.raises(SettingsError, match=name):
        settings()


NOT_THE_ENDPOINTS = ("CHURN_WAREHOUSE", "CHURN_REPORTS", "CHURN_FEAST_REGISTRY")


def test_the_endpoint_needs_no_more_than_it_uses(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PRODUCTION.items():
        if name not in NOT_THE_ENDPOINTS:
            monkeypatch.setenv(name, value)
    assert settings("endpoint").redis == "redis:6379"
    assert contract().name  # which needs no server at all
    with pytest.raises(SettingsError) as caught:
        settings()
    assert all(name in str(caught.value) for name in NOT_THE_ENDPOINTS)


def test_the_endpoint_lists_everything_that_it_misses(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHURN_ENVIRONMENT", "staging")
    with pytest.raises(SettingsError) as caught:
        settings("endpoint")
    for name in list(PRODUCTION)[1:]:
        assert (name in str(caught.value)) == (name not in NOT_THE_ENDPOINTS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CHURN_ENVIRONMENT", "prod"),
        ("CHURN_MEMORY_LIMIT", "lots"),
        ("CHURN_DAGSTER_PORT", "http"),
        ("CHURN_SERVING_PORT", "70000"),
        ("CHURN_PII_KEY", "short"),
    ],
)
def test_a_wrong_value_names_its_variable(home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        settings()


def test_the_secret_is_in_no_message_and_no_repr(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHURN_PII_KEY", SECRET)
    assert SECRET not in repr(settings())
    settings.cache_clear()
    monkeypatch.setenv("CHURN_PII_KEY", "too little")
    with pytest.raises(SettingsError) as caught:
        settings()
    assert "too little" not in str(caught.value)


def test_the_key_is_made_once_and_only_its_owner_may_read_it(home: Path) -> None:
    first = settings().key
    assert Settings(home=home).key == first
    assert len(first) == 64
    assert stat.S_IMODE((home / "pii_key").stat().st_mode) == 0o600
    assert [path.name for path in home.iterdir()] == ["pii_key"]


def test_all_who_ask_for_the_key_at_once_get_the_same(home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: Settings(home=home).key, range(32)))
    assert len(keys) == 1


def test_the_leftover_of_a_killed_process_does_not_stand_in_the_way(home: Path) -> None:
    home.mkdir(parents=True)
    (home / f"pii_key.{os.getpid()}").touch()  # in a container every process has the same number
    assert len(settings().key) == 64


def test_the_contract_is_the_one_that_the_environment_names(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(PURCHASES)
    monkeypatch.setenv("CHURN_CONTRACT", str(path))
    assert contract().name == "corner_shop"


def test_importing_the_platform_switches_telemetry_off_but_leaves_the_last_word_to_the_user() -> None:
    code = "import churn_platform, os; print(os.environ['DO_NOT_TRACK'], os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "false"}
    environment.pop("DO_NOT_TRACK", None)
    root = Path(__file__).resolve().parent.parent
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=root
    )
    assert told.stdout.split() == ["1", "false"]


def test_two_connections_of_one_process_spill_to_different_folders(home: Path) -> None:
    with connection() as one, connection() as two:
        folders = {con.execute("SELECT current_setting('temp_directory')").fetchone() for con in (one, two)}
    assert len(folders) == 2


def test_a_connection_thinks_in_the_zone_it_is_given(home: Path) -> None:
    with connection("Asia/Tokyo") as con:
        assert con.execute("SELECT epoch(TIMESTAMPTZ '2024-01-01 09:00')").fetchone() == (1704067200.0,)


@pytest.mark.parametrize("name", ["plain", "with space", 'with "quotes"', "select", "ä;--"])
def test_any_name_can_be_an_identifier(home: Path, name: str) -> None:
    with connection() as con:
        assert con.sql(f"SELECT 1 AS {identifier(name)}").columns == [name]


@pytest.mark.parametrize("value", ["it's", "", "a\\b", 1, -2.5, 1e300, True])
def test_a_literal_comes_back_as_it_was(home: Path, value: object) -> None:
    with connection() as con:
        (found,) = con.execute(f"SELECT {literal(value)}").fetchone() or (None,)
    assert found == value if isinstance(value, str) else float(found) == float(value)  # type: ignore[arg-type]
