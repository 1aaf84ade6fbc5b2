"""What is recorded of every request when it has ended: counts, a line in the log and, if configured, a span.

No part of a request's content is recorded: no prompt, no answer, no neuron, and no error message, which may quote them.
Knows no engine, no Ray and neither transport.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from service.engine.request import FinishReason
from service.errors import AuthenticationError, PermissionDeniedError, QueueFullError, ServiceError
from service.observability.metrics import Metrics, Transport
from service.version import package_version

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

logger = logging.getLogger("service.requests")

SERVICE_NAME = "topk-serve"
#: Maximum time that a stop waits for the collector of traces.
STOP_TIMEOUT_S = 3.0
#: Errors that refuse a request before any work is done for it.
REJECTIONS = (AuthenticationError, PermissionDeniedError, QueueFullError)
#: gRPC codes of internal errors, like 5xx over HTTP.
SERVER_FAULTS = frozenset({"INTERNAL", "UNAVAILABLE", "UNKNOWN"})
#: Status of a request whose client disconnected first, over HTTP and over gRPC.
CLIENT_GONE = {"http": "499", "grpc": "CANCELLED"}


@dataclass(kw_only=True, eq=False, slots=True)
class SequenceProgress:
    """What the engine has done for one sequence. Times are `time.monotonic()`."""

    submitted_at: float
    admitted_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    finish_reason: FinishReason | None = None


@dataclass(kw_only=True, eq=False)
class Progress:
    """What the engine has done for all sequences of a request, each of which reads its own prompt."""

    model: str | None = None
    sequences: list[SequenceProgress] = field(default_factory=list)

    @property
    def num_prompt_tokens(self) -> int:
        return sum(sequence.num_prompt_tokens for sequence in self.sequences)

    @property
    def num_generated_tokens(self) -> int:
        return sum(sequence.num_generated_tokens for sequence in self.sequences)

    @property
    def finish_reasons(self) -> Counter[FinishReason]:
        return Counter(reason for sequence in self.sequences if (reason := sequence.finish_reason) is not None)

    @property
    def admitted_at(self) -> float | None:
        """The time at which the first sequence was admitted."""
        return min((at for sequence in self.sequences if (at := sequence.admitted_at) is not None), default=None)

    @property
    def first_token_at(self) -> float | None:
        return min((at for sequence in self.sequences if (at := sequence.first_token_at) is not None), default=None)

    @property
    def last_token_at(self) -> float | None:
        return max((at for sequence in self.sequences if (at := sequence.last_token_at) is not None), default=None)


@dataclass(kw_only=True, eq=False)
class RequestRecord:
    """One request from its arrival to its end."""

    request_id: str
    transport: Transport
    carrier: Mapping[str, str]  # headers or metadata with lower-case names, which may include `traceparent`
    route: str = "none"  # a path's template or an RPC's name
    status: str = ""
    error: ServiceError | None = None
    began_at: float = field(default_factory=time.monotonic)
    began_ns: int = field(default_factory=time.time_ns)  # since 1970
    progress: Progress = field(default_factory=Progress)

    @property
    def is_fault(self) -> bool:
        """Whether the request failed through an internal error."""
        return self.status.startswith("5") or self.status in SERVER_FAULTS


#: The record of the request that the current task works for. Every request has its own task, and the tasks that it
#: starts inherit the record, so that the code between the edge and the engine need not pass it on.
_current: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def current_progress() -> Progress:
    """The progress of the request that the current task works for; outside any request, a record that is discarded."""
    record = _current.get()
    return record.progress if record is not None else Progress()


def current_request_id() -> str | None:
    """The id of the request that the current task works for."""
    record = _current.get()
    return record.request_id if record is not None else None


def note_error(error: ServiceError) -> None:
    """Record the error that a request ended with, perhaps after its reply had begun."""
    if (record := _current.get()) is not None:
        record.error = error


class Telemetry:
    """Records the requests of one replica.

    Args:
        otlp_endpoint: URL that accepts OpenTelemetry traces as OTLP over HTTP, like `http://collector:4318/v1/traces`;
            empty: no traces. The standard `OTEL_` variables set sampling, headers and batching.
    """

    def __init__(self, metrics: Metrics, *, otlp_endpoint: str = "", replica: str = "0") -> None:
        self._metrics = metrics
        self._provider = tracer_provider(otlp_endpoint, replica) if otlp_endpoint else None
        self._tracer = self._provider.get_tracer(SERVICE_NAME) if self._provider is not None else None

    @contextmanager
    def request(self, record: RequestRecord) -> Iterator[RequestRecord]:
        """Keep a request's record while the request lasts, and report it at the end."""
        _current.set(record)
        in_progress = self._metrics.requests_in_progress.labels(record.transport)
        in_progress.inc()
        try:
            yield record
        finally:
            in_progress.dec()
            self._tell(record)

    def stop(self) -> None:
        """Send the remaining spans, for at most `STOP_TIMEOUT_S`, whether the collector accepts them or not."""
        if self._provider is not None:
            sending = threading.Thread(target=self._provider.shutdown, daemon=True)
            sending.start()
            sending.join(STOP_TIMEOUT_S)

    def _tell(self, record: RequestRecord) -> None:
        if record.error is not None:
            record.status = str(record.error.status) if record.transport == "http" else record.error.grpc_code
        record.status = record.status or CLIENT_GONE[record.transport]
        duration_s = time.monotonic() - record.began_at
        self._metrics.requests.labels(record.transport, record.route, record.status).inc()
        self._metrics.request_duration.labels(record.transport, record.route).observe(duration_s)
        if isinstance(record.error, REJECTIONS):
            self._metrics.request_rejections.labels(record.error.code).inc()
        trace_id = make_span(self._tracer, record, duration_s) if self._tracer is not None else None
        level = logging.WARNING if record.is_fault else logging.INFO
        if logger.isEnabledFor(level):
            fields = log_fields(record, duration_s, trace_id)
            logger.log(level, "request %s: %s", record.request_id, summary(record, duration_s), extra=fields)


