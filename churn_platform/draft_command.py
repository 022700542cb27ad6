"""`churn contract draft`: a first contract for files that nobody has described yet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from churn_platform import settings as environment


def draft(  # noqa: PLR0917 - the options of a command
    files: Annotated[
        list[str], typer.Argument(help="purchases, or labelled customers; and what is known of customers")
    ],
    out: Annotated[Path, typer.Option(help="where to write it; nothing is overwritten")] = Path("contract.yaml"),
    name: Annotated[str | None, typer.Option(help="of the contract; default: that of the folder")] = None,
    customer: Annotated[str | None, typer.Option(help="the column that names the customer")] = None,
    when: Annotated[str | None, typer.Option("--time", help="the column that says when")] = None,
    amount: Annotated[str | None, typer.Option(help="the column that holds the money")] = None,
    label: Annotated[str | None, typer.Option(help="the column that says who churned")] = None,
) -> None:
    """Write a first contract for some files, to be read and corrected: much of it is guessed."""
    from churn_platform.contract_file import load
    from churn_platform.drafting import Choices, draft_file
    from churn_platform.source_check import look

    draft_file(files, out, name, Choices(customer, when, amount, label))
    typer.echo(f"wrote {out}: read it, and correct what was guessed wrong; or remove it, and draft again.\n")
    settings = environment.settings().model_copy(update={"contract": out.resolve()})
    typer.echo(look(load(out), settings))
