"""A first draft of `contract.yaml`, from a team's own files.

Which column names the customer, which says when, which is money and which is the label is guessed from names and
values. Where it could well be otherwise, the draft says so beside the line: it is to be read, corrected and checked
(`churn contract check`), and never to be trusted.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from churn_platform.drafting import names
from churn_platform.drafting.survey import but
from churn_platform.engine import identifier, literal
from churn_platform.sources.base import SourceError
from churn_platform.sources.files import file_kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb

    from churn_platform.drafting.survey import Field, File

_NO_MONEY = "coalesce(1, NULL)"  # an amount where there is none
_ALL_LEFT = 0.8  # more leave nowhere
_MOST_VALUES = 50  # of a text column that becomes a feature of a wide table
# Horizons to choose among, in days.
_HORIZONS = {"monthly": (28, 56, 84, 182), "weekly": (7, 14, 28), "daily": (1, 3, 7)}


@dataclass(frozen=True)
class Choices:
    """What the team says itself, in place of a guess: names of columns of its main file."""

    customer: str | None = None
    time: str | None = None
    amount: str | None = None
    label: str | None = None


@dataclass
class _Part:
    """A table of the draft while it is made."""

    file: File
    keys: dict[str, Any] = field(default_factory=dict)  # roles and settings, in order
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # key or column to what is said beside it
    left_out: dict[str, str] = field(default_factory=dict)  # the source's column to why it is not read
    used: set[str] = field(default_factory=set)  # the source's columns that stand in an expression over several


def draft(
    con: duckdb.DuckDBPyConnection, files: Sequence[File], folder: Path, name: str, choices: Choices | None = None
) -> str:
    """The text of a contract for files.

    Args:
        con: has their views.
        files: of one main table (purchases, or labelled customers), and whatever else belongs to it.
        folder: where the contract will lie; paths are relative to it.
        name: of the contract.
        choices: what need not be guessed.

    Raises:
        SourceError: a role that every contract needs is played by no column; the message says how to name one.
    """
    choices = choices or Choices()
    said = [name.lower() for name in (choices.customer, choices.time, choices.amount, choices.label) if name]
    if len(set(said)) < len(said):
        raise SourceError("one column cannot play two parts of --customer, --time, --amount and --label.")
    main = _main(files, choices)
    customer = _customer(main, choices)
    label = _label(con, main, customer, choices)
    parts = {}
    if label is not None:
        parts["snapshots"] = _snapshots(con, main, customer, label, choices)
    else:
        parts["transactions"] = _transactions(con, main, customer, choices)
    for other in files:
        if other is not main:
            table, part = _beside(con, other, customer, _kind(next(iter(parts.values()))))
            if label is not None or table in parts:
                raise SourceError(
                    f"{other.path}: {'a wide table stands alone' if label else f'there are two tables of {table}'}. "
                    "Join it with the other file, or leave it out."
                )
            parts[table] = part
    return _written(con, parts, folder, name)


# ------------------------------------------------------------------------------------------------------ who, when, what


def _named(file: File, name: str, option: str) -> Field:
    found = file.field(name)
    if found is None:
        raise SourceError(f"{option} {name}: {file.path} has no such column. It has: {_listed(file)}.")
    return found


def _listed(file: File) -> str:
    return ", ".join(each.name for each in file.fields)


def _main(files: Sequence[File], choices: Choices) -> File:
    """The file with the label or, where none has one, that with most rows among those with times.

    Beside other files, `cancelled` may be what is known of a customer of theirs, so the name has to say churn.
    """
    telling = names.CHURN if len(files) == 1 else (*names.SURELY_CHURN, *names.ANY_LABEL)
    for file in files:
        if any(_is_label(each) and names.has(each.name, telling) for each in file.fields) or (
            choices.label and file.field(choices.label)
        ):
            return file
    timed = [file for file in files if any(each.is_time for each in file.fields)]
    return max(timed or files, key=lambda file: (not _is_of_contacts(file), file.rows))


def _is_of_contacts(file: File) -> bool:
    return names.has(Path(file.path).stem, names.CONTACT)


def _is_label(each: Field) -> bool:
    if len(each.values) != 2 or each.emails or each.is_time:
        return False
    said = {value.lower().removesuffix(".0") for value in each.values}
    return names.has(each.name, names.SURELY_CHURN) or (
        names.has(each.name, names.CHURN)
        and (not names.has(each.name, names.ANY_LABEL) or said <= {*names.YES, *names.NO, "-1"})
    )


def _label(con: duckdb.DuckDBPyConnection, file: File, customer: Field, choices: Choices) -> Field | None:
    """The column that says who churned. Where customers come back, `cancelled` may well be an order's."""
    if choices.label is not None:
        chosen = _named(file, choices.label, "--label")
        if len(chosen.values) != 2:
            shown = f": {', '.join(chosen.values)}" if chosen.values else ""
            raise SourceError(
                f"--label {chosen.name}: a label has two values; this column has {chosen.distinct}{shown}. Make two of "
                "them in the export, or write the contract by hand, with an expression under `from:`."
            )
        return chosen
    found = [each for each in file.fields if _is_label(each) and each is not customer]
    sure = [each for each in found if names.has(each.name, (*names.SURELY_CHURN, *names.ANY_LABEL))]
    if not sure and found and _is_repeated(con, file, customer):
        return None
    return next(iter(sure or found), None)


