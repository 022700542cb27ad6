"""Treatments: who was really contacted, and who was left alone to compare with.

A retention list is a plan. Only when a team says that it was sent (`churn retention sent`) does it become a row here: a
list that nobody sent must not make customers rest, nor take their outcomes out of what models are measured on.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from churn_platform import provenance
from churn_platform.contract import (
    ARM,
    CONTACTED,
    CONTACTED_AT,
    MODEL_VERSION,
    PROBABILITY,
    SNAPSHOT_TIME,
    WORTH,
    as_utc,
    given,
)
from churn_platform.engine import connection, identifier
from churn_platform.ml import ingestion, masking, retention
from churn_platform.ml.retention import CONTACT, HOLD_OUT, UNLISTED
from churn_platform.ml.retention import resting as resting_sql
from churn_platform.resources.storage import TableStore

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

    from churn_platform.contract import Contract
    from churn_platform.settings import Settings
    from churn_platform.windows import Window

TABLE = provenance.TREATMENTS
LIST = "retention_list"


class TreatmentError(RuntimeError):
    """What is said to have been sent, or a list of ids, cannot be used; the message says what to do."""


def read(con: duckdb.DuckDBPyConnection, tables: TableStore, version: int | None = None) -> bool:
    """Make the treatments a view on a connection; False where nobody was ever contacted."""
    if version is None and tables.version(TABLE) is None:
        return False
    tables.read(con, TABLE, version=version)
    return True


def resting(contract: Contract, tables: TableStore, window: Window) -> list[object]:
    """The customers whom the list of a window leaves alone."""
    with connection() as con:
        if not read(con, tables):
            return []
        return [who for (who,) in con.execute(resting_sql(contract, window.key), [window.end]).fetchall()]


def measured(contract: Contract, tables: TableStore, window: str) -> list[str]:
    """The windows whose performance is measured already, on labels in which the list of a window had a part."""
    done = set(tables.windows("model_performance"))
    with connection() as con:
        if not done or not read(con, tables):
            return []
        tables.read(con, "churn_labels")
        return [key for (key,) in con.execute(retention.touched(contract, window)).fetchall() if key in done]


def sent_on(tables: TableStore) -> dict[str, date]:
    """Window to the day on which its list was sent, of those that were."""
    with connection() as con:
        if not read(con, tables):
            return {}
        return dict(
            con.execute(f"SELECT _window, CAST(max({CONTACTED_AT}) AS DATE) FROM {TABLE} GROUP BY 1").fetchall()
        )


# -------------------------------------------------------------------------------------------------- lists of ids


def suppressed(con: duckdb.DuckDBPyConnection, contract: Contract, settings: Settings) -> list[object]:
    """The customers who are never to be contacted, as the tables call them.

    Raises:
        TreatmentError: the list cannot be read, or an id of it can be nobody's: who is meant might be contacted.
    """
    path = given(contract.value).suppression
    if path is None:
        return []
    full = path if "://" in path else str(settings.contract.parent / path)
    written = ids(contract, full, "value.suppression in contract.yaml")
    usable = stored(con, contract, settings, written)
    places = [str(place) for place, text in enumerate(written, start=1) if text not in usable]
    if places:
        listed = ", ".join(places[:10]) + (", ..." if len(places) > 10 else "")
        raise TreatmentError(
            f"{path} holds {len(written):,} ids, and {len(written) - len(places):,} of them are usable: number "
            f"{listed} cannot be an id of type {contract.customer.type}, as contract.yaml has it. Whoever is meant "
            "might be contacted, so there is no list. Correct or remove them."
        )
    return list(usable.values())


def ids(contract: Contract, path: str, named_by: str) -> list[str]:
    """The ids in a file: one a line, or a CSV whose header names the customer's column as the source calls it.

    Args:
        contract: names the column.
        path: local, or s3://.
        named_by: who names the file, for messages.

    Raises:
        TreatmentError: it cannot be read, or it cannot be told which column holds the ids.
    """
    import fsspec

    table = contract.tables.items()[contract.main_table]
    written = table.columns[table.customer].from_
    names = {table.customer, contract.customer.name, written}
    try:
        with fsspec.open(path, "rt", encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except Exception as error:  # noqa: BLE001 - of the file system, s3fs or the network: they share no class
        raise TreatmentError(
            f"{path} cannot be read ({type(error).__name__}). {named_by} names it: put a file there, one id a line."
        ) from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    delimiter = next((mark for mark in (";", "\t", ",") if mark in lines[0]), ",")
    rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter))
    header = [cell.strip() for cell in rows[0]]
    place = next((position for position, cell in enumerate(header) if cell in names), None)
    if place is None and len(header) > 1:
        raise TreatmentError(
            f"{path} has {len(header)} columns, and it is not known which of them holds the ids. {named_by} names it: "
            f"call that column {table.customer} in its first line."
        )
    if place is None:
        return [row[0].strip() for row in rows]
    return [row[place].strip() for row in rows[1:] if len(row) > place and row[place].strip()]


def stored(
    con: duckdb.DuckDBPyConnection, contract: Contract, settings: Settings, written: list[str]
) -> dict[str, object]:
    """Ids as a source writes them to the customer's key as the tables hold it; those that can be none are left out."""
    masking.install_key(con, settings.key)
    table = contract.tables.items()[contract.main_table]
    column = table.columns[table.customer]
    found: dict[str, object] = {}
    for text in dict.fromkeys(written):
        key = ingestion.stored(con, column, text)
        if key is not None:
            found[text] = int(str(key)) if contract.customer.type == "integer" else str(key)
    return found


# ------------------------------------------------------------------------------------------------------ recording


