"""The gRPC API from another language: a Node client that has the address and the .proto file, and nothing of ours."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from service.grpc_api.conversion import trace_to_pb
from service.pb import topk_pb2 as pb
from service.pb.topk_pb2_grpc import TopKServiceServicer, add_TopKServiceServicer_to_server
from tests.support.running import Running
from tests.support.served import MODEL_ID
from tests.support.tools import ROOT
from topk_model.traces import MAX_UINT16_WIDTH, PackedType, Trace, TraceSpec, select_entries

SOURCE = ROOT / "tests" / "support" / "node"
PROTO = ROOT / "protos" / "topk" / "v1" / "topk.proto"
INPUTS = ["Once upon a time, there was a king", "Où est l'été? 🙂 stop", "a"]
INSTALL_TIMEOUT_S = 60
TYPES = {"float32": np.float32, "float16": np.float16}


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's script in a folder with the packages of its lock file, which npm checks by their hashes."""
    is_ci = os.environ.get("CI") == "true"
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if shutil.which("npm") is None:
        (pytest.fail if is_ci else pytest.skip)("node is installed, but npm is not")
    folder = tmp_path_factory.mktemp("node") / "client"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules"))
    # No package may run code of its own while it is installed; none of these has to.
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"]
    command += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        reason = f"npm did not get the client's packages in {INSTALL_TIMEOUT_S} s"
    except subprocess.CalledProcessError as error:
        reason = f"npm could not install the client's packages: {error.stderr.strip()[:300]}"
        # A lock file that does not fit is our fault, and not the network's.
        if "EUSAGE" in error.stderr or "EINTEGRITY" in error.stderr:
            pytest.fail(reason)
    else:
        return folder / "read_trace.mjs"
    if is_ci:
        pytest.fail(reason)
    pytest.skip(reason)


def ask(script: Path, target: str, request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = ["node", str(script), target, str(PROTO), json.dumps(request)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def traces(script: Path, target: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    finished = ask(script, target, request)
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


def assert_equal(read: dict[str, Any], expected: dict[str, Any], dtype: PackedType) -> None:
    """Compare a trace that Node read with the fields of a JSON one, number by number."""
    # Every float16 and float32 is a double, so what Node prints is the number itself.
    values = np.asarray(expected["values"], dtype=np.float32).astype(TYPES[dtype]).astype(np.float64)
    assert read["values"] == values.tolist()
    assert read["dtype"] == f"VALUE_TYPE_{dtype.upper()}"
    assert [phase.removeprefix("PHASE_").lower() for phase in read["phases"]] == expected["phases"]
    assert read.get("checkpoint") == expected["checkpoint"]
    names = set(expected) - {"values", "phases", "checkpoint"}
    assert {"offsets", "indices", "token_ids", "tokens", "layers", "is_special", "complete"} < names
    assert {name: read[name] for name in names} == {name: expected[name] for name in names}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("top_n", [None, 3])
def test_node_reads_the_numbers_that_http_tells(
    running: Running, node_client: Path, dtype: PackedType, top_n: int | None
) -> None:
    options = {} if top_n is None else {"top_n": top_n}
    body = {"model": MODEL_ID, "input": INPUTS, "trace": options}
    reply = httpx.post(f"{running.url}/v1/activations", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    request = {
        "model": MODEL_ID,
        "input": {"texts": {"texts": INPUTS}},
        "trace": options | {"dtype": f"VALUE_TYPE_{dtype.upper()}"},
    }
    found = traces(node_client, running.target, request)
    assert [item["index"] for item in found] == list(range(len(INPUTS)))
    for read, item in zip(found, reply.json()["data"], strict=True):
        assert len(item["trace"]["values"]) > 0
        assert_equal(read, item["trace"], dtype)
        assert read["index_dtype"] == "INDEX_TYPE_UINT16"


def test_node_is_told_what_is_wrong(running: Running, node_client: Path) -> None:
    finished = ask(node_client, running.target, {"model": "other", "input": {"text": "a"}})
    assert finished.returncode == 1
    assert finished.stderr.startswith(f"{grpc.StatusCode.NOT_FOUND.value[0]} ")
    assert "other" in finished.stderr


def very_wide_trace() -> Trace:
    """A trace of a model too wide for 16-bit indices, with values at the borders of float16's range."""
    width = MAX_UINT16_WIDTH + 10
    indices = np.array([3, MAX_UINT16_WIDTH + 2, 0, MAX_UINT16_WIDTH + 9], dtype=np.int32)
    values = np.array([2.0**-24, -65504.0, 1 / 3, -(2.0**-14)], dtype=np.float32)
    return Trace(
        model=MODEL_ID,
        checkpoint="step-64",
        k=2,
        hidden_size=width,
        layers=(0,),
        token_ids=(5, 6),
        tokens=("a", "b"),
        phases=("prompt", "generated"),
        is_special=(True, False),
        chunk=select_entries(TraceSpec(layers=(0,)), 0, 1, np.array([[2], [2]]), indices, values),
    )


@contextmanager
def answering(reply: pb.ActivationsResponse) -> Iterator[str]:
    """The address of a service of the same .proto that gives one reply: no model that a test can load is so wide."""

    class Service(TopKServiceServicer):
        def Activations(self, request: pb.ActivationsRequest, context: Any) -> pb.ActivationsResponse:  # noqa: N802
            return reply

    server = grpc.server(ThreadPoolExecutor(1))
    add_TopKServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_node_reads_wide_indices_and_numbers_at_the_borders(node_client: Path, dtype: PackedType) -> None:
    trace = very_wide_trace()
    reply = pb.ActivationsResponse(data=[pb.ActivationsItem(trace=trace_to_pb(trace, dtype))])
    with answering(reply) as target:
        (read,) = traces(node_client, target, {"model": MODEL_ID, "input": {"text": "a"}})
    assert read["index_dtype"] == "INDEX_TYPE_UINT32"
    expected = {name: getattr(value, "tolist", lambda value=value: value)() for name, value in trace.to_json().items()}
    assert_equal(read, expected, dtype)