def _customer(file: File, choices: Choices) -> Field:
    """The column that names the customer: by its name or, where no name tells, by its values, which come back."""
    if choices.customer is not None:
        return _named(file, choices.customer, "--customer")
    plain = [each for each in file.fields if each.type in ("integer", "string") or each.point_zero]
    ids = [each for each in plain if each.distinct > 2]
    come_back = [
        each
        for each in ids
        if max(10, 0.01 * file.sampled) < each.distinct < 0.9 * file.sampled
        and not names.has(each.name, (*names.PIECES, *names.KINDS))
    ]
    ranked = [
        [each for each in ids if names.has(each.name, names.WHO, names.ID)],
        [each for each in ids if set(names.words(each.name)).issubset(names.WHO)],
        [each for each in ids if each.emails],
        [each for each in ids if names.words(each.name) in (["id"], ["uuid"])],
        come_back,
    ]
    for found in ranked:
        if found:
            return max(found, key=lambda each: each.distinct)
    raise SourceError(
        f"{file.path}: no column looks as if it named the customer. Say which: --customer COLUMN. "
        f"It has: {_listed(file)}."
    )


def _time_of(file: File, chosen: str | None) -> Field | None:
    if chosen is not None:
        found = _named(file, chosen, "--time")
        if not found.is_time:
            raise SourceError(f"--time {found.name}: its values are no dates that can be read.")
        return found
    times = [each for each in file.fields if each.is_time and not names.has(each.name, names.OTHER_TIMES)]
    return min(times, key=lambda each: names.rank(each.name, names.WHEN), default=None)


# ----------------------------------------------------------------------------------------------------------- the tables


def _transactions(con: duckdb.DuckDBPyConnection, file: File, customer: Field, choices: Choices) -> _Part:
    part = _part(file, customer)
    _time_of_purchase(part, choices)
    _amount(part, choices)
    rest = [
        each for each in file.fields if each.column not in part.columns and not names.has(each.name, names.PERSONAL)
    ]
    orders = [
        each
        for each in rest
        if names.has(each.name, names.ORDER, names.ID) or set(names.words(each.name)).issubset(names.ORDER)
    ]
    for each in orders[:1]:
        _order(con, part, each)
    kinds = [each for each in rest if each not in orders and each.type == "string" and each.distinct > 1]
    ranked = sorted(((names.rank(each.name, names.KINDS), each) for each in kinds), key=lambda pair: pair[0])
    for rank, each in ranked[:2]:
        if rank < len(names.KINDS):
            _add(part, each)
            if each.values and names.has(each.name, ("event", "type", "status")):
                part.notes[each.column] = f"{', '.join(each.values)}: is each a purchase? Each row counts as one"
    return _finished(part)


