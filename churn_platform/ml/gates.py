"""The gates: what a candidate model must show before it may be champion.

Some look at the test window, some at the rows that the model was made of, some ask the model on purpose
(`ml.probes`), and some train again (`ml.retrials`). A candidate that keeps a gate from judging it has failed; a gate
that has nothing to compare with passes and says so. Each verdict says what was measured, what was asked for, and what
to do.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from churn_platform.ml import equality, metrics, probes
from churn_platform.ml.validation import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from numpy.typing import NDArray

    from churn_platform.contract import Contract
    from churn_platform.ml.equality import Compiled
    from churn_platform.ml.probes import Answers
    from churn_platform.ml.retrials import Walk

    Array = NDArray[np.float64]

WINDOW = "test_window_is_large_enough"
TRAINING = "training_rows_suffice"
SIGNATURE = "signature_is_recorded"
BASE = "beats_the_base_rate"
CHAMPION = "not_worse_than_the_champion"
WALK = "not_worse_than_the_champion_in_earlier_windows"
SLICES = "no_slice_is_below_its_floor"
STABLE = "scores_are_stable"
RECIPE = "comes_out_the_same_without_the_test_window"
SHADOW = "holds_up_in_shadow"
ALWAYS = {
    WINDOW: "The test window holds enough customers, and enough churners, for a verdict.",
    SIGNATURE: "The model carries the schema of what it takes and what it answers.",
    TRAINING: "The model was fitted on enough rows.",
    probes.UNSEEN: "No test row, nor a copy of one, is among the rows that the model was fitted on.",
    probes.GIVES_AWAY: "No single feature is so good that it must know the outcome.",
    probes.ID: "No feature names the customer.",
    RECIPE: "Trained again from the recorded rows, without the test window, the model, its threshold and what is "
    "recorded of it come out the same.",
    BASE: "The Brier score is significantly better than that of the churn rate, said of everybody.",
    CHAMPION: "On the same test rows, ROC AUC is not significantly below the champion's.",
    WALK: "Trained as of each of the last windows, the recipe is not significantly worse than the champion there.",
    SLICES: "No group of customers is served worse than the contract allows.",
    STABLE: "Scores are distributed as the champion's on the same rows, unless outcomes bear the change out.",
    probes.DIRECTION: "On average, customers who buy more and more recently are not said to be more at risk.",
    probes.INVARIANT: "The answer for a customer hangs on the customer's features alone.",
    probes.BUDGET: "An answer comes in time, and the stored model is small enough.",
    equality.EQUAL: "The compiled model, which is what serves, gives the model's own answers and decisions.",
    SHADOW: "Asked about live requests beside the champion, it answered all of them, and much as the champion did.",
}

# their verdicts hold for the champion that they compared with, and for no other
COMPARING = (CHAMPION, WALK, STABLE, SHADOW)


def descriptions(contract: Contract) -> dict[str, str]:
    """The gates of a contract, in the order in which they are shown, and what each asks for."""
    return ALWAYS | {
        f"{metric}_is_good_enough": f"On the test window, {metric} is {_asked(contract, metric)}, as the contract asks."
        for metric in contract.metrics_gated
    }


def names(contract: Contract) -> list[str]:
    """The names of a contract's gates."""
    return list(descriptions(contract))


def _asked(contract: Contract, metric: str) -> str:
    return _bounds(contract.minimum, contract.gates.maximum, metric)


def _bounds(minimum: Mapping[Any, float], maximum: Mapping[Any, float], metric: str) -> str:
    least, most = minimum.get(metric), maximum.get(metric)
    words = ([f"at least {least}"] if least is not None else []) + ([f"at most {most}"] if most is not None else [])
    return " and ".join(words)


def fingerprint(contract: Contract) -> str:
    """Eight hex digits that change when the gates ask for something else: a verdict by other gates does not count."""
    asked = (
        contract.gates.model_dump_json(),
        dict(contract.minimum),
        contract.model.threshold,
        contract.slices,
        contract.directions,
        list(ALWAYS),
    )
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Shadow:
    """What a candidate said about live requests, beside the champion; nobody was told."""

    answers: int  # to requests that the champion answered
    failed: int  # requests on which it gave no answer
    candidate: Array  # the newest of the answers
    champion: Array  # what the champion said on these very requests


