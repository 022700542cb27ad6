"""The quality gates of a candidate model, as blocking checks.

Every verdict is written to the model's version in the registry, and promotion reads it from there: so a version that
failed, or was never judged, stays out also when somebody materializes `champion` by hand.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pandas as pd

from churn_platform import prediction_log
from churn_platform.assets.common import advice
from churn_platform.assets.training import read_training_set
from churn_platform.contract import LABEL, SNAPSHOT_TIME, Contract
from churn_platform.ml import equality, gates, models, retrials
from churn_platform.ml.splits import NotEnoughDataError, split
from churn_platform.ml.validation import Finding
from churn_platform.registered import CHALLENGER, CHAMPION
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import PARAMETERS, RegisteredModel, RegistryError, Tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from churn_platform.ml.probes import Answers
    from churn_platform.ml.training import Trained


def checks(contract: Contract) -> list[dg.AssetChecksDefinition]:
    """One blocking check per gate, judged together on the same predictions."""

    @dg.multi_asset_check(
        name="model_gates",
        specs=[
            dg.AssetCheckSpec(name, asset="candidate_model", blocking=True, description=words)
            for name, words in gates.descriptions(contract).items()
        ],
    )
    def model_gates(
        tables: dg.ResourceParam[TableStore], tracking: dg.ResourceParam[Tracking]
    ) -> Iterator[dg.AssetCheckResult]:
        challenger = tracking.version_of(CHALLENGER)
        if challenger is None:
            raise dg.Failure(
                description="there is no challenger to judge: materialize candidate_model first.", allow_retries=False
            )
        version = str(challenger.version)
        for finding in judge(contract, tables, tracking, challenger, dg.get_dagster_logger().info):
            champion = finding.metadata.get("champion")
            tracking.record_gate(version, finding.name, finding.passed, finding.words, champion)
            yield dg.AssetCheckResult(
                asset_key="candidate_model",
                check_name=finding.name,
                passed=finding.passed,
                metadata=advice(
                    finding.passed, finding.words, finding.remedy, {"version": version, **finding.metadata}
                ),
            )

    return [model_gates]


def judge(
    contract: Contract,
    tables: TableStore,
    tracking: Tracking,
    challenger: "ModelVersion",
    say: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """The verdict of every gate on a version. Those that compare carry the champion's version in their metadata.

    Raises:
        dagster.Failure: its test rows are not those that the contract would test on now.
    """
    rows = read_training_set(contract, tables, int(challenger.tags["training_set_version"]))
    parts = split(contract, rows)
    tested = (str(parts.test[SNAPSHOT_TIME].min()), str(parts.test[SNAPSHOT_TIME].max()))
    if tested != (challenger.tags["test_from"], challenger.tags["test_to"]):
        raise dg.Failure(
            description="the contract splits the data differently now than when this candidate was trained, so its "
            "test rows may be among those that it was fitted on. Materialize candidate_model again.",
            allow_retries=False,
        )
    remedy = "Nothing of it can be judged, so it is refused. Materialize candidate_model to make one that can."
    try:
        answers = _answers(contract, tracking.load(challenger))
        said = answers(parts.test)
    except Exception as error:  # noqa: BLE001 - the candidate may be anything, and fail in any way
        words = f"the candidate gives no usable answers: {' '.join(str(error).split())[:400]}"
        return gates.refuse(contract, words, remedy)
    parameters = json.loads(challenger.tags[PARAMETERS]) if PARAMETERS in challenger.tags else None
    again, not_again = None, ""
    try:
        say("training again without the test window")
        again = retrials.again(contract, rows, parameters)
    except (NotEnoughDataError, models.ModelError) as error:
        not_again = f"the recipe cannot be trained again: {error}"
    present = tracking.version_of(CHAMPION)
    champion, because = _champion(contract, tracking, challenger, present)
    by_champion, walk = None, None
    if champion is not None:
        by_champion = _answers(contract, champion)
        unseen_from = pd.Timestamp(champion.tags["test_from"])
        walk = retrials.walk(contract, rows, parts, parameters, by_champion, unseen_from, say)
    compiled, not_compiled = None, ""
    try:
        compiled = equality.compiled(contract, tracking.compiled(challenger))
    except RegistryError as error:
        not_compiled = str(error)
    found = gates.judge(
        contract,
        gates.Evidence(
            customers=parts.test[contract.customer.name].astype(str),
            tested=parts.test,
            fitted=pd.concat([parts.train, parts.validation]),
            split_by=parts.by,
            labels=parts.test[LABEL].to_numpy(dtype="float64"),
            candidate=said,
            champion=None if by_champion is None else by_champion(parts.test),
            again=None if again is None else again.test_probability,
            claims={} if again is None else _claims(challenger, again),
            walk=walk,
            answers=answers,
            train_rate=float(challenger.tags["train_rate"]),
            threshold=float(challenger.tags["threshold"]),
            has_signature=tracking.has_signature(challenger),
            megabytes=tracking.megabytes(challenger),
            no_champion_because=because,
            not_again_because=not_again,
            compiled=compiled,
            not_compiled_because=not_compiled,
            shadow=_shadow(contract, tables, str(challenger.version), champion),
        ),
    )
    if present is None:
        return found
    named = {"champion": str(present.version)}
    return [replace(one, metadata=one.metadata | named) if one.name in gates.COMPARING else one for one in found]


def _champion(
    contract: Contract, tracking: Tracking, challenger: "ModelVersion", version: "ModelVersion | None"
) -> tuple[RegisteredModel | None, str]:
    """The champion to compare with; or None, and why there is none."""
    if version is None:
        return None, "there is no champion yet"
    if version.version == challenger.version:
        return None, "this version is the champion"
    try:
        champion = tracking.load(version)
        nobody = pd.DataFrame([dict.fromkeys(contract.feature_names)])
        _answers(contract, champion)(nobody)
    except (RegistryError, models.ModelError) as error:  # it cannot serve either
        because = f"the champion cannot be compared with, nor serve: {error}"
        dg.get_dagster_logger().warning("%s", because)
        return None, because
    return champion, ""


def _shadow(
    contract: Contract, tables: TableStore, version: str, champion: RegisteredModel | None
) -> gates.Shadow | None:
    """What a version said in the shadow of the champion, where the contract asks for that."""
    if not contract.gates.shadow_answers or champion is None:
        return None
    return gates.Shadow(*prediction_log.in_shadow(tables, version, champion.version))


def _claims(challenger: "ModelVersion", again: "Trained") -> dict[str, tuple[float, float]]:
    """What a version's tags say that it is served and judged by; each with what it is when trained again."""
    found = {
        "threshold": again.threshold,
        "train_rate": again.train_rate,
        "test_roc_auc": again.metrics.get("test_roc_auc", float("nan")),
    }
    return {name: (float(challenger.tags.get(name, "nan")), value) for name, value in found.items()}


def _answers(contract: Contract, model: RegisteredModel) -> "Answers":
    key = contract.customer.name

    def answers(rows: pd.DataFrame) -> "np.ndarray[Any, np.dtype[np.float64]]":
        inputs = models.frame(contract, rows)
        if key in rows:  # where a model that looks at ids could find them, and be found out
            inputs = inputs.set_axis(rows[key].to_numpy())
        return models.probabilities(model.pipeline, inputs)

    return answers
