"""The commands `churn retention`: which lists there are, and what was sent."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 (typer reads the annotations)
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated

import typer

from churn_platform import local
from churn_platform import settings as environment

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from churn_platform.contract import Contract
    from churn_platform.settings import Settings

app = typer.Typer(help="The retention lists, and which of them were sent.", pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def lists(context: typer.Context) -> None:
    """Which lists there are: how many to contact, how many held out, what is expected, and whether they were sent."""
    if context.invoked_subcommand is None:
        settings, contract = environment.settings(), environment.contract()
        local.prepare(settings, contract)
        from churn_platform import treatments
        from churn_platform.resources.storage import TableStore

        typer.echo(treatments.words(TableStore(settings.tables_of(contract))))


@app.command()
def sent(
    window: Annotated[str, typer.Argument(help="whose list, e.g. 2024-01-01")],
    contacted: Annotated[
        Path | None,
        typer.Option(help="a file of the ids that were contacted; default: all whom the list meant to contact"),
    ] = None,
    on: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="the day; default: today (of demonstrations: the list's)"),
    ] = None,
    wait: Annotated[float, typer.Option(help="seconds to wait for runs that write")] = 600.0,
) -> None:
    """Record that a list was sent. These customers rest, and their outcomes count for no model; it can be corrected.

    What was measured already on labels in which the list had a part is measured again.
    """
    settings, contract = environment.settings(), environment.contract()
    local.prepare(settings, contract)
    from dagster import DagsterInstance

    from churn_platform import treatments
    from churn_platform.automation.alone import alone
    from churn_platform.resources.storage import TableStore
    from churn_platform.windows import window as window_of

    tables = TableStore(settings.tables_of(contract))
    try:
        chosen = window_of(contract, window)
        day = on.date() if on is not None else None
        before = treatments.measured(contract, tables, chosen.key)
        with DagsterInstance.get() as instance:
            found = alone(
                instance,
                "retention_sent",
                lambda: treatments.record(contract, settings, chosen, contacted, day),
                wait,
                typer.echo,
            )
            typer.echo(found.words())
            again = sorted({*before, *treatments.measured(contract, tables, chosen.key)})
            well = _measure_again(contract, settings, instance, again)
    except (ValueError, treatments.TreatmentError) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from None
    if not well:
        raise typer.Exit(1)


def _measure_again(contract: Contract, settings: Settings, instance: DagsterInstance, keys: list[str]) -> bool:
    """Measure performance and effect of windows once more; returns whether that succeeded."""
    from churn_platform.automation.jobs import SCORE
    from churn_platform.automation.state import Work
    from churn_platform.play import Player
    from churn_platform.windows import window as window_of

    assets = ("model_performance", "retention_effect")
    works = [Work(window_of(contract, key), SCORE, "a list was sent", assets) for key in keys]
    if not works:
        return True
    player = Player(contract, settings, instance, typer.echo)
    outcomes = [player.run(work, "[measure]") for work in works]
    return all(outcome.succeeded for outcome in outcomes)
