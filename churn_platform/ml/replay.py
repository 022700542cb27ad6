"""Replay: a team's own history once more, window by window, under several retraining policies side by side.

Everything happens as the platform would have done it, in its order: a window's customers are scored by the champion of
the time, compared with what that champion was trained on, and measured as far as labels had matured; then
`ml.policy.decide` says whether to retrain, on the labels that were mature by then and no others. A candidate as of a
window is the same for every policy, so it is trained once, and asked about each later window once; what is left of a
policy is bookkeeping. Hyperparameters are not searched for: every candidate has those of the contract.

Policies are compared with never retraining, window by window and customer by customer (paired). The interval is that of
a bootstrap over customers (normal, from its standard error), widened for the number of comparisons (Bonferroni).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from churn_platform.contract import LABEL, MATURED_AT, MODEL_VERSION, PROBABILITY, SNAPSHOT_TIME, Budget
from churn_platform.ml import decisions, drift, gates, metrics, models, performance, policy
from churn_platform.ml.retrials import Walk
from churn_platform.ml.splits import NotEnoughDataError, window_keys
from churn_platform.ml.training import Trained, train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from churn_platform.contract import Contract

    Array = NDArray[np.float64]

KNOWN_IN = "_matured"  # the window in which a row's label became known; missing where it is not yet
WINDOW = "_window"
NEVER = "never retrain"
WORTHWHILE = 0.005  # of ROC AUC: what is gained below that is no reason to retrain, however certain
DRAWS = 200  # of the bootstrap, for a standard error
_AGAINST_CHAMPION = {gates.CHAMPION, gates.WALK, gates.STABLE}
_JUDGED = {gates.WINDOW, gates.TRAINING, gates.BASE, gates.SLICES}


class ReplayError(ValueError):
    """There is no history to replay, or too little of it."""


@dataclass(frozen=True)
class Policy:
    """When to retrain, as a contract says it; and whether a candidate has to face the champion."""

    name: str
    contract: Contract
    gated: bool = True

    @property
    def title(self) -> str:
        """The name, and what is missing."""
        return self.name if self.gated else f"{self.name}, no champion gate"


@dataclass
class Played:
    """What a policy did."""

    policy: Policy
    champions: dict[str, str] = field(default_factory=dict)  # window to the window as of which its scorer was trained
    trained: list[str] = field(default_factory=list)  # the windows as of which candidates were trained
    promoted: list[str] = field(default_factory=list)  # and those that became champion
    reasons: dict[str, str] = field(default_factory=dict)  # window to what the policy said

    @property
    def retrains(self) -> int:
        """How many candidates were trained after the first champion."""
        return sum(window > self.promoted[0] for window in self.trained) if self.promoted else 0


@dataclass(frozen=True)
class Result:
    """How a policy did on the windows that all policies scored and whose labels are known by now."""

    played: Played
    roc_auc: float  # mean over windows
    brier: float
    better: metrics.Interval  # mean ROC AUC less that of never retraining
    brier_better: metrics.Interval  # mean Brier score of never retraining less this one
    profit: float | None  # earned by contacting whom the contract would, in all; None without a section `value`
    wins: int  # windows with a higher ROC AUC than never retraining
    losses: int

    @property
    def retrains(self) -> int:
        """How many candidates were trained after the first champion."""
        return self.played.retrains


@dataclass(frozen=True)
class Report:
    """The results, in the order of the policies, and what follows from them."""

    windows: list[str]
    results: list[Result]
    by_window: dict[str, list[float]]  # policy to ROC AUC per window
    recommendation: str

    def table(self) -> str:
        """As Markdown."""
        lines = [
            "| policy | retrains | promoted | ROC AUC | against never | Brier | against never | profit | won | lost |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for found in self.results:
            profit = "" if found.profit is None else f"{found.profit:,.0f}"
            lines.append(
                f"| {found.played.policy.title} | {found.retrains} | {len(found.played.promoted) - 1} | "
                f"{found.roc_auc:.4f} | {found.better} | {found.brier:.4f} | {found.brier_better} | {profit} | "
                f"{found.wins} | {found.losses} |"
            )
        return "\n".join(lines)


def policies(contract: Contract) -> list[Policy]:
    """The policies that are compared, each with and without the champion gate; never retraining is the first."""
    often = {"cooldown_windows": 0, "budget": Budget(retrains=10**6, windows=1)}
    once = {"drifted_windows": 1, "of_last": 1, "when": ["drift"]}
    asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("every window", {"when": ["every_window"], **often}, {}),
        ("drift of any feature", once, {"judged_by": "any_feature"}),
        ("drift of watched features", once, {"judged_by": "share"}),
        ("drift of scores", once, {"judged_by": "scores"}),
        ("drift in 2 of 3 windows", {**once, "drifted_windows": 2, "of_last": 3}, {"judged_by": "share"}),
        ("fall of performance", {"when": ["performance"]}, {}),
        ("the contract's own", {}, {}),
    ]
    found = [Policy(NEVER, _with(contract, {"when": []}, {}))]
    for name, retraining, drifting in asked:
        found += [Policy(name, _with(contract, retraining, drifting), gated) for gated in (True, False)]
    return found


def _with(contract: Contract, retraining: dict[str, Any], drifting: dict[str, Any]) -> Contract:
    return contract.model_copy(
        update={
            "retraining": contract.retraining.model_copy(update=retraining),
            "drift": contract.drift.model_copy(update=drifting),
        }
    )


def replay(
    contract: Contract,
    rows: pd.DataFrame,
    chosen: Sequence[Policy] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Replay a history under policies.

    Args:
        contract: of the history.
        rows: every customer at risk at every observation: key, `snapshot_time` (UTC), the features, the window
            (`_window`), and as far as it is known by now `churned`, `label_matured_at` and the window in which the
            label became known (`_matured`).
        chosen: the policies; by default `policies(contract)`. The first is what the others are compared with.
        say: told what is going on.

    Raises:
        ReplayError: no model could have been trained, or no window was scored whose labels are known by now.
    """
    world = _World(contract, rows, say)
    played = []
    for each in chosen or policies(contract):
        played.append(world.play(each))
        say(f"{each.title}: {played[-1].retrains} retrains, {len(played[-1].promoted)} champions")
    return _report(world, played)