@dataclass(frozen=True)
class Evidence:
    """What the gates look at."""

    customers: pd.Series[str]  # whose the test rows are
    tested: pd.DataFrame  # the test window's rows as they stand in the training set: key, time, features
    fitted: pd.DataFrame  # those that the model may have been fitted on
    split_by: str  # how they were divided: time or customer
    labels: Array  # of the test rows
    candidate: Array  # what the candidate says of them
    champion: Array | None  # what the champion says; None where there is none to compare with
    again: Array | None  # what the recipe says when it is trained without them; None where it cannot be
    walk: Walk | None  # the recipe and the champion on earlier windows; None where there is nothing to compare with
    answers: Answers  # the candidate itself
    train_rate: float  # the share of churners among the fitted rows
    threshold: float  # the candidate's own: from this probability on, churn is predicted
    has_signature: bool
    megabytes: float | None  # the size of the stored model
    no_champion_because: str = "there is no champion yet"
    not_again_because: str = "the recipe could not be trained again"
    claims: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # what it says of itself; what came out
    compiled: Compiled | None = None  # the candidate as it would serve; None where it could not be compiled or loaded
    not_compiled_because: str = "it has no compiled model"
    shadow: Shadow | None = None  # None where the contract asks for none


def judge(contract: Contract, evidence: Evidence, only: Collection[str] | None = None) -> list[Finding]:
    """The verdict of every gate in `names(contract)`, in that order; or of some of them alone."""
    rows, churners = len(evidence.labels), int(evidence.labels.sum())
    missing, remedy = "", ""
    if rows == 0 or churners in (0, rows):
        missing = f"the test window has {churners} churners in {rows} rows: nothing can be compared on it"
        remedy = "Wait for a window with both kinds of customers."
    elif not np.isfinite(evidence.candidate).all():
        missing = f"{(~np.isfinite(evidence.candidate)).sum():,} of the candidate's {rows:,} answers are no numbers"
        remedy = "Train it again; look for infinite or missing values in the features."
    found = {finding.name: finding for finding in (_test_window(contract, evidence), _signature(evidence))}
    for name, judgement in _judgements(contract, evidence).items():
        if only is not None and name not in only:
            continue
        found[name] = Finding(name, False, missing, remedy) if missing else _judged(name, judgement)
    found |= {f.name: f for f in ([] if missing else _thresholds(contract, evidence))}
    wanted = [name for name in names(contract) if only is None or name in only]
    return [found.get(name, Finding(name, False, missing, remedy)) for name in wanted]


def refuse(contract: Contract, words: str, remedy: str) -> list[Finding]:
    """The verdict of every gate on a candidate that cannot be judged at all."""
    return [Finding(name, False, words, remedy) for name in names(contract)]


def _judgements(contract: Contract, evidence: Evidence) -> dict[str, Callable[[], Finding]]:
    """Gate to what judges it, of those that need answers and both kinds of customers."""
    fitted, tested, answers = evidence.fitted, evidence.tested, evidence.answers
    return {
        TRAINING: lambda: _training(contract, evidence),
        probes.UNSEEN: lambda: probes.unseen(contract, fitted, tested, evidence.split_by),
        probes.GIVES_AWAY: lambda: probes.gives_away(contract, fitted, tested),
        probes.ID: lambda: probes.is_id(contract, fitted, tested),
        RECIPE: lambda: _recipe(evidence),
        BASE: lambda: _against_base_rate(contract, evidence),
        CHAMPION: lambda: _against_champion(contract, evidence),
        WALK: lambda: _walk(contract, evidence),
        SLICES: lambda: _slices(contract, evidence),
        STABLE: lambda: _stable(contract, evidence),
        probes.DIRECTION: lambda: probes.reacts(contract, tested, answers),
        probes.INVARIANT: lambda: probes.invariant(contract, tested, answers),
        probes.BUDGET: lambda: probes.budget(contract, tested, answers, evidence.megabytes),
        equality.EQUAL: lambda: _compiled(contract, evidence),
        SHADOW: lambda: _shadow(contract, evidence),
    }


