"""Experiment tracking and the model registry: MLflow, with the platform's own conventions.

One registered model per contract. Its aliases say what a version is: `challenger` (the newest candidate), `champion`
(what is served) and `canary` (what answers for a share of the customers). A version's tags carry what is needed to
serve it, and the gates' verdicts: promotion reads them, so that a model whose gates did not all pass for that very
version cannot be promoted by any route.
"""

from __future__ import annotations

import fcntl
import json
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from churn_platform.ml.models import TRUSTED_TYPES, ModelError
from churn_platform.registered import CANARY, CANARY_SHARE, CHALLENGER, CHAMPION, COMPILED, FEATURES_VERSION, model_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from sklearn.pipeline import Pipeline

    from churn_platform.contract import Contract
    from churn_platform.ml.compiled import CompiledModel
    from churn_platform.ml.tuning import Trial
    from churn_platform.settings import Settings

REFERENCE = "reference.parquet"  # the rows that drift is measured against, kept with the model's run
MODEL_CARD = "model_card"  # tag of a version: where its card is
PARAMETERS = "parameters"  # tag, of a run and a version: the estimator's parameters, JSON
SEARCH = "search"  # tag, of both: what ended the search for them
BY_TRIALS, BY_TIME = "trials", "time"
_NOT_COMPILED = "not_compiled"  # tag of a version: why it has no compiled model
_GATE = "gate."
_CHAMPION_THEN = "champion"  # of a verdict: the version that was champion when it was reached
_CONFIRMED = "promotion"  # the line of the promotion log that made a version champion


class RegistryError(RuntimeError):
    """The registry holds no such model, or one that must not be used."""


@dataclass(frozen=True)
class RegisteredModel:
    """A version of the model, loaded and ready to answer."""

    version: str
    run_id: str
    pipeline: Any
    features: list[str]
    threshold: float
    tags: dict[str, str]


