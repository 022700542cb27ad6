"""The answer to "will this customer churn?": the champion, applied to what the online store knows.

Plain Python. Model, version, threshold and feature list are one immutable object, replaced by one assignment, so a
request sees the old champion or the new one and never parts of both.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

from churn_platform.contract import SNAPSHOT_TIME
from churn_platform.ml import masking, text
from serving.schema import HIGH_RISK, LOW_RISK, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from churn_platform.contract import Contract
    from churn_platform.resources.feature_store import FeatureStore
    from churn_platform.resources.tracking import RegisteredModel, Tracking

# A child of BentoML's logger, because that is the one that its workers configure.
log = logging.getLogger("bentoml.churn")

LONGEST_PAUSE = 60.0  # seconds between two attempts to load a champion that does not load
STALE_AFTER = 60.0  # seconds without an answer from the online store after which we do not claim to be ready


def whereabouts(error: BaseException) -> str:
    """Where an error comes from, without its message: messages of libraries repeat what was asked for, ids included."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return f"{type(error).__name__} at " + " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames))


def is_hashed(contract: Contract) -> bool:
    """Whether the platform knows customers by their pseudonyms only."""
    table = contract.tables.items()[contract.main_table]
    return table.columns[table.customer].pii == "hash"


class Predictor:
    """Answers for customers, and keeps itself up to date with the registry.

    Args:
        tracking: the registry that names the champion.
        connect: opens the feature store; called again after it failed.
        key: of the keyed hash; needed only where the contract hashes customers.
        on_champion: called with each champion that comes into use, and the one before it.
    """

    def __init__(
        self,
        contract: Contract,
        tracking: Tracking,
        connect: Callable[[], FeatureStore],
        key: bytes | None = None,
        on_champion: Callable[[RegisteredModel, RegisteredModel | None], None] | None = None,
    ) -> None:
        if key is None and is_hashed(contract):
            raise ValueError("the contract hashes customers: the predictor needs the key.")
        self.contract = contract
        self.champion: RegisteredModel | None = None
        self._tracking = tracking
        self._connect = connect
        self._store: FeatureStore | None = None
        self._key = key if is_hashed(contract) else None
        self._on_champion = on_champion
        self._store_answered = -math.inf  # on the monotonic clock; when the store last answered
        self._failures = 0  # of loading the same version in a row
        self._failed: tuple[str, str] | None = None
        self._retry_at = -math.inf
        self._said: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- predictions

    def predict(self, customer: str | int) -> dict[str, Any]:
        """The values of a response (`schema.response_model`) for one customer. Blocks: call it in a thread.

        Raises:
            RefusedError: there is no champion, no such customer, no online store, or no usable answer.
        """
        champion = self.champion  # once: it may be replaced while we work
        if champion is None:
            raise RefusedError(
                "not_ready", "There is no champion to answer yet. Try again shortly; /health says what is missing."
            )
        features, snapshot = self._features(customer)
        probability = self._probability(champion, features)
        return {
            "customer": customer,
            "churn_probability": probability,
            "prediction": HIGH_RISK if probability >= champion.threshold else LOW_RISK,
            "features": features,
            "model_version": champion.version,
            "feature_timestamp": snapshot,
        }

    def _features(self, customer: str | int) -> tuple[dict[str, Any], Any]:
        """What the online store holds of a customer, missing values as None, and since when it is true."""
        known_as = text.plain(customer) if isinstance(customer, str) else customer
        entity = masking.pseudonym(self._key, str(known_as)) if self._key is not None else known_as
        away = RefusedError(
            "features_unavailable",
            "The feature store does not answer. Try again shortly; /health says when it is back.",
        )
        store = self._store
        if store is None:
            raise away
        try:
            row = store.online([entity])[0]
        except Exception as error:  # noqa: BLE001 - each kind of store has errors of its own
            self._say("request", f"the online store failed a request: {whereabouts(error)}")
            raise away from None
        if row is None:
            raise RefusedError(
                "unknown_customer",
                "This customer is not known to the feature store. Check the id; a new customer is known after "
                "the next snapshot of features.",
            )
        features: dict[str, Any] = {}
        for name in self.contract.feature_names:
            value = row[name]
            if isinstance(value, float) and not math.isfinite(value):
                if not math.isnan(value):
                    words = f"The feature {name} of this customer is infinite. Tell the service's operators."
                    raise RefusedError("unusable_features", words)
                value = None
            features[name] = value
        return features, row[SNAPSHOT_TIME]

    def _probability(self, champion: RegisteredModel, features: dict[str, Any]) -> float:
        import pandas as pd

        from churn_platform.ml.models import ModelError, frame, probabilities

        try:
            return float(probabilities(champion.pipeline, frame(self.contract, pd.DataFrame([features])))[0])
        except ModelError:
            log.warning("version %s of the model gave an answer that is no probability", champion.version)
            words = "The model's answer for this customer is not a probability. Tell the service's operators."
            raise RefusedError("unusable_answer", words) from None

    # -- readiness

    @property
    def store_answers(self) -> bool:
        """Whether the online store answered when it was last looked at, and that was not long ago."""
        return time.monotonic() - self._store_answered < STALE_AFTER

    @property
    def problems(self) -> list[str]:
        """What keeps us from answering, in words that anyone may read; empty when we are ready."""
        found = []
        if self.champion is None:
            found.append("No champion is loaded: the registry has none yet, or it cannot be reached or loaded.")
        if not self.store_answers:
            found.append("The online feature store does not answer, or has no features of this contract yet.")
        return found

    # -- keeping up to date

    def start(self, interval: float) -> None:
        """Look at the online store and the registry now and every `interval` seconds, in a thread."""

        def keep_up() -> None:
            while not self._stop.is_set():
                self.refresh(interval)
                self._stop.wait(interval)

        self._thread = threading.Thread(target=keep_up, name="refresh-champion", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the refreshing; does not wait for a look that is under way."""
        self._stop.set()

    def refresh(self, interval: float = 5.0) -> None:
        """Look once at the online store and the registry. Never raises: what is wrong is logged, once."""
        for name, look in (("features", self._look_at_store), ("registry", lambda: self._look_at_registry(interval))):
            try:
                problem = look()
            except Exception as error:  # noqa: BLE001 - the refreshing must survive whatever is wrong
                # No customer is involved here, so the message may be said: it tells an operator what to mend.
                problem = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            self._say(name, problem)

    def _look_at_store(self) -> str:
        if self._store is None:
            self._store = self._connect()
        nobody: str | int = -1 if self.contract.customer.type == "integer" else "-"
        try:
            self._store.online([nobody])
        except Exception:
            # A new connection next time; it also reads Feast's registry anew, which is otherwise cached for long.
            self._store_answered = -math.inf
            self._store = None
            raise
        self._store_answered = time.monotonic()
        self._say("request", "")
        return ""

    def _look_at_registry(self, interval: float) -> str:
        from churn_platform.resources.tracking import CHAMPION

        version = self._tracking.version_of(CHAMPION)
        old = self.champion
        if version is None:
            kept = f" Version {old.version} goes on serving." if old else ""
            return f"the registry has no champion: promote a version and it is loaded by itself.{kept}"
        # The run as well as the number: a registry that was made anew counts from 1 again.
        wanted = (str(version.version), str(version.run_id))
        if old is not None and (old.version, old.run_id) == wanted:
            return ""
        if self._failed == wanted and time.monotonic() < self._retry_at:
            return self._said.get("registry", "")
        try:
            new = self._tracking.load(version)
            # A model that cannot answer at all is not swapped in; this also imports what the first request needs.
            self._probability(new, dict.fromkeys(self.contract.feature_names))
        except Exception as error:
            self._failures = self._failures + 1 if self._failed == wanted else 1
            self._failed = wanted
            self._retry_at = time.monotonic() + min(LONGEST_PAUSE, interval * 2 ** min(self._failures, 10))
            goes_on = f"version {old.version} goes on serving" if old else "nothing is served"
            raise RuntimeError(f"the champion, version {wanted[0]}, cannot be loaded; {goes_on}: {error}") from error
        self.champion, self._failed = new, None
        if self._on_champion is not None:
            self._on_champion(new, old)
        log.info("version %s is the champion and serves from now on", new.version)
        return ""

    def _say(self, about: str, problem: str) -> None:
        """Log a problem when it appears or changes, and its end; not at every look."""
        before = self._said.get(about, "")
        self._said[about] = problem
        if problem and problem != before:
            log.warning("%s: %s", about, problem)
        elif before and not problem:
            log.info("%s: all is well again", about)
