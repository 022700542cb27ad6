"""The churn platform: a Dagster code location that trains, gates, serves and watches a churn model.

Every library we build on reports usage home by default. Here, before any of them is imported, that is switched
off, and so is what else would trouble a shared machine; `setdefault` leaves the last word to whoever runs it.
"""

import os

for _switch, _off in {
    "DO_NOT_TRACK": "1",  # Evidently and others that honour the convention
    "DAGSTER_DISABLE_TELEMETRY": "yes",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "FEAST_USAGE": "False",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "OMP_WAIT_POLICY": "passive",  # threads of a fit that wait for each other leave the core to whoever has work
}.items():
    os.environ.setdefault(_switch, _off)
