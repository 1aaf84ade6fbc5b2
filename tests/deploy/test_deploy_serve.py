"""The Serve configuration of deploy/overlays/cpu-dev, run by a real Ray as KubeRay runs it.

`ray start` with the head container's environment, then the configuration through the dashboard's REST API.
"""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from tests.support.operations.traffic import Traffic
from tests.support.running import descendants
from tests.support.served import free_port, wait_until
from tests.support.tools import ROOT

# Two starts, one after the other: of Ray, and of the service.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

START_TIMEOUT_S = 100
MODEL_ID = "topk-default"
KEY, TOKEN = "key-of-a-client", "0123456789abcdef" * 4
NEW_KEY = "new-key-of-that-client"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
DOCUMENTS = "cpu-dev"


class Cluster:
    """A head that serves what the overlay says, on ports of this machine."""

    def __init__(self, process: subprocess.Popen[bytes], ports: dict[str, int]) -> None:
        self.process = process
        self.ports = ports

    def get(self, name: str, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.ports[name]}{path}", headers=headers, timeout=30)

    def application(self) -> dict[str, Any]:
        """What Serve's REST API says of it; nothing before it is there."""
        reply = self.get("dashboard", "/api/serve/applications/", **AUTHORIZED)
        found: dict[str, Any] = reply.json()["applications"].get("topk", {})
        return found

    def replicas(self) -> set[str]:
        """Those that run; none while Serve reads a new configuration."""
        deployment = self.application().get("deployments", {}).get(DEPLOYMENT_NAME, {"replicas": []})
        return {replica["replica_id"] for replica in deployment["replicas"] if replica["state"] == "RUNNING"}

    def apply(self, config: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
        """As KubeRay hands over serve.yaml."""
        url = f"http://127.0.0.1:{self.ports['dashboard']}/api/serve/applications/"
        return httpx.put(url, json=config, headers=headers, timeout=60)

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
    # The replica runs here, since there are no workers, and there is room for one more.
    command += [f"--ray-client-server-port={free_port()}", "--num-cpus=2", "--object-store-memory=100000000"]
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
        assert made.apply(config_for(chosen, folder), {}).status_code == 401
        reply = made.apply(config_for(chosen, folder), AUTHORIZED)
        assert reply.status_code == 200, reply.text
        states: list[dict[str, Any]] = [{}]

        def is_decided() -> bool:
            states.append(made.application())
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


@contextmanager
def calls(cluster: Cluster, *, rate: float) -> Iterator[list[grpc.StatusCode]]:
    """How each of the RPCs ended that are made one after the other, while this lasts."""
    stopping, ended = threading.Event(), list[grpc.StatusCode]()
    request = pb.GenerateRequest(model=MODEL_ID, prompt=pb.Prompt(text="Once"), max_tokens=4)

    def call() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{cluster.ports['serve-grpc']}") as channel:
            generate = pb_grpc.TopKServiceStub(channel).Generate
            while not stopping.wait(1 / rate):
                try:
                    generate(request, timeout=30, metadata=[("authorization", f"Bearer {KEY}")])
                    ended.append(grpc.StatusCode.OK)
                except grpc.RpcError as error:
                    ended.append(error.code())  # type: ignore[attr-defined]

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield ended
    finally:
        stopping.set()
        thread.join(40)


@pytest.mark.slow
def test_a_change_of_serve_yaml_leaves_no_request_unanswered(cluster: Cluster, folder: Path) -> None:
    """With one replica, room for one more, and a long stream under way."""
    before = cluster.replicas()
    assert len(before) == 1
    config = config_for(cluster.ports, folder)
    config["applications"][0]["args"]["retry_after_s"] = 2
    url, keyed = f"http://127.0.0.1:{cluster.ports['serve']}", {"Authorization": f"Bearer {KEY}"}
    long = {"model": MODEL_ID, "prompt": "Once", "max_tokens": 480, "n": 4, "ignore_eos": True, "stream": True}
    with (
        httpx.Client(headers=keyed, timeout=60, limits=httpx.Limits(max_keepalive_connections=0)) as client,
        Traffic(url, rate=5, client=client, model=MODEL_ID) as traffic,
        calls(cluster, rate=5) as ended,
        client.stream("POST", f"{url}/v1/completions", json=long) as stream,
    ):
        events = stream.iter_lines()
        next(events)
        began = time.monotonic()
        assert cluster.apply(config, AUTHORIZED).status_code == 200
        assert wait_until(lambda: bool(cluster.replicas() - before), START_TIMEOUT_S)
        assert list(events)[-2:] == ["data: [DONE]", ""]
        assert wait_until(lambda: not cluster.replicas() & before, 60)
        time.sleep(5)  # the proxy has long learned of it
        took_s = time.monotonic() - began
    assert traffic.failed() == []
    assert set(ended) == {grpc.StatusCode.OK}
    assert len(traffic.outcomes) > 3 * took_s
    slowest_s = max(outcome.ended_at - outcome.began_at for outcome in traffic.outcomes)
    print(f"{len(traffic.outcomes)} requests and {len(ended)} RPCs in {took_s:.0f} s, slowest {slowest_s:.2f} s")


def test_keys_change_without_a_new_replica(cluster: Cluster, folder: Path) -> None:
    replicas, file = cluster.replicas(), folder / "api-keys"
    request = pb.TokenizeRequest(model=MODEL_ID, prompt="Once")

    def refused() -> tuple[bool, bool, bool, bool]:
        """Whether the old and the new key are, over HTTP and over gRPC."""
        found = []
        for key in (KEY, NEW_KEY):
            found.append(cluster.get("serve", "/v1/models", Authorization=f"Bearer {key}").status_code == 401)
            with grpc.insecure_channel(f"127.0.0.1:{cluster.ports['serve-grpc']}") as channel:
                try:
                    tokenize = pb_grpc.TopKServiceStub(channel).Tokenize
                    tokenize(request, timeout=30, metadata=[("authorization", f"Bearer {key}")])
                    found.append(False)
                except grpc.RpcError as error:
                    found.append(error.code() is grpc.StatusCode.UNAUTHENTICATED)  # type: ignore[attr-defined]
        return found[0], found[1], found[2], found[3]

    assert refused() == (False, False, True, True)
    file.write_text(f"{NEW_KEY}\n")
    try:
        assert wait_until(lambda: refused() == (True, True, False, False), 10)
    finally:
        file.write_text(f"{KEY}\n")
    assert wait_until(lambda: refused() == (False, False, True, True), 10)
    assert cluster.replicas() == replicas
