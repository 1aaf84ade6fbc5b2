"""deploy/: who reaches what, by its network policies and behind its example gateway."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.operations.manifests import (
    OVERLAYS,
    Document,
    environment,
    of_kind,
    overlay,
    overlay_with,
    pods,
    ports,
    selects,
)

every_overlay = pytest.mark.parametrize("name", OVERLAYS)
CLOUD_METADATA = "169.254.169.254/32"


def policy(documents: tuple[Document, ...], name: str) -> Document:
    (found,) = (p["spec"] for p in of_kind(documents, "NetworkPolicy") if p["metadata"]["name"] == name)
    spec: Document = found
    return spec


def cidrs(rule: Document, side: str = "to") -> list[str]:
    return [peer["ipBlock"]["cidr"] for peer in rule[side] if "ipBlock" in peer]


@every_overlay
def test_only_the_operators_own_namespace_reaches_the_dashboard(name: str) -> None:
    (rule,) = policy(overlay(name), "operator")["ingress"]
    (peer,) = rule["from"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "kuberay-system"}


@every_overlay
def test_names_are_resolved_wherever_a_cluster_has_its_resolver(name: str) -> None:
    kube, openshift = policy(overlay(name), "dns")["egress"]
    assert cidrs(kube) == ["169.254.20.10/32", CLOUD_METADATA]  # NodeLocal, Cloud DNS
    assert {port["port"] for port in kube["ports"]} == {53}
    assert {port["port"] for port in openshift["ports"]} == {5353}
    assert {port["protocol"] for port in openshift["ports"]} == {"TCP", "UDP"}


@every_overlay
def test_cloud_metadata_answers_nothing_but_names(name: str) -> None:
    for document in of_kind(overlay(name), "NetworkPolicy"):
        for rule in document["spec"].get("egress", []):
            for block in (peer["ipBlock"] for peer in rule.get("to", []) if "ipBlock" in peer):
                if block["cidr"] == "0.0.0.0/0":
                    assert block["except"] == [CLOUD_METADATA]
                elif block["cidr"] == CLOUD_METADATA:
                    assert {port["port"] for port in rule["ports"]} == {53}


def test_cilium_lets_the_head_alone_reach_an_api_server_on_a_node(tmp_path: Path) -> None:
    folder = tmp_path / "overlay"
    folder.mkdir()
    documents = overlay_with("components/cilium", "gpu", folder)
    found = {document["metadata"]["name"]: document["spec"] for document in of_kind(documents, "CiliumNetworkPolicy")}
    chosen = {
        name: {node for node, pod in pods(documents).items() if selects(spec["endpointSelector"], pod)}
        for name, spec in found.items()
    }
    assert chosen == {"api-server": {"head"}, "node-dns": {"head", "worker"}}
    assert found["api-server"]["egress"] == [{"toEntities": ["kube-apiserver"]}]


def test_the_example_gateway_sends_to_the_ports_that_kuberay_names(tmp_path: Path) -> None:
    folder = tmp_path / "overlay"
    folder.mkdir()
    documents = overlay_with("components/gateway", "gpu", folder)
    (service,) = of_kind(documents, "RayService")
    worker = pods(documents)["worker"]
    routes: dict[str, Any] = {kind: of_kind(documents, kind)[0]["spec"] for kind in ("HTTPRoute", "GRPCRoute")}
    for kind, port in (("HTTPRoute", "serve"), ("GRPCRoute", "serve-grpc")):
        (backend,) = routes[kind]["rules"][0]["backendRefs"]
        assert backend == {"name": f"{service['metadata']['name']}-serve-svc", "port": ports(worker)[port]}
    # Routes of both kinds for one host of a listener contradict each other.
    assert not set(routes["HTTPRoute"]["hostnames"]) & set(routes["GRPCRoute"]["hostnames"])
    timeouts = routes["HTTPRoute"]["rules"][0]["timeouts"]
    longest = environment(worker)["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"]
    assert set(timeouts.values()) == {f"{longest}s"}
