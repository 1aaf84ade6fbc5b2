"""Every metric of the service: its name, unit, labels and buckets, and how the replicas' become one page.

Labels come from our own closed lists, never from a request's content. Knows no Ray and no HTTP.
"""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.engine.loop import EngineStats

#: Media type of the page.
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_LATENCY_BUCKETS_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0,
)  # fmt: skip
_FIRST_TOKEN_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_INTER_TOKEN_BUCKETS_S = (
    0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_STEP_TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """One replica's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge, histogram = self._counter, self._gauge, self._histogram

        self.num_requests_running = gauge("topk_num_requests_running", "Sequences in the running batch.")
        self.num_requests_waiting = gauge("topk_num_requests_waiting", "Sequences waiting for admission.")
        self.kv_cache_usage = gauge("topk_kv_cache_usage_ratio", "Share of the KV cache's blocks in use, 0 to 1.")
        self.num_http_requests = gauge("topk_num_http_requests", "HTTP requests being answered.")
        self.heartbeat_age = gauge("topk_engine_heartbeat_age_seconds", "Time since the engine's loop last came round.")

        self.prompt_tokens = counter("topk_prompt_tokens", "Prompt tokens read.")
        self.generation_tokens = counter("topk_generation_tokens", "Tokens generated.")
        self.request_success = counter(
            "topk_request_success", "Sequences that ended by themselves, by reason.", "finished_reason"
        )
        self.request_failure = counter("topk_request_failure", "Sequences that were cut off, by reason.", "reason")
        self.request_rejections = counter("topk_request_rejections", "Requests refused, by reason.", "reason")
        self.interventions = counter("topk_interventions", "Interventions asked for, by operation.", "op")
        self.trace_bytes = counter("topk_trace_bytes", "Bytes of traces handed out, as they stand in responses.")
        self.reaped = counter("topk_reaped_sequences", "Sequences without a client that the reaper had to abort.")

        self.time_to_first_token = histogram(
            "topk_time_to_first_token_seconds", "From submission to the first token.", _FIRST_TOKEN_BUCKETS_S
        )
        self.inter_token_latency = histogram(
            "topk_inter_token_latency_seconds", "Between two tokens of a sequence.", _INTER_TOKEN_BUCKETS_S
        )
        self.e2e_latency = histogram(
            "topk_e2e_request_latency_seconds", "From a sequence's submission to its end.", _LATENCY_BUCKETS_S
        )
        self.queue_time = histogram(
            "topk_request_queue_time_seconds",
            "From submission to the end of the step that read the first stretch of the prompt.",
            _LATENCY_BUCKETS_S,
        )
        self.iteration_tokens = histogram(
            "topk_iteration_tokens", "Tokens read or generated in one step of the engine.", _STEP_TOKEN_BUCKETS
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def observe_engine(self, stats: EngineStats) -> None:
        """Set the gauges from the engine's own figures."""
        self.num_requests_running.set(stats.num_running)
        self.num_requests_waiting.set(stats.num_waiting)
        self.kv_cache_usage.set(1 - stats.num_free_blocks / stats.num_blocks)
        self.heartbeat_age.set(stats.heartbeat_age_s)

    def collect(self, replica: str) -> list[Metric]:
        """All families as plain data that can travel between processes, each sample labelled with the replica."""
        families = []
        for family in self.registry.collect():
            labelled = Metric(family.name, family.documentation, family.type, family.unit)
            labelled.samples = [
                Sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
                for sample in family.samples
                if not sample.name.endswith("_created")
            ]
            families.append(labelled)
        return families


def render(replicas: Iterable[Sequence[Metric]]) -> bytes:
    """The text page of several replicas' families, each family's HELP and TYPE once."""
    merged: dict[str, Metric] = {}
    for families in replicas:
        for family in families:
            if family.name in merged:
                merged[family.name].samples.extend(family.samples)
            else:
                merged[family.name] = family
    return generate_latest(_Collected(merged.values()))


class _Collected(Collector):
    """Families that have been collected already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