@dataclass(frozen=True)
class _Candidate:
    key: str
    trained: Trained
    tested: list[str]  # windows of the test rows


class _World:
    """A history, and what was found out about it so far: candidates, answers, verdicts and distances."""

    def __init__(self, contract: Contract, rows: pd.DataFrame, say: Callable[[str], None]) -> None:
        if contract.snapshots is not None and contract.snapshots.time is None:
            raise ReplayError("a table without dates has no history to replay: it takes a `time` column.")
        self.contract = contract.model_copy(update={"model": contract.model.model_copy(update={"search": None})})
        self.say = say
        self.windows = sorted(rows[WINDOW].unique())
        self.rows = {str(key): part.reset_index(drop=True) for key, part in rows.groupby(WINDOW, sort=True)}
        self.known = rows[rows[KNOWN_IN].notna()].reset_index(drop=True)
        self._candidates: dict[str, _Candidate | None] = {}
        self._answers: dict[tuple[str, str], Array] = {}
        self._verdicts: dict[tuple[str, str | None], bool] = {}
        self._drifts: dict[tuple[str, str], drift.DriftReport | None] = {}
        self._drops: dict[tuple[str, str, tuple[tuple[str, str], ...]], float | None] = {}

    @cached_property
    def parameters(self) -> dict[str, Any]:
        return models.hyperparameters(self.contract.model)

    def candidate(self, key: str) -> _Candidate | None:
        """The model of all labels that were known at the end of a window; None where they did not suffice."""
        if key not in self._candidates:
            then = self.known[self.known[KNOWN_IN] <= key]
            found = None
            if not then.empty:
                try:
                    trained = train(self.contract, then.drop(columns=KNOWN_IN), parameters=self.parameters)
                    tested = sorted(window_keys(self.contract, trained.splits.test[SNAPSHOT_TIME]).unique())
                    found = _Candidate(key, trained, tested)
                    self.say(f"trained as of {key}: {len(then):,} labels")
                except NotEnoughDataError:
                    pass
            self._candidates[key] = found
        return self._candidates[key]

    def said(self, key: str, window: str) -> Array:
        """What the candidate of a window says of the customers of another, shape (customers,)."""
        if (key, window) not in self._answers:
            model = self._require(key).trained.pipeline
            inputs = models.frame(self.contract, self.rows[window])
            self._answers[key, window] = models.probabilities(model, inputs)
        return self._answers[key, window]

    def _require(self, key: str) -> _Candidate:
        found = self.candidate(key)
        if found is None:
            raise ReplayError(f"no model could have been trained as of {key}.")
        return found

    def play(self, chosen: Policy) -> Played:
        """Live through the history under a policy."""
        done = Played(chosen)
        champion: str | None = None
        drifted: dict[str, bool] = {}
        drops: dict[str, float] = {}
        refused_with = -1  # labels of the last candidate that was refused as a first champion
        for place, window in enumerate(self.windows):
            if champion is None:
                labels = int((self.known[KNOWN_IN] <= window).sum())
                candidate = self.candidate(window) if labels > refused_with else None
                if candidate is None:
                    continue
                done.trained.append(window)
                if not self._passes(window, None):
                    refused_with = labels
                    continue
                champion = window
                done.promoted.append(window)
                done.champions[window] = window
                self._watch(chosen, champion, window, done, drifted, drops)
                continue
            done.champions[window] = champion
            self._watch(chosen, champion, window, done, drifted, drops)
            decision = policy.decide(chosen.contract, self.windows[: place + 1], drifted, drops, done.trained)
            done.reasons[window] = decision.reason
            if not decision.retrain or self.candidate(window) is None:
                continue
            done.trained.append(window)
            if self._passes(window, champion if chosen.gated else None):
                champion = window
                done.promoted.append(window)
                drifted, drops = {}, {}  # what was said of the champion before is no reason to replace this one
        return done

    def _watch(  # noqa: PLR0917 - what is watched, and where it is noted
        self,
        chosen: Policy,
        champion: str,
        window: str,
        done: Played,
        drifted: dict[str, bool],
        drops: dict[str, float],
    ) -> None:
        found = self._drift(champion, window)
        drifted[window] = found is not None and drift.verdict(chosen.contract, found.columns)[1]
        drop = self._drop(champion, window, done.champions)
        if drop is not None:
            drops[window] = drop

    def _drift(self, champion: str, window: str) -> drift.DriftReport | None:
        """How far a window's customers lie from those that a champion was trained on."""
        if (champion, window) not in self._drifts:
            now = self.rows[window].assign(**{PROBABILITY: self.said(champion, window)})
            try:
                report = drift.compare(self.contract, self._require(champion).trained.reference, now)
            except drift.DriftError:
                report = None
            self._drifts[champion, window] = report
        return self._drifts[champion, window]

    def _drop(self, champion: str, window: str, scored_by: dict[str, str]) -> float | None:
        """How far live ROC AUC fell, by the labels that became known in a window of what this champion had scored."""
        scored = tuple(
            (other, model) for other, model in scored_by.items() if (self.rows[other][KNOWN_IN] == window).any()
        )
        asked = (champion, window, scored)
        if asked not in self._drops:
            self._drops[asked] = self._measured_drop(*asked) if scored else None
        return self._drops[asked]

    def _measured_drop(self, champion: str, window: str, scored: tuple[tuple[str, str], ...]) -> float | None:
        parts = []
        for other, model in scored:
            rows = self.rows[other]
            there = (rows[KNOWN_IN] == window).to_numpy()
            part = rows.loc[there, [LABEL, SNAPSHOT_TIME]].copy()
            part[PROBABILITY], part[MODEL_VERSION] = self.said(model, other)[there], model
            parts.append(part)
        found, _ = performance.measure(self.contract, pd.concat(parts), self._tags)
        return found[-1].drop(self.contract) if found and found[-1].model == champion else None

    def _tags(self, key: str) -> dict[str, str]:
        trained = self._require(key).trained
        known = self.known.loc[self.known[KNOWN_IN] <= key, MATURED_AT].max()
        return {
            "labels_known_until": str(known),
            "test_roc_auc": repr(trained.metrics.get("test_roc_auc", float("nan"))),
            "threshold": repr(trained.threshold),
        }

    def _passes(self, key: str, champion: str | None) -> bool:
        """Whether a candidate passes the gates that judge answers, those against a champion among them if there is one.

        The others (leaks, ids, budget, signature) guard against foreign models and broken data. These candidates are
        all of one making, so a history that was processed has passed them.
        """
        if (key, champion) not in self._verdicts:
            wanted = _JUDGED | {f"{metric}_is_good_enough" for metric in self.contract.metrics_gated}
            if champion is not None:
                wanted |= _AGAINST_CHAMPION
            found = gates.judge(self.contract, self._evidence(key, champion), wanted)
            self._verdicts[key, champion] = all(finding.passed for finding in found)
        return self._verdicts[key, champion]

    def _evidence(self, key: str, champion: str | None) -> gates.Evidence:
        trained = self._require(key).trained
        parts = trained.splits

        def asked(model: Any) -> Callable[[pd.DataFrame], Array]:
            return lambda rows: models.probabilities(model, models.frame(self.contract, rows))

        by_champion = None if champion is None else asked(self._require(champion).trained.pipeline)
        return gates.Evidence(
            customers=parts.test[self.contract.customer.name].astype(str),
            tested=parts.test,
            fitted=pd.concat([parts.train, parts.validation]),
            split_by=parts.by,
            labels=parts.test[LABEL].to_numpy(dtype="float64"),
            candidate=trained.test_probability,
            champion=None if by_champion is None else by_champion(parts.test),
            again=None,
            walk=None if by_champion is None else self._walk(key, str(champion), by_champion),
            answers=asked(trained.pipeline),
            train_rate=trained.train_rate,
            threshold=trained.threshold,
            has_signature=True,
            megabytes=None,
        )

    def _walk(self, key: str, champion: str, by_champion: Callable[[pd.DataFrame], Array]) -> Walk:
        """The recipe on earlier windows: the candidates that were tested on them, which exist already."""
        first = min(self._require(key).tested)
        unseen_from = self._require(champion).trained.splits.test[SNAPSHOT_TIME].min()
        earlier: dict[str, Trained] = {}
        for other in self.windows[: self.windows.index(key)]:
            found = self.candidate(other)
            if found is not None and max(found.tested) < first:
                earlier[max(found.tested)] = found.trained
        judged = [
            (window, found)
            for window, found in sorted(earlier.items())[-self.contract.gates.walk_forward.windows :]
            if found.splits.test[SNAPSHOT_TIME].min() >= unseen_from and found.splits.test[LABEL].nunique() > 1
        ]
        tested = pd.concat([found.splits.test for _, found in judged]) if judged else self.known.iloc[:0]
        return Walk(
            windows=[window for window, _ in judged],
            place=np.repeat(np.arange(len(judged)), [len(found.splits.test) for _, found in judged]),
            customers=tested[self.contract.customer.name].astype(str),
            labels=tested[LABEL].to_numpy(dtype="float64"),
            recipe=np.concatenate([found.test_probability for _, found in judged]) if judged else np.zeros(0),
            champion=by_champion(tested) if judged else np.zeros(0),
        )


