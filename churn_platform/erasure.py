"""Erasure: one person is removed from everything that the platform keeps, and kept out from then on.

Where a person may be is not listed here: every table in the storage is looked through that has a column for the
customer's key, so a table that is added later is covered by itself. docs/privacy.md says what is removed and what
remains. No message, log or table names the person, not even by pseudonym.
"""

from __future__ import annotations

import getpass
import json
import secrets
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from churn_platform import maintenance
from churn_platform.contract import PROBABILITY
from churn_platform.engine import connection, identifier, literal
from churn_platform.ml import ingestion, masking
from churn_platform.ml.rules import ISSUES, REASON
from churn_platform.resources import exports, removal
from churn_platform.resources.feature_store import FeatureStore
from churn_platform.resources.segments import Segments
from churn_platform.resources.storage import MissingTableError, TableStore
from churn_platform.resources.tracking import REFERENCE, Tracking

if TYPE_CHECKING:
    from collections.abc import Callable

    import duckdb
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion

    from churn_platform.contract import Contract, Table
    from churn_platform.settings import Settings

SUPPRESSED = "erased_customers"  # keyed hashes of the ids that ingestion leaves out
LOG = "erasure_log"
_TAG = "erasure."  # of a model's version: a person was erased whose rows it was trained on
_KEY = "erased"  # the connection's variables
_SEGMENTS = "answers not landed"

