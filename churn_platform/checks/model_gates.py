"""The quality gates of a candidate model, as blocking checks.

Every verdict is written to the model's version in the registry, and promotion reads it from there: so a version that
failed, or was never judged, stays out also when somebody materializes `champion` by hand.
"""

from collections.abc import Iterator

import dagster as dg
import numpy as np

from churn_platform.assets.common import advice
from churn_platform.assets.training import read_training_set
from churn_platform.contract import LABEL, SNAPSHOT_TIME, Contract
from churn_platform.ml import gates, models
from churn_platform.ml.splits import split
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import CHALLENGER, CHAMPION, RegistryError, Tracking


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
        candidate, evidence = _evidence(contract, tables, tracking)
        for finding in gates.judge(contract, evidence):
            tracking.record_gate(candidate, finding.name, finding.passed, finding.words)
            yield dg.AssetCheckResult(
                asset_key="candidate_model",
                check_name=finding.name,
                passed=finding.passed,
                metadata=advice(
                    finding.passed, finding.words, finding.remedy, {"version": candidate, **finding.metadata}
                ),
            )

    return [model_gates]


def _evidence(contract: Contract, tables: TableStore, tracking: Tracking) -> tuple[str, gates.Evidence]:
    """The challenger's version, and what it and the champion say of the challenger's test rows."""
    challenger, champion = tracking.version_of(CHALLENGER), tracking.version_of(CHAMPION)
    if challenger is None:
        raise dg.Failure(
            description="there is no challenger to judge: materialize candidate_model first.", allow_retries=False
        )
    rows = read_training_set(contract, tables, int(challenger.tags["training_set_version"]))
    test = split(contract, rows).test
    tested = (str(test[SNAPSHOT_TIME].min()), str(test[SNAPSHOT_TIME].max()))
    if tested != (challenger.tags["test_from"], challenger.tags["test_to"]):
        raise dg.Failure(
            description="the contract splits the data differently now than when this candidate was trained, so its "
            "test rows may be among those that it was fitted on. Materialize candidate_model again.",
            allow_retries=False,
        )
    try:
        candidate = tracking.load(challenger)
    except RegistryError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    inputs = models.frame(contract, test)
    said_by_champion, because = None, "there is no champion yet"
    if champion is not None and champion.version == challenger.version:
        because = "this version is the champion"
    elif champion is not None:
        try:
            said_by_champion = models.probabilities(tracking.load(champion).pipeline, inputs)
        except RegistryError as error:  # trained on other features: it cannot be compared, and cannot serve either
            because = f"the champion cannot be compared with, nor serve: {error}"
            dg.get_dagster_logger().warning("%s", because)
    return str(challenger.version), gates.Evidence(
        customers=test[contract.customer.name].astype(str),
        labels=test[LABEL].to_numpy(dtype="float64"),
        candidate=models.probabilities(candidate.pipeline, inputs),
        champion=None if said_by_champion is None else np.asarray(said_by_champion),
        train_rate=float(challenger.tags["train_rate"]),
        has_signature=tracking.has_signature(challenger),
        no_champion_because=because,
    )