@dataclass(frozen=True)
class Sent:
    """What was recorded."""

    window: str
    on: date
    contacted: int  # of the list, and in all those who were contacted
    listed: int  # whom the list meant to contact
    held_out: int
    spoilt: int  # held out, and contacted all the same
    unlisted: int  # contacted though not on the list
    unknown: int  # ids of the file that are no customer who was scored then

    def words(self) -> str:
        """For people."""
        reached = f"{self.contacted:,} of {self.listed:,} customers were contacted, {self.held_out:,} are held out."
        lines = [f"The list of {self.window} was sent on {self.on}: {reached}"]
        if self.spoilt:
            lines.append(
                f"  {self.spoilt:,} of those held out were contacted all the same. In the effect they still count as "
                "held out, so it will look smaller than it is; for the model's performance they count nothing."
            )
        if self.unlisted:
            lines.append(f"  {self.unlisted:,} were contacted who were not on the list; they rest, too.")
        if self.unknown:
            lines.append(f"  {self.unknown:,} ids are of nobody who was scored in that window; they are not recorded.")
        lines.append("The list stays as it is from now on; the same command again, with another file, corrects this.")
        return "\n".join(lines)


def record(  # noqa: PLR0917 - what was sent, and when
    contract: Contract,
    settings: Settings,
    window: Window,
    contacted: Path | str | None = None,
    on: date | None = None,
    today: date | None = None,
) -> Sent:
    """Record that a window's list was sent. Said again for the same window, it replaces what was recorded.

    Args:
        contract: names the customer.
        settings: say where things are.
        window: whose list.
        contacted: a file of the ids that were contacted; default: all whom the list meant to contact.
        on: the day; default today, and for a demonstration, whose data lies in the past, the day of the list.
        today: for tests.

    Raises:
        TreatmentError: there is no such list, or the day cannot be.
    """
    tables = TableStore(settings.tables_of(contract))
    there = tables.windows(LIST)
    if window.key not in there:
        known = f"There are lists of: {', '.join(there)}." if there else "There is no list yet."
        raise TreatmentError(f"there is no retention list of the window {window.key}. {known}")
    as_of = window.end.astimezone(contract.zone).date()
    today = today or datetime.now(contract.zone).date()
    on = on or (as_of if contract.is_demonstration else today)
    if not as_of <= on <= max(today, as_of):
        raise TreatmentError(f"the list of {window.key} is as of {as_of}: it cannot have been sent on {on}.")
    at = max(as_utc(on, contract.zone), window.end)
    customer = identifier(contract.customer.name)
    with connection(contract.time.timezone) as con:
        tables.read(con, LIST, [window.key])
        listed = con.execute(
            f"SELECT {customer}, {SNAPSHOT_TIME}, {ARM}, {PROBABILITY}, {WORTH}, {MODEL_VERSION} FROM {LIST} "
            "ORDER BY rank"
        ).fetchall()
        tables.read(con, "customer_features", [window.key])
        scored = {who for (who,) in con.execute(f"SELECT {customer} FROM customer_features").fetchall()}
        reached, unknown = None, 0
        if contacted is not None:
            written = set(ids(contract, str(contacted), "--contacted"))
            reached = set(stored(con, contract, settings, sorted(written)).values()) & scored
            unknown = len(written) - len(reached)
    rows = [
        (who, observed, at, arm, arm == CONTACT if reached is None else who in reached, *said)
        for who, observed, arm, *said in listed
    ]
    others = sorted((reached or set()) - {row[0] for row in rows}, key=str)
    rows += [(who, window.end, at, UNLISTED, True, None, None, None) for who in others]
    schema = _schema(contract)
    tables.write(
        TABLE, pa.Table.from_pylist([dict(zip(schema.names, r, strict=True)) for r in rows], schema), window.key
    )
    return Sent(
        window=window.key,
        on=on,
        contacted=sum(row[3] == CONTACT and row[4] for row in rows),
        listed=sum(row[3] == CONTACT for row in rows),
        held_out=sum(row[3] == HOLD_OUT for row in rows),
        spoilt=sum(row[3] == HOLD_OUT and row[4] for row in rows),
        unlisted=len(others),
        unknown=unknown,
    )


def _schema(contract: Contract) -> pa.Schema:
    return pa.schema(
        [
            (contract.customer.name, pa.int64() if contract.customer.type == "integer" else pa.string()),
            (SNAPSHOT_TIME, pa.timestamp("us", "UTC")),
            (CONTACTED_AT, pa.timestamp("us", "UTC")),
            (ARM, pa.string()),
            (CONTACTED, pa.bool_()),
            (PROBABILITY, pa.float64()),
            (WORTH, pa.float64()),
            (MODEL_VERSION, pa.string()),
        ]
    )


def words(tables: TableStore) -> str:
    """Which lists there are, and which of them were sent."""
    there = tables.windows(LIST)
    if not there:
        return "There is no retention list yet: it is made with the scores of a window."
    sent = sent_on(tables)
    with connection() as con:
        tables.read(con, LIST)
        counted: dict[str, Any] = {
            key: numbers
            for key, *numbers in con.execute(
                f"SELECT _window, count(*) FILTER ({ARM} = '{CONTACT}'), count(*) FILTER ({ARM} = '{HOLD_OUT}'), "
                f"sum(expected_profit) FILTER ({ARM} = '{CONTACT}') FROM {LIST} GROUP BY 1"
            ).fetchall()
        }
    lines = []
    for key in there:
        contact, held_out, profit = counted.get(key, (0, 0, 0.0))
        state = f"sent on {sent[key]}" if key in sent else "not sent"
        lines.append(
            f"{key}  {contact:>7,} to contact, {held_out:>6,} held out, {profit or 0:>12,.0f} expected  {state}"
        )
    return "\n".join(lines)