_SUPPRESSED_SCHEMA = pa.schema([("token", pa.string()), ("reference", pa.string())])
_LOG_SCHEMA = pa.schema(
    [
        ("reference", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
        ("by", pa.string()),
        ("tables", pa.string()),
        ("rows", pa.int64()),
        ("versions", pa.int64()),
        ("online", pa.int64()),
        ("reference_rows", pa.int64()),
        ("models", pa.string()),
    ]
)


class UnknownCustomerError(RuntimeError):
    """The platform holds nothing of such a customer."""


@dataclass(frozen=True)
class Report:
    """What an erasure did."""

    reference: str
    tables: dict[str, removal.Removed]
    online: int  # entries of the online store
    reference_rows: int  # rows among those that drift is measured against
    models: list[str]  # the versions that were trained on rows of the person
    again: bool  # the person had been erased before

    @property
    def removed_anything(self) -> bool:
        """Whether there was something left to remove."""
        return bool(self.tables or self.online or self.reference_rows)

    def words(self) -> str:
        """The report for people."""
        if not self.removed_anything:
            return f"This customer was erased before (reference {self.reference}). Nothing of them is left."
        lines = [f"Erased under the reference {self.reference}, which stands in the table {LOG}:"]
        lines += [
            f"  {name:<28} {removed.rows:>7,} rows, and {removed.versions:,} older versions of the table"
            for name, removed in self.tables.items()
        ]
        lines.append(f"  {'online store':<28} {self.online:>7,} entries")
        lines.append(f"  {'reference of drift':<28} {self.reference_rows:>7,} rows")
        if self.models:
            lines.append(
                f"Models trained on rows of this customer: version {', '.join(self.models)}. They hold what was learnt "
                "of all customers together and no row of one; a retrain replaces them (docs/privacy.md)."
            )
        lines.append("Erase the customer from the source too. Until then ingestion leaves their rows out.")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Person:
    """A customer, by everything that the platform may call them."""

    forms: list[str]  # the key as the tables hold it
    quoted: str  # as an issue would quote a key that does not fit its type
    tokens: list[str]  # as the suppression list holds them


# ---------------------------------------------------------------------------------------------------- erasing


def erase(
    contract: Contract, settings: Settings, customer: str, by: str = "", say: Callable[[str], None] = lambda _: None
) -> Report:
    """Remove a person from all tables and their past, the online store and the artifacts of models.

    Killed at any moment, the same call finishes: the person is on the suppression list first and in the log last. No
    other process may write meanwhile (`automation.alone` sees to it).

    Args:
        contract: says which column is the customer's.
        settings: say where things are, and hold the key.
        customer: the id as the source writes it.
        by: who asked for it; by default the user of this computer.
        say: told what is going on.

    Raises:
        UnknownCustomerError: there is no trace of the customer. Nothing was changed.
    """
    tables, tracking = TableStore(settings.tables_of(contract)), Tracking(contract, settings)
    store = FeatureStore(contract, settings)
    with connection(contract.time.timezone) as con:
        person = _identify(con, contract, settings, customer)
        con.execute("SET VARIABLE erased_forms = ?::VARCHAR[]", [person.forms])
        con.execute("SET VARIABLE erased_quoted = ?::VARCHAR", [person.quoted])
        rows = _rows(contract)
        listed = _suppressed(tables)
        known = [listed[token] for token in person.tokens if token in listed]
        keys = _keys(contract, person)
        segments = Segments(settings.predictions_of(contract))
        held = bool(segments.holding(person.forms)) or _held_anywhere(con, tables, store, keys, rows)
        if not known and not held:
            raise UnknownCustomerError(
                "there is no such customer: no table, no older version of one and no online store holds this id. "
                f"Write it as the source does ({contract.tables.items()[contract.main_table].customer}). "
                "Nothing was changed."
            )
        reference = known[0] if known else secrets.token_hex(8)
        lacking = [token for token in person.tokens if token not in listed]
        if lacking:
            entries = [{"token": token, "reference": reference} for token in lacking]
            tables.write(SUPPRESSED, pa.Table.from_pylist(entries, schema=_SUPPRESSED_SCHEMA), keep=True)
        say("looking through the models")
        # first: which rows of the training sets were the person's is known only while they are there
        reference_rows = _clear_artifacts(con, tables, tracking, rows, reference)
        found: dict[str, removal.Removed] = {}
        for name in tables.names():
            removed = removal.remove(con, tables, name, rows)
            if removed is not None:
                found[name] = removed
                say(f"{name}: {removed.rows:,} rows, {removed.versions:,} older versions")
        exported = exports.remove(con, tables, rows)
        if exported is not None:
            found[exports.FOLDER] = exported
            say(f"{exports.FOLDER}: {exported.rows:,} rows")
        answers = segments.erase(person.forms)
        if answers:
            found[_SEGMENTS] = removal.Removed(answers, 0)
            say(f"{_SEGMENTS}: {answers:,} rows")
    online = store.forget(keys) if keys else 0
    for spilled in maintenance.leftovers(settings, untouched_hours=0):
        maintenance.discard(spilled)
    models = [str(v.version) for v in tracking.versions() if _TAG + reference in v.tags]
    report = Report(reference, found, online, reference_rows, sorted(models, key=int), again=bool(known))
    if report.removed_anything or not _logged(tables, reference):
        _log(tables, report, by or getpass.getuser())
    return report


def _identify(con: duckdb.DuckDBPyConnection, contract: Contract, settings: Settings, customer: str) -> _Person:
    masking.install_key(con, settings.key)
    forms: dict[str, None] = {}
    for table in contract.tables.items().values():
        stored = ingestion.stored(con, table.columns[table.customer], customer)
        if stored is not None:
            forms[str(stored)] = None
    quoted = customer.strip()[:40].translate(str.maketrans("'\n\r;", "    "))
    key = _key(settings)
    tokens = dict.fromkeys(masking.pseudonym(key, form) for form in [*forms, quoted])
    return _Person(list(forms), quoted, list(tokens))


def _key(settings: Settings) -> bytes:
    return masking.derived(settings.key, "erased customers")


def _keys(contract: Contract, person: _Person) -> list[str | int]:
    """The customer's key in the type that features have it in."""
    if contract.customer.type == "integer":
        return [int(form) for form in person.forms]
    return list(person.forms)


def _rows(contract: Contract) -> removal.Rows:
    """The person's rows, in whatever table: by the key's columns, and by what an issue quotes of an unreadable key."""
    named = {contract.customer.name, *(table.customer for table in contract.tables.items().values())}
    conditions = {
        name: f"list_contains(getvariable('erased_forms'), CAST({identifier(name)} AS VARCHAR))" for name in named
    }
    quoting = dict.fromkeys(t.customer for t in contract.tables.items().values() if _quotes_key(t))
    for column in (ISSUES, REASON):
        told = " OR ".join(
            f"contains({column}, {literal(name + ': ')} || chr(39) || getvariable('erased_quoted') || chr(39))"
            for name in quoting
        )
        if told:
            conditions[column] = told
    return removal.Rows(conditions)


def _quotes_key(table: Table) -> bool:
    """Whether an issue may quote the customer's key: an unreadable one that is not personal data."""
    return table.columns[table.customer].pii == "keep"


def _held_anywhere(
    con: duckdb.DuckDBPyConnection, tables: TableStore, store: FeatureStore, keys: list[str | int], rows: removal.Rows
) -> bool:
    if any(removal.holding(con, tables, name, rows) for name in tables.names()):
        return True
    if tables.version("customer_features") is None:  # before the first window there is no online store
        return False
    return any(answer is not None for answer in store.online(keys))


# ---------------------------------------------------------------------------------------------------- models


def _clear_artifacts(
    con: duckdb.DuckDBPyConnection, tables: TableStore, tracking: Tracking, rows: removal.Rows, reference: str
) -> int:
    """Mark the versions trained on the person, and take the person's rows out of their references of drift.

    A reference has no ids. The person's rows are those that equal, in every feature, a row of the person in the
    training set of the version, or in today's features. Another customer's equal row goes with them.
    """
    removed = 0
    today = _of_person(con, tables, "customer_features", None, rows)
    for version in tracking.versions():
        tag = version.tags.get("training_set_version")
        trained = None if tag is None else _of_person(con, tables, "training_set", int(tag), rows)
        if trained is not None and len(trained):
            when = datetime.now(UTC).isoformat(timespec="seconds")
            tracking.client.set_model_version_tag(tracking.model_name, version.version, _TAG + reference, when)
        known = [frame for frame in (trained, today) if frame is not None and len(frame)]
        if known:
            removed += _without_rows(tracking, version, known)
    return removed


def _of_person(
    con: duckdb.DuckDBPyConnection, tables: TableStore, name: str, version: int | None, rows: removal.Rows
) -> pd.DataFrame | None:
    """The person's rows of a table; None where there is no such table or version."""
    try:
        view = tables.read(con, name, version=version)
    except MissingTableError:
        return None
    columns = con.table(view).columns
    return con.sql(f"SELECT * FROM {identifier(view)} WHERE {rows.condition(columns)}").df()


def _without_rows(tracking: Tracking, version: ModelVersion, persons: list[pd.DataFrame]) -> int:
    """Take rows out of a version's reference; returns how many."""
    import pandas as pd

    run = str(version.run_id)
    whole = pd.read_parquet(tracking.artifact(run, REFERENCE))
    features = [name for name in whole.columns if name != PROBABILITY]
    left = whole
    for rows in persons:
        if set(features) <= set(rows.columns):
            wanted = pd.DataFrame({name: _like(whole[name], rows[name]) for name in features}).drop_duplicates()
            left = left[(left[features].merge(wanted, how="left", indicator=True)["_merge"] == "left_only").to_numpy()]
    if len(left) < len(whole):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / REFERENCE
            left.reset_index(drop=True).to_parquet(path)
            tracking.client.log_artifact(run, str(path))
    return len(whole) - len(left)


def _like(pattern: pd.Series, values: pd.Series) -> pd.Series:
    """Values as a column of the reference has them: numbers, or text with None for what is missing."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(pattern.dtype):
        return pd.to_numeric(values).astype("float64")
    return values.astype(object).mask(values.isna(), None)


# ---------------------------------------------------------------------------------------------- what remains on disk


def _logged(tables: TableStore, reference: str) -> bool:
    if tables.version(LOG) is None:
        return False
    with connection() as con:
        tables.read(con, LOG)
        return bool(con.execute(f"SELECT count(*) FROM {LOG} WHERE reference = ?", [reference]).fetchall()[0][0])


def _log(tables: TableStore, report: Report, by: str) -> None:
    entry = {
        "reference": report.reference,
        "at": datetime.now(UTC),
        "by": by,
        "tables": json.dumps({name: removed.rows for name, removed in report.tables.items()}),
        "rows": sum(removed.rows for removed in report.tables.values()),
        "versions": sum(removed.versions for removed in report.tables.values()),
        "online": report.online,
        "reference_rows": report.reference_rows,
        "models": json.dumps(report.models),
    }
    tables.write(LOG, pa.Table.from_pylist([entry], schema=_LOG_SCHEMA), keep=True)


# ---------------------------------------------------------------------------------------------------- keeping out


def _suppressed(tables: TableStore) -> dict[str, str]:
    """Token to reference of everybody who was erased."""
    if tables.version(SUPPRESSED) is None:
        return {}
    with connection() as con:
        tables.read(con, SUPPRESSED)
        return dict(con.execute(f"SELECT token, reference FROM {SUPPRESSED}").fetchall())


def without_erased(
    con: duckdb.DuckDBPyConnection, tables: TableStore, settings: Settings, table: Table, rows: duckdb.DuckDBPyRelation
) -> tuple[duckdb.DuckDBPyRelation, int]:
    """Rows of a raw table without those of customers who were erased, and how many were left out."""
    who = f"CAST({identifier(table.customer)} AS VARCHAR)"
    if _quotes_key(table):
        quote = literal(rf"(?:^|; ){table.customer}: '([^']*)'")
        who = f"coalesce({who}, nullif(regexp_extract({ISSUES}, {quote}, 1), ''))"
    rows.create_view("_landed_rows")
    gone = of_erased(con, tables, settings, "_landed_rows", who)
    if gone is None:
        return rows, 0
    left_out = con.execute(f"SELECT count(*) FROM _landed_rows WHERE {gone}").fetchall()[0][0]
    return con.sql(f"SELECT * FROM _landed_rows WHERE ({gone}) IS NOT TRUE"), int(left_out)


def of_erased(
    con: duckdb.DuckDBPyConnection, tables: TableStore, settings: Settings, view: str, who: str
) -> str | None:
    """SQL that is true for the rows of a view whose customer was erased; None where nobody was.

    Args:
        con: holds the view.
        tables: hold the list of who was erased.
        settings: hold the key.
        view: its name.
        who: SQL for the customer's key of a row, as text.
    """
    tokens = list(_suppressed(tables))
    if not tokens:
        return None
    masking.install_key(con, _key(settings), _KEY)
    con.execute("SET VARIABLE erased_tokens = ?::VARCHAR[]", [tokens])
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE _erased AS SELECT who FROM (SELECT DISTINCT {who} AS who FROM {view}) "
        f"WHERE who IS NOT NULL AND list_contains(getvariable('erased_tokens'), {masking.hashed('who', _KEY)})"
    )
    return f"{who} IN (SELECT who FROM _erased)"
