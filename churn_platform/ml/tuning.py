"""The search for hyperparameters: Optuna over cross-validation folds of the training windows.

It looks at training rows only. Validation rows stay new to whatever it finds, for the calibration and the threshold
that are chosen on them; so do test rows, for the gates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from churn_platform.contract import LABEL
from churn_platform.ml import metrics, models
from churn_platform.ml.splits import NotEnoughDataError, folds

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna
    import pandas as pd

    from churn_platform.contract import Contract, Search

_BETTER: dict[str, Literal["maximize", "minimize"]] = {"roc_auc": "maximize", "pr_auc": "maximize", "brier": "minimize"}
_UNPRUNED = 5  # the first trials see all folds: a median of fewer says little


@dataclass(frozen=True)
class Trial:
    """One set of parameters, and how it did on the folds that it saw."""

    number: int  # from 1
    parameters: dict[str, Any]  # of the search space; the other parameters are the same in all trials
    scores: list[float]  # one per fold, in the folds' order
    state: Literal["complete", "pruned", "out_of_time"]
    seconds: float

    @property
    def score(self) -> float:
        """The mean over the folds."""
        return float(np.mean(self.scores)) if self.scores else float("nan")


@dataclass(frozen=True)
class Found:
    """How a search ended."""

    parameters: dict[str, Any]  # all of the estimator's, the best trial's among them
    metric: str
    trials: list[Trial] = field(default_factory=list)
    best: int = 1  # the number of the best trial; 1 is the contract's own parameters
    cut: bool = False  # the time ended it: another machine may find something else
    why_not: str = ""  # why there was no search, where one was asked for

    def __str__(self) -> str:
        if self.why_not:
            return f"no search: {self.why_not}"
        pruned = sum(trial.state == "pruned" for trial in self.trials)
        first, best = self.trials[0].score, self.trials[self.best - 1].score
        words = f"{len(self.trials)} trials, {pruned} of them pruned; {self.metric} {best:.4f} "
        words += (
            f"in trial {self.best}, {first:.4f} without a search" if self.best > 1 else "without a search is the best"
        )
        return words + ("; cut short by its time budget" if self.cut else "")


def search(
    contract: Contract,
    rows: pd.DataFrame,
    say: Callable[[str], None] = lambda _: None,
    each: Callable[[Trial], None] = lambda _: None,
) -> Found:
    """Look for parameters that are better than the contract's own, which are the first trial.

    Trials are suggested by a seeded tree-structured Parzen estimator (Bergstra et al. 2011), one after the other. After
    each fold a trial is pruned that did worse so far than the median of earlier trials had at that fold. The best is
    the complete trial with the best mean over all folds: on these folds never worse than the contract's own. The same
    rows and seed give the same result, unless the time ended the search.

    Args:
        contract: `model.search`, which must be there, and the family.
        rows: training rows alone.
        say: told of the progress, once a trial.
        each: given every trial as it ends.
    """
    spec, settings = contract.model, _settings(contract)
    own, space = models.hyperparameters(spec), models.searched(spec)
    began = monotonic()
    rows = _sample(contract, rows, settings.sample_rows)
    parts, why_not = _folds(contract, rows, settings.folds)
    if not space:
        why_not = f"model.params fixes every parameter of {spec.family} that is searched"
    if why_not:
        found = Found(own, settings.metric, why_not=why_not)
        say(str(found))
        return found

    study = _study(settings, spec.seed)
    study.enqueue_trial({name: own[name] for name in space})
    trials: list[Trial] = []
    best, cut = 1, False
    while len(trials) < settings.trials and not cut:
        asked = study.ask()
        chosen = {name: _suggest(asked, name, choice) for name, choice in space.items()}
        started, scores = monotonic(), []
        state: Literal["complete", "pruned", "out_of_time"] = "complete"
        for step, (train, valid) in enumerate(parts):
            if trials and monotonic() - began > settings.seconds:
                state, cut = "out_of_time", True
                break
            model = models.fit(contract, train[0], train[1], own | chosen)
            scores.append(_score(settings.metric, valid[1], models.probabilities(model, valid[0])))
            asked.report(float(np.mean(scores)), step)
            if step + 1 < len(parts) and asked.should_prune():
                state = "pruned"
                break
        trial = Trial(len(trials) + 1, chosen, scores, state, monotonic() - started)
        trials.append(trial)
        _tell(study, asked, trial)
        if state == "complete" and _is_better(settings.metric, trial.score, trials[best - 1].score):
            best = trial.number
        each(trial)
        say(_words(trial, settings, trials[best - 1]))
    found = Found(own | trials[best - 1].parameters, settings.metric, trials, best, cut)
    say(f"the search is over: {found}")
    return found


def _settings(contract: Contract) -> Search:
    if contract.model.search is None:
        raise ValueError("model.search is not in the contract: there is nothing to search for.")
    return contract.model.search


def _sample(contract: Contract, rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """Whole customers, drawn by the model's seed, until there are about as many rows as wanted."""
    if len(rows) <= most:
        return rows
    customers = rows[contract.customer.name].drop_duplicates()
    drawn = customers.sample(frac=most / len(rows), random_state=contract.model.seed)
    return rows[rows[contract.customer.name].isin(drawn)].reset_index(drop=True)