def _compiled(contract: Contract, evidence: Evidence) -> Finding:
    if evidence.compiled is None:
        return Finding(equality.EQUAL, False, evidence.not_compiled_because, equality.REMEDY)
    known = pd.concat([evidence.tested, evidence.fitted])
    return equality.compare(contract, evidence.compiled, evidence.answers, evidence.threshold, known)


def _judged(name: str, judgement: Callable[[], Finding]) -> Finding:
    """A verdict; whatever keeps it from being reached is a refusal, not a crash."""
    try:
        return judgement()
    except Exception as error:  # noqa: BLE001 - the candidate may be anything, and fail in any way
        words = f"it cannot be judged: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Finding(name, False, words, "Train it again; if it fails again, look at the features and the model.")


def _test_window(contract: Contract, evidence: Evidence) -> Finding:
    gates, rows, churners = contract.gates, len(evidence.labels), int(evidence.labels.sum())
    return Finding(
        WINDOW,
        rows >= gates.min_test_rows and gates.min_test_churners <= churners < rows,
        f"{rows:,} rows with {churners:,} churners; needed are {gates.min_test_rows:,} and {gates.min_test_churners:,}",
        "A verdict on fewer customers would be chance. Wait for more labels, test on more windows "
        "(model.test_windows), or lower gates.min_test_rows if your customer base is that small.",
        {"rows": rows, "churners": churners},
    )


def _signature(evidence: Evidence) -> Finding:
    return Finding(
        SIGNATURE,
        evidence.has_signature,
        "the model carries its input and output schema" if evidence.has_signature else "the model has no signature",
        "Train it again: a model without a signature cannot be served safely.",
    )


def _training(contract: Contract, evidence: Evidence) -> Finding:
    rows, needed = len(evidence.fitted), contract.gates.min_train_rows
    return Finding(
        TRAINING,
        rows >= needed,
        f"it was fitted on {rows:,} rows; needed are {needed:,}",
        "A model of fewer rows is chance, however well it did once. Wait for more labels, or lower "
        "gates.min_train_rows.",
        {"rows": rows},
    )


def _recipe(evidence: Evidence) -> Finding:
    remedy = (
        "It was fitted or calibrated on the test window, on other rows than it says, or by other code or another "
        "contract. Nothing that it shows on the test window counts. Materialize candidate_model to make one that does."
    )
    if evidence.again is None:
        return Finding(RECIPE, False, evidence.not_again_because, remedy)
    gaps = np.abs(evidence.candidate - evidence.again)
    differ, gap = int((gaps > probes.SAME).sum()), float(gaps.max())
    words = f"trained again without the test window, it gives the same {len(gaps):,} answers"
    if differ:
        own, honest = (metrics.fast_roc_auc(evidence.labels, said) for said in (evidence.candidate, evidence.again))
        words = (
            f"trained again without the test window, it answers differently: {differ:,} of {len(gaps):,} answers, by "
            f"up to {gap:.4f}; ROC AUC {own:.4f}, and {honest:.4f} when trained again"
        )
    false = {name: said for name, said in evidence.claims.items() if not abs(said[0] - said[1]) <= probes.SAME}
    words += "".join(
        f"; it says that its {name} is {said:.6g}, and comes out with {found:.6g}"
        for name, (said, found) in false.items()
    )
    return Finding(RECIPE, not differ and not false, words, remedy, {"differ": differ, "largest_difference": gap})


def _against_base_rate(contract: Contract, evidence: Evidence) -> Finding:
    constant = np.full(len(evidence.labels), evidence.train_rate)
    gain = metrics.paired_difference(
        metrics.brier,
        evidence.labels,
        constant,
        evidence.candidate,
        evidence.customers,
        contract.gates.confidence,
    )
    return Finding(
        BASE,
        gain.low > 0,
        f"Brier score better by {gain} than answering {evidence.train_rate:.3f} for everybody",
        "The model knows nothing that the churn rate alone does not. Look at the features and the label.",
        {"gain": gain.value, "low": gain.low, "high": gain.high},
    )


