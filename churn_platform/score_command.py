"""The command `churn score`."""

from __future__ import annotations

import time
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import Annotated

import typer

from churn_platform import local
from churn_platform import settings as environment


def score(
    source: Annotated[Path, typer.Argument(metavar="INPUT.parquet", help="customers: their key and all features")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT.parquet", help="where to write what the champion says")],
) -> None:
    """Score the customers of a Parquet file with the champion, as many as there may be."""
    settings, contract = environment.settings(), environment.contract()
    local.prepare(settings, contract)
    import pyarrow.parquet as pq

    from churn_platform.ml.batch import BatchError, score_file
    from churn_platform.resources.tracking import RegistryError, Tracking

    tracking, began = Tracking(contract, settings), time.monotonic()
    try:
        champion = tracking.champion_version()
        model = tracking.compiled(champion)
        rows = pq.read_metadata(source).num_rows if source.is_file() else 0
        with typer.progressbar(length=rows, label="scoring") as bar:
            done = score_file(source, target, contract, model, version=str(champion.version), say=bar.update)
    except (RegistryError, BatchError, OSError) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from None
    seconds = time.monotonic() - began
    typer.echo(f"{done:,} customers scored by version {champion.version} in {seconds:.1f} s: {target}")