# ------------------------------------------------------------------------------------------------- what it comes to


@dataclass(frozen=True)
class _Judged:
    """The labelled customers of one window that every policy scored."""

    window: str
    there: NDArray[np.bool_]
    labels: Array
    customers: pd.Series[str]


class _Bootstrap:
    """Metrics of what champions said of windows, in draws of customers that are the same for all of them."""

    def __init__(self, world: _World, judged: list[_Judged]) -> None:
        self._world = world
        groups = pd.factorize(pd.concat([window.customers for window in judged]))[0]
        bounds = np.cumsum([0, *(len(window.labels) for window in judged)])
        self._number = int(groups.max()) + 1
        self._groups = [groups[first:last] for first, last in pairwise(bounds)]
        self._judged = judged
        self._known: dict[tuple[str, str, int], Array] = {}

    def drawn(self, metric: Callable[[Array, Array], float], asked: Sequence[tuple[str, int]]) -> list[Array]:
        """A metric in each draw, shape (DRAWS,), for each champion and place of a window."""
        missing = [each for each in asked if (metric.__name__, *each) not in self._known]
        of_weights = [self._of_weights(metric, *each) for each in missing]
        values = np.empty((len(missing), DRAWS))
        random = np.random.default_rng(7)
        for draw in range(DRAWS if missing else 0):
            weights = np.bincount(random.integers(0, self._number, self._number), minlength=self._number)
            values[:, draw] = [
                of(weights[self._groups[place]]) for of, (_, place) in zip(of_weights, missing, strict=True)
            ]
        self._known |= {(metric.__name__, *each): row for each, row in zip(missing, values, strict=True)}
        return [self._known[metric.__name__, *each] for each in asked]

    def _of_weights(
        self, metric: Callable[[Array, Array], float], key: str, place: int
    ) -> Callable[[NDArray[np.int64]], float]:
        window = self._judged[place]
        return metrics.weighed(metric, window.labels, self._world.said(key, window.window)[window.there])


