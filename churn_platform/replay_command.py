"""The command `churn replay`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from churn_platform import local
from churn_platform import settings as environment


def replay(
    only: Annotated[
        list[str] | None, typer.Option("--policy", help="only policies whose name holds this; may be repeated")
    ] = None,
    windows: Annotated[int | None, typer.Option(min=3, help="only the newest so many windows")] = None,
) -> None:
    """Replay the history under several retraining policies, and say which would have been worth it."""
    began = time.monotonic()
    settings, contract = environment.settings(), environment.contract()
    local.prepare(settings, contract)
    from churn_platform.assets.replay import read_history
    from churn_platform.ml import plots
    from churn_platform.ml import replay as history
    from churn_platform.resources.reports import Reports
    from churn_platform.resources.storage import TableStore

    never, *others = history.policies(contract)
    chosen = [each for each in others if not only or any(part in each.title for part in only)]
    if not chosen:
        names = ", ".join(dict.fromkeys(each.name for each in others))
        typer.secho(f"no policy is called so. There are: {names}.", fg="red", err=True)
        raise typer.Exit(1)
    try:
        rows = read_history(contract, TableStore(settings.tables_of(contract)))
        if windows is not None:
            newest = sorted(rows[history.WINDOW].unique())[-windows:]
            rows = rows[rows[history.WINDOW].isin(newest)]
        report = history.replay(contract, rows, [never, *chosen], typer.echo)
    except history.ReplayError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from None
    reports = Reports(contract, settings)
    kept = [
        reports.keep(f"replay-{name}.png", plots.png(figure))
        for name, figure in (("gains", plots.policy_gains(report)), ("windows", plots.policy_windows(report)))
    ]
    typer.echo(f"\n{report.table()}\n\n{report.recommendation}")
    typer.echo(f"\nplots: {', '.join(plot.path for plot in kept)}; {time.monotonic() - began:.0f} s")
