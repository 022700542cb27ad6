"""The code location: everything that Dagster shows and runs, put together for one contract."""

import dagster as dg

from churn_platform import settings as environment
from churn_platform.assets import assets
from churn_platform.automation import upkeep
from churn_platform.automation.jobs import jobs
from churn_platform.automation.schedules import schedules
from churn_platform.automation.sensors import sensors
from churn_platform.checks import feature_parity, model_gates
from churn_platform.contract import Contract
from churn_platform.resources.feature_store import FeatureStore
from churn_platform.resources.storage import TableStore
from churn_platform.resources.tracking import Tracking
from churn_platform.settings import Settings
from churn_platform.sources import open_source


def resources(contract: Contract, settings: Settings) -> dict[str, object]:
    """What assets, checks, sensors and schedules talk to."""
    return {
        "settings": settings,
        "source": open_source(contract, settings),
        "tables": TableStore(settings.tables_of(contract)),
        "store": FeatureStore(contract, settings),
        "tracking": Tracking(contract, settings),
    }


def build(contract: Contract, settings: Settings) -> dg.Definitions:
    """The definitions of a contract in an environment."""
    known_jobs = jobs(contract)
    return dg.Definitions(
        assets=assets(contract),
        asset_checks=[*feature_parity.checks(contract), *model_gates.checks(contract)],
        jobs=[*known_jobs, upkeep.prune(contract)],
        schedules=[*schedules(contract), upkeep.weekly_prune(contract)],
        sensors=sensors(contract, known_jobs),
        resources=resources(contract, settings),
        # Steps share one process: each would spend many times its own work on imports otherwise.
        executor=dg.in_process_executor,
    )


defs = build(environment.contract(), environment.settings())
