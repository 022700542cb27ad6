"""Sources of data, behind one interface; `open_source` picks the one that the contract names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from churn_platform.sources.base import Source, SourceError

if TYPE_CHECKING:
    from churn_platform.contract import Contract
    from churn_platform.settings import Settings

__all__ = ["Source", "SourceError", "open_source"]


def open_source(contract: Contract, settings: Settings) -> Source:
    """The source that the contract describes."""
    from churn_platform.contract import Postgres

    if isinstance(contract.source, Postgres):
        from churn_platform.sources.postgres import PostgresSource

        return PostgresSource(contract, contract.source)
    if contract.source.kind == "files":
        from churn_platform.sources.files import FilesSource

        return FilesSource(contract, settings.contract.parent)
    from churn_platform.sources.landing import LandingSource

    return LandingSource(contract, settings.landing)
