"""deploy/: what Kustomize makes of it holds the schemas of what will read it, and its parts fit each other and us."""

import importlib
import json
import re
import runpy
import shutil
import subprocess
import time
from fnmatch import fnmatch
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from service.rayserve.deployment import DEPLOYMENT_NAME
from service.rayserve.launcher import ray_environment, serve_environment
from service.rayserve.servicers import SERVICER_FUNCTIONS
from service.requests.limits import (
    MAX_TIMEOUT_S,
)
from service.settings import ENV_PREFIX, Settings
from tests.support.operations.local_variables import LOCAL_VARIABLES
from tests.support.operations.manifests import (
    COMPONENTS,
    DEPLOY,
    OVERLAYS,
    Document,
    container,
    environment,
    of_kind,
    overlay,
    overlay_with,
    pods,
    ports,
    ray_service,
    seconds_of,
    selects,
    serve_config,
    worker_group,
)
from tests.support.tools import ROOT, tool

SCHEMAS = {
    path.stem: json.loads(path.read_text("utf-8")) for path in (ROOT / "tests" / "support" / "schemas").glob("*.json")
}
#: Values that are a cluster's own.
OTHER_VALUES = {"RAY_SERVE_HAPROXY_BINARY_PATH", "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", "RAY_SERVE_HAPROXY_NBTHREAD"}

every_overlay = pytest.mark.parametrize("name", OVERLAYS)


def settings_of(documents: tuple[Document, ...], folder: Path) -> Settings:
    """The settings that the application is built from, with an API key that is there."""
    keys = folder / "api-keys"
    keys.write_text("a-key-of-a-test\n")
    (application,) = serve_config(documents)["applications"]
    return Settings(**{**application["args"], "api_key_file": keys, "host": "0.0.0.0"})