class Tracking:
    """MLflow, as the platform uses it."""

    def __init__(self, contract: Contract, settings: Settings) -> None:
        self.contract = contract
        self.settings = settings
        self.model_name = model_name(contract)

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's own client."""
        import mlflow

        self.settings.home.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(self.settings.tracking_uri)
        # Several processes that migrate a fresh SQLite database at once break it: one at a time.
        with (self.settings.home / "mlflow.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            client = mlflow.MlflowClient(self.settings.tracking_uri)
            client.search_experiments(max_results=1)
        return client

    @cached_property
    def experiment_id(self) -> str:
        """The contract's experiment; made when it is first asked for, by whichever process is first."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.contract.name)
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(self.contract.name, artifact_location=self.settings.artifacts))
        except MlflowException:
            found = self.client.get_experiment_by_name(self.contract.name)
            if found is None:
                raise
            return str(found.experiment_id)

    @contextmanager
    def run(self, name: str, key: str, inputs: str = "") -> Iterator[str]:
        """A run that belongs to one Dagster run; a retry goes on in it. Its status says how the block ended.

        A retry with another contract or other inputs is a run of its own: MLflow lets no parameter change.

        Args:
            name: what to call the run.
            key: the Dagster run's root id.
            inputs: what identifies the data, such as its version.
        """
        import mlflow

        tags = {"dagster.run_id": key, "contract": self.contract.fingerprint, "inputs": inputs}
        same = " AND ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items() if value)
        found = self.client.search_runs([self.experiment_id], same, max_results=1)
        run_id = found[0].info.run_id if found else None
        with mlflow.start_run(
            run_id=run_id, experiment_id=None if run_id else self.experiment_id, run_name=name, tags=tags
        ) as active:
            yield str(active.info.run_id)

    def log_model(self, pipeline: Pipeline, inputs: pd.DataFrame, folder: Path, tags: dict[str, str]) -> ModelVersion:
        """Log a fitted pipeline into the active run, register it and make it the challenger.

        Args:
            pipeline: the model, fitted.
            inputs: rows that the model was fitted on; none of them is kept.
            folder: plots and reports to keep with the run.
            tags: what to know of the version; `threshold` is the contract's where they do not say.

        Raises:
            ModelError: the pipeline is made of types that are not on the allow-list.
        """
        import mlflow
        import skops.io
        from mlflow.exceptions import MlflowException
        from mlflow.models import ModelSignature, infer_signature
        from mlflow.types import ColSpec, Schema, TensorSpec

        unknown = set(skops.io.get_untrusted_types(data=skops.io.dumps(pipeline))) - set(TRUSTED_TYPES)
        if unknown:
            raise ModelError(
                f"the model holds types that the platform does not trust: {', '.join(sorted(unknown))}. "
                "If they belong there, add them to TRUSTED_TYPES in churn_platform/ml/models.py."
            )
        example = inputs.head(50)
        # from the contract: what these rows happen to know of every customer may be missing in the next
        takes: list[ColSpec | TensorSpec] = [
            ColSpec("string" if self.contract.is_categorical(column) else "double", column, required=False)
            for column in self.contract.feature_names
        ]
        answers = infer_signature(model_output=pipeline.predict_proba(example)).outputs
        info = mlflow.sklearn.log_model(
            pipeline,
            name="model",
            signature=ModelSignature(inputs=Schema(takes), outputs=answers),
            input_example=_nobody(example),
            pip_requirements=[f"{name}=={installed(name)}" for name in ("scikit-learn", "pandas", "numpy", "skops")],
            pyfunc_predict_fn="predict_proba",
            skops_trusted_types=TRUSTED_TYPES,
        )
        mlflow.log_artifacts(str(folder))
        threshold = tags.get("threshold", str(self.contract.model.threshold))
        not_compiled = self._log_compiled(pipeline, float(threshold), inputs)
        try:
            self.client.create_registered_model(self.model_name, description=f"Churn model of {self.contract.name}")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        run = mlflow.active_run()
        version = self.client.create_model_version(
            self.model_name,
            source=info.model_uri,
            run_id=run.info.run_id if run else None,
            tags={
                "threshold": threshold,
                **tags,
                **({_NOT_COMPILED: not_compiled} if not_compiled else {}),
                "features": json.dumps(self.contract.feature_names),
                "contract": self.contract.fingerprint,
                FEATURES_VERSION: str(self.contract.features.version),
                "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            model_id=info.model_id,
        )
        self.client.set_registered_model_alias(self.model_name, CHALLENGER, version.version)
        return version

    def _log_compiled(self, pipeline: Pipeline, threshold: float, inputs: pd.DataFrame) -> str:
        """Keep the model, compiled, with the active run; returns why not where that cannot be done."""
        import mlflow

        from churn_platform.ml.compiled import CompiledModelError, compile_model

        try:
            compiled = compile_model(self.contract, pipeline, threshold, inputs)
        except CompiledModelError as error:  # its gate refuses it, with these words
            return str(error)
        with TemporaryDirectory() as folder:
            compiled.save(Path(folder) / COMPILED)
            mlflow.log_artifact(str(Path(folder) / COMPILED))
        return ""

    def describe(self, version: ModelVersion, words: str, card: str) -> None:
        """Say what a version is where the registry shows it, and where its model card is (a `runs:/` address)."""
        self.client.update_model_version(self.model_name, version.version, words)
        self.client.set_model_version_tag(self.model_name, version.version, MODEL_CARD, card)

    def log_trial(self, parent: str, trial: Trial) -> None:
        """Keep a trial of a search as a run nested in the one that searches.

        The first trial takes the place of all that an attempt has left behind that was cut short.
        """
        from mlflow.entities import Metric, Param

        if trial.number == 1:
            for run in self.trials(parent):
                self.client.delete_run(run.info.run_id)
        tags = {"mlflow.parentRunId": parent, "trial": str(trial.number), "state": trial.state}
        run = self.client.create_run(self.experiment_id, run_name=f"trial {trial.number}", tags=tags)
        now = int(datetime.now(UTC).timestamp() * 1000)
        folds = [Metric("score_of_fold", score, now, step) for step, score in enumerate(trial.scores)]
        whole = {"score": trial.score, "seconds": trial.seconds} if trial.scores else {"seconds": trial.seconds}
        self.client.log_batch(
            run.info.run_id,
            [*folds, *(Metric(name, value, now, 0) for name, value in whole.items())],
            [Param(f"model.{name}", str(value)) for name, value in trial.parameters.items()],
        )
        self.client.set_terminated(run.info.run_id)

    def trials(self, parent: str) -> list[Run]:
        """The runs that are nested in a run."""
        wanted = f"tags.`mlflow.parentRunId` = '{parent}'"
        return list(self.client.search_runs([self.experiment_id], wanted, max_results=10_000))

    # -- reading the registry

    def version_of(self, alias: str) -> ModelVersion | None:
        """The version that carries an alias, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version_by_alias(self.model_name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def version(self, version: str) -> ModelVersion:
        """A version by its number. Raises RegistryError where there is none."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version(self.model_name, version)
        except MlflowException as error:
            raise RegistryError(f"{self.model_name} has no version {version}: {error.message}") from None

    def versions(self) -> list[ModelVersion]:
        """All versions of the model."""
        return list(self.client.search_model_versions(f"name = '{self.model_name}'"))

    def artifact(self, run_id: str, name: str) -> str:
        """The local path of a file that was kept with a run."""
        import mlflow

        return str(
            mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=name, tracking_uri=self.settings.tracking_uri
            )
        )

    def compiled(self, version: ModelVersion) -> CompiledModel:
        """A version as it is served, compiled.

        Raises:
            RegistryError: it has no compiled model, a damaged one, or one of other features than the contract's.
        """
        from mlflow.exceptions import MlflowException

        from churn_platform.ml.compiled import CompiledModel, CompiledModelError

        name = f"version {version.version} of {self.model_name}"
        try:
            found = CompiledModel.load(self.artifact(str(version.run_id), COMPILED))
        except (CompiledModelError, MlflowException, OSError) as error:
            why = version.tags.get(_NOT_COMPILED) or " ".join(str(error).split())
            raise RegistryError(f"{name} has no compiled model that could be served: {why}") from error
        if list(found.features) != self.contract.feature_names:
            raise RegistryError(f"the compiled model of {name} reads other features than the contract describes.")
        self._require_meaning(version)
        return found

    def usable_champion(self) -> ModelVersion | None:
        """The champion, if there is one and it reads the features that the contract describes, else None."""
        version = self.version_of(CHAMPION)
        if version is None or json.loads(version.tags.get("features", "null")) != self.contract.feature_names:
            return None
        return version if version.tags.get(FEATURES_VERSION) == str(self.contract.features.version) else None

    def load(self, version: ModelVersion) -> RegisteredModel:
        """Load a version.

        Raises:
            RegistryError: it expects other features than the contract describes, or it is none of ours.
        """
        import mlflow
        from mlflow.models import get_model_info

        uri = f"models:/{self.model_name}/{version.version}"
        features = json.loads(version.tags.get("features", "null"))
        # MLflow would trust whatever the stored model itself says is to be trusted, and unpickle a pickle
        flavour = get_model_info(uri).flavors.get("sklearn", {})
        foreign = set(flavour.get("skops_trusted_types") or ()) - set(TRUSTED_TYPES)
        if features is None or flavour.get("serialization_format") != "skops" or foreign:
            raise RegistryError(
                f"version {version.version} of {self.model_name} was not made by this platform: it is not loaded. "
                "Register models by materializing candidate_model."
            )
        model = mlflow.sklearn.load_model(uri)
        if features != self.contract.feature_names:
            changed = sorted(set(features) ^ set(self.contract.feature_names)) or ["their order"]
            raise RegistryError(
                f"version {version.version} of {self.model_name} was trained on other features than the contract "
                f"describes (different: {', '.join(changed)}). Train a new model, or bring the contract back."
            )
        self._require_meaning(version)
        return RegisteredModel(
            version=str(version.version),
            run_id=str(version.run_id),
            pipeline=model,
            features=features,
            threshold=float(version.tags["threshold"]),
            tags=dict(version.tags),
        )

    def _require_meaning(self, version: ModelVersion) -> None:
        """Refuse a version whose features meant something else. Raises RegistryError."""
        then = version.tags.get(FEATURES_VERSION, "unknown")
        if then != str(self.contract.features.version):
            raise RegistryError(
                f"version {version.version} of {self.model_name} was trained on features of version {then}, and "
                f"features.version in contract.yaml is {self.contract.features.version}: they mean something else "
                "now. Train a new model, or bring the contract back."
            )

    def champion(self) -> RegisteredModel:
        """The champion, loaded. Raises RegistryError where there is none."""
        return self.load(self.champion_version())

    def champion_version(self) -> ModelVersion:
        """The champion's version. Raises RegistryError where there is none."""
        version = self.version_of(CHAMPION)
        if version is None:
            raise RegistryError(
                f"{self.model_name} has no champion yet: launch the job `retrain`; if its gates pass, it makes one."
            )
        return version

    def has_signature(self, version: ModelVersion) -> bool:
        """Whether the stored model says what it takes and what it answers."""
        from mlflow.models import get_model_info

        signature = get_model_info(f"models:/{self.model_name}/{version.version}").signature
        return signature is not None and signature.inputs is not None and signature.outputs is not None

    def megabytes(self, version: ModelVersion) -> float | None:
        """How large the stored model is; None where that was not recorded."""
        from mlflow.models import Model

        size = Model.load(f"models:/{self.model_name}/{version.version}").model_size_bytes
        return None if size is None else float(size) / 1e6

    # -- gates and promotion

    def record_gate(self, version: str, gate: str, passed: bool, words: str, champion: str | None = None) -> None:
        """Keep a gate's verdict with the version that it is about.

        Args:
            version: its number.
            gate: its name.
            passed: the verdict.
            words: what was measured.
            champion: the version that was champion then; None where there was none.
        """
        verdict = json.dumps({"passed": passed, "words": words, "gates": self._gates()[1], _CHAMPION_THEN: champion})
        self.client.set_model_version_tag(self.model_name, version, _GATE + gate, verdict)

    def verdicts(self, version: ModelVersion) -> dict[str, bool]:
        """The verdicts on a version by the gates as the contract has them now, by gate.

        What a gate found by comparing with another champion than the present one is no verdict.
        """
        found = {
            key.removeprefix(_GATE): json.loads(value) for key, value in version.tags.items() if key.startswith(_GATE)
        }
        _, asked = self._gates()
        outdated = self._compared_with_another(version)
        return {
            gate: bool(said["passed"])
            for gate, said in found.items()
            if said.get("gates") == asked and gate not in outdated
        }

    def _compared_with_another(self, version: ModelVersion) -> dict[str, str | None]:
        """The gates that compared a version with another champion than the present one; each to that champion."""
        from churn_platform.ml.gates import COMPARING

        found = self.version_of(CHAMPION)
        present = None if found is None else str(found.version)
        if present == str(version.version):
            return {}
        said = {gate: version.tags[_GATE + gate] for gate in COMPARING if _GATE + gate in version.tags}
        then = {gate: json.loads(verdict).get(_CHAMPION_THEN) for gate, verdict in said.items()}
        return {gate: champion for gate, champion in then.items() if champion != present}

    def _gates(self) -> tuple[list[str], str]:
        """The contract's gates, and what they ask for. Imported here: the endpoint does without those libraries."""
        from churn_platform.ml import gates

        return gates.names(self.contract), gates.fingerprint(self.contract)

    def said(self, version: ModelVersion) -> dict[str, dict[str, Any]]:
        """Every verdict on a version that is kept with it, also by gates as they were once: `passed` and `words`."""
        found = {key: json.loads(value) for key, value in version.tags.items() if key.startswith(_GATE)}
        return {key.removeprefix(_GATE): {"passed": bool(v["passed"]), "words": v["words"]} for key, v in found.items()}

    def require_passed(self, version: str, also: Sequence[str] = ()) -> None:
        """Refuse a version that has not passed every gate of the contract, and those `also` named.

        Raises:
            RegistryError: it has not, or there is no such version.
        """
        model = self.version(version)
        verdicts, outdated = self.verdicts(model), self._compared_with_another(model)
        failed = [gate for gate in {**dict.fromkeys(self._gates()[0]), **dict.fromkeys(also)} if not verdicts.get(gate)]
        if failed:
            why = dict.fromkeys(failed, "was not judged") | dict.fromkeys(verdicts, "failed")
            for gate, then in outdated.items():
                with_whom = "no champion" if then is None else f"version {then}, which is not champion now"
                why[gate] = f"was compared with {with_whom}"
            reasons = ", ".join(f"{gate} ({why[gate]})" for gate in failed)
            remedy = "The champion stays as it is. Launch the job `retrain` to train and judge a candidate."
            raise RegistryError(f"version {version} may not be champion: {reasons}. {remedy}")

    def promote(self, version: str, also: Sequence[str] = ()) -> None:
        """Make a version the champion: one atomic change of the alias. `churn_platform.promotion` keeps the log.

        Args:
            version: its number.
            also: gates that must have passed besides those of the contract.

        Raises:
            RegistryError: not every gate of the contract has passed for this version.
        """
        self.require_passed(version, also)
        self.reinstate(version)

    def reinstate(self, version: str) -> None:
        """Move the alias without asking any gate: only for what `promotion.rollback` found to be a former champion."""
        self.client.set_registered_model_alias(self.model_name, CHAMPION, version)

    def confirm(self, version: str, entry: str) -> None:
        """Keep with a version the line of the promotion log that made it champion."""
        self.client.set_model_version_tag(self.model_name, version, _CONFIRMED, entry)

    def confirmed(self, version: str) -> str | None:
        """The line of the promotion log that last made a version champion."""
        return self.version(version).tags.get(_CONFIRMED)

    def start_canary(self, version: str, share: float) -> None:
        """Let the endpoint answer a share of the customers by a version: only for `promotion.start_canary`."""
        self.client.set_model_version_tag(self.model_name, version, CANARY_SHARE, repr(share))
        self.client.set_registered_model_alias(self.model_name, CANARY, version)

    def stop_canary(self, version: str) -> None:
        """Let it answer nobody any more. `promotion.stop_canary` keeps the log."""
        self.client.delete_registered_model_alias(self.model_name, CANARY)
        self.client.delete_model_version_tag(self.model_name, version, CANARY_SHARE)

    def require_answers(self, version: ModelVersion) -> None:
        """Refuse a version that could not serve.

        Raises:
            RegistryError: it cannot be loaded, reads other features, or gives no probability for a customer of whom
                nothing is known.
        """
        import pandas as pd

        from churn_platform.ml.models import frame, probabilities

        nobody = frame(self.contract, pd.DataFrame([dict.fromkeys(self.contract.feature_names)]))
        try:
            probabilities(self.load(version).pipeline, nobody)
        except RegistryError:
            raise
        except Exception as error:  # a store that lost its files, or a model that fails: each library has its own
            raise RegistryError(
                f"version {version.version} of {self.model_name} cannot serve: {type(error).__name__}: {error}. "
                "Choose another version, or restore its files."
            ) from error


def _nobody(rows: pd.DataFrame) -> pd.DataFrame:
    """One row that is nobody's, as an example of a model's input: medians, and the most frequent categories."""
    import pandas as pd

    numeric = rows.select_dtypes("number")
    usual = {name: rows[name].mode().get(0) for name in rows.columns if name not in numeric}
    return pd.DataFrame([dict(numeric.median()) | usual])[list(rows.columns)]
