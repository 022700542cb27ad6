"""Sources of data, behind one interface; `open_source` picks the one that the contract names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from churn_platform.sources.base import Source, SourceError

if TYPE_CHECKING:
    from churn_platform.contract import Contract
    from churn_platform.settings import Settings

__all__ = ["Source", "SourceError", "open_source"]


def open_source(contract: Contract, settings: Settings, remember: bool = True) -> Source:
    """The source that the contract describes.

    Without `remember` what is found out about it is forgotten with it, and nothing is written.
    """
    from churn_platform.contract import Postgres
    from churn_platform.sources.index import Index

    index = Index()
    if remember:
        from churn_platform.resources.storage import TableStore

        index = Index(TableStore(settings.tables_of(contract)), lambda: settings.key)
    if isinstance(contract.source, Postgres):
        from churn_platform.sources.postgres import PostgresSource

        return PostgresSource(contract, contract.source, lambda: index.salt)
    if contract.source.kind == "files":
        from churn_platform.sources.files import FilesSource

        return FilesSource(contract, settings.contract.parent, index)
    from churn_platform.sources.landing import LandingSource

    return LandingSource(contract, settings.landing, index)