def cpus(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def check_schemas(documents: tuple[Document, ...], folder: Path) -> None:
    """Raises AssertionError or jsonschema.ValidationError where a field is unknown or its value is not allowed."""
    builtin = [*pods(documents).values()]
    for document in documents:
        if document["kind"].lower() in SCHEMAS:
            jsonschema.Draft202012Validator(SCHEMAS[document["kind"].lower()]).validate(document)
        else:
            builtin.append(document)
    path = folder / "builtin.yaml"
    path.write_text(yaml.safe_dump_all(builtin))
    command = [tool("kubernetes-validate"), "--strict", "--no-warn", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("passed") + done.stdout.count("passed") == len(builtin)


def test_every_overlay_is_tested() -> None:
    assert OVERLAYS == ("cpu-dev", "gpu", "production")
    assert COMPONENTS == ("cilium", "gateway", "model-object-store", "model-volume")


@every_overlay
def test_an_overlay_holds_the_schemas(name: str, tmp_path: Path) -> None:
    check_schemas(overlay(name), tmp_path)


@pytest.mark.parametrize("component", ["monitoring", *(f"components/{name}" for name in COMPONENTS)])
def test_a_component_fits_an_overlay(component: str, tmp_path: Path) -> None:
    folder = tmp_path / "overlay"
    folder.mkdir()
    documents = overlay_with(component, "gpu", folder)
    check_schemas(documents, tmp_path)
    if component.startswith("components/model-"):
        head, worker = pods(documents)["head"], pods(documents)["worker"]
        model = Path(environment(worker)["TOPK_MODEL"])
        assert environment(head)["TOPK_MODEL"] == str(model)
        mounted = [Path(mount["mountPath"]) for mount in container(worker)["volumeMounts"]]
        assert any(model.is_relative_to(path) for path in mounted)


@pytest.mark.long
def test_checkov_finds_nothing(tmp_path: Path) -> None:
    """What it may not find is suppressed where it stands, with the reason."""
    for name in OVERLAYS:
        documents = [document for document in overlay(name) if document["kind"] != "RayService"]
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all([*documents, *pods(overlay(name)).values()]))
    shutil.copy(DEPLOY / "Dockerfile", tmp_path)
    command = [tool("checkov"), "--directory", str(tmp_path), "--framework", "kubernetes", "dockerfile"]
    done = subprocess.run(
        [*command, "--output", "json", "--skip-download"], capture_output=True, text=True, timeout=100
    )
    for report in json.loads(done.stdout):
        found = [f"{check['check_id']} of {check['resource']}" for check in report["results"]["failed_checks"]]
        assert not found, report["check_type"]
        assert report["summary"]["passed"] > 50


def test_hadolint_finds_nothing() -> None:
    linted = subprocess.run([tool("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert linted.returncode == 0, linted.stdout


def test_the_image_gets_what_it_copies_and_nothing_more() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text("utf-8")
    copied = {
        source.removesuffix("/")
        for line in re.findall(r"^COPY (?!--)(.*)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert lines[1] == "*"
    assert copied == {line[1:].removesuffix("/") for line in lines if line.startswith("!")}
    assert all((ROOT / source).exists() for source in copied)


@every_overlay
def test_serve_reads_every_field_of_its_configuration(name: str) -> None:
    config = serve_config(overlay(name))
    # Unknown fields are dropped in silence.
    assert ServeDeploySchema.model_validate(config).model_dump(mode="json", exclude_unset=True) == config


@every_overlay
def test_what_serve_imports_is_there(name: str) -> None:
    config = serve_config(overlay(name))
    (application,) = config["applications"]
    module, _, attribute = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
    assert tuple(config["grpc_options"]["grpc_servicer_functions"]) == SERVICER_FUNCTIONS
    assert [deployment["name"] for deployment in application["deployments"]] == [DEPLOYMENT_NAME]


@every_overlay
def test_kuberay_is_told_the_ray_that_the_image_gets(name: str) -> None:
    constraints = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert f"ray=={ray_service(overlay(name))['rayClusterConfig']['rayVersion']}" in constraints


@every_overlay
def test_replicas_fit_the_workers(name: str, tmp_path: Path) -> None:
    documents = overlay(name)
    settings, group = settings_of(documents, tmp_path), worker_group(documents)
    limits = container(pods(documents)["worker"])["resources"]["limits"]
    assert settings.num_cpus == cpus(limits["cpu"])  # one replica a worker
    assert 1 <= settings.num_threads <= cpus(limits["cpu"])
    assert (settings.num_gpus or 0) == float(limits.get("nvidia.com/gpu", 0))
    (deployment,) = serve_config(documents)["applications"][0]["deployments"]
    scaling = deployment["autoscaling_config"]
    assert scaling["min_replicas"] == group["minReplicas"]
    # An update starts new replicas first: they need workers of their own.
    num_extra = -(-scaling["max_replicas"] * deployment["max_surge_percent"] // 100)
    assert num_extra >= 1
    assert group["maxReplicas"] == scaling["max_replicas"] + num_extra
    # With it every change of serve.yaml would set a busy service back to that number.
    assert "initial_replicas" not in scaling
    assert scaling["target_ongoing_requests"] <= settings.max_num_seqs
    cluster = ray_service(documents)["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] > scaling["downscale_delay_s"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@every_overlay
def test_the_longest_generation_ends_before_anything_is_killed(name: str, tmp_path: Path) -> None:
    documents = overlay(name)
    service, made = ray_service(documents), pods(documents)
    drain_s = settings_of(documents, tmp_path).drain_timeout_s
    assert drain_s >= MAX_TIMEOUT_S
    grace_s = {node: pod["spec"]["terminationGracePeriodSeconds"] for node, pod in made.items()}
    for pod in made.values():
        assert int(environment(pod)["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) >= MAX_TIMEOUT_S
        assert int(environment(pod)["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"]) > MAX_TIMEOUT_S
        assert drain_s < seconds_of(pod) < grace_s["worker"] < grace_s["head"]
    assert service["rayClusterDeletionDelaySeconds"] > MAX_TIMEOUT_S
    assert service["upgradeStrategy"] == {"type": "NewCluster"}


@every_overlay
def test_ports_are_the_same_everywhere(name: str) -> None:
    documents, config = overlay(name), serve_config(overlay(name))
    for pod in pods(documents).values():
        assert ports(pod)["serve"] == config["http_options"]["port"] == Settings.model_fields["http_port"].default
        assert ports(pod)["serve-grpc"] == config["grpc_options"]["port"] == Settings.model_fields["grpc_port"].default
        probes = [container(pod)[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
        assert {probe["port"] for probe in probes} <= set(ports(pod))
    for policy in of_kind(documents, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            named = {port["port"] for port in rule.get("ports", []) if isinstance(port["port"], str)}
            selected = [pod for pod in pods(documents).values() if selects(policy["spec"]["podSelector"], pod)]
            assert all(named <= set(ports(pod)) for pod in selected), policy["metadata"]["name"]
    for monitor in of_kind(documents, "PodMonitor"):
        selected = [pod for pod in pods(documents).values() if selects(monitor["spec"]["selector"], pod)]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert selected
            assert all(endpoint["port"] in ports(pod) for pod in selected), monitor["metadata"]["name"]


@every_overlay
def test_selectors_find_the_pods_that_they_are_for(name: str) -> None:
    documents, made = overlay(name), pods(overlay(name))
    found = {
        (kind, document["metadata"]["name"]): {node for node, pod in made.items() if selects(selector(document), pod)}
        for kind in ("NetworkPolicy", "PodDisruptionBudget", "PodMonitor")
        for document in of_kind(documents, kind)
    }
    expected = {
        ("NetworkPolicy", "api-server"): {"head"},
        ("NetworkPolicy", "clients"): {"worker"},
        ("NetworkPolicy", "operator"): {"head"},
        ("PodDisruptionBudget", "topk-worker"): {"worker"},
    }
    assert found == {key: expected.get(key, {"head", "worker"}) for key in found}
    assert {("NetworkPolicy", policy) for policy in ("deny-all", "dns", "ray", "clients", "operator")} <= set(found)
    redis = {"metadata": {"labels": {"app.kubernetes.io/name": "redis"}}}  # in the same namespace, and not ours
    assert not any(selects(selector(policy), redis) for policy in of_kind(documents, "NetworkPolicy"))
    for constraint in made["worker"]["spec"]["topologySpreadConstraints"]:
        assert selects(constraint["labelSelector"], made["worker"])


@every_overlay
def test_what_selects_pods_selects_those_of_both_clusters_of_an_upgrade(name: str) -> None:
    documents = overlay(name)
    for kind in ("NetworkPolicy", "PodDisruptionBudget", "PodMonitor"):
        for document in of_kind(documents, kind):
            labels = selector(document)["matchLabels"]
            assert labels["app.kubernetes.io/part-of"] == "topk-serve"
            assert set(labels) <= {"app.kubernetes.io/part-of", "ray.io/node-type"}, document["metadata"]["name"]


@pytest.mark.parametrize(
    ("name", "reached"), [("cpu-dev", {53, 5353}), ("gpu", {53, 5353}), ("production", {53, 5353, 6379})]
)
def test_workers_reach_each_other_and_little_else(name: str, reached: set[int]) -> None:
    """No collector of spans, for example: README.md says that its users have to let them out."""
    worker = pods(overlay(name))["worker"]
    policies = [p["spec"] for p in of_kind(overlay(name), "NetworkPolicy") if selects(p["spec"]["podSelector"], worker)]
    assert any("Egress" in policy["policyTypes"] for policy in policies)
    rules = [rule for policy in policies for rule in policy.get("egress", [])]
    among_us = {"to": [{"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "topk-serve"}}}]}
    assert rules.count(among_us) == 1
    assert {port["port"] for rule in rules if rule != among_us for port in rule["ports"]} == reached


def selector(document: Document) -> Document:
    spec = document["spec"]
    chosen: Document = spec["podSelector"] if document["kind"] == "NetworkPolicy" else spec["selector"]
    return chosen


def test_the_service_is_scraped_once_by_the_name_that_the_alerts_know() -> None:
    documents = overlay("production")
    (monitor,) = of_kind(documents, "ServiceMonitor")
    (service,) = of_kind(documents, "RayService")
    # Of the Service that KubeRay keeps for the head; it has the ports of the head's container.
    labels = {
        "ray.io/originated-from-cr-name": service["metadata"]["name"],
        "ray.io/originated-from-crd": "RayService",
        "ray.io/node-type": "head",
    }
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] == "serve"
    assert "serve" in ports(pods(documents)["head"])
    job = labels[monitor["spec"]["jobLabel"]]
    rules = (DEPLOY / "monitoring" / "rules.yaml").read_text("utf-8")
    patterns = set(re.findall(r'job=~"([^"]*)"', rules))
    assert patterns
    assert all(re.fullmatch(pattern, job) for pattern in patterns)
    assert set(re.findall(r'deployment="([^"]*)"', rules)) == {DEPLOYMENT_NAME}
    (rays,) = of_kind(documents, "PodMonitor")
    assert "ray.io/cluster" in rays["spec"]["podTargetLabels"]  # in the rules, ray_io_cluster


@every_overlay
def test_ray_gets_the_environment_that_topk_serve_gives_it(name: str, tmp_path: Path) -> None:
    documents = overlay(name)
    settings = settings_of(documents, tmp_path)
    local = ray_environment(settings, tmp_path) | serve_environment(settings, tmp_path)
    for pod in pods(documents).values():
        given = environment(pod)
        assert set(local) - set(given) == LOCAL_VARIABLES & set(local)
        for variable in set(local) & set(given) - OTHER_VALUES:
            assert given[variable] == local[variable], variable
        # Any variable of ours that is no setting would keep the service from starting.
        assert {n.removeprefix(ENV_PREFIX).lower() for n in given if n.startswith(ENV_PREFIX)} <= set(
            Settings.model_fields
        )


@every_overlay
def test_a_pod_has_what_it_mounts_and_writes_only_there(name: str) -> None:
    documents = overlay(name)
    (application,) = serve_config(documents)["applications"]
    for pod in pods(documents).values():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in container(pod)["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} <= set(volumes)
        assert container(pod)["securityContext"]["readOnlyRootFilesystem"]
        assert "emptyDir" in volumes[mounts["/tmp"]["name"]]
        keys = Path(application["args"]["api_key_file"])
        secret = volumes[mounts[str(keys.parent)]["name"]]["secret"]
        assert keys.name in [item["path"] for item in secret["items"]]


def test_production_outlives_its_head_and_its_nodes() -> None:
    documents = overlay("production")
    storage = ray_service(documents)["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert storage["redisAddress"]
    assert "secretKeyRef" in storage["redisPassword"]["valueFrom"]  # never a literal
    (budget,) = of_kind(documents, "PodDisruptionBudget")
    assert worker_group(documents)["minReplicas"] > budget["spec"]["minAvailable"]
    (priority,) = of_kind(documents, "PriorityClass")
    assert {pod["spec"]["priorityClassName"] for pod in pods(documents).values()} == {priority["metadata"]["name"]}


def test_a_head_waits_for_workers_that_drain_until_they_have_or_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_workers = runpy.run_path(str(DEPLOY / "drain.py"))["wait_for_workers"]
    monkeypatch.setitem(wait_for_workers.__globals__, "HEAD_START_S", 0.0)
    monkeypatch.setitem(wait_for_workers.__globals__, "POLL_S", 0.01)
    monkeypatch.setattr("ray.init", lambda **_: None)
    looks = iter([{"a-node": 0}, {"a-node": 0}, {}])
    monkeypatch.setattr("ray._private.state.state.get_draining_nodes", lambda: next(looks))
    wait_for_workers(60)
    assert next(looks, None) is None
    monkeypatch.setattr("ray._private.state.state.get_draining_nodes", lambda: {"a-node-that-hangs": 0})
    began = time.monotonic()
    wait_for_workers(1)
    assert 1 <= time.monotonic() - began < 10


@every_overlay
def test_the_serve_service_says_what_its_ports_speak(name: str) -> None:
    """KubeRay takes a port of this block in the place of its own of that name, and its own for the rest."""
    documents = overlay(name)
    named = {port["name"]: port for port in ray_service(documents)["serveService"]["spec"]["ports"]}
    of_head = {port: number for port, number in ports(pods(documents)["head"]).items() if port.startswith("serve")}
    assert {port: fields["port"] for port, fields in named.items()} == of_head
    assert named["serve-grpc"]["appProtocol"] == "kubernetes.io/h2c"


def test_a_deleted_cluster_empties_redis_before_kuberay_gives_up() -> None:
    """It waits for the head, whose pod drains, and then for a job that may take five minutes."""
    documents = overlay("production")
    (service,) = of_kind(documents, "RayService")
    grace_s = pods(documents)["head"]["spec"]["terminationGracePeriodSeconds"]
    assert int(service["metadata"]["annotations"]["ray.io/gcs-ft-deletion-timeout"]) >= grace_s + 300


@every_overlay
def test_the_heads_client_server_waits_for_nobody(name: str) -> None:
    """Without a port that is known beforehand it gives up after 30 s, and the head with it."""
    group = ray_service(overlay(name))["rayClusterConfig"]["headGroupSpec"]
    port = int(group["rayStartParams"]["runtime-env-agent-port"])
    assert port not in ports(pods(overlay(name))["head"]).values()


def test_no_manifest_holds_a_secret() -> None:
    for name in OVERLAYS:
        assert not of_kind(overlay(name), "Secret")
    assert not [path for path in DEPLOY.rglob("*") if fnmatch(path.name, "*key*")]
