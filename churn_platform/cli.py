"""The command `churn`: what a person does with the platform on a terminal."""

from __future__ import annotations

import atexit
import json
import os
import shlex
import sys
import time
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from churn_platform import (
    canary_commands,
    draft_command,
    local,
    promotion_commands,
    replay_command,
    retention_commands,
    score_command,
)
from churn_platform import settings as environment
from churn_platform.contract import Contract, as_utc
from churn_platform.contract_file import ContractError
from churn_platform.contract_file import load as load_contract
from churn_platform.explain import explain
from churn_platform.settings import SettingsError
from churn_platform.sources.base import SourceError

if TYPE_CHECKING:
    from churn_platform.settings import Settings
    from churn_platform.sources.landing import LandingSource

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The churn platform.", pretty_exceptions_enable=False
)
contract_app = typer.Typer(no_args_is_help=True, help="Draft, check and explain contract.yaml.")
contract_app.command("draft")(draft_command.draft)
app.add_typer(contract_app, name="contract")
quarantine_app = typer.Typer(help="What is in quarantine and why; take it in again once the cause is mended.")
app.add_typer(quarantine_app, name="quarantine")
app.command()(promotion_commands.rollback)
app.command()(promotion_commands.history)
app.command()(replay_command.replay)
app.command()(score_command.score)
app.add_typer(retention_commands.app, name="retention")
app.add_typer(canary_commands.app, name="canary")


@app.command(name="api-key")
def api_key(name: Annotated[str, typer.Argument(help="who will ask by it, such as shop")]) -> None:
    """Make an API key for the endpoint: the key itself for the caller, and its hash for CHURN_SERVING_API_KEYS_FILE."""
    import secrets

    from serving.keys import line

    key = secrets.token_urlsafe(32)
    typer.echo(line(name, key))
    typer.secho(f"Above: a line for the file of API keys. The key itself, shown this once: {key}", err=True)


def main() -> NoReturn:
    """Run the command; an error that a user can cause is a message, not a traceback."""
    code: int | str | None = 0
    try:
        app()
    except (ContractError, SettingsError, SourceError, local.LocalError) as error:
        typer.secho(str(error), fg="red", err=True)
        code = 2
    except SystemExit as leaving:  # how typer ends, also when all went well
        code = leaving.code
    _leave(code if isinstance(code, int) else int(code is not None))


def _leave(code: int) -> NoReturn:
    """End the process once its work is done, without taking the native libraries down one by one.

    DuckDB, Arrow and delta-rs keep threads of their own; when the interpreter unloads them, one was seen to abort the
    process ("terminate called without an active exception", exit code -6) after everything had succeeded.
    """
    atexit._run_exitfuncs()  # noqa: SLF001 (what Python itself would run next)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contract_app.command("check")
def contract_check(
    path: Annotated[Path | None, typer.Argument(help="default: contract.yaml, or CHURN_CONTRACT")] = None,
    source: Annotated[bool, typer.Option(help="also look whether the source fits the contract")] = True,
) -> None:
    """Say in words what a contract means, or what is wrong with it."""
    settings = environment.settings()
    chosen = path or settings.contract
    contract = load_contract(chosen)
    typer.echo(explain(contract))
    if source:
        from churn_platform.source_check import look

        typer.echo("\n" + look(contract, settings.model_copy(update={"contract": chosen.resolve()})))


@app.command()
def land(
    history: Annotated[bool, typer.Option("--history", help="everything up to source.present")] = False,
) -> None:
    """Land raw data of a demonstration source: the next window, or the history. Nothing else happens."""
    settings, contract = _environment()
    source = _landing(contract, settings)
    producer = source.producer()
    if history:
        present = as_utc(source.contract.source.present, contract.zone)  # type: ignore[union-attr]
        pending = source.pending(present)
        if pending:
            typer.echo(producer.notice)
    else:
        pending = [source.next_window()]
    for window in pending:
        rows = source.land(window, producer)
        typer.echo(f"landed window {window.key}: {rows:,} rows in {source.landing}")


@app.command()
def play(
    anew: Annotated[
        bool, typer.Option("--anew", help="also the windows computed under an earlier state of the contract")
    ] = False,
) -> None:
    """Process every window that has landed, in this process, as the daemon would have."""
    settings, contract = _environment()
    if not _play(contract, settings, anew):
        typer.secho("A window failed (see above), so the play stopped. Mend it and play again.", fg="yellow", err=True)
        raise typer.Exit(1)
    why = _why_no_champion(contract, settings)
    if why:
        typer.secho(why, fg="yellow")