def _report(world: _World, played: list[Played]) -> Report:
    judged = _judged(world, played)
    bootstrap = _Bootstrap(world, judged)
    paths = {_path(each, judged) for each in played} - {_path(played[0], judged)}
    z = NormalDist().inv_cdf(1 - (1 - world.contract.gates.confidence) / 2 / max(len(paths), 1))
    measured: dict[tuple[str, ...], Result] = {}
    results, by_window = [], {}
    for each in played:
        path = _path(each, judged)
        if path not in measured:
            world.say(f"comparing {each.policy.title} with {played[0].policy.title}")
            measured[path] = _result(world, judged, bootstrap, each, played[0], z)
        found = measured[path]
        results.append(Result(**{**vars(found), "played": each}))
        by_window[each.policy.title] = [_roc_auc(world, window, key) for window, key in zip(judged, path, strict=True)]
    return Report([window.window for window in judged], results, by_window, _recommend(results, len(judged)))


def _judged(world: _World, played: list[Played]) -> list[_Judged]:
    found = []
    for window in world.windows:
        if all(window in each.champions for each in played):
            rows = world.rows[window]
            there = rows[KNOWN_IN].notna().to_numpy()
            labels = rows.loc[there, LABEL].to_numpy(dtype="float64")
            if 0 < labels.sum() < len(labels):
                found.append(_Judged(window, there, labels, rows.loc[there, world.contract.customer.name].astype(str)))
    if not found:
        raise ReplayError(
            "no window was scored by a model and has labels by now, so there is nothing to compare. Process more "
            "windows (`churn play`), or lower model.min_windows."
        )
    return found


