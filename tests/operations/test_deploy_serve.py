"""The Serve configuration of deploy/overlays/cpu-dev, run by a real Ray as KubeRay runs it.

`ray start` with the head container's environment, then the configuration through the dashboard's REST API.
"""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.pb import topk_pb2 as pb
from service.pb import topk_pb2_grpc as pb_grpc
from service.rayserve.deployment import DEPLOYMENT_NAME
from service.rayserve.launcher import serve_environment
from service.settings import Settings
from tests.support.operations.local_variables import LOCAL_VARIABLES
from tests.support.operations.manifests import DEPLOY, container, environment, overlay, pods, ports, serve_config
from tests.support.operations.ray_metrics import OF_RAY
from tests.support.running import descendants
from tests.support.served import free_port, wait_until
from tests.support.tools import ROOT

# Two starts, one after the other: of Ray, and of the service.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

START_TIMEOUT_S = 100
MODEL_ID = "topk-default"
KEY, TOKEN = "key-of-a-client", "0123456789abcdef" * 4
DOCUMENTS = "cpu-dev"


class Cluster:
    """A head that serves what the overlay says, on ports of this machine."""

    def __init__(self, process: subprocess.Popen[bytes], ports: dict[str, int]) -> None:
        self.process = process
        self.ports = ports

    def get(self, name: str, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.ports[name]}{path}", headers=headers, timeout=30)

    def is_well(self, probe: dict[str, Any]) -> bool:
        with suppress(httpx.TransportError):
            return self.get(probe["port"], probe["path"]).status_code == 200
        return False


def config_for(chosen: dict[str, int], folder: Path) -> dict[str, Any]:
    """The overlay's configuration, with this machine's ports and file of keys."""
    config = serve_config(overlay(DOCUMENTS))
    config["http_options"]["port"] = chosen["serve"]
    config["grpc_options"]["port"] = chosen["serve-grpc"]
    keys = folder / "api-keys"
    keys.write_text(f"{KEY}\n")
    config["applications"][0]["args"]["api_key_file"] = str(keys)
    return config


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """With a short path, since those of sockets in it may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="topk-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    head = pods(overlay(DOCUMENTS))["head"]
    chosen = {name: free_port() for name in ports(head)}
    local = serve_environment(Settings(), folder)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TOPK_"))}
    variables |= environment(head) | {name: local[name] for name in LOCAL_VARIABLES & set(local)}
    variables |= {
        "RAY_SERVE_HAPROXY_BINARY_PATH": local["RAY_SERVE_HAPROXY_BINARY_PATH"],
        "RAY_AUTH_MODE": "token",  # as KubeRay sets it
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        f"--temp-dir={folder / 'ray'}",
    ]
    command += [f"--port={chosen['gcs-server']}", f"--dashboard-port={chosen['dashboard']}"]
    command += [f"--dashboard-agent-listen-port={chosen['agent']}", f"--metrics-export-port={chosen['metrics']}"]
    # The replica runs here, since there are no workers.
    command += [f"--ray-client-server-port={free_port()}", "--num-cpus=1", "--object-store-memory=100000000"]
    out = folder / "out.txt"
    with out.open("wb") as stdout:
        process = subprocess.Popen(
            command, stdout=stdout, stderr=subprocess.STDOUT, env=variables, cwd=ROOT, start_new_session=True
        )
    made = Cluster(process, chosen)
    try:
        probe = container(head)["startupProbe"]["httpGet"]
        assert wait_until(lambda: made.is_well(probe) or process.poll() is not None, START_TIMEOUT_S), out.read_text()
        assert process.poll() is None, out.read_text()[-3000:]
        url = f"http://127.0.0.1:{chosen['dashboard']}/api/serve/applications/"
        authorized = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx.put(url, json=config_for(chosen, folder), timeout=60).status_code == 401
        reply = httpx.put(url, json=config_for(chosen, folder), headers=authorized, timeout=60)
        assert reply.status_code == 200, reply.text
        states: list[dict[str, Any]] = [{}]

        def is_decided() -> bool:
            states.append(httpx.get(url, headers=authorized, timeout=30).json()["applications"].get("topk", {}))
            return states[-1].get("status") not in (None, "NOT_STARTED", "DEPLOYING")

        assert wait_until(is_decided, START_TIMEOUT_S), states[-1]
        assert states[-1]["status"] == "RUNNING", states[-1]["message"]
        assert wait_until(lambda: made.is_well({"port": "serve", "path": "/-/healthz"}), 20)
        yield made
    finally:
        for pid in (*descendants(process.pid), process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(20)


def test_it_completes_over_http_for_those_with_a_key(cluster: Cluster) -> None:
    body = {
        "model": MODEL_ID,
        "prompt": "Once upon a time,",
        "max_tokens": 4,
        "interventions": [{"layer": 3, "neuron": 85, "op": "add", "value": 40.0}],
    }
    url = f"http://127.0.0.1:{cluster.ports['serve']}/v1/completions"
    assert httpx.post(url, json=body, timeout=30).status_code == 401
    reply = httpx.post(url, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    assert choice["text"]
    assert choice["interventions"][0]["positions_applied"] > 0


def test_it_generates_over_grpc(cluster: Cluster) -> None:
    request = pb.GenerateRequest(model=MODEL_ID, prompt=pb.Prompt(text="Once"), max_tokens=4)
    with grpc.insecure_channel(f"127.0.0.1:{cluster.ports['serve-grpc']}") as channel:
        call = pb_grpc.TopKServiceStub(channel).Generate
        with pytest.raises(grpc.RpcError) as refused:
            call(request, timeout=30)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
        reply = call(request, timeout=30, metadata=[("authorization", f"Bearer {KEY}")])
    assert reply.usage.completion_tokens == 4


def test_prometheus_finds_metrics_where_the_monitors_send_it(cluster: Cluster) -> None:
    page = cluster.get("serve", "/metrics", Authorization=f"Bearer {KEY}")
    assert page.status_code == 200
    assert "topk_num_requests_running" in page.text
    assert wait_until(lambda: of_ray(cluster).keys() == OF_RAY.keys(), 30), of_ray(cluster)
    for name, labels in OF_RAY.items():
        ((found, value),) = of_ray(cluster)[name]
        assert labels <= found.keys()
        assert (found["application"], found["deployment"]) == ("topk", DEPLOYMENT_NAME)
        assert value == 1  # the one replica that is to run, and that runs


def of_ray(cluster: Cluster) -> dict[str, list[tuple[dict[str, str], float]]]:
    """(labels, value) of every series of `OF_RAY` that Ray's own page has."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(cluster.get("metrics", "/metrics").text):
        for sample in family.samples:
            if sample.name in OF_RAY:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@pytest.mark.parametrize("node", ["head", "worker"])
def test_probes_ask_what_answers(cluster: Cluster, node: str) -> None:
    pod = pods(overlay(DOCUMENTS))[node]
    for kind in ("startup", "readiness", "liveness"):
        probe = container(pod)[f"{kind}Probe"]["httpGet"]
        assert cluster.is_well(probe), f"{kind}Probe of the {node}"


def test_drain_knows_the_processes_that_serve(cluster: Cluster) -> None:
    found = set(runpy.run_path(str(DEPLOY / "drain.py"))["serving_processes"]()) & descendants(cluster.process.pid)
    titles = sorted(
        Path(f"/proc/{pid}/cmdline").read_text().split(":")[2].partition(".")[0].rstrip("\0") for pid in found
    )
    assert titles == ["HAProxyManager", "ProxyActor", "ServeReplica"]
