"""What all tests share: a home of their own, and settings that are read anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from churn_platform import settings
from churn_platform.resources.feature_store import import_feast

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A test that imports Feast's own modules first would leave all that follow it with Feast's metrics directory.
import_feast()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """CHURN_HOME in a folder of the test's own; nothing is remembered from test to test."""
    monkeypatch.setenv("CHURN_HOME", str(tmp_path / "home"))
    settings.settings.cache_clear()
    settings.contract.cache_clear()
    yield tmp_path / "home"
    settings.settings.cache_clear()
    settings.contract.cache_clear()