@app.command()
def up() -> None:
    """Land the history, play it, and start Dagster, the endpoint and the server of the reports."""
    began = time.monotonic()
    settings, contract = _environment()
    typer.echo(f"contract {contract.name} ({settings.contract}), home {settings.home}")
    if contract.is_demonstration:
        land(history=True)
    services = {service.name: service for service in local.services(settings)}
    for service in services.values():
        local.require_port(service, settings)  # now, and not after minutes of work
    played = _play(contract, settings)
    for service in services.values():
        fresh = local.start(service, settings, contract)
        typer.echo(f"{service.name}: {'starting' if fresh else 'runs already'}")
    dagster, serving = services["dagster"], services["serving"]
    local.wait(dagster, settings)
    typer.echo(f"\n  Dagster   {dagster.url}   (asset graph: {dagster.url}/asset-groups)")
    if "reports" in services:
        local.wait(services["reports"], settings)
        typer.echo(f"  Reports   {services['reports'].url}")
    if not played:
        typer.secho("A window failed (see above), so the play stopped. Dagster runs: look there.", fg="yellow")
        raise typer.Exit(1)
    why = _why_no_champion(contract, settings)
    if why:
        typer.secho(f"{why}\nUntil there is one, the endpoint answers 503.", fg="yellow")
        return
    local.wait(serving, settings)
    typer.echo(f"  Endpoint  {serving.url}/predict\n")
    typer.echo(f"  {_call(contract, serving.url, _some_customer(contract, settings))}\n")
    more = "what lands where the contract points is processed by itself"
    if contract.is_demonstration:
        more = "`make next-month` lands more data"
    typer.echo(f"up in {time.monotonic() - began:.0f} s; {more}; `make down` stops.")


@app.command()
def down() -> None:
    """Stop what `up` started. Data and models stay."""
    settings = environment.settings()
    wanted = [service.name for service in reversed(local.services(settings))]
    for name in dict.fromkeys([*wanted, *local.known(settings)]):  # also what other settings had started
        stopped = local.stop(name, settings)
        typer.echo(f"{name}: {'stopped' if stopped else 'did not run'}")


@app.command()
def erase(
    customer: Annotated[str, typer.Argument(help="the id as the source writes it; - reads it from standard input")],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    by: Annotated[str, typer.Option(help="who asked for it, for the log; default: the user of this computer")] = "",
    wait: Annotated[float, typer.Option(help="seconds to wait for runs that are going on")] = 600.0,
) -> None:
    """Remove a customer from everything that the platform keeps, and keep them out. It cannot be undone."""
    settings, contract = _environment()
    if customer == "-":
        customer = sys.stdin.readline().strip()
    if not yes:
        typer.confirm("Remove this customer from every table, its older versions and the online store?", abort=True)
    from dagster import DagsterInstance

    from churn_platform.automation.alone import alone
    from churn_platform.erasure import UnknownCustomerError
    from churn_platform.erasure import erase as remove

    try:
        with DagsterInstance.get() as instance:
            report = alone(
                instance, "erasure", lambda: remove(contract, settings, customer, by, typer.echo), wait, typer.echo
            )
    except UnknownCustomerError as error:
        typer.secho(str(error), fg="yellow", err=True)
        raise typer.Exit(1) from None
    typer.echo(report.words())


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would go, and remove nothing")] = False,
    wait: Annotated[float, typer.Option(help="seconds to wait for runs that are going on")] = 600.0,
) -> None:
    """Remove old table versions by policy, and what killed processes left behind."""
    settings, contract = _environment()
    from dagster import DagsterInstance

    from churn_platform import maintenance
    from churn_platform.automation.alone import alone

    def work() -> None:
        maintenance.prune(contract, settings, typer.echo, dry_run)

    if dry_run:
        work()
        return
    with DagsterInstance.get() as instance:
        alone(instance, "prune_by_hand", work, wait, typer.echo)


@app.command()
def reproduce(
    version: Annotated[str | None, typer.Argument(help="the model's version; default: the champion")] = None,
) -> None:
    """Compute a model anew from what was recorded of it, and say whether it comes out the same."""
    settings, contract = _environment()
    from churn_platform.reproduce import ReproductionError
    from churn_platform.reproduce import reproduce as compute
    from churn_platform.resources.tracking import RegistryError

    began = time.monotonic()
    try:
        findings = compute(contract, settings, version, typer.echo)
    except (RegistryError, ReproductionError) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from None
    if not all(finding.same for finding in findings):
        typer.secho("not reproduced: what differs stands above", fg="red", err=True)
        raise typer.Exit(1)
    typer.secho(f"reproduced in {time.monotonic() - began:.0f} s", fg="green")


