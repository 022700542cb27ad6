"""`churn canary`: let a version answer for a share of the customers, and see how it does. `cli` mounts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from churn_platform import local
from churn_platform import settings as environment
from churn_platform.promotion_commands import person

if TYPE_CHECKING:
    from churn_platform.contract import Contract
    from churn_platform.resources.storage import TableStore
    from churn_platform.resources.tracking import Tracking

app = typer.Typer(
    no_args_is_help=True, help="A version that answers for a share of the customers.", pretty_exceptions_enable=False
)


@app.command()
def start(
    version: Annotated[str | None, typer.Argument(help="default: the challenger")] = None,
    share: Annotated[float, typer.Option(help="of the customers, between 0 and 1; always the same ones")] = 0.1,
    why: Annotated[str, typer.Option(help="the reason, for the log")] = "",
) -> None:
    """Let a version that has passed every gate answer for a share of the customers."""
    _, tables, tracking = _platform()
    from churn_platform import promotion
    from churn_platform.resources.tracking import RegistryError

    try:
        entry = promotion.start_canary(tables, tracking, version, share, by=person(), why=why)
    except RegistryError as error:
        _refused(error)
    typer.echo(
        f"version {entry.version} answers for {share:.1%} of the customers, version {entry.previous} for the others. "
        "A running endpoint follows within seconds. `churn canary status` compares them."
    )


@app.command()
def stop(why: Annotated[str, typer.Option(help="the reason, for the log")] = "") -> None:
    """Let the champion answer for everybody again."""
    _, tables, tracking = _platform()
    from churn_platform import promotion
    from churn_platform.resources.tracking import RegistryError

    try:
        entry = promotion.stop_canary(tables, tracking, person(), why)
    except RegistryError as error:
        _refused(error)
    typer.echo(f"version {entry.version} is no canary any more; the champion answers for everybody within seconds")


@app.command()
def status() -> None:
    """Whether there is a canary, and how its answers and outcomes compare with the champion's."""
    contract, tables, tracking = _platform()
    from churn_platform import canary, promotion
    from churn_platform.registered import CANARY, CANARY_SHARE

    running = tracking.version_of(CANARY)
    if running is None:
        typer.echo("There is no canary: the champion answers for everybody.")
        return
    version = str(running.version)
    line = promotion.canary_started(tables, version)
    share = float(running.tags.get(CANARY_SHARE, "nan"))
    since = "" if line is None else f", since {line.promoted_at:%Y-%m-%d %H:%M} UTC, by {line.by}"
    typer.echo(f"version {version} is the canary, for {share:.1%} of the customers{since}")
    found = canary.arms(contract, tables, None if line is None else line.promoted_at)
    for arm in found:
        typer.echo(f"  {arm.words()}")
    if not found:
        typer.echo("  No answer has landed since. They land every five minutes, or with the job `land_predictions`.")


def _platform() -> tuple[Contract, TableStore, Tracking]:
    settings, contract = environment.settings(), environment.contract()
    local.prepare(settings, contract)
    from churn_platform.resources.storage import TableStore
    from churn_platform.resources.tracking import Tracking

    return contract, TableStore(settings.tables_of(contract)), Tracking(contract, settings)


def _refused(error: Exception) -> NoReturn:
    typer.secho(f"nothing was changed: {error}", fg="red", err=True)
    raise typer.Exit(1) from None