Part = tuple[tuple[Any, Any], tuple[Any, Any]]  # (inputs, labels) to fit on, and to judge by


def _folds(contract: Contract, rows: pd.DataFrame, n: int) -> tuple[list[Part], str]:
    """The folds that hold both classes on both sides; without any, why."""
    try:
        found = folds(contract, rows, n)
    except NotEnoughDataError as error:
        return [], str(error)
    inputs, labels = models.frame(contract, rows), rows[LABEL].to_numpy(dtype="float64")
    parts = [tuple((inputs.iloc[side], labels[side]) for side in (fold.train, fold.valid)) for fold in found]
    usable = [(train, valid) for train, valid in parts if 0 < train[1].mean() < 1 and 0 < valid[1].mean() < 1]
    return usable, "" if usable else "no fold has churners and others on both sides."


def _study(settings: Search, seed: int) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # progress is told by `say`
    return optuna.create_study(
        direction=_BETTER[settings.metric],
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED),
    )


def _suggest(trial: optuna.Trial, name: str, choice: models.Between | models.OneOf) -> Any:
    if isinstance(choice, models.OneOf):
        return trial.suggest_categorical(name, choice.values)
    if choice.whole:
        return trial.suggest_int(name, int(choice.low), int(choice.high), log=choice.log)
    return trial.suggest_float(name, choice.low, choice.high, log=choice.log)


def _tell(study: optuna.Study, asked: optuna.Trial, trial: Trial) -> None:
    from optuna.trial import TrialState

    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "out_of_time": TrialState.FAIL}
    study.tell(asked, trial.score if trial.state == "complete" else None, state=states[trial.state])


def _score(metric: str, labels: Any, probability: Any) -> float:
    from sklearn.metrics import average_precision_score

    if metric == "roc_auc":
        return metrics.fast_roc_auc(labels, probability)
    return (
        metrics.brier(labels, probability) if metric == "brier" else float(average_precision_score(labels, probability))
    )


def _is_better(metric: str, score: float, than: float) -> bool:
    return score > than if _BETTER[metric] == "maximize" else score < than


def _words(trial: Trial, settings: Search, best: Trial) -> str:
    ended = {"complete": "", "pruned": " when it was pruned", "out_of_time": " when the time was up"}[trial.state]
    shown = f"{settings.metric} {trial.score:.4f}{ended}" if trial.scores else "not begun when the time was up"
    return f"trial {trial.number} of {settings.trials}: {shown}, {trial.seconds:.1f} s; best so far {best.score:.4f}"
