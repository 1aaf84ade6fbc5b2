"""Every metric of the service: its name, unit, labels and buckets.

Labels come from our own closed lists and from what is loaded, never from a request's content. `metrics_page.py` merges
the replicas' metrics into one page.
Knows no Ray and no HTTP.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.engine.request import FinishReason
from service.version import package_version
from topk_model.interventions import Op

if TYPE_CHECKING:
    from service.admission import ApiKeys
    from service.engine.engine import EngineStats

Transport = Literal["http", "grpc"]
#: Computations beside generations, and how they end: "rejected" before they began, since too many ran and waited;
#: "refused" by what they found.
JobKind = Literal["attribution", "lever"]
JobOutcome = Literal["done", "cancelled", "deadline", "refused", "failed", "rejected"]

#: Reasons of sequences that ended normally; the others were cut off.
SUCCESS_REASONS: tuple[FinishReason, ...] = ("stop", "length")

_LATENCY_BUCKETS_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0,
)  # fmt: skip
_FIRST_TOKEN_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_INTER_TOKEN_BUCKETS_S = (
    0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_REQUEST_BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0)
_JOB_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_LOAD_BUCKETS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_STEP_TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """One replica's metrics: its own, and those of each model that it has loaded."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._models: dict[str, ModelMetrics] = {}

        Info("topk_build", "The running version; always 1.", registry=registry).info({"version": package_version()})
        ProcessCollector(registry=registry)
        num_loaded = Gauge("topk_num_loaded_models", "Models and checkpoints in memory.", registry=registry)
        num_loaded.set_function(lambda: sum(model.is_loaded for model in self._models.values()))

        self.requests = Counter(
            "topk_requests",
            "Requests answered, by the final HTTP status or gRPC code: for a broken stream, that of its error; "
            "499 or CANCELLED if the client disconnected first.",
            ["transport", "route", "status"],
            registry=registry,
        )
        self.request_duration = Histogram(
            "topk_request_duration_seconds",
            "Time from a request's arrival to the end of its answer.",
            ["transport", "route"],
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )
        self.requests_in_progress = Gauge(
            "topk_requests_in_progress", "Requests being answered.", ["transport"], registry=registry
        )
        self.request_rejections = Counter(
            "topk_request_rejections",
            "Requests refused before any work was done, by the error's code.",
            ["reason"],
            registry=registry,
        )
        self.side_jobs = JobMetrics(registry)
        # Events that have not happened yet are 0, not absent: a counter that begins at 1 has no rate.
        for transport in get_args(Transport):
            self.requests_in_progress.labels(transport)
        for reason in ("queue_full", "too_many_requests", "too_many_jobs", "invalid_api_key", "permission_denied"):
            self.request_rejections.labels(reason)

    def watch_keys(self, keys: "ApiKeys") -> None:
        """Show whether the accepted keys are those of the key file, and since when."""
        stale = Gauge(
            "topk_api_keys_stale",
            "1 while the key file cannot be used in its present state, so that the previous keys stay accepted.",
            registry=self.registry,
        )
        stale.set_function(lambda: keys.is_stale)
        loaded = Gauge(
            "topk_api_keys_loaded_timestamp_seconds",
            "Time at which the accepted keys were read, in seconds since 1970.",
            registry=self.registry,
        )
        loaded.set_function(lambda: keys.loaded_at)

    def of(self, model: str) -> "ModelMetrics":
        """The metrics of one model, by the id of what is served, never by a name that is only requested."""
        if model not in self._models:
            self._models[model] = ModelMetrics(model)
        return self._models[model]

    def families(self) -> Iterable[tuple[dict[str, str], Iterable[Metric]]]:
        """(labels of every sample, families) of the replica itself and of each model."""
        yield {}, self.registry.collect()
        for model, metrics in list(self._models.items()):
            yield {"model": model}, metrics.registry.collect()


