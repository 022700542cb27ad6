"""The compiled model: a champion as a few plain arrays, which answer some ten times faster than scikit-learn.

`compile_model` takes a fitted pipeline apart, once, where it is trained. What it makes needs numpy and numba to answer,
and none of the libraries that it was trained with, so the endpoint and batch scoring load it alone. Its answers are the
pipeline's: thresholds are compared in the precision in which scikit-learn compares them, missing values and unknown
categories take the same turns, and trees are summed in the same order. That this holds for a candidate is put to the
test before it may be champion (`ml.equality`).

One row or a million, a customer's answer is the same to the last bit: every customer is computed alone, by one code.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from churn_platform.ml import trees
from churn_platform.ml.trees import ISOTONIC, NODE, NUMBER, PLAIN, SIGMOID, TERM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from churn_platform.contract import Contract

    Array = NDArray[np.float64]
    Codes = NDArray[np.int32]

FORMAT = 1


class CompiledModelError(RuntimeError):
    """A model cannot be compiled, or what is stored is no compiled model; the message says why."""


class _Curve(NamedTuple):
    """A calibration, as the kernels take it."""

    curve: int
    scores: Array
    probabilities: Array


class _Linear(NamedTuple):
    """A logistic regression; `trees.linear_probabilities` says what each field is."""

    terms: NDArray[Any]
    table: Array
    offsets: NDArray[np.int64]
    intercept: float
    means: Array
    owners: NDArray[np.int64]


class _Trees(NamedTuple):
    """A forest, or boosted trees; `trees.tree_probabilities` and `tree_contributions` say what each field is."""

    plan: NDArray[Any]
    cuts: Array
    offsets: NDArray[np.int64]
    nodes: NDArray[Any]
    values: Array
    starts: NDArray[np.int64]
    depths: NDArray[np.int64]
    shift: int
    begin_with: float
    divisor: float
    log_odds: bool
    covers: Array
    columns: NDArray[np.int64]
    owners: NDArray[np.int64]
    points: Array
    weights: Array


_KINDS: dict[str, type[_Linear | _Trees]] = {"linear": _Linear, "trees": _Trees}
_TYPES: dict[str, Any] = {  # of the arrays; what is not named here holds floats
    "terms": TERM,
    "plan": NUMBER,
    "nodes": NODE,
    **dict.fromkeys(("offsets", "starts", "depths", "columns", "owners", "shift", "curve"), np.dtype("int64")),
    "log_odds": np.dtype("bool"),
}
_SCALARS = ("intercept", "shift", "begin_with", "divisor", "log_odds", "curve")


class CompiledModel:
    """A model that is ready to answer. Made by `compile_model` or `load`.

    Attributes:
        features: the contract's features, in its order.
        numeric: the positions in `features` of those that are numbers.
        categorical: the positions of those that are text.
        threshold: from this probability on, churn is predicted.
        usual: the median of each number among the rows that the model was fitted on; NaN where none was known.
        base: the score that contributions are added to: log-odds, or a forest's share of votes, on average.
        categories: for each text, category to code; all else has the code in `others`.
    """

    def __init__(
        self,
        *,
        features: Sequence[str],
        categories: Sequence[dict[str | None, int]],
        others: Sequence[int],
        texts: Sequence[str],
        threshold: float,
        usual: dict[str, float],
        base: float,
        model: _Linear | _Trees,
        curve: _Curve,
    ) -> None:
        self.features = tuple(features)
        self.categorical = tuple(self.features.index(name) for name in texts)
        self.numeric = tuple(place for place in range(len(self.features)) if place not in self.categorical)
        self.categories = tuple(categories)
        self.others = tuple(others)
        self.threshold = threshold
        self.usual = usual
        self.base = base
        self._model = model
        self._curve = curve
        if isinstance(model, _Linear):
            self._answer: Callable[..., Array] = trees.linear_probabilities
            self._known: tuple[Any, ...] = (*model[:4], *curve)
        else:
            self._answer = trees.tree_probabilities
            self._known = (*model[:11], *curve)

    def codes(self, texts: Sequence[Sequence[str | None]]) -> Codes:
        """What the model knows of texts, shape (n, len(categorical)), from one sequence of n for each text."""
        rows = len(texts[0]) if texts else 0
        found = np.empty((rows, len(self.categories)), np.int32)
        for place, (known, other) in enumerate(zip(self.categories, self.others, strict=True)):
            found[:, place] = [known.get(text, other) for text in texts[place]]
        return found

    def probabilities(self, numbers: Array, texts: Sequence[Sequence[str | None]]) -> Array:
        """P(churn) for each row, shape (n,).

        Args:
            numbers: shape (n, len(numeric)), NaN where one is not known.
            texts: for each of the categorical features its n values, None where one is not known.
        """
        return self.coded_probabilities(numbers, self._codes(numbers, texts))

    def coded_probabilities(self, numbers: Array, codes: Codes) -> Array:
        """The same, of texts that `codes` has been asked about."""
        return self._answer(_plain(numbers), codes, *self._known)

    def contributions(self, numbers: Array, texts: Sequence[Sequence[str | None]]) -> Array:
        """What each feature contributes to each row's score, shape (n, len(features)): its exact Shapley value.

        With `base` they add up to the score inside the model, before calibration, as `ml.explanations` has it.
        """
        codes, model = self._codes(numbers, texts), self._model
        if isinstance(model, _Linear):
            return trees.linear_contributions(_plain(numbers), codes, *model[:3], model.means, model.owners)
        return trees.tree_contributions(
            _plain(numbers), codes, *model[:8], model.divisor, *model[11:], len(self.features)
        )

    def thresholds(self) -> dict[str, Array]:
        """The numbers that the model's trees compare each numeric feature with, where there are any."""
        found: dict[str, Array] = {}
        if isinstance(self._model, _Trees):
            model = self._model
            line = model.nodes["link"] >> np.uint32(model.shift)
            for place, how in zip(self.numeric, model.plan, strict=True):
                cuts = model.cuts[how["first"] : how["last"]]
                own = line != 0
                own &= (line == how["line"]) | (line == how["low"])
                compared = cuts if len(cuts) else np.unique(model.nodes["threshold"][own]).astype(np.float64)
                found[self.features[place]] = compared[np.isfinite(compared)]
        return {name: compared for name, compared in found.items() if len(compared)}

    def _codes(self, numbers: Array, texts: Sequence[Sequence[str | None]]) -> Codes:
        return self.codes(texts) if self.categories else np.empty((len(numbers), 0), np.int32)

    def warm(self) -> None:
        """Answer some made-up rows, known and unknown, so that all is compiled before the first customer comes."""
        numbers = np.zeros((3, len(self.numeric)))
        numbers[1] = np.nan
        texts: list[list[str | None]] = [[next(iter(known), None), None, "\0"] for known in self.categories]
        self.probabilities(numbers, texts)
        self.contributions(numbers, texts)

    def save(self, path: str | Path) -> None:
        """Write the model to one file, which is whole or not there. It holds arrays and JSON, and no pickle."""
        path = Path(path)
        header = {
            "format": FORMAT,
            "kind": "linear" if isinstance(self._model, _Linear) else "trees",
            "features": self.features,
            "texts": [self.features[place] for place in self.categorical],
            "categories": [list(known.items()) for known in self.categories],
            "others": self.others,
            "threshold": self.threshold,
            "usual": {name: None if math.isnan(value) else value for name, value in self.usual.items()},
            "base": self.base,
        }
        arrays: dict[str, Any] = {
            name: np.asarray(value, _type(name))
            for name, value in {**self._model._asdict(), **self._curve._asdict()}.items()
        }
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        with beside.open("wb") as file:
            text = np.frombuffer(json.dumps(header).encode(), np.uint8)
            np.savez_compressed(file, header=text, **arrays)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> CompiledModel:
        """Read a model that `save` wrote.

        Raises:
            CompiledModelError: there is none, it is damaged, or of another format.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
                header = json.loads(stored["header"].tobytes())
                _require(header["format"] == FORMAT, f"the format is {header['format']}, and this code reads {FORMAT}")
                kind = _KINDS[header["kind"]]
                model = kind(**{name: _read(stored, name) for name in kind._fields})
                curve = _Curve(**{name: _read(stored, name) for name in _Curve._fields})
            found = cls(
                features=header["features"],
                categories=[{text: int(code) for text, code in known} for known in header["categories"]],
                others=[int(code) for code in header["others"]],
                texts=header["texts"],
                threshold=float(header["threshold"]),
                usual={name: math.nan if value is None else float(value) for name, value in header["usual"].items()},
                base=float(header["base"]),
                model=model,
                curve=curve,
            )
            found._check()
        except FileNotFoundError:
            raise CompiledModelError(f"there is no compiled model {path}. Train a new candidate.") from None
        except Exception as error:  # a damaged file fails in any of the ways of zipfile, numpy and JSON
            raise CompiledModelError(
                f"the compiled model {path} cannot be read: {type(error).__name__}: {error}. "
                "Restore the file, or train a new candidate."
            ) from error
        return found

    def _check(self) -> None:
        """Refuse arrays that would lead a kernel out of their bounds, which nothing else keeps it from.

        Raises:
            ValueError: what does not go with what.
        """
        model, curve = self._model, self._curve
        widths = np.diff(model.offsets)
        _require(len(self.others) == len(self.categories) == len(self.categorical) == len(widths), "the texts")
        for width, known, other in zip(widths, self.categories, self.others, strict=True):
            _require(all(0 <= code < width for code in (*known.values(), other)), "a category's code")
        _require(set(self.usual) == {self.features[place] for place in self.numeric}, "what is usual")
        _require(math.isfinite(self.base) and 0 <= self.threshold <= 1, "the threshold")
        _require(curve.curve in (PLAIN, SIGMOID, ISOTONIC), "the curve")
        _require(curve.curve != SIGMOID or len(curve.scores) == 3, "the curve's parameters")
        _require(curve.curve != ISOTONIC or len(curve.scores) == len(curve.probabilities) >= 2, "the curve's points")
        _require(len(model.owners) == 0 or 0 <= model.owners.min() <= model.owners.max() < len(self.features), "owners")
        if isinstance(model, _Linear):
            _require(len(model.terms) == len(self.numeric), "the numbers")
            _require(len(model.owners) == len(model.means) == len(self.features), "the means")
            _require(model.offsets[0] == 0 and model.offsets[-1] == len(model.table), "the table")
        else:
            _require(len(model.plan) == len(self.numeric), "the numbers")
            _check_trees(model)


def compile_kernels() -> None:
    """Compile whatever a model may call, and keep it where numba keeps such things: for an image, without a model."""
    nothing, places = np.zeros(0), np.zeros(1, np.int64)
    linear = _Linear(np.zeros(0, TERM), nothing, places, 0.0, nothing, places[:0])
    leaf = np.array([(np.inf, 0)], NODE)
    begins = np.array([0, 1])
    one = np.ones(1)
    trees_ = _Trees(
        plan=np.zeros(0, NUMBER),
        cuts=nothing,
        offsets=begins[1:],
        nodes=leaf,
        values=one,
        starts=begins,
        depths=places,
        shift=1,
        begin_with=0.0,
        divisor=1.0,
        log_odds=False,
        covers=one,
        columns=places,
        owners=places[:0],
        points=one,
        weights=one,
    )
    for model in (linear, trees_):
        CompiledModel(
            features=(),
            categories=(),
            others=(),
            texts=(),
            threshold=0.5,
            usual={},
            base=0.0,
            model=model,
            curve=_Curve(PLAIN, nothing, nothing),
        ).warm()


def _check_trees(model: _Trees) -> None:
    lines, nodes = int(model.offsets[-1]), len(model.nodes)
    named = [model.plan[name] for name in ("line", "low", "missing")]
    _require(all(((line >= 0) & (line < lines)).all() for line in named), "a number's line")
    cut = (model.plan["first"] >= 0) & (model.plan["first"] <= model.plan["last"])
    _require(bool((cut & (model.plan["last"] <= len(model.cuts))).all()), "the cuts")
    _require(nodes == len(model.values) == len(model.covers) and nodes > 0, "the nodes")
    sizes = np.diff(model.starts)
    _require(model.starts[0] == 0 and model.starts[-1] == nodes and (sizes > 0).all(), "the trees")
    _require(len(model.depths) == len(sizes) and (model.depths >= 0).all(), "the depths")
    _require(0 < model.shift < 32 and len(model.points) == len(model.weights) > 0, "the links")
    place = np.arange(nodes) - np.repeat(model.starts[:-1], sizes)
    links = model.nodes["link"].astype("int64")
    line, left = links >> model.shift, links & ((1 << model.shift) - 1)
    leaf = line == 0
    _require(bool((left[leaf] == place[leaf]).all() and (model.nodes["threshold"][leaf] == np.inf).all()), "a leaf")
    inner, start = np.flatnonzero(~leaf), np.repeat(model.starts[:-1], sizes)
    _require(bool((left[inner] + 1 < np.repeat(sizes, sizes)[inner]).all() and (line < lines).all()), "a node's link")
    # every node but a root is one node's child, and stands after it: so every walk ends
    first = (start + left)[inner]
    roots = np.isin(np.arange(nodes), model.starts[:-1])
    times = np.bincount(np.concatenate([first, first + 1]), minlength=nodes)
    _require(bool((first > inner).all() and (times == ~roots).all()), "a node's children")
    depths, level = np.zeros(len(sizes), "int64"), model.starts[:-1]
    for depth in range(nodes):
        depths[np.repeat(np.arange(len(sizes)), sizes)[level]] = depth
        first = (start + left)[level[~leaf[level]]]
        level = np.concatenate([first, first + 1])
        if not len(level):
            break
    _require(bool((depths == model.depths).all()), "the depths")
    _require(len(model.columns) == lines, "the columns")
    _require(bool(((model.columns[1:] >= 0) & (model.columns[1:] < len(model.owners))).all()), "a line's column")


def _require(holds: bool | np.bool_, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _type(name: str) -> np.dtype[Any]:
    found: np.dtype[Any] = _TYPES.get(name, np.dtype("float64"))
    return found


def _read(stored: Any, name: str) -> Any:
    """An array of a file, or a number, of the type that the kernels were made for."""
    value = stored[name]
    if value.dtype != _type(name) or value.ndim != (0 if name in _SCALARS else 1):
        raise ValueError(f"{name} is of another type or shape")
    return value.item() if name in _SCALARS else value


def _plain(numbers: Array) -> Array:
    """Numbers as the kernels were compiled for: in C order, and writable although nobody writes."""
    if numbers.dtype == np.float64 and numbers.flags.c_contiguous and numbers.flags.writeable:
        return numbers
    return np.array(numbers, dtype=np.float64, order="C")


# ------------------------------------------------------------------------------------------- from a fitted pipeline


def compile_model(contract: Contract, pipeline: Any, threshold: float, reference: pd.DataFrame) -> CompiledModel:
    """Compile a model that `ml.training` has fitted.

    Args:
        contract: names the features.
        pipeline: the model, calibrated or not.
        threshold: from this probability on, churn is predicted.
        reference: the rows that the model was fitted on (`Trained.reference`); they say what is usual.

    Raises:
        CompiledModelError: it is none of ours, or larger than a link can say.
    """
    from churn_platform.ml import explanations, models
    from churn_platform.ml.calibration import CalibratedModel

    try:
        inside = explanations.underlying(pipeline)
    except explanations.UnexplainedError as error:
        raise CompiledModelError(f"it cannot be compiled: {error}") from None
    estimator = inside.named_steps["model"]
    if list(estimator.classes_) != [0, 1]:
        raise CompiledModelError(f"it knows the classes {list(estimator.classes_)}; needed are 0 and 1.")
    known = models.frame(contract, reference)
    encoding = _Encoding(contract, inside)
    name = type(estimator).__name__
    model: _Linear | _Trees
    if name == "LogisticRegression":
        model, base = _linear(contract, encoding, estimator, np.asarray(inside[:-1].transform(known)))
    elif name in _GROWN:
        model, base = _grown(contract, encoding, _GROWN[name](estimator))
    else:
        raise CompiledModelError(f"nothing here compiles a {name}; it can do {', '.join(_GROWN)}, LogisticRegression.")
    return CompiledModel(
        features=contract.feature_names,
        categories=encoding.categories,
        others=encoding.others,
        texts=contract.categorical_features,
        threshold=threshold,
        usual=explanations.usual(contract, known),
        base=base,
        model=model,
        curve=_curve(pipeline.curve if isinstance(pipeline, CalibratedModel) else None),
    )


def _curve(curve: Any) -> _Curve:
    from churn_platform.ml.calibration import DRAWN_IN, Isotonic, Sigmoid

    if isinstance(curve, Sigmoid):
        return _Curve(SIGMOID, np.array([curve.slope, curve.intercept, DRAWN_IN]), np.zeros(0))
    if isinstance(curve, Isotonic):
        return _Curve(ISOTONIC, np.array(curve.scores), np.array(curve.probabilities))
    if curve is not None:
        raise CompiledModelError(f"nothing here compiles a calibration by {type(curve).__name__}.")
    return _Curve(PLAIN, np.zeros(0), np.zeros(0))


class _Encoding:
    """How a pipeline makes columns of features: numbers, then indicators of missing ones, then categories."""

    def __init__(self, contract: Contract, pipeline: Any) -> None:
        from churn_platform.ml.explanations import owners

        columns = pipeline.named_steps["columns"]
        many = len(contract.numeric_features)
        self.owners = owners(contract, pipeline)
        self.fill = np.full(many, np.nan)
        self.indicator = np.full(many, -1)  # the column of each number's indicator; -1 where there is none
        self.centre, self.scale = np.zeros(len(self.owners)), np.ones(len(self.owners))
        numeric: Any = columns.named_transformers_["numeric"] if many else None
        if hasattr(numeric, "named_steps"):
            impute = numeric.named_steps["impute"]
            self.fill = np.asarray(impute.statistics_, dtype="float64")
            told = impute.indicator_.features_
            self.indicator[told] = many + np.arange(len(told))
            if "scale" in numeric.named_steps:
                scaled = many + len(told)
                self.centre[:scaled] = numeric.named_steps["scale"].mean_
                self.scale[:scaled] = numeric.named_steps["scale"].scale_
        self.categories: list[dict[str | None, int]] = []  # code: 1 and the column among those of the text
        self.others: list[int] = []
        self.first: list[int] = []  # the first column of each text
        place = many + int((self.indicator >= 0).sum())
        encoder: Any = columns.named_transformers_["categorical"] if contract.categorical_features else None
        for text in range(len(contract.categorical_features)):
            rare = encoder.infrequent_categories_[text]
            rare = set() if rare is None else set(rare)
            frequent = [category for category in encoder.categories_[text] if category not in rare]
            other = 1 + len(frequent) if rare else 0  # the rare ones and the unknown ones share the last column
            self.categories.append({category: 1 + code for code, category in enumerate(frequent)})
            self.others.append(other)
            self.first.append(place)
            place += len(frequent) + bool(rare)
        self.first.append(place)


def _linear(contract: Contract, encoding: _Encoding, estimator: Any, encoded: Array) -> tuple[_Linear, float]:
    """A logistic regression, and what it says on average."""
    weights, many = np.asarray(estimator.coef_[0], dtype="float64"), len(contract.numeric_features)
    terms = np.zeros(many, TERM)
    terms["fill"] = encoding.fill
    terms["centre"], terms["scale"], terms["weight"] = encoding.centre[:many], encoding.scale[:many], weights[:many]
    for number, column in enumerate(encoding.indicator):
        if column >= 0:
            centre, scale, weight = encoding.centre[column], encoding.scale[column], weights[column]
            terms["known"][number], terms["unknown"][number] = (
                (0 - centre) / scale * weight,
                (1 - centre) / scale * weight,
            )
    tables, offsets = [np.zeros(0)], [0]
    for first, last in zip(encoding.first, encoding.first[1:], strict=False):
        tables += [np.zeros(1), weights[first:last]]
        offsets.append(offsets[-1] + 1 + last - first)
    means = np.zeros(len(contract.feature_names))
    np.add.at(means, encoding.owners, encoded.mean(axis=0) * weights)
    intercept = float(estimator.intercept_[0])
    place = [contract.feature_names.index(n) for n in (*contract.numeric_features, *contract.categorical_features)]
    model = _Linear(
        terms=terms,
        table=np.concatenate(tables),
        offsets=np.array(offsets, dtype="int64"),
        intercept=intercept,
        means=means,
        owners=np.array(place, dtype="int64"),
    )
    return model, intercept + float(means.sum())


class _Tree(NamedTuple):
    """A tree of scikit-learn, of either kind, in one form; each field of shape (nodes,)."""

    left: NDArray[np.int64]  # -1 at a leaf
    right: NDArray[np.int64]
    column: NDArray[np.int64]
    threshold: Array
    missing_left: NDArray[np.bool_]
    value: Array
    cover: Array


class _Ensemble(NamedTuple):
    trees: list[_Tree]
    single: bool  # whether columns are compared in single precision
    begin_with: float
    divisor: float
    log_odds: bool


def _forest(estimator: Any) -> _Ensemble:
    found = []
    for member in estimator.estimators_:
        tree = member.tree_
        found.append(
            _Tree(
                left=np.asarray(tree.children_left, dtype="int64"),
                right=np.asarray(tree.children_right, dtype="int64"),
                column=np.asarray(tree.feature, dtype="int64"),
                threshold=np.asarray(tree.threshold, dtype="float64"),
                missing_left=np.asarray(tree.missing_go_to_left, dtype="bool"),
                value=np.asarray(tree.value[:, 0, 1], dtype="float64"),
                cover=np.asarray(tree.weighted_n_node_samples, dtype="float64"),
            )
        )
    return _Ensemble(found, single=True, begin_with=0.0, divisor=float(len(found)), log_odds=False)


def _boosted(estimator: Any) -> _Ensemble:
    found = []
    for (predictor,) in estimator._predictors:  # noqa: SLF001 - scikit-learn has no other way to its trees
        nodes = predictor.nodes
        if nodes["is_categorical"].any():
            raise CompiledModelError("it splits on categories that were not encoded, which ml.models never makes.")
        leaf = nodes["is_leaf"].astype("bool")
        found.append(
            _Tree(
                left=np.where(leaf, -1, nodes["left"].astype("int64")),
                right=np.where(leaf, -1, nodes["right"].astype("int64")),
                column=nodes["feature_idx"].astype("int64"),
                threshold=nodes["num_threshold"].astype("float64"),
                missing_left=nodes["missing_go_to_left"].astype("bool"),
                value=nodes["value"].astype("float64"),
                cover=nodes["count"].astype("float64"),
            )
        )
    baseline = float(np.ravel(estimator._baseline_prediction)[0])  # noqa: SLF001
    return _Ensemble(found, single=False, begin_with=baseline, divisor=1.0, log_odds=True)


_GROWN = {"RandomForestClassifier": _forest, "HistGradientBoostingClassifier": _boosted}


def _grown(contract: Contract, encoding: _Encoding, ensemble: _Ensemble) -> tuple[_Trees, float]:
    """Trees, and what they say on average."""
    plan, cuts, offsets, columns = _plan(contract, encoding, ensemble)
    line_of, low_of = _lines(encoding, plan, offsets)
    largest = max(len(tree.left) for tree in ensemble.trees)
    shift = max(1, int(largest - 1).bit_length())
    if int(offsets[-1]).bit_length() + shift > 32:
        raise CompiledModelError(
            f"a tree has {largest:,} nodes and the model {len(encoding.owners):,} columns: more than fits into a link. "
            "Limit max_depth or min_samples_leaf, or features with very many categories."
        )
    nodes, values, covers, depths, average = [], [], [], [], 0.0
    for tree in ensemble.trees:
        order, left, depth = _breadth_first(tree)
        inner = tree.left[order] >= 0
        column, threshold = tree.column[order], tree.threshold[order]
        made = np.zeros(len(order), NODE)
        made["threshold"] = np.inf
        made["threshold"][inner] = _thresholds(column[inner], threshold[inner], plan, cuts)
        looked_at = np.where(tree.missing_left[order][inner], low_of[column[inner]], line_of[column[inner]])
        made["link"] = left
        made["link"][inner] |= (looked_at << shift).astype("uint32")
        nodes.append(made)
        values.append(tree.value[order])
        covers.append(tree.cover[order])
        depths.append(depth)
        average += _expected(left, inner, values[-1], covers[-1])
    longest = max(1, min(max(depths), len(encoding.owners)))
    points, weights = np.polynomial.legendre.leggauss((longest + 1) // 2)
    model = _Trees(
        plan=plan,
        cuts=cuts,
        offsets=offsets,
        nodes=np.concatenate(nodes),
        values=np.concatenate(values),
        starts=np.cumsum([0, *map(len, nodes)], dtype="int64"),
        depths=np.array(depths, dtype="int64"),
        shift=shift,
        begin_with=ensemble.begin_with,
        divisor=ensemble.divisor,
        log_odds=ensemble.log_odds,
        covers=np.concatenate(covers),
        columns=columns,
        owners=np.asarray(encoding.owners, dtype="int64"),
        points=(points + 1) / 2,
        weights=weights / 2,
    )
    return model, (ensemble.begin_with + average) / ensemble.divisor


def _plan(
    contract: Contract, encoding: _Encoding, ensemble: _Ensemble
) -> tuple[NDArray[Any], Array, NDArray[np.int64], NDArray[np.int64]]:
    """Where each number's lines are, its cuts, the first line of each text, and the column of each line.

    Numbers that are compared in double precision are replaced by their rank among the model's own thresholds: the
    comparison comes out the same, and a rank is exact in single precision.
    """
    many = len(contract.numeric_features)
    plan, columns = np.zeros(many, NUMBER), [0]  # line 0, which leaves look at, has no column
    plan["fill"] = encoding.fill
    cuts: list[float] = []
    for number in range(many):
        plan["line"][number] = len(columns)
        columns.append(number)
        if np.isnan(encoding.fill[number]):
            plan["low"][number] = len(columns)
            columns.append(number)
        if encoding.indicator[number] >= 0:
            plan["missing"][number] = len(columns)
            columns.append(int(encoding.indicator[number]))
        plan["first"][number] = len(cuts)
        if not ensemble.single:
            cuts += sorted({t for tree in ensemble.trees for t in tree.threshold[_splits(tree, number)].tolist()})
        plan["last"][number] = len(cuts)
    offsets = []
    for first, last in zip(encoding.first, encoding.first[1:], strict=False):
        offsets.append(len(columns))
        columns += [first, *range(first, last)]  # no node looks at the line of code 0
    return plan, np.array(cuts), np.array([*offsets, len(columns)]), np.array(columns)


def _lines(
    encoding: _Encoding, plan: NDArray[Any], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The line of each column: for nodes that send missing values to the right, and for those to the left."""
    right = np.zeros(len(encoding.owners), dtype="int64")
    right[: len(plan)] = plan["line"]
    right[encoding.indicator[encoding.indicator >= 0]] = plan["missing"][encoding.indicator >= 0]
    for offset, first, last in zip(offsets, encoding.first, encoding.first[1:], strict=False):
        right[first:last] = offset + 1 + np.arange(last - first)
    left = right.copy()
    left[: len(plan)] = np.where(plan["low"] > 0, plan["low"], plan["line"])
    return right, left