def _against_champion(contract: Contract, evidence: Evidence) -> Finding:
    if evidence.champion is None:
        return Finding(CHAMPION, True, evidence.no_champion_because)
    difference = metrics.paired_difference(
        metrics.fast_roc_auc,
        evidence.labels,
        evidence.candidate,
        evidence.champion,
        evidence.customers,
        contract.gates.confidence,
    )
    return Finding(
        CHAMPION,
        difference.high >= 0,
        f"ROC AUC differs by {difference} from the champion's on the same rows",
        "The champion stays. Retraining made the model significantly worse: look at the newest labels "
        "(a closure, a changed definition, missing purchases) before training again.",
        {"difference": difference.value, "low": difference.low, "high": difference.high},
    )


def _walk(contract: Contract, evidence: Evidence) -> Finding:
    walk = evidence.walk
    if walk is None:
        return Finding(WALK, True, evidence.no_champion_because)
    left_out = "".join(f"; {window} is not judged: {why}" for window, why in walk.skipped.items())
    if not walk.windows:
        return Finding(WALK, True, f"there is no earlier window to compare on{left_out}")
    difference = metrics.mean_paired_difference(
        metrics.fast_roc_auc,
        walk.place,
        walk.labels,
        walk.recipe,
        walk.champion,
        walk.customers,
        contract.gates.confidence,
    )
    each = {}
    for place, window in enumerate(walk.windows):
        here = walk.place == place
        said = (metrics.fast_roc_auc(walk.labels[here], scores[here]) for scores in (walk.recipe, walk.champion))
        each[window] = next(said) - next(said)
    listed = ", ".join(f"{window} {gap:+.4f}" for window, gap in each.items())
    return Finding(
        WALK,
        difference.high >= 0,
        f"trained as of each window, ROC AUC differs by {difference} on average from the champion's "
        f"({listed}){left_out}",
        "The champion stays: what looks as good on the newest window would have been worse before. Look at what "
        "changed in the training data, or train on more windows (model.train_windows).",
        {"difference": difference.value, "low": difference.low, "high": difference.high},
    )


def _slices(contract: Contract, evidence: Evidence) -> Finding:
    asked = contract.gates.slices
    bounded = [*asked.minimum, *(metric for metric in asked.maximum if metric not in asked.minimum)]
    if not contract.slices or not bounded:
        return Finding(SLICES, True, "the contract names no slices" if not contract.slices else "no floor is stated")
    below, judged, small = [], 0, []
    lowest: tuple[float, str] = (float("inf"), "")
    for column in contract.slices:
        values = evidence.tested[column]
        named = values.astype(object).where(values.notna(), "(unknown)").astype(str).to_numpy()
        for value in sorted(set(named)):
            there = named == value
            labels, said = evidence.labels[there], evidence.candidate[there]
            churners = int(labels.sum())
            if len(labels) < asked.min_rows or not asked.min_churners <= churners < len(labels):
                small.append(f"{column} = {value} ({len(labels):,} rows, {churners:,} churners)")
                continue
            judged += 1
            measured = metrics.evaluate(labels, said, evidence.threshold)
            lowest = min(lowest, (measured["roc_auc"], f"{column} = {value}"))
            below += [
                f"{column} = {value} ({len(labels):,} rows): {metric} is {measured[metric]:.4f}, asked for is "
                f"{_bounds(asked.minimum, asked.maximum, metric)}"
                for metric in bounded
                if not asked.minimum.get(metric, -np.inf) <= measured[metric] <= asked.maximum.get(metric, np.inf)
            ]
    skipped = f"; too small to judge: {', '.join(small)}" if small else ""
    weakest = f"the weakest of {judged} slices, {lowest[1]}, has a ROC AUC of {lowest[0]:.4f}"
    return Finding(
        SLICES,
        not below,
        ("; ".join(below) or (weakest if judged else "no slice is large enough to judge")) + skipped,
        "The model fails a group of customers that its average hides. Look at that group's features and labels; the "
        "floor stands under gates.slices in contract.yaml.",
        {"slices_judged": judged, "slices_skipped": len(small)},
    )


