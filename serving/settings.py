"""How the endpoint runs: the CHURN_SERVING_* variables, typed. What is served stands in the contract."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path  # noqa: TC003 - pydantic reads it at run time
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServingSettings(BaseSettings):
    """Every field is the environment variable CHURN_SERVING_<FIELD>. Limits are those of one worker."""

    model_config = SettingsConfigDict(env_prefix="CHURN_SERVING_", env_ignore_empty=True, extra="ignore", frozen=True)

    workers: int = Field(1, ge=1, description="processes that serve; each loads the model")
    refresh_seconds: float = Field(5, gt=0, description="between two looks at the registry")
    store_deadline: float = Field(1, gt=0, description="seconds that the online store is given for an answer")
    deadline: float = Field(2, gt=0, description="seconds that a request may wait for its turn")
    queue: int = Field(1024, ge=1, description="customers that may wait; whoever comes then is told to come again")
    batch: int = Field(64, ge=1, description="customers that are read and scored together")
    api_keys_file: Path | None = Field(None, description="lines of name:sha256; read again when it changes")
    requests_per_second: float | None = Field(None, gt=0, description="of one API key, in the long run")
    burst: int = Field(100, ge=1, description="requests of one API key at once, before that rate holds")
    access_log: Literal["all", "errors", "off"] = Field("errors", description="which requests get a line of JSON")
    log_predictions: bool = Field(True, description="keep every answer in the prediction log")
    segment_seconds: float = Field(60, gt=0, description="how long a file of the prediction log is written")
    drain_seconds: float = Field(0, ge=0, description="between SIGTERM, when /readyz says 503, and the end")


@lru_cache
def serving_settings() -> ServingSettings:
    """The settings of this process."""
    return ServingSettings()
