"""The code location as Dagster sees it: a changed graph, job, schedule or sensor shows in review as a changed snapshot.

Run `pytest --snapshot-update` on this file after a change that is meant.
"""

from __future__ import annotations

import dagster as dg
import pytest

from churn_platform.contract_file import load
from churn_platform.definitions import build
from churn_platform.settings import PROJECT
from churn_platform_tests import graph


@pytest.fixture(params=["contract.yaml", "a wide table"])
def definitions(request, tmp_path, monkeypatch):
    shop = graph.make(tmp_path, graph.WIDE).use(monkeypatch)
    contract = shop.contract if request.param == "a wide table" else load(PROJECT / "contract.yaml")
    return build(contract, shop.settings)


def partitions(definition: dg.PartitionsDefinition | None) -> str | None:
    if not isinstance(definition, dg.TimeWindowPartitionsDefinition):
        return None
    return f"{definition.cron_schedule} from {definition.start:%Y-%m-%d} in {definition.timezone}"


def test_the_assets_are_what_they_were(definitions, snapshot):
    found = definitions.resolve_asset_graph()
    checks = {key: found.get(key) for key in found.asset_check_keys}
    told = {}
    for key in sorted(found.get_all_asset_keys()):
        node = found.get(key)
        told[key.to_user_string()] = {
            "deps": sorted(parent.to_user_string() for parent in node.parent_keys),
            "group": node.group_name,
            "kinds": sorted(node.kinds),
            "owners": list(node.owners),
            "partitions": partitions(node.partitions_def),
            "checks": {
                check.name: "blocking" if spec.blocking else "not blocking"
                for check, spec in sorted(checks.items())
                if check.asset_key == key
            },
            "materializable": node.is_materializable,
            "described": bool(node.description),
            "pools": sorted(node.pools or ()),
        }
    assert told == snapshot


def test_the_jobs_are_what_they_were(definitions, snapshot):
    told = {}
    for job in sorted(definitions.get_repository_def().get_all_jobs(), key=lambda job: job.name):
        if not job.name.startswith("__"):
            layer = job.asset_layer
            told[job.name] = {
                "assets": sorted(key.to_user_string() for key in layer.executable_asset_keys),
                "checks": sorted(
                    f"{check.asset_key.to_user_string()}: {check.name}" for check in layer.asset_graph.asset_check_keys
                ),
                "partitions": partitions(job.partitions_def),
                "tags": dict(job.run_tags),
            }
    assert told == snapshot


def test_the_schedules_are_what_they_were(definitions, snapshot):
    told = {
        schedule.name: {
            "when": schedule.cron_schedule,
            "zone": schedule.execution_timezone,
            "job": schedule.job_name,
            "status": schedule.default_status.value,
            "resources": sorted(schedule.required_resource_keys),
        }
        for schedule in definitions.get_repository_def().schedule_defs
    }
    assert told == snapshot


def test_the_sensors_are_what_they_were(definitions, snapshot):
    told = {
        sensor.name: {
            "jobs": sorted(target.job_name for target in sensor.targets),
            "every": sensor.minimum_interval_seconds,
            "status": sensor.default_status.value,
            "resources": sorted(sensor.required_resource_keys),
        }
        for sensor in definitions.get_repository_def().sensor_defs
    }
    assert told == snapshot


def test_every_check_of_a_quality_gate_blocks(definitions):
    found = definitions.resolve_asset_graph()
    assert found.asset_check_keys
    assert all(found.get(key).blocking for key in found.asset_check_keys)


def test_the_definitions_can_be_loaded_as_dagster_loads_them(definitions):
    dg.Definitions.validate_loadable(definitions)


def test_a_contract_that_asks_for_more_gates_has_more_checks(tmp_path, monkeypatch):
    more = graph.SIMULATED.replace("{roc_auc: 0.6}", "{roc_auc: 0.6, accuracy: 0.85}")
    shop = graph.make(tmp_path, more).use(monkeypatch)
    names = {key.name for key in shop.definitions.resolve_asset_graph().asset_check_keys}
    assert {"roc_auc_is_good_enough", "accuracy_is_good_enough"} <= names