def _splits(tree: _Tree, column: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (tree.left >= 0) & (tree.column == column)
    return found


def _thresholds(column: NDArray[np.int64], threshold: Array, plan: NDArray[Any], cuts: Array) -> NDArray[np.float32]:
    """Thresholds in single precision that decide as these do.

    scikit-learn compares a forest's columns, which are in single precision, with thresholds in double: the next lower
    single number decides the same. So it does for indicators and categories, which are 0 or 1.
    """
    found = threshold.astype("float32")
    found = np.where(found > threshold, np.nextafter(found, np.float32(-np.inf)), found)
    for number in range(len(plan)):
        own, there = cuts[plan["first"][number] : plan["last"][number]], column == number
        if len(own):
            found[there] = np.searchsorted(own, threshold[there])
    return found


def _breadth_first(tree: _Tree) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The nodes level by level with siblings side by side, the new place of each one's left child, and the depth.

    A leaf's left child is itself.
    """
    level, levels, left, begin = np.zeros(1, dtype="int64"), [], [], 0
    while len(level):
        inner = tree.left[level] >= 0
        parents = level[inner]
        places = begin + np.arange(len(level))
        places[inner] = begin + len(level) + 2 * np.arange(len(parents))
        levels.append(level)
        left.append(places)
        begin += len(level)
        level = np.column_stack([tree.left[parents], tree.right[parents]]).ravel()
    return np.concatenate(levels), np.concatenate(left), len(levels) - 1


def _expected(left: NDArray[np.int64], inner: NDArray[np.bool_], values: Array, covers: Array) -> float:
    """A tree's answer on average over the training rows, by the weight that came by each child."""
    mean = values.copy()
    for place in np.flatnonzero(inner)[::-1]:
        children = slice(left[place], left[place] + 2)
        mean[place] = mean[children] @ covers[children] / covers[children].sum()
    return float(mean[0])