def _path(played: Played, judged: list[_Judged]) -> tuple[str, ...]:
    return tuple(played.champions[window.window] for window in judged)


def _roc_auc(world: _World, window: _Judged, key: str) -> float:
    return metrics.fast_roc_auc(window.labels, world.said(key, window.window)[window.there])


def _result(  # noqa: PLR0917 - two policies, and what they are compared on
    world: _World, judged: list[_Judged], bootstrap: _Bootstrap, played: Played, never: Played, z: float
) -> Result:
    path, other = _path(played, judged), _path(never, judged)
    said, others = (
        [world.said(key, w.window)[w.there] for key, w in zip(keys, judged, strict=True)] for keys in (path, other)
    )
    # where the two had the same champion they do not differ, in no draw
    differing = [place for place, (mine, theirs) in enumerate(zip(path, other, strict=True)) if mine != theirs]
    found = {}
    for metric in (metrics.fast_roc_auc, metrics.brier):
        values = [
            (metric(w.labels, mine), metric(w.labels, theirs))
            for w, mine, theirs in zip(judged, said, others, strict=True)
        ]
        gain = float(np.mean([mine - theirs for mine, theirs in values]))
        error = 0.0
        if differing:
            mine, theirs = (
                np.array(bootstrap.drawn(metric, [(keys[place], place) for place in differing]))
                for keys in (path, other)
            )
            error = float(np.std(np.nansum(mine - theirs, axis=0), ddof=1)) / len(judged)
        found[metric] = (float(np.mean([mine for mine, _ in values])), gain, error, values)
    roc_auc, gain, error, values = found[metrics.fast_roc_auc]
    brier, worse, brier_error, _ = found[metrics.brier]
    less = 0 - worse
    return Result(
        played=played,
        roc_auc=roc_auc,
        brier=brier,
        better=metrics.Interval(gain, gain - z * error, gain + z * error),
        brier_better=metrics.Interval(less, less - z * brier_error, less + z * brier_error),
        profit=_profit(world, judged, said),
        wins=sum(mine > theirs for mine, theirs in values),
        losses=sum(mine < theirs for mine, theirs in values),
    )


