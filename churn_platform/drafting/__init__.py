"""Drafting a contract from a team's own files: `survey` looks at them, `draft` guesses what their columns mean."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from churn_platform.contract_file import ContractError, parse
from churn_platform.drafting.draft import Choices, draft
from churn_platform.drafting.survey import survey
from churn_platform.engine import connection
from churn_platform.sources.base import SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Choices", "draft_file"]


def draft_file(files: Sequence[str], out: Path, name: str | None = None, choices: Choices | None = None) -> None:
    """Draft a contract for files, and write it where there is none.

    Raises:
        SourceError: a file cannot be read, what a contract needs is not found in them, or there is a contract already.
    """
    if out.exists():
        raise SourceError(f"{out} is there already. Move it away, or write another one: --out FILE.")
    folder = out.resolve().parent
    if not folder.is_dir():
        raise SourceError(f"there is no folder {folder}. Make it, or write elsewhere: --out FILE.")
    named = re.sub(r"[^a-z0-9]+", "_", (name or folder.name).lower()).strip("_")
    with connection() as con:
        found = survey(con, [os.path.abspath(file) for file in files])  # noqa: PTH100 (it may be a glob)
        text = draft(con, found, folder, named if named[:1].isalpha() else f"churn_{named}".rstrip("_"), choices)
    try:
        parse(text, str(out))
    except ContractError as error:
        raise SourceError(
            f"what was drafted is no contract, so it was not written:\n{error}\nRename the column, say more "
            "(--customer, --time, --amount, --label), or start from one of docs/examples/."
        ) from None
    out.write_text(text, encoding="utf-8")