class JobMetrics:
    """The metrics of computations beside generations."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.running = Gauge("topk_side_jobs_running", "Computations beside generations that run.", registry=registry)
        self.waiting = Gauge("topk_side_jobs_waiting", "Computations beside generations that wait.", registry=registry)
        self.jobs = Counter(
            "topk_side_jobs",
            "Computations beside generations, by their kind and how they ended.",
            ["kind", "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "topk_side_job_seconds",
            "From the start of a computation beside generations to its end, pauses included.",
            ["kind"],
            buckets=_JOB_BUCKETS_S,
            registry=registry,
        )
        for kind in get_args(JobKind):
            self.seconds.labels(kind)
            for outcome in get_args(JobOutcome):
                self.jobs.labels(kind, outcome)


class ModelMetrics:
    """One model's metrics. They have the label `model`, which is added when they are collected.

    Counters survive the model's unloading, so that they continue if it is loaded again.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.registry = CollectorRegistry()
        self._gauges: _EngineGauges | None = None
        counter, histogram = self._counter, self._histogram

        self.prompt_tokens = counter("topk_prompt_tokens", "Prompt tokens read.")
        self.generation_tokens = counter("topk_generation_tokens", "Tokens generated.")
        self.request_success = counter(
            "topk_request_success", "Sequences that ended normally, by reason.", "finished_reason"
        )
        self.request_failure = counter("topk_request_failure", "Sequences that were cut off, by reason.", "reason")
        self.interventions = counter("topk_interventions", "Interventions requested, by operation.", "op")
        self.trace_bytes = counter("topk_trace_bytes", "Bytes of traces sent, as encoded in the replies.", "transport")
        self.reaped = counter("topk_reaped_sequences", "Sequences without a client that the reaper had to abort.")
        self.unloads = counter("topk_model_unloads", "Number of times that the model was dropped from memory.")
        self.load_time = histogram(
            "topk_model_load_time_seconds", "Time to read the model and its tokenizer into memory.", _LOAD_BUCKETS_S
        )

        self.time_to_first_token = histogram(
            "topk_time_to_first_token_seconds", "Time from submission to the first token.", _FIRST_TOKEN_BUCKETS_S
        )
        self.inter_token_latency = BulkHistogram(
            "topk_inter_token_latency_seconds", "Time between two tokens of a sequence.", _INTER_TOKEN_BUCKETS_S
        )
        self.registry.register(self.inter_token_latency)
        self.e2e_latency = histogram(
            "topk_e2e_request_latency_seconds", "Time from a sequence's submission to its end.", _LATENCY_BUCKETS_S
        )
        self.queue_time = histogram(
            "topk_request_queue_time_seconds", "Time from a sequence's submission to its admission.", _LATENCY_BUCKETS_S
        )
        self.prefill_time = histogram(
            "topk_request_prefill_time_seconds", "Time from admission to the first token.", _LATENCY_BUCKETS_S
        )
        self.decode_time = histogram(
            "topk_request_decode_time_seconds", "Time from the first token to the last.", _LATENCY_BUCKETS_S
        )
        self.request_prompt_tokens = histogram(
            "topk_request_prompt_tokens", "Prompt tokens of a sequence that ended normally.", _TOKEN_BUCKETS
        )
        self.request_generation_tokens = histogram(
            "topk_request_generation_tokens", "Tokens generated for a sequence that ended normally.", _TOKEN_BUCKETS
        )
        self.iteration_tokens = histogram(
            "topk_iteration_tokens", "Tokens read or generated in one step of the engine.", _STEP_TOKEN_BUCKETS
        )

        for reason in get_args(FinishReason):
            (self.request_success if reason in SUCCESS_REASONS else self.request_failure).labels(reason)
        for op in get_args(Op):
            self.interventions.labels(op)
        for transport in get_args(Transport):
            self.trace_bytes.labels(transport)

    @property
    def is_loaded(self) -> bool:
        return self._gauges is not None

    def watch(self, stats: "Callable[[], EngineStats]") -> None:
        """Show an engine's own values, read at every collection; replaces those of an earlier engine."""
        self.unwatch()
        self._gauges = _EngineGauges(stats)
        self.registry.register(self._gauges)

    def unwatch(self) -> None:
        """Show no engine's values: the model is no longer in memory."""
        if self._gauges is not None:
            self.registry.unregister(self._gauges)
            self._gauges = None

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)


class BulkHistogram(Collector):
    """A histogram that observes many equal values at once, such as those of a step. Not thread-safe."""

    def __init__(self, name: str, text: str, buckets: Sequence[float]) -> None:
        self._name, self._text = name, text
        self._bounds = (*buckets, float("inf"))
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def collect(self) -> Iterable[Metric]:
        names = map(floatToGoString, self._bounds)
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets, self._sum)


class _EngineGauges(Collector):
    """An engine's state at the moment of collection."""

    def __init__(self, stats: "Callable[[], EngineStats]") -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats, gauge = self._stats(), GaugeMetricFamily
        usage = 1 - stats.num_free_blocks / stats.num_blocks
        yield gauge("topk_num_requests_running", "Sequences in the running batch.", stats.num_running)
        yield gauge("topk_max_num_seqs", "Maximum number of sequences in the running batch.", stats.max_num_seqs)
        yield gauge("topk_num_requests_waiting", "Sequences waiting for admission.", stats.num_waiting)
        yield gauge("topk_kv_cache_usage_ratio", "Fraction of the KV cache's blocks in use, 0 to 1.", usage)
        preempted = "Number of times that a sequence lost its KV blocks to an older one and read its tokens again."
        yield CounterMetricFamily("topk_preemptions", preempted, stats.num_preemptions)
        looked_up = "Prompt tokens that were looked up in the prefix cache."
        yield CounterMetricFamily("topk_prefix_cache_queries", looked_up, stats.num_prefix_tokens)
        hits = "Prompt tokens that were found in the prefix cache and not read again."
        yield CounterMetricFamily("topk_prefix_cache_hits", hits, stats.num_prefix_hits)
        yield gauge(
            "topk_engine_heartbeat_age_seconds", "Time since the engine's loop last iterated.", stats.heartbeat_age_s
        )
