"""The kernels behind `ml.compiled`: trees and linear models over plain arrays, compiled by numba.

Trees. A block of customers is laid out as a matrix with one line for each column that the trees look at (an imputed
number, an indicator, a category), and each tree is walked for the whole block before the next one, so that a tree stays
in the processor's first cache. A node takes eight bytes: a threshold in single precision, and a link that packs the
line to look at with the place of the left child; the right child stands beside it. A leaf links to itself and looks at
line 0, which is nothing but zeros. So one step is the same few instructions at every node, without a branch.

Exact contributions. What a feature contributes to a tree's answer is its Shapley value in the path-dependent game of
Lundberg et al. (2020, "From local explanations to global understanding with explainable AI for trees"). Down a path, a
column j that splits off the share z of the training rows, and lets the customer through (o = 1) or not (o = 0), stands
for the factor z + (o - z) t, and a Shapley value is the integral over t from 0 to 1 of the product of all the other
columns' factors, times o - z. The product is a polynomial in t, so Gauss and Legendre's points give that integral
exactly; and since only products are carried down and sums up, a tree takes one pass (as in Yu et al. 2022, "Linear
TreeShap").

This module needs numpy and numba alone. A kernel is one flat function that takes its many arrays
by place, which is the fastest to compile and to call.
"""

# ruff: noqa: C901, PLR0915, PLR0917

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Kernel = TypeVar("Kernel", bound=Callable[..., Any])

# A node: `x <= threshold` goes to the left child. `link` holds the line to look at above `shift` bits of the left
# child's place in the tree.
NODE = np.dtype([("threshold", "<f4"), ("link", "<u4")])

# How a number becomes lines: `line` has its value; `low` the same, but with minus infinity where it is missing, for
# nodes that send missing values to the left; `missing` whether it is missing. 0 where there is no such line. Missing
# values are replaced by `fill`, which may be NaN. `first` to `last` are its thresholds among the cuts.
NUMBER = np.dtype(
    [("line", "<i4"), ("low", "<i4"), ("missing", "<i4"), ("first", "<i4"), ("last", "<i4"), ("fill", "<f8")]
)

# A number in a linear model: (value or fill - centre) / scale * weight, and `known` or `unknown` for its indicator.
TERM = np.dtype([(name, "<f8") for name in ("fill", "centre", "scale", "weight", "known", "unknown")])

BLOCK = 128  # customers whose lines fit beside a tree into the first cache
_FEW = 3  # fewer customers than these are led through several trees at once instead
_ABREAST = 32
_LOOK = 12  # trees that are deeper are left as soon as everybody has arrived

PLAIN, SIGMOID, ISOTONIC = 0, 1, 2  # curves that a score goes through