def _stable(contract: Contract, evidence: Evidence) -> Finding:
    if evidence.champion is None:
        return Finding(STABLE, True, evidence.no_champion_because)
    asked = contract.gates.max_score_shift
    shift = _shift(evidence.candidate, evidence.champion)
    words = (
        f"scores are distributed {shift:.4f} away from the champion's on the same rows; asked for is at most {asked}"
    )
    found = {"shift": shift, "maximum": asked}
    if not shift > asked:
        return Finding(STABLE, True, words, metadata=found)
    gain = metrics.paired_difference(
        metrics.brier,
        evidence.labels,
        evidence.champion,
        evidence.candidate,
        evidence.customers,
        contract.gates.confidence,
    )
    borne_out = gain.low > 0
    why = "and outcomes bear it out" if borne_out else "and outcomes do not bear it out"
    return Finding(
        STABLE,
        borne_out,
        f"{words}, {why}: the Brier score is better by {gain}",
        "Whoever works with the scores would see other customers at risk overnight, without being told better. Look "
        "for a changed label, calibration or feature; raise gates.max_score_shift if the change is meant.",
        found | {"gain": gain.value, "low": gain.low, "high": gain.high},
    )


def _shift(first: Array, second: Array) -> float:
    """The Wasserstein distance of the two distributions: by how much sorted probabilities differ on average."""
    return float(np.abs(np.sort(first) - np.sort(second)).mean())


def _shadow(contract: Contract, evidence: Evidence) -> Finding:
    needed, most = contract.gates.shadow_answers, contract.gates.max_score_shift
    if not needed:
        return Finding(SHADOW, True, "the contract asks for no answers in the shadow")
    if evidence.champion is None:
        return Finding(SHADOW, True, evidence.no_champion_because)
    if evidence.shadow is None:
        return Finding(SHADOW, False, "the prediction log was not looked at", "Judge it once more.")
    shadow, found = evidence.shadow, {"answers": evidence.shadow.answers, "failed": evidence.shadow.failed}
    if shadow.failed:
        words = f"in the shadow it gave no answer to {shadow.failed:,} live requests, and {shadow.answers:,} answers"
        remedy = "It fails on what customers are really like: look at the endpoint's log and at these rows of "
        remedy += "prediction_log (shadow_probability is missing)."
        return Finding(SHADOW, False, words, remedy, found)
    words = f"in the shadow it gave {shadow.answers:,} answers beside the champion's; asked for are {needed:,}"
    if shadow.answers < needed:
        remedy = "Let it score live requests (serving.shadow) until there are enough, execute the checks of "
        remedy += "candidate_model once more, then materialize champion."
        return Finding(SHADOW, False, words, remedy, found)
    shift = _shift(shadow.candidate, shadow.champion)
    return Finding(
        SHADOW,
        shift <= most,
        f"{words}; they are distributed {shift:.4f} away from the champion's; asked for is at most {most}",
        "On live requests it sees other customers at risk than the champion does, whatever it said of the test window. "
        "Look for features that are other online; raise gates.max_score_shift if the change is meant.",
        found | {"shift": shift, "maximum": most},
    )


def _thresholds(contract: Contract, evidence: Evidence) -> list[Finding]:
    measured = metrics.evaluate(evidence.labels, evidence.candidate, evidence.threshold)
    found = []
    for metric in contract.metrics_gated:
        value = measured[metric]
        least, most = contract.minimum.get(metric), contract.gates.maximum.get(metric)  # type: ignore[call-overload]
        passed = not np.isnan(value) and (least is None or value >= least) and (most is None or value <= most)
        asked = _asked(contract, metric)
        found.append(
            Finding(
                f"{metric}_is_good_enough",
                bool(passed),
                f"{metric} is {value:.4f}; asked for is {asked}",
                f"The candidate is not promoted. Compare it with earlier runs in MLflow; the bound stands under "
                f"gates in contract.yaml ({metric}).",
                {
                    "value": value,
                    **({"minimum": least} if least is not None else {}),
                    **({"maximum": most} if most is not None else {}),
                },
            )
        )
    return found