def _time_of_purchase(part: _Part, choices: Choices) -> None:
    time = _time_of(part.file, choices.time)
    if time is None:
        raise SourceError(
            f"{part.file.path}: no column looks like the time of a purchase, and none like a label (two values; called "
            "churn, exited, target, ...). Say which: --time COLUMN or --label COLUMN. It has: "
            f"{_listed(part.file)}."
        )
    _play(part, "time", time)
    doubts = []
    others = [each.name for each in part.file.fields if each.is_time and each is not time]
    if others and choices.time is None:
        doubts.append(f"or {', '.join(others)}?")
    if time.present < 1:
        doubts.append(f"{1 - time.present:.1%} of the rows have none, and are quarantined with the first window")
    part.notes["time"] = " ".join(doubts)


def _order(con: duckdb.DuckDBPyConnection, part: _Part, order: Field) -> None:
    """What holds the lines of a purchase together; or, where it stands once, tells copies."""
    column = _add(part, order, **({} if order.type == "integer" and order.whole else {"type": "string"}))
    (different,) = con.execute(f"SELECT count(DISTINCT {identifier(order.name)}) FROM {part.file.view}").fetchall()[0]
    if different < 0.98 * part.file.rows * order.present:
        part.keys["order"] = column
        part.notes["order"] = "lines with the same value are one purchase"
    else:
        part.keys["unique"] = [column]
        part.notes["unique"] = "a value that stands twice is a copy, and is quarantined"


def _amount(part: _Part, choices: Choices) -> None:
    """Money, or pieces times their price, or nothing: then each purchase counts as 1."""
    numbers = [
        each
        for each in part.file.fields
        if each.type in ("integer", "float") and each.column not in part.columns and not names.has(each.name, names.ID)
    ]
    if choices.amount is not None:
        chosen = _named(part.file, choices.amount, "--amount")
        if chosen not in numbers:
            raise SourceError(f"--amount {chosen.name}: its values are no numbers, or it has another part already.")
        part.keys["amount"] = _add(part, chosen, type="float")
        return
    pieces = [each for each in numbers if names.has(each.name, names.PIECES)]
    prices = [each for each in numbers if names.has(each.name, names.PRICE_OF_ONE)]
    money = [each for each in numbers if not names.has(each.name, (*names.NO_MONEY, *names.PERSONAL))]
    whole = [each for each in money if each not in prices and names.rank(each.name, names.MONEY) < len(names.MONEY)]
    others = [each for each in money if each.type == "float"]
    best = min(whole or prices or others, key=lambda each: names.rank(each.name, names.MONEY), default=None)
    part.keys["amount"] = "amount"
    if not whole and pieces and prices:
        product = f"{identifier(pieces[0].name)} * {identifier(prices[0].name)}"
        part.columns["amount"] = {"type": "float", "from": product}
        part.used |= {pieces[0].name, prices[0].name}
        part.notes["amount"] = "is it so? Nothing else looks like what a purchase came to"
    elif best is not None:
        part.keys["amount"] = _add(part, best, type="float")
        part.notes["amount"] = "is it the money of a row?"
    else:
        part.columns["amount"] = {"type": "float", "from": _NO_MONEY}
        part.notes["amount"] = "no column looks like money, so every row counts as 1; else: --amount COLUMN"


