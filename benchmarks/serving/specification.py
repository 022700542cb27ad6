"""How the specification answers: Feast's dictionary, one row, the forest's `predict_proba`, a counter and a histogram.

Written from its description. The reference service and the plain BentoML service both answer with it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import joblib  # type: ignore[import-untyped]
import numpy as np
from feast import FeatureStore
from prometheus_client import Counter, Histogram

from benchmarks.serving.world import FEATURES, Paths

PREDICTIONS = Counter("predictions_total", "Predictions made", ["prediction"])
SECONDS = Histogram("prediction_latency_seconds", "Seconds that a prediction took")


class Answering:
    """The feature store and the model, opened once."""

    def __init__(self) -> None:
        paths = Paths(Path(os.environ["BENCH_SERVING_FOLDER"]))
        self.store = FeatureStore(repo_path=str(paths.feast))
        self.model = joblib.load(paths.forest)
        self.references = [f"customer_features_v1:{name}" for name in FEATURES]

    def predict(self, user_id: str) -> dict[str, Any]:
        """The answer for a customer."""
        with SECONDS.time():
            found = self.store.get_online_features(
                features=self.references, entity_rows=[{"user_id": user_id}]
            ).to_dict()
            row = np.array([[found[name][0] for name in FEATURES]])
            probability = float(self.model.predict_proba(row)[0][1])
            prediction = "High Risk" if probability > 0.5 else "Low Risk"
            PREDICTIONS.labels(prediction).inc()
            return {"user_id": user_id, "churn_probability": probability, "prediction": prediction}
