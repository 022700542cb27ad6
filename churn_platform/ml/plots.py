"""Plots of a model and of a window, as matplotlib figures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from churn_platform.ml.replay import Report

    Array = NDArray[np.float64]

_BLUE, _ORANGE, _GREY = "#2f6f9f", "#d9822b", "#9aa5ab"


def png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return buffer.getvalue()


def roc_and_precision(labels: Array, probability: Array, title: str) -> Figure:
    """ROC and precision-recall curves side by side."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2)
    false_positive, true_positive, _ = roc_curve(labels, probability)
    left.plot(false_positive, true_positive, color=_BLUE)
    left.plot([0, 1], [0, 1], color=_GREY, linestyle=":")
    left.set(xlabel="false positive rate", ylabel="true positive rate", title=f"ROC, {title}")
    precision, recall, _ = precision_recall_curve(labels, probability)
    right.plot(recall, precision, color=_BLUE)
    right.axhline(labels.mean(), color=_GREY, linestyle=":")
    right.set(xlabel="recall", ylabel="precision", title=f"precision and recall, {title}", ylim=(0, 1.02))
    return figure


def reliability(
    labels: Array, probability: Array, title: str, bins: int = 10, *, before: Array | None = None
) -> Figure:
    """How often churn came true against what was said, in bins of equal size; `before`: what calibration made it of."""
    figure = Figure(figsize=(4.5, 4))
    axes = figure.subplots()
    top = 0.05
    for said, colour, name in ((before, _GREY, "before calibration"), (probability, _BLUE, "as it is said")):
        if said is None:
            continue
        parts = [part for part in np.array_split(np.argsort(said, kind="stable"), bins) if len(part)]
        points = [(float(said[part].mean()), float(labels[part].mean())) for part in parts]
        axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=name)
        top = max(top, *(max(point) for point in points))
    axes.plot([0, top * 1.05], [0, top * 1.05], color=_GREY, linestyle=":")
    axes.set(xlabel="probability said", ylabel="share that churned", title=f"reliability, {title}")
    if before is not None:
        axes.legend()
    return figure


def search(scores: list[float], best_so_far: list[float], metric: str) -> Figure:
    """The score of each trial in turn, and the best up to it."""
    figure = Figure(figsize=(6, 3.2))
    axes = figure.subplots()
    numbers = range(1, len(scores) + 1)
    axes.plot(numbers, scores, marker="o", linestyle="", color=_BLUE, label="trial")
    axes.step(numbers, best_so_far, where="post", color=_ORANGE, label="best so far")
    axes.set(xlabel="trial; the first is without a search", ylabel=metric, title="search for hyperparameters")
    axes.legend()
    return figure


def importance(names: list[str], means: Array, deviations: Array, title: str) -> Figure:
    """Permutation importance, largest on top."""
    order = np.argsort(means)
    figure = Figure(figsize=(7, 0.6 + 0.3 * len(names)))
    axes = figure.subplots()
    axes.barh([names[i] for i in order], means[order], xerr=deviations[order], color=_BLUE)
    axes.set(xlabel="loss of ROC AUC when the column is shuffled", title=title)
    return figure


def histogram(probability: Array, threshold: float, title: str) -> Figure:
    """The distribution of scores, with the threshold."""
    figure = Figure(figsize=(6, 3.2))
    axes = figure.subplots()
    axes.hist(probability, bins=40, range=(0, 1), color=_BLUE)
    axes.axvline(threshold, color=_ORANGE, linestyle="--")
    axes.set(xlabel="churn probability", ylabel="customers", title=title)
    return figure


def drift(columns: list[str], ratios: list[float], title: str) -> Figure:
    """Each column's distance as a multiple of its threshold."""
    order = np.argsort(ratios)
    figure = Figure(figsize=(7, 0.6 + 0.3 * len(columns)))
    axes = figure.subplots()
    colours = [_ORANGE if ratios[i] > 1 else _BLUE for i in order]
    axes.barh([columns[i] for i in order], [ratios[i] for i in order], color=colours)
    axes.axvline(1, color=_GREY, linestyle="--")
    axes.set(xlabel="distance / threshold", title=title)
    return figure