@app.command()
def status() -> None:
    """What runs, which windows are processed, and which model is champion."""
    settings, contract = _environment()
    from churn_platform.registered import CHALLENGER, CHAMPION
    from churn_platform.resources.storage import TableStore
    from churn_platform.resources.tracking import Tracking

    local.follow(settings, typer.echo)
    tables, tracking = TableStore(settings.tables_of(contract)), Tracking(contract, settings)
    done = tables.windows("customer_features")
    typer.echo(f"  windows  {len(done)} processed" + (f", newest {done[-1]}" if done else ""))
    for alias in (CHAMPION, CHALLENGER):
        version = tracking.version_of(alias)
        words = f"version {version.version}, trained as of {version.tags['window']}" if version else "none yet"
        typer.echo(f"  {alias:<10} {words}")
    why = _why_no_champion(contract, settings)
    if why:
        typer.secho(why, fg="yellow")


@quarantine_app.callback(invoke_without_command=True)
def quarantine(context: typer.Context) -> None:
    """How many rows of which table and window are in quarantine, for which reasons."""
    if context.invoked_subcommand is None:
        settings, contract = _environment()
        from churn_platform.quarantine import held, words
        from churn_platform.resources.storage import TableStore

        typer.echo(words(held(contract, TableStore(settings.tables_of(contract)))))


@quarantine_app.command("replay")
def quarantine_replay(
    table: Annotated[str | None, typer.Option(help="only this table, e.g. transactions")] = None,
    window: Annotated[str | None, typer.Option(help="only this window, e.g. 2024-01-01")] = None,
) -> None:
    """Take the windows with quarantined rows in again from the source, and then whatever depends on them."""
    settings, contract = _environment()
    if table is not None and table not in contract.tables.items():
        raise typer.BadParameter(f"the contract has no table {table!r}; it has: {', '.join(contract.tables.items())}.")
    from churn_platform.quarantine import held, replay
    from churn_platform.resources.storage import TableStore

    found = held(contract, TableStore(settings.tables_of(contract)), table, window)
    if not found:
        typer.echo("Nothing is in quarantine there.")
        return
    import dagster as dg

    from churn_platform.play import Player

    with dg.DagsterInstance.get() as instance:
        if not replay(Player(contract, settings, instance, typer.echo), settings, found):
            typer.secho("A window failed (see above). Mend it and replay again.", fg="yellow", err=True)
            raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------------- helpers


def _environment() -> tuple[Settings, Contract]:
    settings, contract = environment.settings(), environment.contract()
    local.prepare(settings, contract)
    return settings, contract


def _landing(contract: Contract, settings: Settings) -> LandingSource:
    from churn_platform.sources import open_source
    from churn_platform.sources.landing import LandingSource

    source = open_source(contract, settings)
    if not isinstance(source, LandingSource):
        raise SourceError(
            f"the source `{contract.source.kind}` is your own, so its data lands without us: write it where the "
            "contract points, and the landing sensor starts the cycle. `churn land` is for the demonstration sources."
        )
    return source


def _play(contract: Contract, settings: Settings, anew: bool = False) -> bool:
    from churn_platform.play import catch_up

    return catch_up(contract, settings, typer.echo, anew)


def _why_no_champion(contract: Contract, settings: Settings) -> str:
    """Why no model serves, and what to do; empty where one does."""
    from churn_platform.automation.state import lacking_labels
    from churn_platform.resources.storage import TableStore
    from churn_platform.resources.tracking import Tracking

    if Tracking(contract, settings).usable_champion() is not None:
        return ""
    lacking = lacking_labels(contract, TableStore(settings.tables_of(contract)))
    if lacking:
        return f"There is no champion yet: {lacking}"
    return (
        "There is no champion: no candidate could be trained and passed its gates. What it lacked stands above, and in "
        "Dagster with the newest run of candidate_model. More data, other features or another label may help; a gate "
        "that asks too much is lowered under `gates` in contract.yaml."
    )


def _call(contract: Contract, url: str, customer: object) -> str:
    """A call of the endpoint, to be copied into a shell."""
    body = json.dumps({contract.serving.customer_field: customer}, ensure_ascii=False)
    return f"curl -s {url}/predict -H 'Content-Type: application/json' -d {shlex.quote(body)}"


def _some_customer(contract: Contract, settings: Settings) -> object:
    """A customer to show a call with; where customers are stored as hashes, only their owner can name one."""
    table = contract.tables.items()[contract.main_table]
    if table.columns[table.customer].pii == "hash":
        return f"a {table.customer} as your source writes it"
    from churn_platform.engine import connection, identifier
    from churn_platform.resources.storage import TableStore

    tables = TableStore(settings.tables_of(contract))
    key = identifier(contract.customer.name)
    with connection() as con:
        tables.read(con, "customer_features", tables.windows("customer_features")[-1:])
        row = con.execute(f"SELECT {key} FROM customer_features ORDER BY hash({key}) LIMIT 1").fetchone()
    return row[0] if row else "1"


if __name__ == "__main__":
    main()