def _snapshots(con: duckdb.DuckDBPyConnection, file: File, customer: Field, label: Field, choices: Choices) -> _Part:
    part = _part(file, customer)
    time = _time_of(file, choices.time)
    if time is not None and choices.time is None and not _is_repeated(con, file, customer):
        part.left_out[time.name] = "each customer stands here once, so no row is of another time than the others"
        time = None
    if time is not None:
        _play(part, "time", time)
        part.notes["time"] = "the day as of which a row is true"
    elif _is_repeated(con, file, customer):
        raise SourceError(
            f"{file.path}: customers stand here several times ({customer.name}), but no column says as of which day a "
            "row is true. Say which: --time COLUMN (a date); or say --customer COLUMN, if that is another."
        )
    else:
        part.keys["observed_at"] = (_modified(file.path).replace(day=1) - timedelta(days=1)).replace(day=15)
        part.notes["observed_at"] = "when was this true? The file does not say; this is the month before it was written"
    positive, negative = _polarity(label)
    column = _add(part, label)
    part.keys["label"] = {"column": column, "positive": _typed(positive, label), "negative": _typed(negative, label)}
    part.notes["label"] = f"is {positive} the one who left?"
    return _finished(_with_features(part))


def _polarity(label: Field) -> tuple[str, str]:
    """Which value of a label says that somebody left, and which that somebody stayed."""
    first, second = label.values
    if names.has(label.name, names.STAYED):
        kept = label.type in ("integer", "float") or names.has(second, names.YES)
        return (first, second) if kept else (second, first)
    if label.type in ("integer", "float"):
        return (second, first) if _number(second) > _number(first) else (first, second)

    def says(value: str) -> int:
        return names.has(value, names.YES) - 2 * names.has(value, names.NO)

    return (first, second) if says(first) > says(second) else (second, first)


def _number(value: str) -> float:
    return float(value.replace(",", "."))


def _with_features(part: _Part) -> _Part:
    """The part, with every column that may be a feature."""
    for each in part.file.fields:
        if each.column in part.columns or each.name in part.left_out:
            continue
        why = _no_feature(each, part.file)
        if why:
            part.left_out[each.name] = why
        else:
            _add(part, each)
    return part


def _no_feature(each: Field, file: File) -> str:
    """Why a column of a wide table is no feature; empty where it is one."""
    counts = (*names.ID, "row", "index", "unnamed", "column")
    numbers_rows = each.distinct >= 0.99 * file.sampled and names.has(each.name, counts)
    reasons = {
        "personal data": each.is_personal,
        "a name": names.words(each.name)[-1:] == ["name"],
        "a date; what matters of it is a number of days": each.is_time,
        "empty": each.present == 0,
        "always the same": each.distinct == 1,
        f"a text with {each.distinct:,} different values": each.type == "string" and each.distinct > _MOST_VALUES,
        "numbers the rows": each.type in ("integer", "float") and numbers_rows,
        "its name speaks of churn: it might give the label away": names.has(each.name, names.CHURN),
    }
    return next((why for why, holds in reasons.items() if holds), "")


def _beside(con: duckdb.DuckDBPyConnection, file: File, customer: Field, kind: str) -> tuple[str, _Part]:
    """A table beside the purchases: customers, or contacts."""
    who = file.field(customer.name)
    if who is None:
        raise SourceError(
            f"{file.path}: it has no column {customer.name}, by which the other file names its customers. Give it the "
            "same name in both, or leave the file out."
        )
    part, time = _part(file, who, kind), _time_of(file, None)
    if time is not None and _is_of_contacts(file):
        _play(part, "time", time)
        return "contacts", _finished(part)
    if _is_repeated(con, file, who):
        raise SourceError(
            f"{file.path}: customers stand here several times ({who.name}), so it holds neither what is known of them "
            "nor the purchases. Leave it out, or draft a contract of it alone."
        )
    return "customers", _finished(_with_features(part))


def _is_repeated(con: duckdb.DuckDBPyConnection, file: File, who: Field) -> bool:
    column = identifier(who.name)
    rows, different = con.execute(f"SELECT count({column}), count(DISTINCT {column}) FROM {file.view}").fetchall()[0]
    return bool(different < 0.95 * rows)


