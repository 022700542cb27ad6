"""The quarantine: what is in it and why, and taking its windows in again once the cause is mended.

A quarantined row is never edited. Whoever mends the source, or what the contract says of it, has the windows read from
the source anew: what is good now is published, and what is not stays with its reasons.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from churn_platform.automation.jobs import PREPARE
from churn_platform.automation.state import Work
from churn_platform.engine import connection, digest, identifier
from churn_platform.ml import ingestion
from churn_platform.ml.masking import install_key
from churn_platform.ml.validation import OUTSIDE, count_reasons
from churn_platform.resources.storage import PARTITION, MissingTableError
from churn_platform.windows import window

if TYPE_CHECKING:
    from churn_platform.contract import Contract
    from churn_platform.play import Player
    from churn_platform.resources.storage import TableStore
    from churn_platform.settings import Settings


class Held(NamedTuple):
    """What the quarantine holds of one window of one table; a row may have several reasons."""

    table: str
    window: str
    rows: int
    reasons: dict[str, int]


def held(contract: Contract, tables: TableStore, table: str | None = None, key: str | None = None) -> list[Held]:
    """What the quarantine holds, by table and window; of one table or one window, where named."""
    found = []
    with connection() as con:
        for name in contract.tables.items() if table is None else [table]:
            try:
                tables.read(con, f"quarantine_{name}", None if key is None else [key], view="quarantine")
            except MissingTableError:
                continue
            counted = con.execute(f"SELECT {PARTITION}, count(*) FROM quarantine GROUP BY 1 ORDER BY 1").fetchall()
            for held_in, rows in counted:
                con.execute(f"CREATE OR REPLACE TEMP VIEW part AS FROM quarantine WHERE {PARTITION} = '{held_in}'")
                found.append(Held(name, held_in, rows, count_reasons(con, "part")))
    return found


def words(found: list[Held]) -> str:
    """What is held, for people."""
    lines = []
    for part in found:
        lines.append(f"{part.table}, window {part.window}: {part.rows:,} rows")
        lines += [f"  {count:>10,}  {reason}" for reason, count in part.reasons.items()]
    return "\n".join(lines) or "The quarantine is empty."


def replay(player: Player, settings: Settings, found: list[Held]) -> bool:
    """Take the windows of what is held in again from the source, then whatever depends on them; say what came of it.

    A row whose time could not be read, or lay outside the history, waits in the first window of its file. Once it can
    be read it belongs elsewhere, so of a table with such rows every window that the source now fills otherwise than
    it did is taken in again: no row is lost between two windows, and none is in both.

    Returns:
        Whether every window was processed.
    """
    wanted: list[tuple[str, str]] = []
    for name in {part.table: part for part in found}:
        parts = [part for part in found if part.table == name]
        wanders = any(_wanders(player.contract, part) for part in parts)
        wanted += [(name, key) for key in _to_take_in(player, settings, name, parts, wanders)]
    names = sorted({name for name, _ in wanted})
    before = {name: _good(player.tables, name) for name in names}
    waiting = {(part.table, part.window): part.rows for part in found}
    done = True
    for place, (name, key) in enumerate(sorted(wanted, key=lambda chosen: chosen[1])):
        assets = (f"raw_{name}", f"validated_{name}")
        work = Work(window(player.contract, key), PREPARE, "replay of the quarantine", assets)
        outcome = player.run(work, f"[{place + 1}/{len(wanted)}]")
        done = done and outcome.succeeded
    for name in names:
        after = _good(player.tables, name)
        for key in sorted(key for table, key in wanted if table == name):
            stays = next(iter(held(player.contract, player.tables, name, key)), Held(name, key, 0, {}))
            player.say(
                f"{name}, window {key}: {before[name][key]:,} good rows before, {after[key]:,} now; "
                f"{waiting.get((name, key), 0):,} in quarantine before, {stays.rows:,} now"
            )
            if stays.rows:
                player.say(words([stays]).partition("\n")[2])
    return player.catch_up() and done


def _wanders(contract: Contract, part: Held) -> bool:
    """Whether rows are held whose window is not known, since their time is not."""
    time = contract.tables.items()[part.table].time_column
    return time is not None and any(
        reason.startswith(f"{time}: ") or reason in (f"{time} is missing", f"{time} {OUTSIDE}")
        for reason in part.reasons
    )


def _to_take_in(player: Player, settings: Settings, name: str, parts: list[Held], wanders: bool) -> list[str]:
    """The windows of a table to take in again: those held and, where a row may belong to any window, all that changed.

    A window of which the source holds nothing any more stays as it is, and that is said: files that were moved away
    do not undo what was made of them.
    """
    contract, tables, raw = player.contract, player.tables, f"raw_{name}"
    waiting, found = {part.window for part in parts}, []
    with connection(contract.time.timezone) as con:
        install_key(con, settings.key)
        for key in sorted(waiting | set(tables.windows(raw) if wanders else [])):
            chosen = window(contract, key)
            rows = ingestion.typed_rows(con, contract, name, player.source.rows(con, name, chosen), chosen)
            tables.read(con, raw, [key], view="stored")
            stored = con.sql(f"SELECT {', '.join(map(identifier, rows.columns))} FROM stored")
            if not rows.limit(1).fetchall():
                if stored.limit(1).fetchall() and key in waiting:
                    player.say(f"{name}, window {key}: the source holds no rows of it any more, so it stays as it is")
            elif key in waiting or digest(rows) != digest(stored):
                found.append(key)
    return found


def _good(tables: TableStore, name: str) -> Counter[str]:
    """Window to number of good rows."""
    with connection() as con:
        try:
            tables.read(con, f"validated_{name}", view="validated")
        except MissingTableError:
            return Counter()
        return Counter(dict(con.execute(f"SELECT {PARTITION}, count(*) FROM validated GROUP BY 1").fetchall()))
