"""The candidate model: trained, logged, registered as challenger. Whether it may serve is for its gates to say."""

import json
import tempfile
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from churn_platform import provenance
from churn_platform.assets.common import WRITES, plot
from churn_platform.contract import LABEL, MATURED_AT, SNAPSHOT_TIME, Contract
from churn_platform.engine import connection
from churn_platform.ml import decisions, explanations, plots
from churn_platform.ml.models import ModelError
from churn_platform.ml.splits import NotEnoughDataError
from churn_platform.ml.training import Trained, in_order, train
from churn_platform.ml.tuning import Found
from churn_platform.model_card import card, summary
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import BY_TIME, BY_TRIALS, PARAMETERS, REFERENCE, SEARCH, Tracking

CARD = "model_card.md"  # kept with the model's run in MLflow


def assets(contract: Contract) -> list[dg.AssetsDefinition]:
    """The candidate model."""

    @dg.asset(
        deps=["training_set"],
        group_name="training",
        kinds={"scikitlearn", "mlflow"},
        owners=[contract.owner],
        pool="training",
        op_tags=WRITES,
        description="A model fitted on every label that is mature, tested on the newest window, tracked in MLflow and "
        "registered as challenger. Its blocking checks are the quality gates: only a version that passed them all can "
        "become champion.",
    )
    def candidate_model(
        context: dg.AssetExecutionContext, tables: dg.ResourceParam[TableStore], tracking: dg.ResourceParam[Tracking]
    ) -> dg.MaterializeResult[None]:
        import mlflow

        version = tables.version("training_set")
        if version is None:
            raise dg.Failure(
                description="there is no training set yet: materialize training_set first.", allow_retries=False
            )
        rows = read_training_set(contract, tables, version)
        newest = tables.windows("customer_features")[-1]
        run = context.run
        with (
            tracking.run(f"as of {newest}", run.root_run_id or run.run_id, f"training_set@{version}") as run_id,
            tempfile.TemporaryDirectory() as folder,
        ):
            try:
                before = tracking.client.get_run(run_id).data.tags  # not empty where this is a retry
                trained = train(
                    contract,
                    rows,
                    context.log.info,
                    json.loads(before[PARAMETERS]) if PARAMETERS in before else None,
                    lambda trial: tracking.log_trial(run_id, trial),
                )
                mlflow.set_tags(
                    {PARAMETERS: json.dumps(trained.parameters), SEARCH: before.get(SEARCH) or _ended(trained)}
                )
            except (NotEnoughDataError, ModelError) as error:
                raise dg.Failure(description=str(error), allow_retries=False) from error
            mlflow.log_params(
                {
                    "family": contract.model.family,
                    "seed": contract.model.seed,
                    "training_set_version": version,
                    **{f"model.{name}": value for name, value in trained.parameters.items()},
                    "calibration": trained.calibration.method,
                    "threshold": trained.threshold,
                    **trained.splits.describe(),
                }
            )
            mlflow.log_metrics(trained.metrics)
            mlflow.log_dict(contract.model_dump(mode="json"), "contract.json")
            figures = _figures(contract, trained) | explanations.figures(contract, trained)
            for name, figure in figures.items():
                (Path(folder) / f"{name}.png").write_bytes(plots.png(figure))
            trained.reference.to_parquet(Path(folder) / REFERENCE)
            tags = {
                "window": newest,
                "training_set_version": str(version),
                **provenance.tags(tables, version),
                PARAMETERS: json.dumps(trained.parameters),
                SEARCH: before.get(SEARCH) or _ended(trained),
                "calibration": trained.calibration.method,
                "threshold": repr(trained.threshold),
                "train_rate": repr(trained.train_rate),
                "test_roc_auc": repr(trained.metrics.get("test_roc_auc", float("nan"))),
                "labels_known_until": str(rows[MATURED_AT].max()),
                "test_from": str(trained.splits.test[SNAPSHOT_TIME].min()),
                "test_to": str(trained.splits.test[SNAPSHOT_TIME].max()),
                "dagster_run": run.run_id,
            }
            described = card(contract, trained, tags)
            (Path(folder) / CARD).write_text(described)
            registered = tracking.log_model(
                trained.pipeline, trained.reference[contract.feature_names], Path(folder), tags
            )
            tracking.describe(registered, summary(contract, trained, tags, CARD), f"runs:/{run_id}/{CARD}")
        return dg.MaterializeResult(
            metadata={
                "model": f"{tracking.model_name} version {registered.version}",
                "model_version": str(registered.version),
                "mlflow_run": run_id,
                "window": newest,
                "training_set_version": version,
                "train_rows": len(trained.splits.train) + len(trained.splits.validation),
                "test_rows": len(trained.splits.test),
                "parameters": dg.MetadataValue.json(trained.parameters),
                **({} if trained.search is None else {"search": str(trained.search)}),
                "calibration": str(trained.calibration),
                "threshold": trained.threshold,
                "model_card": dg.MetadataValue.md(described),
                **{name: round(value, 4) for name, value in trained.metrics.items()},
                **{name: plot(figure) for name, figure in figures.items()},
            },
            data_version=dg.DataVersion(str(registered.version)),
        )

    return [candidate_model]


def read_training_set(contract: Contract, tables: TableStore, version: int | None) -> pd.DataFrame:
    """A version of the training set, in one order."""
    with connection() as con:
        tables.read(con, "training_set", version=version)
        return in_order(contract, con.sql("SELECT * FROM training_set").df())


def _ended(trained: Trained) -> str:
    """What ended the search for parameters: one that time ended may end otherwise elsewhere."""
    if trained.search is None or trained.search.why_not:
        return "none"
    return BY_TIME if trained.search.cut else BY_TRIALS


def _figures(contract: Contract, trained: Trained) -> dict[str, Figure]:
    labels = trained.splits.test[LABEL].to_numpy(dtype="float64")
    if not 0 < labels.sum() < len(labels):
        return {}
    means, deviations = trained.importance(contract)
    search = trained.search
    return {
        "roc_and_precision": plots.roc_and_precision(labels, trained.test_probability, "test window"),
        "reliability": plots.reliability(
            labels,
            trained.test_probability,
            "test window",
            before=None if trained.calibration.curve is None else trained.test_score,
        ),
        "importance": plots.importance(contract.feature_names, means, deviations, "validation window"),
        **({} if search is None or search.why_not else {"trials": _search(search)}),
        **({} if contract.value is None else {"profit": profit_figure(contract, trained)}),
    }


def profit_figure(contract: Contract, trained: Trained) -> Figure:
    """What the threshold was chosen on: profit by the number of validation customers contacted."""
    rows, probability = trained.splits.validation, trained.calibration.held_out
    worth = decisions.worth(contract, rows)
    earned = decisions.earned_by_risk(contract, rows[LABEL].to_numpy(dtype="float64"), probability, worth)
    contacted = int((probability >= trained.threshold).sum())
    return plots.threshold(earned, contacted, trained.threshold, "profit on the validation window, from its labels")


def _search(found: Found) -> Figure:
    complete = [trial.state == "complete" for trial in found.trials]
    scores = [trial.score if done else float("nan") for trial, done in zip(found.trials, complete, strict=True)]
    best = np.fmin if found.metric == "brier" else np.fmax
    return plots.search(scores, best.accumulate(scores).tolist(), found.metric)
