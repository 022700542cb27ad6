"""The manifests are what Kubernetes accepts, fit together, and name only what the endpoint really has."""

import copy
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from churn_platform.settings import Settings
from serving.front import BENTOML_PATHS
from serving.settings import ServingSettings

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "k8s" / "base"
KUSTOMIZATION = yaml.safe_load((BASE / "kustomization.yaml").read_text())
DOCUMENTS = {
    name: document for name in KUSTOMIZATION["resources"] for document in yaml.safe_load_all((BASE / name).read_text())
}
BY_KIND = {document["kind"]: document for document in DOCUMENTS.values()}
DEPLOYMENT = BY_KIND["Deployment"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
USER = 1034  # serving/Dockerfile
_NEWEST = int(kubernetes_validate.latest_version().split(".")[1])
VERSIONS = [f"1.{minor}" for minor in range(_NEWEST - 5, _NEWEST + 1)]


@pytest.fixture(scope="module")
def rendered():
    """What `make manifests` prints."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl on this machine: Kustomize itself was not asked, only the files that it reads")
    command = [kubectl, "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(BASE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert not done.stderr  # Kustomize warns of what is deprecated
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_kubernetes_knows_every_field(name, version):
    kubernetes_validate.validate(DOCUMENTS[name], version, strict=True)


@pytest.mark.parametrize("version", [VERSIONS[0], VERSIONS[-1]])
def test_what_kustomize_renders_is_still_valid(rendered, version):
    for document in rendered:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_validation_would_see_a_misspelt_field():
    spoilt = copy.deepcopy(DEPLOYMENT)
    spoilt["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, VERSIONS[-1], strict=True)


def test_every_file_in_the_folder_is_used_and_every_file_that_is_used_is_there():
    generated = [source for each in KUSTOMIZATION["configMapGenerator"] for source in _sources(each)]
    used = {(BASE / name).resolve() for name in [*KUSTOMIZATION["resources"], *generated]}
    assert all(path.is_file() for path in used)
    assert {path for path in BASE.iterdir() if path.name != "kustomization.yaml"} <= used


def test_rendered_pods_get_the_maps_and_the_image_of_this_version(rendered):
    maps = {each["metadata"]["name"] for each in rendered if each["kind"] == "ConfigMap"}
    (deployment,) = [each for each in rendered if each["kind"] == "Deployment"]
    spec = deployment["spec"]["template"]["spec"]
    named = {each["configMapRef"]["name"] for each in spec["containers"][0]["envFrom"]}
    named |= {volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume}
    assert named == maps
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert spec["containers"][0]["image"] == f"churn-endpoint:{version}"


def test_a_changed_contract_replaces_the_pods(rendered):
    (found,) = [each for each in rendered if each["kind"] == "ConfigMap" and "contract.yaml" in each["data"]]
    assert found["data"]["contract.yaml"] == (ROOT / "contract.yaml").read_text()
    assert re.fullmatch(r"churn-contract-[a-z0-9]{10}", found["metadata"]["name"])  # the hash of what is in it


def test_all_that_select_pods_select_the_endpoints():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    selectors = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        BY_KIND["Service"]["spec"]["selector"],
        BY_KIND["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        BY_KIND["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in POD["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    target = BY_KIND["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", DEPLOYMENT["metadata"]["name"])
    assert POD["serviceAccountName"] == BY_KIND["ServiceAccount"]["metadata"]["name"]


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_ask_for_what_the_endpoint_answers(probe):
    asked = CONTAINER[probe]["httpGet"]
    assert asked["path"] in BENTOML_PATHS
    assert asked["port"] in {port["name"] for port in CONTAINER["ports"]}


def test_a_worker_that_loads_its_model_is_not_restarted_and_not_sent_requests():
    assert CONTAINER["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert {CONTAINER[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")} == {"/livez"}


def test_one_port_runs_through_image_pod_service_policy_and_scraping():
    port = CONTAINER["ports"][0]["containerPort"]
    assert f"BENTOML_PORT={port}" in (ROOT / "serving" / "Dockerfile").read_text()
    assert BY_KIND["Service"]["spec"]["ports"][0]["targetPort"] == CONTAINER["ports"][0]["name"]
    assert [each["port"] for rule in BY_KIND["NetworkPolicy"]["spec"]["ingress"] for each in rule["ports"]] == [port]
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)
    assert annotations["prometheus.io/path"] in BENTOML_PATHS


def test_every_variable_is_one_that_the_endpoint_reads():
    fields = {f"CHURN_{name.upper()}" for name in Settings.model_fields}
    fields |= {f"CHURN_SERVING_{name.upper()}" for name in ServingSettings.model_fields}
    assert set(_environment()) <= fields


def test_the_endpoint_would_start_with_these_variables(monkeypatch):
    for name, value in _environment().items():
        monkeypatch.setenv(name, value)
    assert Settings().missing("endpoint") == []
    assert ServingSettings().api_keys_file  # which this environment asks for


def test_what_the_variables_name_is_mounted():
    environment, mounts = _environment(), {each["mountPath"]: each["name"] for each in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert set(mounts.values()) == set(volumes)
    contract = Path(environment["CHURN_CONTRACT"])
    assert contract.name == "contract.yaml"
    assert "configMap" in volumes[mounts[str(contract.parent)]]
    keys = Path(environment["CHURN_SERVING_API_KEYS_FILE"])
    assert keys.name in {item["path"] for item in volumes[mounts[str(keys.parent)]]["secret"]["items"]}


def test_whatever_the_endpoint_writes_has_a_folder_and_nothing_else_can_be_written():
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    writable = {each["mountPath"] for each in CONTAINER["volumeMounts"] if "emptyDir" in volumes[each["name"]]}
    home = re.search(r"CHURN_HOME=(\S+)", (ROOT / "serving" / "Dockerfile").read_text())
    assert home is not None
    assert writable == {home[1], "/tmp"}
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]


def test_the_pod_has_no_rights_that_it_does_not_need():
    assert POD["securityContext"]["runAsNonRoot"]
    assert POD["securityContext"]["runAsUser"] == POD["securityContext"]["fsGroup"] == USER
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not CONTAINER["securityContext"]["allowPrivilegeEscalation"]
    assert not POD["automountServiceAccountToken"]
    assert f"USER {USER}:{USER}\n" in (ROOT / "serving" / "Dockerfile").read_text()


def test_there_is_always_a_pod_that_answers():
    rolling = DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]
    assert rolling["maxUnavailable"] == 0
    assert rolling["maxSurge"] >= 1
    assert BY_KIND["HorizontalPodAutoscaler"]["spec"]["minReplicas"] >= 2
    assert "replicas" not in DEPLOYMENT["spec"]  # an apply would undo what the autoscaler did
    assert BY_KIND["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_a_pod_has_time_to_finish_what_it_began():
    from serving.container import GRACE

    first = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    log_seconds = 30  # PredictionLog.close
    assert POD["terminationGracePeriodSeconds"] >= first + GRACE + log_seconds


def test_no_secret_is_in_the_manifests():
    assert "Secret" not in BY_KIND
    names = {entry["name"] for entry in CONTAINER["env"] if "value" in entry}
    assert not names
    assert "CHURN_PII_KEY" not in (BASE / "endpoint.env").read_text()


def _sources(generator):
    return [*generator.get("envs", []), *(each.split("=")[-1] for each in generator.get("files", []))]


def _environment():
    lines = [line for line in (BASE / "endpoint.env").read_text().splitlines() if line and not line.startswith("#")]
    found = dict(line.split("=", 1) for line in lines)
    return found | {entry["name"]: "a secret of sufficient length" for entry in CONTAINER["env"]}
