"""What an operator sees of a service of two replicas: its log as JSON, its traces, and a page of metrics that a replica
which hangs does not hold up."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from service.pb import topk_pb2 as pb
from service.pb import topk_pb2_grpc as pb_grpc
from tests.support.otlp import Collector, collector, values
from tests.support.running import Running, topk_serve
from tests.support.served import MODEL_ID, wait_until

# Two replicas start at the same time.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

PROMPT = "Rumpelstiltskin and the miller"
TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


class Observed:
    """The service, where its log is, and the collector of its traces."""

    def __init__(self, service: Running, folder: Path, collected: Collector) -> None:
        self.service = service
        self.collected = collected
        self._log = folder / "err.txt"

    def complete(self, request_id: str) -> None:
        body = {"model": MODEL_ID, "prompt": PROMPT, "max_tokens": 4, "ignore_eos": True}
        headers = {"X-Request-Id": request_id, "traceparent": TRACEPARENT}
        httpx.post(f"{self.service.url}/v1/completions", json=body, headers=headers, timeout=30).raise_for_status()

    def lines(self) -> list[dict[str, Any]]:
        """What of the log is JSON; Ray's own lines are not."""
        found = []
        for line in self._log.read_text().splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict)]

    def line(self, request_id: str) -> dict[str, Any] | None:
        return next((line for line in self.lines() if line.get("request_id") == request_id), None)

    def replicas(self) -> set[int]:
        """Processes of the replicas."""
        return self.service.replicas()


@pytest.fixture(scope="module")
def observed(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    options = ["--num-replicas", "2", "--num-cpus", "0.5", "--log-format", "json", "--log-level", "INFO"]
    with collector() as collected:
        os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "200"  # ms; five seconds by default
        with topk_serve(tiny_model_path, folder, *options, "--otlp-endpoint", collected.url) as service:
            del os.environ["OTEL_BSP_SCHEDULE_DELAY"]
            yield Observed(service, folder, collected)


def test_every_request_is_a_line_of_json_and_a_span_whichever_replica_answers(observed: Observed) -> None:
    ids: list[str] = []

    def lines_of_one_more() -> list[dict[str, Any]]:
        ids.append(f"http-{len(ids)}")
        observed.complete(ids[-1])
        assert wait_until(lambda: all(map(observed.line, ids)), 10)
        return [observed.line(request_id) or {} for request_id in ids]

    for _ in range(11):
        lines_of_one_more()
    # The service is ready once requests are answered; the proxy may learn of the second replica a little later.
    assert wait_until(lambda: len({line["replica"] for line in lines_of_one_more()}) == 2, 30)
    lines = lines_of_one_more()
    assert {(line["route"], line["status"], line["model"]) for line in lines} == {("/v1/completions", "200", MODEL_ID)}
    assert {line["trace_id"] for line in lines} == {TRACE_ID}
    assert wait_until(lambda: all(map(observed.collected.of, ids)), 10)
    assert len({resource["service.instance.id"] for resource in observed.collected.resources}) == 2


def test_rpcs_too(observed: Observed) -> None:
    request = pb.GenerateRequest(model=MODEL_ID, prompt=pb.Prompt(text=PROMPT), max_tokens=4, ignore_eos=True)
    metadata = [("x-request-id", "grpc-1"), ("traceparent", TRACEPARENT)]
    with grpc.insecure_channel(observed.service.target) as channel:
        stub = pb_grpc.TopKServiceStub(channel)
        stub.Generate(request, metadata=metadata, timeout=30)
        stream = pb.GenerateStreamRequest(request=request)
        assert list(stub.GenerateStream(stream, metadata=[("x-request-id", "grpc-2")], timeout=30))
        with pytest.raises(grpc.RpcError):
            stub.Generate(pb.GenerateRequest(), metadata=[("x-request-id", "grpc-3")], timeout=30)
    ids = {"grpc-1": "OK", "grpc-2": "OK", "grpc-3": "INVALID_ARGUMENT"}
    assert wait_until(lambda: all(map(observed.line, ids)) and all(map(observed.collected.of, ids)), 10)
    assert {request_id: (observed.line(request_id) or {})["status"] for request_id in ids} == ids
    span = observed.collected.of("grpc-1")
    assert span is not None
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("Generate", TRACE_ID, PARENT_ID)
    assert values(span.attributes)["gen_ai.usage.output_tokens"] == 4
    assert [event.name for event in span.events] == ["admitted", "first_token", "last_token"]


def test_no_prompt_is_in_the_log_or_in_a_trace(observed: Observed) -> None:
    observed.complete("secret-1")
    assert wait_until(lambda: observed.line("secret-1") is not None, 10)
    assert wait_until(lambda: observed.collected.of("secret-1") is not None, 10)
    assert PROMPT not in observed._log.read_text()
    assert PROMPT not in str(observed.collected.spans)


def test_a_replica_that_hangs_is_left_out_of_the_page(observed: Observed) -> None:
    assert asked_and_answered(observed.service.url) == (2, 2)
    stopped, *_ = observed.replicas()
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert wait_until(lambda: asked_and_answered(observed.service.url) == (2, 1), 15)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert wait_until(lambda: asked_and_answered(observed.service.url) == (2, 2), 60)


def asked_and_answered(url: str) -> tuple[float, float] | None:
    """(asked, answered) of a page that comes within five seconds. The proxy may have asked the replica that hangs."""
    try:
        page = httpx.get(f"{url}/metrics", timeout=5).text
    except httpx.HTTPError:
        return None
    found = {line.split()[0]: float(line.split()[1]) for line in page.splitlines() if line.startswith("topk_metrics_")}
    return found.get("topk_metrics_replicas_asked", 0.0), found.get("topk_metrics_replicas_answered", 0.0)
