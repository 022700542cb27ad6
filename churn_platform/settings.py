"""The environment that the platform runs in, read once from `CHURN_*` variables and typed.

On a laptop nothing has to be set: SQLite, DuckDB and local files live under `CHURN_HOME`. In staging and production
the same code talks to servers; what must be set there and is not is reported in one error, not one at a time.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

if TYPE_CHECKING:
    from churn_platform.contract import Contract

PROJECT = Path(__file__).resolve().parent.parent

# The two that run in places of their own: the Dagster code location with its commands, and the service.
Part = Literal["platform", "endpoint"]

# What staging and production need beside an online store. The endpoint reads neither tables nor Feast's registry.
# Without a place of their own the answers, and the reports, would end with the pod that made them.
_NEEDED = ("mlflow_tracking_uri", "prediction_log", "pii_key")
_NEEDED_BY_THE_PLATFORM = ("warehouse", "reports", "feast_registry")


_UNUSABLE = "the environment is not usable:"


class SettingsError(ValueError):
    """The environment variables do not add up; the message lists all of them that are wrong."""


class Settings(BaseSettings):
    """Where things are. Every field is the environment variable CHURN_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix="CHURN_", env_ignore_empty=True, extra="ignore", frozen=True)

    environment: Literal["local", "staging", "production"] = "local"
    home: Path = Field(PROJECT / ".churn", description="where the embedded stores and the logs live")
    contract: Path = PROJECT / "contract.yaml"
    warehouse: str | None = Field(None, description="tables: a folder or s3://bucket/prefix; default in home")
    mlflow_tracking_uri: str | None = None
    mlflow_artifacts: str | None = None
    feast_registry: str | None = Field(None, description="SQLAlchemy URL of Feast's registry")
    redis: str | None = Field(None, description="host:port of the online store; without it SQLite serves")
    online_postgres: str | None = Field(
        None, description="postgresql://user:password@host:port/database of the online store, in place of Redis"
    )
    prediction_log: str | None = Field(
        None, description="where the endpoint leaves what it answered: a folder or s3://bucket/prefix; default in home"
    )
    reports: str | None = Field(
        None, description="pages for people, as of drift: a folder or s3://bucket/prefix; default in home"
    )
    reports_url: str | None = Field(
        None, description="where a browser finds what lies in CHURN_REPORTS; those in home are served by `churn up`"
    )
    pii_key: SecretStr | None = Field(
        None, min_length=16, description="the secret of the keyed hash that hides personal data"
    )
    memory_limit: str = Field(
        "4GB", pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$", description="what DuckDB may use before it spills to disk"
    )
    keep_versions_days: int = Field(30, ge=1, description="how long a table's version is kept once it is replaced")
    keep_models: int = Field(5, ge=0, description="what the newest so many models were trained on is kept for longer")
    keep_predictions_days: int = Field(400, ge=1, description="how long what the endpoint answered is kept")
    dagster_port: int = Field(3000, ge=1, le=65535)
    serving_port: int = Field(8080, ge=1, le=65535)
    reports_port: int = Field(8081, ge=1, le=65535)

    def missing(self, part: Part) -> list[str]:
        """The variables that a part of the platform cannot do without in this environment, and that are not set."""
        if self.environment == "local":
            return []
        needed = [*_NEEDED, *(() if part == "endpoint" else _NEEDED_BY_THE_PLATFORM)]
        missing = [f"CHURN_{name.upper()}" for name in needed if getattr(self, name) is None]
        if self.redis is None and self.online_postgres is None:
            missing.append("CHURN_REDIS (or CHURN_ONLINE_POSTGRES)")
        return missing

    # -- where each store is, whatever was set

    @property
    def tables(self) -> str:
        """Where the tables are."""
        return self.warehouse or str(self.home / "warehouse")

    def tables_of(self, contract: Contract) -> str:
        """Where a contract's tables lie: contracts that share a home do not share tables."""
        return f"{self.tables}/{contract.name}"

    def predictions_of(self, contract: Contract) -> str:
        """Where the endpoint leaves what it answered, until it is landed in the table `prediction_log`."""
        return f"{self.prediction_log or self.home / 'prediction_log'}/{contract.name}"

    @property
    def reports_folder(self) -> str:
        """Where the reports are, a folder for each contract."""
        if self.reports is None:
            return str(self.home / "reports")
        return self.reports.rstrip("/") if "://" in self.reports else str(Path(self.reports).expanduser().resolve())

    @property
    def reports_server(self) -> str | None:
        """Where a browser finds them; None where nobody said."""
        if self.reports_url is not None:
            return self.reports_url.rstrip("/")
        return f"http://127.0.0.1:{self.reports_port}" if self.reports is None else None

    @property
    def landing(self) -> Path:
        """Where the data of the demonstration lands."""
        return self.home / "landing"

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking server, or its database."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def artifacts(self) -> str:
        """Where MLflow keeps models and plots."""
        return self.mlflow_artifacts or str(self.home / "mlflow")

    @property
    def online_database(self) -> Path:
        """The file of the online store, where no server is named for it."""
        return self.home / "online_store.db"

    @property
    def registry(self) -> str:
        """Feast's registry."""
        return self.feast_registry or f"sqlite:///{self.home / 'feast_registry.db'}"

    @cached_property
    def key(self) -> bytes:
        """The key of the keyed hash. On a laptop it is made once and kept in `home`, readable by its owner only."""
        if self.pii_key is not None:
            return self.pii_key.get_secret_value().encode()
        path = self.home / "pii_key"
        if not path.exists():
            self.home.mkdir(parents=True, exist_ok=True)
            # readable by its owner only; and its name is nobody else's, not even that of a killed process's leftover
            with tempfile.NamedTemporaryFile("w", dir=self.home, prefix="pii_key.") as file:
                file.write(secrets.token_hex(32))
                file.flush()
                os.fsync(file.fileno())
                with suppress(FileExistsError):  # another process was quicker: its key is everybody's
                    os.link(file.name, path)
        return path.read_text().strip().encode()


@lru_cache
def settings(part: Part = "platform") -> Settings:
    """The settings of this process.

    Args:
        part: which part of the platform this process is; it needs no more than it uses.

    Raises:
        SettingsError: a variable is wrong or missing; all of them are listed.
    """
    found = _read()
    missing = found.missing(part)
    if missing:
        raise SettingsError(f"{_UNUSABLE}\n  CHURN_ENVIRONMENT={found.environment} also needs: {', '.join(missing)}.")
    return found


def _read() -> Settings:
    try:
        found = Settings()
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None
    return found.model_copy(update={"home": found.home.resolve(), "contract": found.contract.resolve()})


def _explain(error: ValidationError) -> str:
    def line(details: Any) -> str:
        name = ".".join(f"CHURN_{str(part).upper()}" for part in details["loc"])
        return f"  {name}: {details['msg']}"

    return "\n".join([_UNUSABLE, *(line(details) for details in error.errors())])


@lru_cache
def contract() -> Contract:
    """The contract that this process works by. Raises ContractError, or SettingsError where a variable is wrong."""
    from churn_platform.contract_file import load

    return load(_read().contract)