def _part(file: File, customer: Field, kind: str | None = None) -> _Part:
    """A table with its customer, whose id is of a `kind` that another table has."""
    part = _Part(file)
    given: dict[str, Any] = {"type": kind or ("integer" if customer.type == "integer" else "string")}
    if customer.emails or names.has(customer.name, names.PERSONAL) or names.words(customer.name)[-1:] == ["name"]:
        given = {"type": "string", "pii": "hash"}
        part.notes["customer"] = "personal itself: stored as a keyed hash only"
    elif not names.has(customer.name, (*names.WHO, *names.ID)):
        others = [each.name for each in file.fields if each is not customer and 10 < each.distinct < 0.9 * file.sampled]
        part.notes["customer"] = f"by its values, which come back; or {', '.join(others[:3]) or 'another'}?"
    source = but(customer.doubtful, identifier(customer.name))
    if customer.point_zero and file_kind(file.path) == "csv":  # of Parquet's 17850.0 the platform takes the end itself
        given["from"] = f"regexp_replace({source}, '\\.0+$', '')"
    elif customer.doubtful:
        given["from"] = source
    _play(part, "customer", customer, **given)
    named = min(customer.present, customer.named)
    if named < 0.97:
        part.keys["max_quarantined"] = min(round(1.5 * (1 - named) + 0.05, 2), 0.95)
        part.notes["max_quarantined"] = f"{1 - named:.0%} of the rows name no customer"
    return part


def _instant(each: Field) -> str:
    """SQL for the time that a number of seconds or milliseconds is."""
    return f"to_timestamp(TRY_CAST({identifier(each.name)} AS DOUBLE){'' if each.epoch == 's' else ' / 1000'})"


def _play(part: _Part, role: str, each: Field, **given: Any) -> None:
    """Let a column play a role without which a row is none: it may not be missing."""
    part.keys[role] = _add(part, each, **given)
    part.columns[each.column].pop("nullable", None)


def _add(part: _Part, each: Field, **given: Any) -> str:
    """A column of the source, as the draft calls it."""
    name = each.column
    source = identifier(each.name)
    column: dict[str, Any] = {"type": each.type}
    if each.missing or each.signs:
        value = but(each.missing, source)
        column["from"] = f"translate({value}, {literal(each.signs)}, '')" if each.signs else value
        if each.missing:
            part.notes.setdefault(name, f"{' and '.join(each.missing)} taken for missing")
        elif each.signs[-1] in ",.":
            part.notes.setdefault(name, f"{each.signs[-1]} taken for the mark of thousands")
    elif name != each.name:
        column["from"] = each.name if re.fullmatch(r"\w+", each.name) else source
    if each.epoch:
        column["from"] = _instant(each)
        part.notes.setdefault(name, f"{'seconds' if each.epoch == 's' else 'milliseconds'} since 1970")
    if each.format:
        column["format"] = each.format
        if each.other_format:
            part.notes.setdefault(name, f"or {each.other_format}? Its values can be read both ways")
    if each.present < 1:
        column["nullable"] = True
    part.columns[name] = {**column, **given}
    return name


def _finished(part: _Part) -> _Part:
    """The part, with how its file is written, and why what is not read is not."""
    for each in part.file.fields:
        if each.column not in part.columns and each.name not in part.used:
            part.left_out.setdefault(each.name, "personal data" if each.is_personal else "no part for it is known")
    written, keys = part.file.written, dict[str, Any]()
    if any(each.decimal_comma for each in part.file.fields):
        keys["decimal"] = ","
    if written.encoding != "utf-8":
        keys["encoding"] = written.encoding
        if written.encoding == "latin-1":
            part.notes["encoding"] = "it is not UTF-8; if its letters come out wrong, export it as UTF-8"
    if written.delimiter is not None:
        keys["delimiter"] = written.delimiter
    if not written.header:
        keys["header"] = False
    part.keys = {**keys, **part.keys}
    return part


def _typed(value: str, each: Field) -> str | int | float | bool:
    if each.type == "boolean":
        return value.lower() == "true"
    if each.type in ("integer", "float"):
        return int(_number(value)) if _number(value).is_integer() else _number(value)
    return value


