"""What a model was made of: the version of every table that went into it, the code and the libraries.

A training set carries the versions of its inputs in the commit that wrote it; a model's version carries them on, with
what made it. `churn reproduce` computes the model anew from that record alone.
"""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version as installed
from typing import TYPE_CHECKING

from churn_platform.resources.storage import LEDGER
from churn_platform.settings import PROJECT

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from churn_platform.contract import Contract
    from churn_platform.resources.storage import TableStore

INPUTS, CODE, LIBRARIES = "inputs", "code", "libraries"  # tags of a model's version
TRAINING_SET = "training_set"
TREATMENTS = "treatments"  # who was contacted: such rows are left out; there is no such table before the first
# Those that compute: another version of one may give another last digit.
_LIBRARIES = ("deltalake", "duckdb", "feast", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "skops")


def inputs(contract: Contract, tables: TableStore) -> dict[str, int]:
    """The versions, as they are now, of the tables that a training set is made of, directly or not."""
    validated = [f"validated_{name}" for name in contract.tables.items()]
    names = ["churn_labels", "customer_features", *validated, LEDGER, TREATMENTS]
    return {name: version for name in names if (version := tables.version(name)) is not None}


def tags(tables: TableStore, training_set: int) -> dict[str, str]:
    """What to keep with a model that is trained on a version of the training set, here and now."""
    made_of = tables.recorded(TRAINING_SET, training_set).get(INPUTS, {})
    return {
        INPUTS: json.dumps({TRAINING_SET: training_set, **made_of}),
        CODE: code(),
        LIBRARIES: json.dumps(libraries()),
    }


def recorded(version: ModelVersion) -> dict[str, int]:
    """Table to the version of it that a model was made of; empty for one from before this was kept."""
    found: dict[str, int] = json.loads(version.tags.get(INPUTS, "{}"))
    if not found and "training_set_version" in version.tags:
        return {TRAINING_SET: int(version.tags["training_set_version"])}
    return found


def code() -> str:
    """The version of this package and, where it runs from its repository, the commit."""
    words = installed("churn-platform")
    if not (PROJECT / ".git").exists():
        return words
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = " with changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
    except (OSError, subprocess.SubprocessError):  # no git here, or a repository that is another user's
        return words
    return f"{words} at {commit}{changed}"


def libraries() -> dict[str, str]:
    """Name to version of the libraries that compute."""
    return {name: installed(name) for name in _LIBRARIES}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PROJECT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603
