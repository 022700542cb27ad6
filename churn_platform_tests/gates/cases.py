"""Deliberately bad models and data sets, and what has to stop each; and good challengers, which nothing may stop.

A case makes a challenger in a `World` and returns its version. `stops` are gates that have to refuse it (others may, as
well), and `says` stands in what one of them says. Where no challenger comes about at all, `stops` names the step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.tree import DecisionTreeClassifier

from churn_platform.assets.training import read_training_set
from churn_platform.contract import LABEL, MATURED_AT, SNAPSHOT_TIME
from churn_platform.ml import equality, gates, models, probes, retrials
from churn_platform.ml.compiled import CompiledModel, compile_model
from churn_platform.registered import CHALLENGER, COMPILED, FEATURES_VERSION
from churn_platform_tests.gates.world import World, noise

LOADING = "no model"  # training or registration refuses; there is no challenger at all
JUDGED = "promotion"  # promotion itself refuses, whatever the checks say
STEP = "model_gates"  # the step that judges fails


@dataclass(frozen=True)
class Case:
    """A challenger, made in a world."""

    name: str
    make: Callable[[World], str]
    stops: tuple[str, ...] = ()
    says: str = ""
    unjudged: bool = False  # the checks are not asked
    shadow: bool = False  # the contract asks for answers in the shadow
    by_chance: bool = False  # which gates stop it beside those of `stops` differs from one try to the next


BAD: list[Case] = []
GOOD: list[Case] = []


def bad(
    name: str, stops: list[str], says: str, *, unjudged: bool = False, shadow: bool = False, by_chance: bool = False
):
    def add(make: Callable[[World], str]) -> Callable[[World], str]:
        BAD.append(Case(name, make, tuple(stops), says, unjudged, shadow, by_chance))
        return make

    return add


def good(name: str):
    def add(make: Callable[[World], str]) -> Callable[[World], str]:
        GOOD.append(Case(name, make))
        return make

    return add


# ----------------------------------------------------------------------- models that know nothing, or the opposite


@bad("answers the churn rate for everybody", [gates.BASE, gates.CHAMPION, gates.RECIPE], "than answering")
def constant(world: World) -> str:
    return world.register(world.fit(DummyClassifier(strategy="prior")))


@bad("tosses a coin", [gates.BASE, probes.INVARIANT], "asked again, probabilities change", by_chance=True)
def coin(world: World) -> str:
    return world.register(world.fit(DummyClassifier(strategy="stratified")))


@bad("was trained on shuffled labels", [gates.CHAMPION, gates.RECIPE], "from the champion's on the same rows")
def shuffled_labels(world: World) -> str:
    return world.register(world.fit(labels=noise(1).permutation(world.fitted[LABEL].to_numpy())))


@bad("was trained on flipped labels", [gates.BASE, probes.DIRECTION], "the mean probability of leaving rises")
def flipped_labels(world: World) -> str:
    return world.register(world.fit(labels=1 - world.fitted[LABEL].to_numpy()))


@bad("answers the probability of staying", ["roc_auc_is_good_enough", gates.BASE], "roc_auc is 0.")
def inverted(world: World) -> str:
    model = world.fit(LogisticRegression())
    model.named_steps["model"].coef_ *= -1
    model.named_steps["model"].intercept_ *= -1
    return world.register(model)


@bad("takes the sign of a column the wrong way", [gates.CHAMPION, probes.DIRECTION], "with less recency_days")
def wrong_sign(world: World) -> str:
    return world.register(world.fit(rows=world.fitted.assign(recency_days=lambda rows: 60 - rows["recency_days"])))


@bad("exaggerates", [gates.STABLE, "calibration_error_is_good_enough"], "outcomes do not bear it out")
def exaggerates(world: World) -> str:
    model = world.fit(LogisticRegression())
    model.named_steps["model"].coef_ *= 6
    return world.register(model)


@bad("thinks everybody leaves", [gates.BASE, gates.STABLE], "away from the champion's")
def alarmed(world: World) -> str:
    model = world.fit(LogisticRegression())
    model.named_steps["model"].intercept_ += 3
    return world.register(model)


# ---------------------------------------------------------------------------------- models that learnt too little


@bad("learnt its rows by heart (a tree without bounds)", [gates.CHAMPION, gates.RECIPE], "ROC AUC differs by")
def overfit(world: World) -> str:
    return world.register(world.fit(DecisionTreeClassifier(random_state=1)))


@bad("was fitted on twelve customers", [gates.CHAMPION, gates.RECIPE], "it answers differently")
def twelve(world: World) -> str:
    few = world.fitted.groupby(LABEL).head(6)
    return world.register(world.fit(DecisionTreeClassifier(random_state=1), few))


@bad("was trained on stale features, of the month before", [gates.CHAMPION, gates.RECIPE], "ROC AUC differs by")
def stale(world: World) -> str:
    features = world.contract.feature_names
    rows = world.fitted.sort_values(["buyer", SNAPSHOT_TIME])
    rows[features] = rows.groupby("buyer")[features].shift(1)
    return world.register(world.fit(rows=rows[rows["recency_days"].notna()]))


@bad("is blind to one group of customers", [gates.SLICES], "segment = plus")
def blind_slice(world: World) -> str:
    rows = world.fitted
    plus = (rows["segment"] == "plus").to_numpy()
    labels = np.where(plus, 1 - rows[LABEL], rows[LABEL])
    return world.register(world.fit(HistGradientBoostingClassifier(random_state=1), rows, labels))


# --------------------------------------------------------------------------------------- models that saw the test


@bad("was trained on the test window", [gates.RECIPE], "trained again without the test window, it answers differently")
def trained_on_test(world: World) -> str:
    everything = pd.concat([world.fitted, world.parts.test])
    return world.register(world.fit(HistGradientBoostingClassifier(random_state=1), everything))


@bad("was trained on nothing but the test window", [gates.RECIPE], "when trained again")
def trained_on_test_alone(world: World) -> str:
    return world.register(world.fit(rows=world.parts.test))


@bad("was calibrated on the test window", [gates.RECIPE], "it answers differently")
def calibrated_on_test(world: World) -> str:
    model = world.fit(LogisticRegression())
    inputs = models.frame(world.contract, world.parts.test)
    final = model.named_steps["model"]
    score = model.decision_function(inputs).reshape(-1, 1)
    curve = LogisticRegression().fit(score, world.parts.test[LABEL])
    final.coef_ = final.coef_ * curve.coef_[0, 0]
    final.intercept_ = final.intercept_ * curve.coef_[0, 0] + curve.intercept_
    return world.register(model)


@bad("chose its best seed on the test window", [gates.RECIPE], "trained again without the test window")
def best_of_many(world: World) -> str:
    inputs, labels = models.frame(world.contract, world.parts.test), world.parts.test[LABEL].to_numpy()
    tried = [world.fit(DecisionTreeClassifier(max_depth=4, max_features=2, random_state=seed)) for seed in range(40)]
    best = max(tried, key=lambda model: gates.metrics.fast_roc_auc(labels, model.predict_proba(inputs)[:, 1]))
    return world.register(best)


@bad("chose its threshold on the test window", [gates.RECIPE], "it says that its threshold is")
def threshold_on_test(world: World) -> str:
    honest = retrials.train(world.contract, read_training_set(world.contract, world.shop.tables, world.whole))
    labels, said = world.parts.test[LABEL].to_numpy(), honest.test_probability
    best = max(np.unique(said), key=lambda threshold: ((said >= threshold) == labels).mean())
    return world.register(honest.pipeline, threshold=repr(float(best)))


@bad("says that it is better than it is", [gates.RECIPE], "it says that its test_roc_auc is 0.99")
def boasts(world: World) -> str:
    honest = retrials.train(world.contract, read_training_set(world.contract, world.shop.tables, world.whole))
    return world.register(honest.pipeline, test_roc_auc="0.99")


@bad("says that it was tested on another window", [STEP], "splits the data differently now")
def other_test_window(world: World) -> str:
    return world.register(world.fit(), test_from="2023-02-01 00:00:00+00:00")


# ------------------------------------------------------------------------------------------ models that are broken


@bad("answers NaN", [gates.BASE, gates.RECIPE], "not one probability per row")
def answers_nan(world: World) -> str:
    model = world.fit(LogisticRegression())
    model.named_steps["model"].coef_[:] = np.nan
    return world.register(model)


@bad("answers three classes", [gates.BASE], "not one probability per row")
def three_classes(world: World) -> str:
    return world.register(world.fit(LogisticRegression(), labels=noise(3).integers(0, 3, len(world.fitted))))


def _foreign(world: World, **options: object) -> str:
    tracking = world.shop.tracking
    with tracking.run("foreign", f"run-{len(tracking.versions())}"):
        info = mlflow.sklearn.log_model(
            world.fit(), name="model", registered_model_name=tracking.model_name, pip_requirements=[], **options
        )
    version = str(info.registered_model_version)
    known = world.tags(world.whole, world.contract)
    known |= {"features": json.dumps(world.contract.feature_names), FEATURES_VERSION: "1"}
    for name, value in known.items():
        tracking.client.set_model_version_tag(tracking.model_name, version, name, value)
    tracking.client.set_registered_model_alias(tracking.model_name, CHALLENGER, version)
    return version


@bad("is a pickle", [gates.BASE, gates.SIGNATURE], "was not made by this platform")
def pickled(world: World) -> str:
    return _foreign(world, serialization_format="cloudpickle")


@bad("brings its own list of types to trust", [gates.BASE], "was not made by this platform")
def own_trust(world: World) -> str:
    return _foreign(world, skops_trusted_types=[*models.TRUSTED_TYPES, "os.system"])


@bad("carries no signature", [gates.SIGNATURE], "the model has no signature")
def unsigned(world: World) -> str:
    return _foreign(world, skops_trusted_types=models.TRUSTED_TYPES)


@bad("carries code of its own", [LOADING], "holds types that the platform does not trust")
def own_code(world: World) -> str:
    steps = [("own", FunctionTransformer(lambda table: table[["recency_days"]])), ("model", LogisticRegression())]
    inputs = models.frame(world.contract, world.fitted)
    return world.register(Pipeline(steps).fit(inputs, world.fitted[LABEL]))


@bad("reads other features", [gates.BASE], "trained on other features than the contract describes")
def other_features(world: World) -> str:
    tracking = world.shop.tracking
    version = world.register(world.fit())
    renamed = json.dumps([*world.contract.feature_names[:-1], "tier"])
    tracking.client.set_model_version_tag(tracking.model_name, version, "features", renamed)
    return version


def _served(world: World, change: Callable[[Path], object]) -> str:
    """An honest model, of which something else would be served."""
    tracking = world.shop.tracking
    version = world.retrain()
    root = Path(
        str(tracking.client.get_run(tracking.version(version).run_id).info.artifact_uri).removeprefix("file://")
    )
    change(root / COMPILED)
    return version


@bad("would serve another model than the one that was judged", [equality.EQUAL], "answers differently")
def serves_another(world: World) -> str:
    other = world.fit(labels=1 - world.fitted[LABEL].to_numpy())
    return _served(world, compile_model(world.contract, other, 0.5, world.fitted).save)


@bad("would serve a model that differs for missing values only", [equality.EQUAL], "= missing")
def serves_other_medians(world: World) -> str:
    def change(path: Path) -> None:
        compiled = CompiledModel.load(path)
        compiled._model.terms["fill"] += 30
        compiled.save(path)

    return _served(world, change)


@bad("would serve by another threshold", [equality.EQUAL], "0 differ in probability")
def serves_by_another_threshold(world: World) -> str:
    def change(path: Path) -> None:
        compiled = CompiledModel.load(path)
        compiled.threshold /= 2
        compiled.save(path)

    return _served(world, change)


@bad("would serve a file that is damaged", [equality.EQUAL], "no compiled model that could be served")
def serves_damaged(world: World) -> str:
    return _served(world, lambda path: path.write_bytes(path.read_bytes()[:-100]))


@bad("has nothing that could be served", [equality.EQUAL], "no compiled model that could be served")
def serves_nothing(world: World) -> str:
    return _served(world, Path.unlink)


@bad("is too large", [probes.BUDGET], "MB (at most 2)")
def too_large(world: World) -> str:
    return world.register(world.fit(RandomForestClassifier(60, random_state=1, n_jobs=1)))


# ---------------------------------------------------------------------------------------- data that gives it away


@bad("learns the label from a feature", [probes.GIVES_AWAY], "gap_90d is the label itself")
def leaked(world: World) -> str:
    return world.retrain(world.rows.assign(gap_90d=world.rows[LABEL].astype("float64")))


@bad("learns the label from a feature that knows the future, roughly", [probes.GIVES_AWAY], "gap_90d alone has")
def leaked_in_disguise(world: World) -> str:
    rows = world.rows
    away = noise(5).normal(0, 1, len(rows)) + np.where(rows[LABEL] == 1, noise(6).choice([-5.0, 5.0], len(rows)), 0.0)
    return world.retrain(rows.assign(gap_90d=away))


@bad(
    "learns who is missing: a column filled in after customers left", [probes.GIVES_AWAY], "alone has a ROC AUC of 1.0"
)
def leaked_by_absence(world: World) -> str:
    rows = world.rows
    return world.retrain(rows.assign(gap_90d=rows["spent_90d"].where(rows[LABEL] == 0)))


@bad("learns customers by heart: an id among the features", [probes.ID], "tenure_months has a value of its own")
def id_among_features(world: World) -> str:
    number = world.rows["buyer"].str.removeprefix("c").astype("float64")
    return world.retrain(world.rows.assign(tenure_months=number * 17 + 1000))


@bad("has the same rows twice", [probes.UNSEEN], "rows stand twice for the same customer and time")
def doubled_rows(world: World) -> str:
    return world.retrain(pd.concat([world.rows, world.rows.tail(500)]))


@bad("has every customer twice, under two ids", [probes.UNSEEN], "a row of another customer")
def doubled_customers(world: World) -> str:
    return world.retrain(pd.concat([world.rows, world.rows.assign(buyer="x" + world.rows["buyer"])]))


@bad("has its test rows copied into history under other ids", [probes.UNSEEN], "a row of another customer")
def test_in_history(world: World) -> str:
    rows = world.rows
    newest = rows[rows[SNAPSHOT_TIME] == rows[SNAPSHOT_TIME].max()]
    earlier = rows[rows[SNAPSHOT_TIME] == pd.Timestamp("2023-07-01", tz="UTC")].iloc[0]
    copies = newest.assign(
        buyer="x" + newest["buyer"],
        snapshot_time=earlier[SNAPSHOT_TIME],
        label_matured_at=earlier[MATURED_AT],
    )
    return world.retrain(pd.concat([rows, copies]))


# ------------------------------------------------------------------------------------------- data that is not enough


@bad("was trained on one labelled window", [LOADING], "model.min_windows asks for 3")
def one_window(world: World) -> str:
    return world.retrain(world.rows[world.rows[SNAPSHOT_TIME] == world.rows[SNAPSHOT_TIME].min()])


@bad("was trained where nobody ever left", [LOADING], "rows have the same label")
def nobody_left(world: World) -> str:
    return world.retrain(world.rows.assign(churned=0))


@bad("was trained on a few customers", [gates.WINDOW, gates.TRAINING], "it was fitted on 30 rows; needed are 100")
def few_customers(world: World) -> str:
    return world.retrain(world.rows[world.rows["buyer"].isin([f"c{number}" for number in range(10)])])


@bad("was tested where everybody left", [gates.WINDOW, gates.BASE], "nothing can be compared on it")
def everybody_left(world: World) -> str:
    newest = world.rows[SNAPSHOT_TIME] == world.rows[SNAPSHOT_TIME].max()
    return world.retrain(world.rows.assign(churned=world.rows[LABEL].mask(newest, 1)))


# ----------------------------------------------------------------------------------------------- data that is wrong


@bad("was trained on labels that mean nothing", [gates.BASE, "roc_auc_is_good_enough"], "roc_auc is 0.")
def random_labels(world: World) -> str:
    return world.retrain(world.rows.assign(churned=noise(7).permutation(world.rows[LABEL].to_numpy())))


@bad("was trained after the label's meaning was turned round", [gates.BASE, gates.CHAMPION], "from the champion's")
def label_turned_round(world: World) -> str:
    newest = world.rows[SNAPSHOT_TIME] == world.rows[SNAPSHOT_TIME].max()
    return world.retrain(world.rows.assign(churned=(1 - world.rows[LABEL]).where(~newest, world.rows[LABEL])))


@bad("is as good on the newest window and was worse before", [gates.WALK], "trained as of each window")
def worse_before(world: World) -> str:
    """Old labels are turned round: whoever trained on them was wrong for long, and only the newest model is not."""
    old = world.rows[SNAPSHOT_TIME] < pd.Timestamp("2023-05-01", tz="UTC")
    return world.retrain(world.rows.assign(churned=world.rows[LABEL].where(~old, 1 - world.rows[LABEL])))


@bad(
    "has a feature whose unit changed at the source",
    [gates.BASE, "calibration_error_is_good_enough"],
    "Brier score better by",
)
def unit_changed(world: World) -> str:
    newest = world.rows[SNAPSHOT_TIME] == world.rows[SNAPSHOT_TIME].max()
    return world.retrain(
        world.rows.assign(recency_days=world.rows["recency_days"].where(~newest, 24 * world.rows["recency_days"]))
    )


# ------------------------------------------------------------------------------------------- what live requests tell


@bad("failed on live requests in the shadow", [gates.SHADOW], "no answer to 3 live requests", shadow=True)
def failed_in_shadow(world: World) -> str:
    model = world.fit()
    version = world.register(model, contract=world.in_shadow.contract)
    world.ask_live(version, model, failing=3)
    return version


@bad("says other things of live customers than of test rows", [gates.SHADOW], "away from the champion's", shadow=True)
def other_in_shadow(world: World) -> str:
    version = world.register(world.fit(), contract=world.in_shadow.contract)
    alarmed = world.fit(LogisticRegression())
    alarmed.named_steps["model"].intercept_ += 3
    world.ask_live(version, alarmed)
    return version


@bad("was never asked in the shadow", [gates.SHADOW], "it gave 0 answers beside the champion's", shadow=True)
def never_in_shadow(world: World) -> str:
    return world.register(world.fit(), contract=world.in_shadow.contract)


# -------------------------------------------------------------------------------------------- ways around the gates


@bad("was never judged", [JUDGED], "was not judged", unjudged=True)
def never_judged(world: World) -> str:
    return world.register(world.fit())


@bad("was judged by gates that asked for less", [JUDGED], "was not judged", unjudged=True)
def judged_by_others(world: World) -> str:
    version = world.register(world.fit(DummyClassifier(strategy="prior")))
    lax = world.shop.other(("minimum: {roc_auc: 0.68}", "minimum: {roc_auc: 0.0}"))
    for gate in gates.names(lax.contract):
        lax.tracking.record_gate(version, gate, True, "anything goes", world.shop.alias())
    return version


@bad("was compared with another champion than the present one", [JUDGED], "which is not champion now", unjudged=True)
def compared_with_another(world: World) -> str:
    version = world.register(world.fit())
    another = str(int(version) - 1)
    for gate in gates.names(world.contract):
        world.shop.tracking.record_gate(version, gate, True, "so it was judged then", another)
    return version


# ---------------------------------------------------------------------------------------------- good challengers


@good("the same recipe on the newest months")
def same_again(world: World) -> str:
    return world.retrain()


def _with(world: World, *changes: tuple[str, str]) -> str:
    return world.retrain(contract=world.shop.other(*changes).contract)


FAMILY = "model: {family: logistic_regression, train_windows: 2, min_windows: 3}"


@good("the same recipe, tried in the shadow")
def tried_in_shadow(world: World) -> str:
    version = world.retrain(contract=world.in_shadow.contract)
    world.ask_live(version, world.in_shadow.tracking.load(world.in_shadow.tracking.version(version)).pipeline)
    return version


@good("gradient boosting")
def boosted(world: World) -> str:
    return _with(world, (FAMILY, "model: {family: gradient_boosting, min_windows: 3}"))


@good("without calibration")
def uncalibrated(world: World) -> str:
    return _with(world, (FAMILY, FAMILY.replace("train_windows", "calibration: none, train_windows")))


@good("another seed")
def another_seed(world: World) -> str:
    params = "params: {max_iter: 60}"
    return _with(world, (FAMILY, f"model: {{family: gradient_boosting, {params}, seed: 4711, min_windows: 3}}"))


@good("all of history")
def all_of_history(world: World) -> str:
    return _with(world, (FAMILY, "model: {family: logistic_regression, min_windows: 3}"))


@good("weaker regularisation")
def weaker(world: World) -> str:
    return _with(world, (FAMILY, "model: {family: logistic_regression, params: {C: 10.0}, min_windows: 3}"))
