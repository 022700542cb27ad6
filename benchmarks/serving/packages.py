"""How many packages an installation takes: what this environment has, followed from requirement to requirement."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def closure(requirements: Iterable[str]) -> set[str]:
    """The installed packages that requirements come to, themselves included; their markers are evaluated here."""
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(Requirement(text), frozenset[str]()) for text in requirements]
    while waiting:
        requirement, asked = waiting.pop()
        # a marker may hang on the extras with which the requiring package was asked for
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in asked | {""}):
            continue
        extras = frozenset(requirement.extras)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needed = requires(name) or []
        except PackageNotFoundError:  # a requirement that the lock decided otherwise
            continue
        found.add(name)
        waiting += [(Requirement(text), extras) for text in needed]
    return found


def counted(pyproject: Path) -> tuple[int, int]:
    """How many packages the endpoint takes, and how many the whole platform with it."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    serving = closure([*project["dependencies"], *extras["serving"]])
    whole = closure([*project["dependencies"], *(text for texts in extras.values() for text in texts)])
    return len(serving), len(whole)