def _modified(path: str) -> date:
    newest = max(each.stat().st_mtime for each in Path(path).parent.glob(Path(path).name))
    return datetime.fromtimestamp(newest, UTC).date()


# --------------------------------------------------------------------------------------------------- features and label


def _events(con: duckdb.DuckDBPyConnection, part: _Part) -> tuple[date, date]:
    """Make a table of who did something when; returns the first day and the last, but for a thousandth of stray ones.

    Raises:
        SourceError: no time can be read.
    """
    source = {each.column: each for each in part.file.fields}
    time = source[part.keys["time"]]
    who, when = identifier(source[part.keys["customer"]].name), identifier(time.name)
    at = f"TRY_CAST({_instant(time) if time.epoch else when} AS TIMESTAMP)"
    if time.format:
        at = f"try_strptime(trim({when}), {literal(time.format)})"
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE _events AS FROM (SELECT {who} AS who, {at} AS time FROM {part.file.view}) "
        "WHERE who IS NOT NULL AND time BETWEEN TIMESTAMP '1990-01-01' AND now()::TIMESTAMP"
    )
    first, last = con.execute("SELECT quantile_disc(time, 0.001), max(time) FROM _events").fetchall()[0]
    if first is None:
        raise SourceError(f"{part.file.path}: no time in {when} can be read. Say another: --time COLUMN.")
    return first.date(), last.date()


def _left(con: duckdb.DuckDBPyConnection, last: date, active: int, horizon: int) -> tuple[int, float]:
    """How many customers were active before the newest days that are over, and the share that did nothing in them."""
    seen = last - timedelta(days=horizon)
    at_risk, left = con.execute(
        "SELECT count(*), coalesce(avg(CAST(NOT bought AS INTEGER)), 0) FROM (SELECT bool_or(time >= ?) AS bought "
        "FROM _events WHERE time >= ? GROUP BY who HAVING bool_or(time < ?))",
        [seen, seen - timedelta(days=active), seen],
    ).fetchall()[0]
    return at_risk, left


def _time_and_label(con: duckdb.DuckDBPyConnection, part: _Part) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The sections `time` and `label` of purchases, and what the label means in this data.

    The horizon is the shortest in which at most half of the active customers do nothing, as far as history allows:
    where most "leave" within days, nobody has left.
    """
    first, last = _events(con, part)
    span = (last - first).days
    cadence = _cadence(span)
    for horizon in _HORIZONS[cadence]:
        active = max(2 * horizon, 60 if cadence == "monthly" else 0)
        at_risk, left = _left(con, last, active, horizon)
        longer = 4 * horizon  # the next horizon's active time, at most
        if left <= 0.5 or longer + 2 * horizon > span / 2:
            break
    label = {
        "active_within_days": active,
        "horizon_days": horizon,
        "warmup_days": min(active, span // 4),
    }
    said = (
        f"of {at_risk:,} customers who bought in {active} days, {left:.0%} bought nothing in the {horizon} days after "
        f"(the newest ones)"
    )
    if left > _ALL_LEFT:
        said += f": hardly anybody comes back. Is {part.keys['customer']} the customer, and not the order?"
    return _time(first, cadence), label, said


def _cadence(span: int) -> str:
    return "monthly" if span >= 240 else "weekly" if span >= 70 else "daily"


def _time(first: date, cadence: str) -> dict[str, Any]:
    """The section `time`."""
    return {"start": first.replace(day=1) if cadence == "monthly" else first, "cadence": cadence, "timezone": "UTC"}


def _features(part: _Part, days: int, others: dict[str, _Part]) -> dict[str, dict[str, Any]]:
    """Features that purchases have everywhere; `days` is how long a customer counts as active."""
    short, long = max(days // 2, 1), 2 * days
    found: dict[str, dict[str, Any]] = {
        **{f"purchases_{each}d": {"kind": "count", "window_days": each} for each in (short, days, long)},
        f"gap_days_{long}d": {"kind": "mean_gap_days", "window_days": long},
        "recency_days": {"kind": "recency_days"},
        "tenure_months": {"kind": "tenure_months"},
        "purchases_per_month": {"kind": "frequency_per_month"},
    }
    if part.columns[part.keys["amount"]].get("from") != _NO_MONEY:
        found[f"amount_{days}d"] = {"kind": "sum", "window_days": days}
        found[f"mean_amount_{long}d"] = {"kind": "mean", "window_days": long}
    roles = {value for value in part.keys.values() if isinstance(value, str)} | set(part.keys.get("unique", []))
    for name in part.columns:
        if name not in roles:
            found[f"different_{name}_{days}d"] = {"kind": "distinct", "column": name, "window_days": days}
    for table, other in others.items():
        if table == "contacts":
            found[f"contacts_{days}d"] = {"kind": "count", "table": "contacts", "window_days": days}
        for name in other.columns if table == "customers" else ():
            if name != other.keys["customer"]:
                found[f"{name}_" if name in found else name] = {"kind": "column", "table": "customers", "column": name}
    return found


# ---------------------------------------------------------------------------------------------------------- the writing


def _kind(part: _Part) -> str:
    """The type of a part's customers."""
    return str(part.columns[part.keys["customer"]]["type"])


