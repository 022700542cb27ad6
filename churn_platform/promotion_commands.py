"""`churn rollback` and `churn history`: the champion on a terminal. `cli` mounts them."""

from __future__ import annotations

import getpass
import json
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Annotated

import typer

from churn_platform import local
from churn_platform import settings as environment

if TYPE_CHECKING:
    from churn_platform.promotion import Entry
    from churn_platform.settings import Settings

PATIENCE = 30.0  # seconds until a running endpoint, which looks at the registry every few, should have followed


def rollback(
    version: Annotated[
        str | None, typer.Argument(help="a former champion; default: the one before the present champion")
    ] = None,
    why: Annotated[str, typer.Option(help="the reason, for the log")] = "",
) -> None:
    """Make a former champion the champion again, in the registry and in the running endpoint."""
    settings, contract = environment.settings(), environment.contract()
    local.prepare(settings, contract)
    from churn_platform import promotion
    from churn_platform.resources.storage import TableStore
    from churn_platform.resources.tracking import RegistryError, Tracking

    tables, tracking = TableStore(settings.tables_of(contract)), Tracking(contract, settings)
    began = time.monotonic()
    try:
        entry = promotion.rollback(tables, tracking, version, by=person(), why=why)
    except RegistryError as error:
        typer.secho(f"nothing was changed: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    typer.echo(
        f"version {entry.version} is champion again, after version {entry.previous} ({time.monotonic() - began:.1f} s)"
    )
    _follow(settings, str(entry.version))
    typer.echo(
        f"Version {entry.previous} is not promoted again by itself; a new candidate may be. Scores that it gave stay "
        "as they were said: launch the job `score_window` to score a window anew."
    )


def history(
    evidence: Annotated[bool, typer.Option("--evidence", help="also each gate's verdict, metrics and data")] = False,
) -> None:
    """The promotion log: which version became champion when, by whom or what, and on what evidence."""
    settings, contract = environment.settings(), environment.contract()
    local.prepare(settings, contract)
    from churn_platform import promotion
    from churn_platform.resources.storage import TableStore
    from churn_platform.resources.tracking import Tracking

    found = promotion.history(TableStore(settings.tables_of(contract)), Tracking(contract, settings))
    if not found:
        typer.echo("No version has been champion yet.")
        return
    for entry in found:
        typer.echo(_line(entry))
        for line in _evidence(entry) if evidence else ():
            typer.echo(f"    {line}")
    typer.echo(f"champion: {found[-1].version or 'none'}")


def _line(entry: Entry) -> str:
    change = f"{entry.previous or 'none'} -> {entry.version or 'none'}"
    why = f" ({entry.why})" if entry.why else ""
    score = "" if entry.test_roc_auc is None else f"  test ROC AUC {entry.test_roc_auc:.4f}"
    return f"{entry.promoted_at:%Y-%m-%d %H:%M:%S} UTC  {entry.event:<9}  {change:<12}{score}  by {entry.by}{why}"


def _evidence(entry: Entry) -> list[str]:
    said = json.loads(entry.evidence)
    lines = [
        f"{'passed' if v['passed'] else 'FAILED'}  {gate}: {v['words']}" for gate, v in said.get("gates", {}).items()
    ]
    metrics = said.get("metrics", {})
    lines += [", ".join(f"{name} {value:.4f}" for name, value in metrics.items())] if metrics else []
    made_of = json.loads(entry.data_versions)
    return lines + ([", ".join(f"{name}@{number}" for name, number in made_of.items())] if made_of else [])


def person() -> str:
    """Whoever gives the command, by their name on this computer."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        return "a person, by hand"


def _follow(settings: Settings, version: str) -> None:
    """Wait until the endpoint on this machine, if it runs, answers by the version, and say so."""
    if local.pid_of("serving", settings) is None:
        typer.echo("the endpoint does not run on this machine; one that runs elsewhere follows within seconds")
        return
    url = next(service.url for service in local.services(settings) if service.name == "serving")
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        if _served(url) == version:
            typer.echo(f"the endpoint at {url} answers by it ({time.monotonic() - began:.1f} s)")
            return
        time.sleep(0.2)
    typer.secho(
        f"the endpoint at {url} does not answer by it after {PATIENCE:.0f} s: look at {url}/health and its log "
        f"({settings.home / 'logs' / 'serving.log'})",
        fg="yellow",
        err=True,
    )


def _served(url: str) -> str | None:
    try:
        with urllib.request.urlopen(f"{url}/model", timeout=2) as response:  # noqa: S310
            return str(json.load(response)["version"])
    except (urllib.error.URLError, OSError, ValueError, KeyError):
        return None