def log_fields(record: RequestRecord, duration_s: float, trace_id: str | None) -> dict[str, Any]:
    """The fields of a finished request's log line, without those that are empty."""
    progress = record.progress
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "transport": record.transport,
        "route": record.route,
        "status": record.status,
        "duration_s": round(duration_s, 6),
        "error_code": record.error.code if record.error is not None else None,
        "model": progress.model,
        "finish_reasons": dict(progress.finish_reasons) or None,
        "trace_id": trace_id,
    }
    if progress.model is not None:
        fields |= {"prompt_tokens": progress.num_prompt_tokens, "generated_tokens": progress.num_generated_tokens}
    if progress.admitted_at is not None:
        fields["admitted_after_s"] = round(progress.admitted_at - record.began_at, 6)
    if progress.first_token_at is not None:
        fields["first_token_after_s"] = round(progress.first_token_at - record.began_at, 6)
    return {name: value for name, value in fields.items() if value is not None}


def summary(record: RequestRecord, duration_s: float) -> str:
    """The same in short, for people."""
    progress = record.progress
    parts = [f"{record.route} {record.status} in {duration_s:.3f} s"]
    if record.error is not None:
        parts.append(str(record.error.code))
    if progress.model is not None:
        parts.append(f"{progress.model}, {progress.num_prompt_tokens} + {progress.num_generated_tokens} tokens")
    return ", ".join(parts)


def tracer_provider(endpoint: str, replica: str) -> "TracerProvider":
    """The provider of spans. It is not the process's global one, which Ray sets."""
    # Imported here because it is optional and takes about 50 ms.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes = {
        "service.name": SERVICE_NAME,
        "service.version": package_version(),
        "service.instance.id": replica,
    }
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


def make_span(tracer: "Tracer", record: RequestRecord, duration_s: float) -> str:
    """Make the request's span, a child of the span that its `traceparent` names; returns the id of its trace.

    Names follow OpenTelemetry's conventions for HTTP, RPC and generative models.
    """
    from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    def nanoseconds(at: float) -> int:
        return record.began_ns + round((at - record.began_at) * 1e9)

    progress = record.progress
    attributes: dict[str, Any] = {"topk.request_id": record.request_id}
    if record.transport == "http":
        attributes |= {"http.route": record.route, "http.response.status_code": int(record.status)}
    else:
        attributes |= {"rpc.system": "grpc", "rpc.method": record.route, "rpc.grpc.status": record.status}
    if record.error is not None:
        attributes["error.type"] = record.error.code
    if progress.model is not None:
        attributes |= {
            "gen_ai.request.model": progress.model,
            "gen_ai.usage.input_tokens": progress.num_prompt_tokens,
            "gen_ai.usage.output_tokens": progress.num_generated_tokens,
            "gen_ai.response.finish_reasons": sorted(progress.finish_reasons.elements()),
        }
    span = tracer.start_span(
        record.route,
        context=TraceContextTextMapPropagator().extract(record.carrier),
        kind=SpanKind.SERVER,
        attributes={name: value for name, value in attributes.items() if value is not None},
        start_time=record.began_ns,
    )
    # The end of waiting, of the prompt and of decoding.
    events = {
        "admitted": progress.admitted_at,
        "first_token": progress.first_token_at,
        "last_token": progress.last_token_at,
    }
    for name, at in events.items():
        if at is not None:
            span.add_event(name, timestamp=nanoseconds(at))
    if record.is_fault:
        span.set_status(Status(StatusCode.ERROR))
    span.end(record.began_ns + round(duration_s * 1e9))
    return format_trace_id(span.get_span_context().trace_id)