def kernel(function: Kernel) -> Kernel:
    """Compile a function when it is first called; kept on disk where some folder can be written to.

    Set NUMBA_CACHE_DIR to choose the folder. Without one each process compiles for itself.
    """
    try:
        return cast("Kernel", njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:  # numba's word for no folder to keep it in
        return cast("Kernel", njit(nogil=True, error_model="numpy")(function))


@kernel
def _rank(value: float, cuts: Array, first: int, last: int) -> int:
    """How many of the sorted cuts lie below a value: it is <= cut k exactly where its rank is <= k."""
    low, span = first, last - first
    while span > 0:
        half = span >> 1
        if cuts[low + half] < value:
            low += half + 1
            span -= half + 1
        else:
            span = half
    return low - first


@kernel
def _lay_out(
    numbers: Array,
    codes: NDArray[np.int32],
    begin: int,
    count: int,
    plan: NDArray[Any],
    cuts: Array,
    offsets: NDArray[np.int64],
    lines: NDArray[np.float32],
) -> None:
    """Write the lines of the customers from `begin` on, one customer a column."""
    for j in range(plan.shape[0]):
        how = plan[j]
        for i in range(count):
            value = numbers[begin + i, j]
            missing = value != value  # noqa: PLR0124 - NaN is what differs from itself
            if missing:
                value = how.fill
            if how.last > how.first and value == value:  # noqa: PLR0124
                single = np.float32(_rank(value, cuts, how.first, how.last))
            else:
                single = np.float32(value)
            lines[how.line, i] = single
            if how.low:
                lines[how.low, i] = np.float32(-np.inf) if missing else single
            if how.missing:
                lines[how.missing, i] = np.float32(missing)
    for j in range(offsets.shape[0] - 1):
        for line in range(offsets[j], offsets[j + 1]):
            for i in range(count):
                lines[line, i] = 0
        for i in range(count):
            lines[offsets[j] + codes[begin + i, j], i] = 1


@kernel
def _calibrated(score: float, curve: int, scores: Array, probabilities: Array) -> float:
    """A score after the model's calibration."""
    if curve == SIGMOID:
        drawn_in = scores[2] + (1 - 2 * scores[2]) * score
        return 1 / (1 + math.exp(-(scores[0] * math.log(drawn_in / (1 - drawn_in)) + scores[1])))
    if curve == ISOTONIC:
        last = scores.shape[0] - 1
        if score >= scores[last]:
            return probabilities[last]  # type: ignore[no-any-return]
        if score < scores[0]:
            return probabilities[0]  # type: ignore[no-any-return]
        low, high = 0, last
        while high - low > 1:
            middle = (low + high) >> 1
            if scores[middle] <= score:
                low = middle
            else:
                high = middle
        slope = (probabilities[high] - probabilities[low]) / (scores[high] - scores[low])
        return slope * (score - scores[low]) + probabilities[low]  # type: ignore[no-any-return]
    return score


@kernel
def _walk(
    tree: NDArray[Any],
    depth: int,
    bits: np.uint32,
    lines: NDArray[np.float32],
    count: int,
    place: NDArray[np.uint32],
) -> None:
    """Lead every customer of a block from the root to a leaf; `place` says to which."""
    low_bits = (np.uint32(1) << bits) - np.uint32(1)
    for step in range(depth):
        for i in range(count):
            node = tree[place[i]]
            right = not (lines[node.link >> bits, i] <= node.threshold)  # so that NaN goes to the right
            place[i] = (node.link & low_bits) + np.uint32(right)
        if step >= _LOOK and step % 4 == 0:
            walking = False
            for i in range(count):
                walking |= (tree[place[i]].link >> bits) != 0
            if not walking:
                break


@kernel
def _walk_alone(
    nodes: NDArray[Any],
    values: Array,
    starts: NDArray[np.int64],
    depths: NDArray[np.int64],
    bits: np.uint32,
    lines: NDArray[np.float32],
    i: int,
    begin_with: float,
) -> float:
    """What the trees say of one customer, some of them walked side by side while memory answers."""
    low_bits = (np.uint32(1) << bits) - np.uint32(1)
    place = np.empty(_ABREAST, np.uint32)
    total = begin_with
    trees = starts.shape[0] - 1
    for first in range(0, trees, _ABREAST):
        last = min(first + _ABREAST, trees)
        depth = 0
        for t in range(first, last):
            place[t - first] = 0
            depth = max(depth, depths[t])
        for _ in range(depth):
            walking = np.uint32(0)
            for t in range(first, last):
                node = nodes[starts[t] + place[t - first]]
                line = node.link >> bits
                right = not (lines[line, i] <= node.threshold)
                place[t - first] = (node.link & low_bits) + np.uint32(right)
                walking |= line
            if not walking:
                break
        for t in range(first, last):
            total += values[starts[t] + place[t - first]]
    return total


@kernel
def tree_probabilities(
    numbers: Array,
    codes: NDArray[np.int32],
    plan: NDArray[Any],
    cuts: Array,
    offsets: NDArray[np.int64],
    nodes: NDArray[Any],
    values: Array,
    starts: NDArray[np.int64],
    depths: NDArray[np.int64],
    shift: int,
    begin_with: float,
    divisor: float,
    log_odds: bool,
    curve: int,
    scores: Array,
    probabilities: Array,
) -> Array:
    """The probabilities of customers, shape (n,).

    Args:
        numbers: shape (n, numbers), in C order; NaN where one is not known.
        codes: shape (n, texts): 0, or 1 and the place of the category's column.
        plan: of NUMBER, one a number.
        cuts: sorted thresholds, number after number; a number without any is taken as it is, in single precision.
        offsets: the first line of each text, which belongs to code 0, and after the last text the number of lines.
        nodes: of NODE, tree after tree, each in breadth-first order.
        values: what a leaf answers, beside `nodes`.
        starts: where each tree begins, and where the last one ends.
        depths: the steps from a tree's root to its deepest leaf.
        shift: the bits of a link that say where the left child is.
        begin_with: what the trees' answers are added to, in their order.
        divisor: what the sum is divided by.
        log_odds: whether that is log-odds rather than a probability.
        curve: PLAIN, SIGMOID or ISOTONIC.
        scores: of the curve's points, increasing; for SIGMOID slope, intercept, and by how much a score is drawn in.
        probabilities: of the curve's points.
    """
    bits, rows = np.uint32(shift), numbers.shape[0]
    found = np.empty(rows, np.float64)
    width = min(rows, BLOCK)
    lines = np.zeros((offsets[-1], width), np.float32)
    place = np.empty(width, np.uint32)
    total = np.empty(width, np.float64)
    for begin in range(0, rows, BLOCK):
        count = min(BLOCK, rows - begin)
        _lay_out(numbers, codes, begin, count, plan, cuts, offsets, lines)
        for i in range(count):
            total[i] = (
                begin_with if count >= _FEW else _walk_alone(nodes, values, starts, depths, bits, lines, i, begin_with)
            )
        for t in range(starts.shape[0] - 1 if count >= _FEW else 0):
            tree, answer = nodes[starts[t] : starts[t + 1]], values[starts[t] : starts[t + 1]]
            for i in range(count):
                place[i] = 0
            _walk(tree, depths[t], bits, lines, count, place)
            for i in range(count):
                total[i] += answer[place[i]]
        for i in range(count):
            score = total[i] / divisor
            if log_odds:
                score = 1 / (1 + math.exp(-score))
            found[begin + i] = _calibrated(score, curve, scores, probabilities)
    return found


@kernel
def tree_contributions(
    numbers: Array,
    codes: NDArray[np.int32],
    plan: NDArray[Any],
    cuts: Array,
    offsets: NDArray[np.int64],
    nodes: NDArray[Any],
    values: Array,
    starts: NDArray[np.int64],
    depths: NDArray[np.int64],
    shift: int,
    divisor: float,
    covers: Array,
    columns: NDArray[np.int64],
    owners: NDArray[np.int64],
    points: Array,
    weights: Array,
    features: int,
) -> Array:
    """The Shapley values of customers' features, in the unit of the sum over the trees, shape (n, features).

    Args, besides those of `tree_probabilities`:
        covers: the weight of the training rows that came by each node.
        columns: the column that each line belongs to.
        owners: the feature that each column was made of.
        points: Gauss and Legendre's, between 0 and 1, enough for the longest path.
        weights: theirs.
    """
    bits = np.uint32(shift)
    low_bits = (np.uint32(1) << bits) - np.uint32(1)
    rows, many = numbers.shape[0], points.shape[0]
    found = np.zeros((rows, features))
    lines = np.zeros((offsets[-1], 1), np.float32)
    levels = depths.max() + 1
    product, below = np.ones((levels, many)), np.zeros((levels, many))  # of the factors so far; of the leaves below
    inverse = np.ones((owners.shape[0], many))  # 1 / the factor of each column, where the walk is
    before = np.ones((levels, many))  # that of an edge's column above the edge
    share_before, let_before = np.ones(levels), np.ones(levels)  # z and o of that column above an edge
    share, let = np.ones(owners.shape[0]), np.ones(owners.shape[0])  # of each column, where the walk is
    at, turn, edge = np.zeros(levels, np.int64), np.zeros(levels, np.int64), np.zeros(levels, np.int64)
    for row in range(rows):
        _lay_out(numbers, codes, row, lines.shape[1], plan, cuts, offsets, lines)
        for t in range(starts.shape[0] - 1):
            start = starts[t]
            level, at[0], turn[0] = 0, 0, 0
            below[0, :] = 0
            while level >= 0:
                link = nodes[start + at[level]].link
                line = link >> bits
                if line == 0:
                    for q in range(many):
                        below[level, q] = values[start + at[level]] * product[level, q]
                    turn[level] = 2
                if turn[level] < 2:  # down to a child
                    left = np.int64(link & low_bits)
                    child = left + turn[level]
                    through = (lines[line, 0] <= nodes[start + at[level]].threshold) == (turn[level] == 0)
                    column = columns[line]
                    z, o = share[column], let[column]
                    turn[level] += 1
                    level += 1
                    at[level], turn[level], edge[level] = child, 0, column
                    share_before[level], let_before[level] = z, o
                    share[column] = z * covers[start + child] / covers[start + at[level - 1]]
                    let[column] = o if through else 0.0
                    for q in range(many):
                        factor = share[column] + (let[column] - share[column]) * points[q]
                        before[level, q] = inverse[column, q]
                        product[level, q] = product[level - 1, q] * factor * before[level, q]
                        inverse[column, q] = 1 / factor
                        below[level, q] = 0
                    continue
                if level > 0:  # back to the parent
                    column = edge[level]
                    gained, had = let[column] - share[column], let_before[level] - share_before[level]
                    total = 0.0
                    for q in range(many):
                        total += weights[q] * below[level, q] * (gained * inverse[column, q] - had * before[level, q])
                        below[level - 1, q] += below[level, q]
                        inverse[column, q] = before[level, q]
                    found[row, owners[column]] += total
                    share[column], let[column] = share_before[level], let_before[level]
                level -= 1
        for feature in range(features):
            found[row, feature] /= divisor
    return found


@kernel
def _term(term: Any, value: float) -> float:
    """What a number adds to a linear score."""
    missing = value != value  # noqa: PLR0124
    if missing:
        value = term.fill
    return (value - term.centre) / term.scale * term.weight + (  # type: ignore[no-any-return]
        term.unknown if missing else term.known
    )


@kernel
def linear_probabilities(
    numbers: Array,
    codes: NDArray[np.int32],
    terms: NDArray[Any],
    table: Array,
    offsets: NDArray[np.int64],
    intercept: float,
    curve: int,
    scores: Array,
    probabilities: Array,
) -> Array:
    """The probabilities of customers, shape (n,).

    Args:
        numbers: shape (n, numbers), in C order; NaN where one is not known.
        codes: shape (n, texts): 0, or 1 and the place of the category's column.
        terms: of TERM, one a number.
        table: what each code of each text adds, text after text.
        offsets: where each text's codes begin in `table`, and where the last ones end.
        intercept: the score of nothing.
        curve: PLAIN, SIGMOID or ISOTONIC.
        scores: of the curve's points, increasing; for SIGMOID slope, intercept, and by how much a score is drawn in.
        probabilities: of the curve's points.
    """
    found = np.empty(numbers.shape[0], np.float64)
    for i in range(numbers.shape[0]):
        total = intercept
        for j in range(terms.shape[0]):
            total += _term(terms[j], numbers[i, j])
        for j in range(offsets.shape[0] - 1):
            total += table[offsets[j] + codes[i, j]]
        found[i] = _calibrated(1 / (1 + math.exp(-total)), curve, scores, probabilities)
    return found


@kernel
def linear_contributions(
    numbers: Array,
    codes: NDArray[np.int32],
    terms: NDArray[Any],
    table: Array,
    offsets: NDArray[np.int64],
    means: Array,
    owners: NDArray[np.int64],
) -> Array:
    """What each feature adds to the log-odds, from what it adds on average, shape (n, features).

    Args, besides those of `linear_probabilities`:
        means: what each feature adds on average.
        owners: the feature of each number, and then of each text.
    """
    found = np.empty((numbers.shape[0], means.shape[0]))
    for i in range(numbers.shape[0]):
        for j in range(terms.shape[0]):
            found[i, owners[j]] = _term(terms[j], numbers[i, j])
        for j in range(offsets.shape[0] - 1):
            found[i, owners[terms.shape[0] + j]] = table[offsets[j] + codes[i, j]]
        for feature in range(means.shape[0]):
            found[i, feature] -= means[feature]
    return found