def answers(days: list[str], by_version: dict[str, list[int]], high_risk: list[float]) -> Figure:
    """The endpoint's answers by day, stacked by model version, and the share of them that was High Risk."""
    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    below = np.zeros(len(days))
    for version, counts in by_version.items():
        axes.bar(days, counts, bottom=below, label=f"version {version}")
        below += counts
    axes.set(ylabel="answers", title="answers by day and model version")
    axes.tick_params(axis="x", rotation=30)
    axes.legend(loc="upper left")
    share = axes.twinx()
    share.plot(days, high_risk, marker="o", color=_ORANGE)
    share.set(ylabel="share High Risk", ylim=(0, 1))
    return figure


def performance(windows: list[str], live: list[float], promised: list[float]) -> Figure:
    """Live ROC AUC by window, against what the model showed when it was promoted."""
    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    axes.plot(windows, live, marker="o", color=_BLUE, label="live")
    axes.plot(windows, promised, color=_GREY, linestyle="--", label="when promoted")
    axes.set(ylabel="ROC AUC", title="performance on labels as they matured")
    axes.legend()
    axes.tick_params(axis="x", rotation=30)
    return figure


def shares(names: list[str], values: list[float], title: str, label: str) -> Figure:
    """One bar per name, from 0 to 1, in the order given."""
    figure = Figure(figsize=(7, 0.8 + 0.3 * len(names)))
    axes = figure.subplots()
    axes.barh(names[::-1], values[::-1], color=_BLUE)
    axes.set(xlabel=label, title=title, xlim=(0, max(1.0, *values) if values else 1.0))
    return figure


