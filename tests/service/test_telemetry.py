"""What is told of a request once it has ended, in the log and in traces, and what is never told."""

import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.observability.logs import json_formatter, with_request_id
from service.observability.metrics import Metrics
from service.observability.telemetry import RequestRecord, Telemetry
from service.settings import Settings
from tests.support.otlp import collector, values
from tests.support.served import MODEL_ID, Served, free_port, serve_app, wait_until

SECRET = "Rumpelstiltskin"
EDIT = {"layer": 0, "neuron": 3, "op": "set", "value": 98.7654321}
TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Log:
    """The service's log as JSON, from DEBUG on."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def lines(self) -> list[dict[str, Any]]:
        whole, _, _ = self.stream.getvalue().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def of(self, request_id: str) -> list[dict[str, Any]]:
        """A request's lines, once it has ended, which may be just after its client has the reply."""
        wait_until(lambda: any(line["logger"] == "service.requests" for line in self._of(request_id)), 1)
        return self._of(request_id)

    def _of(self, request_id: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("request_id") == request_id]


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    handler = logging.StreamHandler(log.stream)
    handler.addFilter(with_request_id)
    handler.setFormatter(json_formatter("r1"))
    logger = logging.getLogger("service")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield log
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_request_is_one_line_with_its_id_and_its_figures(served: Served, log: Log) -> None:
    body = {"model": MODEL_ID, "prompt": "Once upon a time", "n": 2, "max_tokens": 5, "ignore_eos": True}
    reply = served.client.post("/v1/completions", json=body, headers={"X-Request-Id": "abc-1"})
    assert reply.headers["x-request-id"] == "abc-1"
    [line] = log.of("abc-1")
    assert line["logger"] == "service.requests"
    assert line["level"] == "INFO"
    assert line["replica"] == "r1"
    expected = {
        "transport": "http",
        "route": "/v1/completions",
        "status": "200",
        "model": MODEL_ID,
        "generated_tokens": 10,
        "prompt_tokens": 2 * reply.json()["usage"]["prompt_tokens"],
        "finish_reasons": {"length": 2},
    }
    assert {name: line[name] for name in expected} == expected
    assert 0 <= line["admitted_after_s"] < line["first_token_after_s"] < line["duration_s"] < 30
    assert line["time"].startswith("20")
    assert "error_code" not in line


def test_a_stream_is_one_line_at_its_end_and_an_error_has_its_code(served: Served, log: Log) -> None:
    served.client.post(
        "/v1/completions",
        json={"model": MODEL_ID, "prompt": "Once", "max_tokens": 3, "stream": True},
        headers={"X-Request-Id": "stream-1"},
    )
    assert [line["status"] for line in log.of("stream-1")] == ["200"]
    served.client.post("/v1/completions", json={"model": "no-such"}, headers={"X-Request-Id": "bad-1"})
    assert [(line["status"], line["error_code"]) for line in log.of("bad-1")] == [("400", "invalid_value")]
    served.client.get("/health/ready", headers={"X-Request-Id": "probe-1"})
    assert log._of("probe-1") == []