def _profit(world: _World, judged: list[_Judged], said: list[Array]) -> float | None:
    if world.contract.value is None:
        return None
    earned = 0.0
    for window, probability in zip(judged, said, strict=True):
        worth = decisions.worth(world.contract, world.rows[window.window][window.there])
        contacted = decisions.choose(world.contract, probability, worth)
        earned += decisions.realised_profit(world.contract, window.labels, contacted, worth)
    return earned


def _recommend(results: list[Result], windows: int) -> str:
    """The policy to choose, by ROC AUC; or that the data cannot tell them apart.

    A policy whose Brier score is significantly worse is never chosen: contacts are weighed by probabilities.
    """
    never, others = results[0], results[1:]
    false = [found for found in others if found.brier_better.high < 0]
    better = [found for found in others if found.better.low > 0 and found.better.value >= WORTHWHILE]
    better = [found for found in better if found not in false]
    worse = [found for found in others if found.better.high < 0]
    warned = f" Worse than never retraining: {_titles(worse)}." if worse else ""
    if false:
        warned += f" Not considered, as its probabilities are significantly worse (Brier score): {_titles(false)}."
    if not better:
        return (
            f"Over {windows} windows no policy is significantly better than to {never.played.policy.title}, by "
            f"{WORTHWHILE} of ROC AUC or more (customers drawn anew, all comparisons together). Retrain seldom: the "
            f"data does not show that it pays.{warned}"
        )
    best = max(better, key=lambda found: found.roc_auc)
    # as good as the best, as far as the interval of the best's gain tells, for the fewest retrains; gated before not
    near = [found for found in better if found.better.value >= best.better.low]
    chosen = min(near, key=lambda found: (found.retrains, not found.played.policy.gated))
    return (
        f"Choose: {chosen.played.policy.title}. Over {windows} windows its ROC AUC is better by {chosen.better} than "
        f"to {never.played.policy.title}, with {chosen.retrains} retrains. As good within what the data can tell, or "
        f"better: {_titles([found for found in near if found is not chosen]) or 'no other'}.{warned}"
    )


def _titles(results: list[Result]) -> str:
    return ", ".join(found.played.policy.title for found in results)
