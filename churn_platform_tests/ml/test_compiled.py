"""The compiled model: it answers, explains and decides as the pipeline that it was made of, and nothing else loads."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from churn_platform.ml import models
from churn_platform.ml.calibration import CalibratedModel, Isotonic, Sigmoid
from churn_platform.ml.compiled import CompiledModel, CompiledModelError, compile_model
from churn_platform.ml.explanations import Explainer
from churn_platform_tests import graph
from churn_platform_tests.ml.test_explanations import FAMILIES, contract_of, fit
from churn_platform_tests.worlds import PURCHASES, changed

CURVES = {
    "plain": None,
    "sigmoid": Sigmoid(0.7, -0.2),
    "isotonic": Isotonic([0.0, 0.2, 0.21, 0.7, 1.0], [0.01, 0.1, 0.4, 0.8, 0.9]),
}


def answered(compiled, inputs):
    numbers = inputs.iloc[:, list(compiled.numeric)].to_numpy(dtype="float64")
    return compiled.probabilities(numbers, texts_of(compiled, inputs))


def texts_of(compiled, inputs):
    return [inputs.iloc[:, place].tolist() for place in compiled.categorical]


def varied(contract, inputs, rows=2000):
    """Customers as there are none: values missing, categories unknown, numbers beyond what was trained on."""
    random = np.random.default_rng(5)
    found = inputs.sample(rows, replace=True, random_state=5).reset_index(drop=True)
    for name in contract.numeric_features:
        found[name] *= random.choice([1.0, 0.9, 1.3, -1.0, 1e6], rows)
        found.loc[random.random(rows) < 0.15, name] = np.nan
    for name in contract.categorical_features:
        found.loc[random.random(rows) < 0.2, name] = None
        found.loc[random.random(rows) < 0.2, name] = "never heard of"
    return found


@pytest.fixture(scope="module", params=FAMILIES)
def fitted(request):
    contract, model, inputs = fit(request.param)
    return contract, model, inputs, compile_model(contract, model, 0.5, inputs)


@pytest.mark.parametrize("curve", CURVES)
def test_it_answers_as_the_pipeline_does(fitted, curve):
    contract, model, inputs, _ = fitted
    model = model if CURVES[curve] is None else CalibratedModel(model, CURVES[curve])
    compiled = compile_model(contract, model, 0.5, inputs)
    rows = varied(contract, inputs)
    assert np.abs(answered(compiled, rows) - models.probabilities(model, rows)).max() < 1e-12


def test_values_exactly_on_thresholds_and_beside_them_take_the_same_turn(fitted):
    contract, model, inputs, compiled = fitted
    estimator = model.named_steps["model"]
    if contract.model.family == "logistic_regression":
        pytest.skip("a linear model has no thresholds")
    names = contract.numeric_features
    splits = {name: [] for name in names}
    for tree in getattr(estimator, "estimators_", None) or [p for (p,) in estimator._predictors]:
        nodes = tree.tree_ if hasattr(tree, "tree_") else tree.nodes
        columns = nodes.feature if hasattr(nodes, "feature") else np.where(nodes["is_leaf"], -1, nodes["feature_idx"])
        thresholds = nodes.threshold if hasattr(nodes, "threshold") else nodes["num_threshold"]
        for place, name in enumerate(names):
            splits[name] += thresholds[columns == place].tolist()
    random, rows = np.random.default_rng(1), inputs.sample(4000, replace=True, random_state=1)
    for name in names:
        exact = random.choice(splits[name], len(rows))
        steps = random.choice([-np.inf, np.nan, np.inf], len(rows))
        single = random.random(len(rows)) < 0.5
        beside = np.where(single, np.nextafter(exact.astype("f4"), steps.astype("f4")), np.nextafter(exact, steps))
        rows[name] = np.where(np.isnan(steps), exact, beside)
    assert np.abs(answered(compiled, rows) - models.probabilities(model, rows)).max() < 1e-12


def test_one_row_is_answered_as_it_is_among_many_to_the_last_bit(fitted):
    contract, _, inputs, compiled = fitted
    rows = varied(contract, inputs, 300)
    together = answered(compiled, rows)
    for size in (1, 2, 5, 64):
        pieces = [answered(compiled, rows.iloc[begin : begin + size]) for begin in range(0, 300, size)]
        assert (np.concatenate(pieces) == together).all()


def test_it_contributes_as_the_explainer_does(fitted):
    contract, model, inputs, compiled = fitted
    explainer, rows = Explainer(contract, model, inputs), varied(contract, inputs, 100)
    numbers = rows[contract.numeric_features].to_numpy()
    found = compiled.contributions(numbers, texts_of(compiled, rows))
    assert found == pytest.approx(explainer.contributions(rows), rel=1e-12, abs=1e-9)
    assert compiled.base == pytest.approx(explainer.base, abs=1e-9)
    assert compiled.base + found.sum(axis=1) == pytest.approx(explainer.score(rows), rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("family", ["random_forest", "gradient_boosting"])
def test_trees_of_any_depth_answer_and_contribute_the_same(family):
    deep = {"random_forest": "{n_estimators: 5, max_depth: null, min_samples_leaf: 1}"}
    params = deep.get(family, "{max_iter: 8, max_depth: null, max_leaf_nodes: 200, min_samples_leaf: 1}")
    contract = changed(graph.SIMULATED, ("family: logistic_regression", f"family: {family}, params: {params}"))
    rows = graph.labelled(300, 3)
    inputs = models.frame(contract, rows)
    model = models.fit(contract, inputs, rows["churned"].to_numpy())
    compiled = compile_model(contract, model, 0.5, inputs)
    rows = varied(contract, inputs)
    assert np.abs(answered(compiled, rows) - models.probabilities(model, rows)).max() < 1e-12
    few = rows.iloc[:20]
    found = compiled.contributions(few[contract.numeric_features].to_numpy(), texts_of(compiled, few))
    assert np.abs(found - Explainer(contract, model, inputs).contributions(few)).max() < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_features_that_are_all_numbers_some_of_them_always_missing_are_compiled(family):
    contract = changed(PURCHASES, ("model: {", f"model: {{family: {family}, ")) if "model: {" in PURCHASES else None
    contract = contract or changed(PURCHASES)
    random = np.random.default_rng(1)
    rows = pd.DataFrame({name: random.exponential(10, 300) for name in contract.feature_names})
    rows[contract.feature_names[0]] = np.nan
    inputs = models.frame(contract, rows)
    model = models.fit(contract, inputs, (random.random(300) < 0.4).astype(int))
    compiled = compile_model(contract, model, 0.5, inputs)
    assert compiled.categorical == ()
    assert np.abs(answered(compiled, inputs) - models.probabilities(model, inputs)).max() < 1e-12
    assert np.isnan(compiled.usual[contract.feature_names[0]])


def test_what_was_saved_is_what_is_loaded(fitted, tmp_path):
    contract, _, inputs, compiled = fitted
    compiled.save(tmp_path / "model.npz")
    loaded = CompiledModel.load(tmp_path / "model.npz")
    rows = varied(contract, inputs, 50)
    assert (answered(loaded, rows) == answered(compiled, rows)).all()
    for name in ("features", "numeric", "categorical", "threshold", "usual", "base", "categories", "others"):
        assert getattr(loaded, name) == getattr(compiled, name)
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]


def test_it_says_its_features_and_where_the_numbers_are(fitted):
    contract, _, _, compiled = fitted
    assert list(compiled.features) == contract.feature_names
    assert [compiled.features[place] for place in compiled.numeric] == contract.numeric_features
    assert [compiled.features[place] for place in compiled.categorical] == contract.categorical_features
    assert set(compiled.usual) == set(contract.numeric_features)


def test_no_rows_have_no_answers(fitted):
    _, _, inputs, compiled = fitted
    assert answered(compiled, inputs.iloc[:0]).shape == (0,)


def test_arrays_in_any_order_or_precision_and_read_only_ones_are_answered(fitted):
    contract, _, inputs, compiled = fitted
    numbers, texts = inputs[contract.numeric_features].to_numpy(), texts_of(compiled, inputs)
    frozen = np.ascontiguousarray(numbers)
    frozen.setflags(write=False)
    expected = compiled.probabilities(np.ascontiguousarray(numbers), texts)
    assert (compiled.probabilities(frozen, texts) == expected).all()
    assert (compiled.probabilities(np.asfortranarray(numbers), texts) == expected).all()


# --------------------------------------------------------------------------------------------------- what is refused


def test_a_file_that_is_cut_or_spoilt_anywhere_is_refused_or_answers_the_same(fitted, tmp_path):
    _, _, inputs, compiled = fitted
    path = tmp_path / "model.npz"
    compiled.save(path)
    whole, expected = path.read_bytes(), answered(compiled, inputs)
    random = np.random.default_rng(2)
    refused = 0
    for trial in range(60):
        spoilt = bytearray(whole)
        if trial % 3 == 0:
            spoilt = spoilt[: random.integers(len(whole))]
        else:
            spoilt[random.integers(len(whole))] ^= 1 << random.integers(8)
        path.write_bytes(spoilt)
        try:
            loaded = CompiledModel.load(path)
        except CompiledModelError:
            refused += 1
        else:  # a bit that nobody reads, such as a time in the archive's directory
            assert (answered(loaded, inputs) == expected).all()
    assert refused > 30


def rewritten(path, change):
    """Change the arrays of a saved model, as no honest writer would."""
    with np.load(path) as stored:
        arrays = {name: stored[name].copy() for name in stored.files}
    change(arrays)
    np.savez(path, **arrays)


def header(**changes):
    def change(arrays):
        said = json.loads(arrays["header"].tobytes()) | changes
        arrays["header"] = np.frombuffer(json.dumps(said).encode(), np.uint8)

    return change


def links_outside(arrays):
    arrays["nodes"]["link"][0] |= (1 << arrays["shift"].item()) - 1


def links_in_a_circle(arrays):
    inner = np.flatnonzero(arrays["nodes"]["link"] >> arrays["shift"].item() > 0)[1]
    line = arrays["nodes"]["link"][inner] >> arrays["shift"].item()
    arrays["nodes"]["link"][inner] = line << arrays["shift"].item()


def set_to(name, value):
    def change(arrays):
        arrays[name][...] = value

    return change


WRONG = {
    "another format": header(format=99),
    "another kind": header(kind="poem"),
    "other features": header(features=["a", "b"]),
    "a category's code beyond the lines": header(others=[999]),
    "no threshold": header(threshold=2.0),
    "a node's link beyond its tree": links_outside,
    "nodes in a circle": links_in_a_circle,
    "depths too small": set_to("depths", 1),
    "owners beyond the features": set_to("owners", 99),
    "lines beyond the plan": set_to("offsets", 99),
    "cuts beyond the cuts": lambda arrays: arrays["plan"].__setitem__("last", 10**6),
    "no nodes": lambda arrays: arrays.pop("nodes"),
    "values of another type": lambda arrays: arrays.update(values=arrays["values"].astype("f4")),
    "a curve that there is not": set_to("curve", 7),
    "a curve without points": set_to("curve", 2),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_arrays_that_would_lead_a_kernel_astray_are_refused(wrong, tmp_path):
    contract, model, inputs = fit("random_forest")
    path = tmp_path / "model.npz"
    compile_model(contract, model, 0.5, inputs).save(path)
    CompiledModel.load(path)
    rewritten(path, WRONG[wrong])
    with pytest.raises(CompiledModelError, match="cannot be read"):
        CompiledModel.load(path)


def test_a_pickle_is_never_opened(tmp_path):
    path = tmp_path / "model.npz"
    np.savez(path, header=np.array([{"format": 1}], dtype=object))
    with pytest.raises(CompiledModelError, match="cannot be read"):
        CompiledModel.load(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CompiledModelError, match=r"no compiled model .*nowhere"):
        CompiledModel.load(tmp_path / "nowhere.npz")


def test_a_model_of_somebody_else_is_not_compiled():
    contract, model, inputs = fit("logistic_regression")
    with pytest.raises(CompiledModelError, match="not made by"):
        compile_model(contract, object(), 0.5, inputs)
    with pytest.raises(CompiledModelError, match="calibration by function"):
        compile_model(contract, CalibratedModel(model, texts_of), 0.5, inputs)
    model.named_steps["model"].classes_ = np.array(["no", "yes"])
    with pytest.raises(CompiledModelError, match="classes"):
        compile_model(contract, model, 0.5, inputs)


def test_an_estimator_that_nobody_taught_it_is_refused_by_name():
    from sklearn.tree import DecisionTreeClassifier

    contract = contract_of("logistic_regression")
    rows = graph.labelled(100)
    inputs = models.frame(contract, rows)
    model = models.pipeline(contract).set_params(model=DecisionTreeClassifier(max_depth=2))
    with pytest.raises(CompiledModelError, match="DecisionTreeClassifier"):
        compile_model(contract, model.fit(inputs, rows["churned"]), 0.5, inputs)


ALONE = """
import sys
heavy = ("pandas", "sklearn", "pyarrow", "mlflow", "skops", "joblib", "duckdb")
sys.modules.update(dict.fromkeys((*heavy, "scipy")))  # None: as if they were not installed
from churn_platform.ml.compiled import CompiledModel
from churn_platform.ml import reasons
model = CompiledModel.load(sys.argv[1])
model.warm()
import numpy as np
print(repr(model.probabilities(np.full((1, len(model.numeric)), np.nan), [[None]] * len(model.categorical))[0]))
"""


def test_it_answers_where_none_of_the_training_libraries_is_installed(fitted, tmp_path):
    _, _, _, compiled = fitted
    compiled.save(tmp_path / "model.npz")
    command = [sys.executable, "-c", ALONE, str(tmp_path / "model.npz")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    expected = compiled.probabilities(np.full((1, len(compiled.numeric)), np.nan), [[None]] * len(compiled.categorical))
    assert float(found.stdout.strip().removeprefix("np.float64(").removesuffix(")")) == expected[0]
