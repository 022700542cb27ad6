"""The retraining policy: when a retrain is worth it.

Measured on real histories, drift alarms often fire on nothing and retraining can make a model worse. So a retrain
needs a reason (N of the last M windows drifted, or live performance fell), is kept from following too closely on the
last one (cooldown) and from happening too often (budget). Time is counted in windows of data, not in hours on the
wall, so that the policy acts the same on a live company and on a history that is played back. Sensors, the play of a
history and its replay under other policies (`ml.replay`) all ask `decide`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from churn_platform.contract import Contract


@dataclass(frozen=True)
class Decision:
    """Whether to retrain, and why or why not, in words for the log."""

    retrain: bool
    reason: str


def decide(
    contract: Contract,
    windows: Sequence[str],
    drifted: Mapping[str, bool],
    performance_drop: Mapping[str, float],
    retrained: Sequence[str],
) -> Decision:
    """Decide as of the newest of `windows`, whatever else is known of later ones.

    Args:
        contract: what it says under `retraining`.
        windows: the keys of all windows up to the one that is judged, oldest first.
        drifted: window to whether its drift report says that it drifted.
        performance_drop: window to how far live ROC AUC lies below what promotion promised.
        retrained: the windows as of which models were trained, oldest first; repeats count.
    """
    policy = contract.retraining
    if not windows:
        return Decision(False, "there is no window yet")
    recent = [window for window in windows if window in drifted][-policy.of_last :]
    alarms = [window for window in recent if drifted[window]]
    newest_measured = max((window for window in performance_drop if window <= windows[-1]), default=None)
    drop = performance_drop[newest_measured] if newest_measured is not None else 0.0
    reasons = ["the contract asks for one in every window"] if "every_window" in policy.when else []
    if "drift" in policy.when and len(alarms) >= policy.drifted_windows:
        reasons.append(f"{len(alarms)} of the last {len(recent)} windows drifted ({', '.join(alarms)})")
    if "performance" in policy.when and drop > policy.performance_drop:
        reasons.append(f"live ROC AUC of {newest_measured} fell by {drop:.3f} (more than {policy.performance_drop})")
    if not reasons:
        quiet = {
            "drift": f"{len(alarms)} of the last {len(recent)} windows drifted (it takes {policy.drifted_windows})",
            "performance": "performance holds",
        }
        found = [words for reason, words in quiet.items() if reason in policy.when]
        return Decision(False, " and ".join(found) or "the contract asks for no retrains")
    return _allowed(contract, windows, retrained, " and ".join(reasons))


def scheduled(contract: Contract, windows: Sequence[str], retrained: Sequence[str]) -> Decision:
    """Whether a retrain that the calendar asks for may happen."""
    if not windows:
        return Decision(False, "there is no window yet")
    return _allowed(contract, windows, retrained, "the schedule asks for it")


def _allowed(contract: Contract, windows: Sequence[str], retrained: Sequence[str], reason: str) -> Decision:
    policy = contract.retraining
    already = max(retrained, default="")
    if already >= windows[-1]:  # also with no cooldown: the same labels would give the same model
        return Decision(False, f"{reason}, but a model was trained as of {already} already")
    place = {window: position for position, window in enumerate(windows)}
    ago = [len(windows) - 1 - place[window] for window in retrained if window in place]
    if ago and min(ago) < policy.cooldown_windows:
        return Decision(
            False, f"{reason}, but the last retrain was {min(ago)} windows ago (cooldown: {policy.cooldown_windows})"
        )
    spent = sum(1 for windows_ago in ago if windows_ago < policy.budget.windows)
    if spent >= policy.budget.retrains:
        return Decision(
            False,
            f"{reason}, but {spent} retrains in the last {policy.budget.windows} windows have used up the budget",
        )
    return Decision(True, reason)
