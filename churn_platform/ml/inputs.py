"""What a window of features or labels is computed from: which windows of which validated tables, and their digests.

From this follow two things. A new window reads what it needs and no more, so that it costs in proportion to the new
data. And a window is out of date exactly when what it is computed from has changed since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from churn_platform.contract import FEATURE_KINDS, as_utc, days_after, given
from churn_platform.engine import short_hash
from churn_platform.windows import windows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from churn_platform.contract import Contract
    from churn_platform.windows import Window

    Contents = Mapping[str, Mapping[str, str]]  # table to window to the digest of its validated rows

_STATE = 1  # raise it when the columns that one snapshot hands on to the next change their meaning


def history(contract: Contract, window: Window) -> list[str]:
    """The keys of all windows up to one, oldest first."""
    return [earlier.key for earlier in windows(contract, window.end)]


def needed_for_features(contract: Contract, window: Window, from_previous: bool) -> dict[str, list[str]]:
    """Table to the windows that the features at the end of a window are computed from.

    Args:
        contract: the features.
        window: the window.
        from_previous: whether the snapshot before is at hand. Then only the windows that the longest feature reaches
            back into are read; purchases before them are in that snapshot's state. Customers, and contacts where a
            feature looks at all of them, have no such state and are read whole: they are few beside purchases.
    """
    everything = history(contract, window)
    found: dict[str, list[str]] = {}
    for name, table in contract.tables.items().items():
        if table.time_column is None or contract.snapshots is not None:
            found[name] = [window.key]
            continue
        bounded = from_previous if name == "transactions" else name == "contacts" and not _whole(contract, name)
        since = first_looked_at(contract, window, name) if bounded else ""
        found[name] = [key for key in everything if key >= since]
    return found


def first_looked_at(contract: Contract, window: Window, table: str) -> str:
    """The earliest window of a table into which the longest feature at the end of a window reaches back."""
    days = [f.window_days for f in contract.feature_definitions.values() if f.table == table and f.window_days]
    since = days_after(window.end, -max(days, default=0), contract.zone)
    return _reaching_beyond(contract, window, since)[0]


def _whole(contract: Contract, table: str) -> bool:
    """Whether a feature looks at all the rows that a customer ever had in a table."""
    return any(f.table == table and not FEATURE_KINDS[f.kind].windowed for f in contract.feature_definitions.values())


def needed_for_labels(contract: Contract, window: Window) -> list[str]:
    """The windows of the main table that the labels which mature in a window are computed from."""
    snapshots = contract.snapshots
    if snapshots is not None:
        if snapshots.time is None:
            return [window.key]
        wait = snapshots.label.matures_after_days
        return _reaching_beyond(contract, window, days_after(window.start, -wait, contract.zone))
    observed = matured_observations(contract, window)
    if not observed:
        return []
    active = given(contract.label).active_within_days
    return _reaching_beyond(contract, window, days_after(min(observed), -active, contract.zone))


def matured_observations(contract: Contract, window: Window) -> list[datetime]:
    """The observation times whose labels matured in a window: after its start and not after its end."""
    label = given(contract.label)
    first = days_after(as_utc(contract.time.start, contract.zone), label.warmup_days, contract.zone)
    wait = label.lead_days + label.horizon_days
    observed = [candidate.end for candidate in windows(contract, window.end)]
    return [
        time
        for time in observed
        if time >= first and window.start < days_after(time, wait, contract.zone) <= window.end
    ]


def _reaching_beyond(contract: Contract, window: Window, since: datetime) -> list[str]:
    """The windows up to one that end after an instant; the window itself always."""
    earlier = [other.key for other in windows(contract, window.start) if other.end > since]
    return [*earlier, window.key]


def features_made_of(contract: Contract, contents: Contents, known: Iterable[Window]) -> dict[str, str]:
    """Window to the digest of all that its features are computed from, directly or through earlier snapshots.

    Args:
        contract: the tables.
        contents: digests of the validated windows.
        known: consecutive windows from the first on.
    """
    timed = [n for n, t in contract.tables.items().items() if t.time_column is not None and contract.snapshots is None]
    alone = [name for name in contract.tables.items() if name not in timed]
    found, so_far = {}, ""
    for window in known:
        so_far = short_hash(so_far, *(contents[name].get(window.key) for name in timed))
        found[window.key] = short_hash(so_far, *(contents[name].get(window.key) for name in alone))
    return found


def labels_made_of(contract: Contract, contents: Contents, window: Window) -> str:
    """The digest of what the labels that mature in a window are computed from."""
    held = contents[contract.main_table]
    return short_hash(*((key, held.get(key)) for key in needed_for_labels(contract, window)))


def stamped(contract: Contract, made_of: str) -> str:
    """An entry of the ledger: the state of the contract under which something was computed, and what from."""
    return f"{contract.data_fingerprint}-{_STATE}.{made_of}"


def unstamped(entry: str) -> str:
    """What an entry says of the inputs alone: a changed contract makes no window out of date by itself."""
    return entry.rpartition(".")[2]