def rates(times: list[str], rows: list[int], rate: list[float], title: str) -> Figure:
    """Customers observed as bars and their churn rate as a line, by observation."""
    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    axes.bar(times, rows, color=_GREY)
    axes.set(ylabel="customers", title=title)
    axes.set_xticks(range(0, len(times), max(1, len(times) // 12)))
    axes.tick_params(axis="x", rotation=30)
    right = axes.twinx()
    right.plot(times, rate, marker="o", color=_ORANGE)
    right.set(ylabel="churn rate", ylim=(0, max([*rate, 0.01]) * 1.2))
    return figure


def histograms(values: dict[str, Array], title: str, columns: int = 4) -> Figure:
    """A small histogram of each column's known values, cut at the 99th percentile."""
    rows = -(-max(len(values), 1) // columns)
    figure = Figure(figsize=(3 * columns, 2.2 * rows), layout="constrained")
    figure.suptitle(title)
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, (name, column) in zip(grid, values.items(), strict=False):
        known = column[np.isfinite(column)]
        axes.set_title(name, fontsize=9)
        if len(known):
            axes.hist(np.minimum(known, np.quantile(known, 0.99)), bins=30, color=_BLUE)
    for axes in grid[len(values) :]:
        axes.set_axis_off()
    return figure


def promotions(versions: list[str], roc_auc: list[float]) -> Figure:
    """ROC AUC on its own test window of each version that became champion."""
    figure = Figure(figsize=(6, 3.2))
    axes = figure.subplots()
    axes.plot(versions, roc_auc, marker="o", color=_BLUE)
    axes.set(xlabel="version", ylabel="ROC AUC on its test window", title="champions so far")
    return figure


def contributions(names: list[str], sizes: Array, title: str) -> Figure:
    """The mean size of each feature's contribution to the score, largest on top."""
    order = np.argsort(sizes)
    figure = Figure(figsize=(7, 0.6 + 0.3 * len(names)))
    axes = figure.subplots()
    axes.barh([names[i] for i in order], sizes[order], color=_BLUE)
    axes.set(xlabel="mean size of the Shapley value", title=title)
    return figure


def partial_dependence(curves: dict[str, tuple[list[Any], Array]], title: str, columns: int = 3) -> Figure:
    """A small panel for each feature: the values it is set to, and the mean probability then; all on one scale."""
    rows = -(-max(len(curves), 1) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    figure.suptitle(title)
    grid = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).ravel()
    for axes, (name, (values, means)) in zip(grid, curves.items(), strict=False):
        axes.set_title(name, fontsize=9)
        if isinstance(values[0], str):
            axes.bar(range(len(values)), means, color=_BLUE)
            axes.set_xticks(range(len(values)), [value[:12] for value in values], rotation=30, fontsize=7)
        else:
            axes.plot(values, means, marker=".", color=_BLUE)
    for axes in grid[len(curves) :]:
        axes.set_axis_off()
    return figure


def profit(curves: dict[str, Array], capacity: int | None, title: str) -> Figure:
    """What contacting the best 0, 1, ..., n customers earns in all, with the best number marked, and the capacity."""
    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    for (name, curve), colour in zip(curves.items(), (_BLUE, _ORANGE), strict=False):
        best = int(np.argmax(curve))
        axes.plot(curve, color=colour, label=f"{name}: most at {best:,} customers, {curve[best]:,.0f}")
        axes.plot([best], [curve[best]], marker="o", color=colour)
    if capacity is not None:
        axes.axvline(capacity, color=_GREY, linestyle="--", label=f"capacity: {capacity:,}")
    axes.axhline(0, color=_GREY, linewidth=0.8)
    axes.set(xlabel="customers contacted, best first", ylabel="profit, money", title=title)
    axes.legend()
    return figure


def threshold(curve: Array, contacted: int, probability: float, title: str) -> Figure:
    """What contacting the 0, 1, ..., n customers most at risk earned in all, and those from the threshold on."""
    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    axes.plot(curve, color=_BLUE, label="earned")
    chosen = f"threshold {probability:.3f}: {contacted:,} customers, {curve[contacted]:,.0f}"
    axes.axvline(contacted, color=_ORANGE, linestyle="--", label=chosen)
    axes.plot([contacted], [curve[contacted]], marker="o", color=_ORANGE)
    axes.axhline(0, color=_GREY, linewidth=0.8)
    axes.set(xlabel="customers contacted, most at risk first", ylabel="profit, money", title=title)
    axes.legend()
    return figure


def intervals(
    names: list[str], found: list[tuple[float, float, float]], title: str, label: str = "share of customers"
) -> Figure:
    """Estimates (value, low, high) as points with their intervals, one a line, beside zero."""
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(names)))
    axes = figure.subplots()
    for place, (value, low, high) in enumerate(found):
        axes.plot([low, high], [place, place], color=_BLUE)
        axes.plot([value], [place], marker="o", color=_BLUE)
    axes.axvline(0, color=_GREY, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=label, title=title, ylim=(-0.6, len(names) - 0.4))
    return figure


def policy_gains(report: Report) -> Figure:
    """What each policy gained in ROC AUC against never retraining, with its interval."""
    found = {result.played.policy.title: result.better for result in report.results[1:]}
    values = [(gain.value, gain.low, gain.high) for gain in found.values()]
    return intervals(list(found), values, f"against never retraining, {len(report.windows)} windows", "ROC AUC")


def policy_windows(report: Report) -> Figure:
    """ROC AUC of each policy in each window; policies that did the same share a line."""
    figure = Figure(figsize=(9, 4.5))
    axes = figure.subplots()
    lines: dict[tuple[float, ...], list[str]] = {}
    for title, values in report.by_window.items():
        lines.setdefault(tuple(values), []).append(title)
    for line, titles in lines.items():
        label = titles[0] if len(titles) == 1 else f"{titles[0]} (and {len(titles) - 1} more)"
        axes.plot(report.windows, line, marker="o", markersize=3, label=label)
    axes.set(ylabel="ROC AUC", title="by window, on labels known by now")
    axes.tick_params(axis="x", rotation=60)
    axes.legend(fontsize="x-small")
    return figure