def test_a_fault_of_ours_is_a_warning_with_its_traceback_under_the_id(
    served: Served, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(served.model, "tokenize", fail)
    body = {"model": MODEL_ID, "prompt": SECRET}
    reply = served.client.post("/v1/tokenize", json=body, headers={"X-Request-Id": "fault-1"})
    assert reply.status_code == 500
    fault, end = log.of("fault-1")
    assert fault["level"] == "ERROR"
    assert "RuntimeError: a fault of ours" in fault["exception"]
    assert (end["level"], end["status"], end["error_code"]) == ("WARNING", "500", "internal_error")


def test_nothing_of_a_requests_content_is_logged(tiny_model_path: Path, log: Log) -> None:
    key = "a-key-that-nobody-may-see"
    with serve_app(tiny_model_path, api_keys=key) as guarded:
        client = guarded.client
        ask = {
            "model": MODEL_ID,
            "prompt": f"Once upon a time, {SECRET}",
            "max_tokens": 24,
            "ignore_eos": True,
            "seed": 1,
        }
        assert (
            client.post("/v1/completions", json=ask, headers={"Authorization": f"Bearer {SECRET}"}).status_code == 401
        )
        client.headers["Authorization"] = f"Bearer {key}"
        full = client.post(
            "/v1/completions", json=ask | {"interventions": [EDIT], "trace": {}, "logprobs": 2, "user": SECRET}
        )
        assert full.status_code == 200, full.text
        client.post("/v1/completions", json=ask | {"stream": True, "stop": [SECRET]})
        client.post("/v1/completions", json=ask | {SECRET: 1})
        client.post("/v1/completions", json=ask | {"temperature": SECRET})
        client.post("/v1/completions", json=ask | {"prompt": {SECRET: SECRET}})
        client.post("/v1/completions", json=ask | {"model": SECRET})
        client.post("/v1/completions", json=ask | {"interventions": [EDIT | {"layer": SECRET}]})
        client.post("/v1/completions", content=SECRET, headers={"Content-Type": "application/json"})
        client.post("/v1/completions", content=SECRET, headers={"Content-Type": SECRET})
        client.post("/v1/activations", json={"model": MODEL_ID, "input": SECRET, "trace": {}})
        client.post("/v1/tokenize", json={"model": MODEL_ID, "prompt": SECRET})
        client.get(f"/v1/models/{SECRET}?key={SECRET}")
        client.get(f"/{SECRET}", headers={"User-Agent": SECRET, "X-Request-Id": f"{SECRET} is no sane id"})
        assert guarded.wait_idle()
    assert len(log.lines) >= 13
    text = log.stream.getvalue()
    assert SECRET.lower() not in text.lower()
    assert key not in text
    assert "98.76" not in text
    generated = full.json()["choices"][0]["text"]
    assert len(generated) > 8
    assert generated not in text
    assert not any(part in text for part in (json.dumps(ask["prompt"]), "Once upon"))


def test_a_span_has_the_callers_trace_and_the_engines_events(tiny_model_path: Path) -> None:
    with collector() as collected:
        with serve_app(tiny_model_path, otlp_endpoint=collected.url) as service:
            service.client.post(
                "/v1/completions",
                json={"model": MODEL_ID, "prompt": f"Once, {SECRET}", "max_tokens": 6, "ignore_eos": True, "n": 2},
                headers={"X-Request-Id": "abc", "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"},
            )
            service.client.post("/v1/completions", json={}, headers={"X-Request-Id": "bad"})
            unsampled = {"X-Request-Id": "unsampled", "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
            service.client.post("/v1/tokenize", json={"model": MODEL_ID, "prompt": "a"}, headers=unsampled)
        # A service that stops sends what it has.
        span, bad = collected.of("abc"), collected.of("bad")
        assert span is not None
        assert bad is not None
        assert collected.of("unsampled") is None
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert span.name == "/v1/completions"
    assert span.kind == span.SPAN_KIND_SERVER
    attributes = values(span.attributes)
    assert attributes["gen_ai.request.model"] == MODEL_ID
    assert attributes["gen_ai.usage.output_tokens"] == 12
    assert attributes["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert attributes["http.response.status_code"] == 200
    assert [event.name for event in span.events] == ["admitted", "first_token", "last_token"]
    times = [span.start_time_unix_nano, *(e.time_unix_nano for e in span.events), span.end_time_unix_nano]
    assert times == sorted(times)
    assert times[-1] - times[0] < 30e9
    assert SECRET not in str(collected.spans)
    assert bad.trace_id.hex() != TRACE_ID
    assert values(bad.attributes)["error.type"] == "invalid_value"
    assert bad.status.code == bad.status.STATUS_CODE_UNSET  # the client's fault is none of ours
    assert collected.resources[0]["service.name"] == "topk-serve"


def test_the_log_names_the_trace(tiny_model_path: Path, log: Log) -> None:
    with collector() as collected, serve_app(tiny_model_path, otlp_endpoint=collected.url) as service:
        headers = {"X-Request-Id": "abc", "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
        service.client.post("/v1/tokenize", json={"model": MODEL_ID, "prompt": "a"}, headers=headers)
        assert log.of("abc")[0]["trace_id"] == TRACE_ID


def test_a_collector_that_is_gone_holds_up_no_request_and_no_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.observability.telemetry.STOP_TIMEOUT_S", 0.2)
    telemetry = Telemetry(Metrics(), otlp_endpoint=f"http://127.0.0.1:{free_port()}/v1/traces")
    began = time.monotonic()
    with telemetry.request(RequestRecord(request_id="a", transport="http", carrier={})) as record:
        record.status = "200"
    telemetry.stop()
    assert time.monotonic() - began < 3  # the exporter tries for ten seconds


def test_traces_need_their_package_and_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="otlp_endpoint"):
        Settings(otlp_endpoint="collector:4318")
    monkeypatch.setattr("service.settings.distributions", lambda **_: iter(()))
    with pytest.raises(ValidationError, match=r"pip install 'topk-serve\[otel\]'"):
        Settings(otlp_endpoint="http://collector:4318/v1/traces")


def test_without_traces_nothing_of_them_is_imported() -> None:
    code = (
        "import sys\n"
        "from service.observability.metrics import Metrics\n"
        "from service.observability.telemetry import Telemetry, RequestRecord\n"
        "telemetry = Telemetry(Metrics())\n"
        "with telemetry.request(RequestRecord(request_id='a', transport='http', carrier={})): pass\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