def _written(con: duckdb.DuckDBPyConnection, parts: dict[str, _Part], folder: Path, name: str) -> str:
    main = next(iter(parts.values()))
    features, label, said = {}, None, ""
    if "transactions" in parts:
        time, label, said = _time_and_label(con, main)
        features = _features(main, label["active_within_days"], {k: v for k, v in parts.items() if v is not main})
    elif "time" in main.keys:
        first, last = _events(con, main)
        time = _time(first, _cadence((last - first).days))
    else:
        time = _time(main.keys["observed_at"], "monthly")
    lines = [
        "# Drafted from " + " ".join(", ".join(Path(part.file.path).name for part in parts.values()).split()) + ".",
        "# All of it is guessed from names and values; where it could well be otherwise, a # says so. Read it, correct",
        "# it, and run `churn contract check`. docs/contract.md explains every key.",
        "contract: 1",
        f"name: {_scalar(name)}",
        "owner: team:data # who answers for it",
        "",
        "source: {kind: files}",
        f"customer: {_flow({'name': main.keys['customer'], 'type': _kind(main)})}",
        f"time: {_flow(time)} # the zone of times that carry none?",
        "",
        "tables:",
    ]
    for table, part in parts.items():
        lines += [f"  {table}:", f"    path: {_scalar(os.path.relpath(part.file.path, folder))}"]
        for key, value in part.keys.items():
            text = _flow(value) if isinstance(value, dict | list) else _scalar(value)
            lines.append(f"    {key}: {text}{_note(part.notes.get(key))}")
        lines.append("    columns:")
        for column, spec in part.columns.items():
            note = part.notes.get(column) if column not in part.keys else None
            lines.append(f"      {_scalar(column)}: {_flow(spec)}{_note(note)}")
        lines += [f"     {_note(f'not read: {source} ({why})')}" for source, why in part.left_out.items()]
    if features:
        lines += [
            "",
            "features:",
            "  definitions:",
            *(f"    {_scalar(key)}: {_flow(spec)}" for key, spec in features.items()),
        ]
    if label is not None:
        lines += ["", f"# {said}", f"label: {_flow(label)}"]
    lines += [
        "",
        "gates:",
        "  minimum: {roc_auc: 0.65} # what a model must reach before it may answer for you",
    ]
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    return str(
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    ).strip()


def _scalar(value: Any) -> str:
    return str(yaml.safe_dump(value, allow_unicode=True, width=10_000)).removesuffix("...\n").strip()


def _note(text: str | None) -> str:
    return f" # {' '.join(text.split())}" if text else ""  # a name may hold line ends
