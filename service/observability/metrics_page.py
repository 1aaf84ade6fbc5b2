"""Merges the replicas' metrics into one page: plain families that can be sent between processes, under one HELP and
TYPE each.

The page shows live replicas only. A replica's series have its name, which no later replica has, and end with it, so
`sum(rate(x[5m]))` sees no drop, and only what was counted since the last scrape is lost. `rate(sum(x))` would treat
the end of every replica as a reset. Knows no metric's name but its own, no Ray and no HTTP.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.observability.metrics import Metrics

#: Media type of the page.
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

#: Not "replica": Thanos regards series with that label as copies of each other, made by a second Prometheus.
REPLICA_LABEL = "serve_replica"


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The families of the replicas that answered in time."""

    replicas: Sequence[Sequence[Metric]]
    num_asked: int


def collect(metrics: Metrics, replica: str) -> list[Metric]:
    """All of a replica's families, each sample with the labels `serve_replica` and, for a model's metrics, `model`."""
    return list(
        _merged(
            _labelled(family, {**labels, REPLICA_LABEL: replica})
            for labels, families in metrics.families()
            for family in families
        )
    )


def render(collected: Collected) -> bytes:
    """The text page."""
    families = [family for replica in collected.replicas for family in replica]
    asked = GaugeMetricFamily(
        "topk_metrics_replicas_asked", "Replicas that were asked for this page.", collected.num_asked
    )
    answered = GaugeMetricFamily(
        "topk_metrics_replicas_answered", "Replicas that answered in time for it.", len(collected.replicas)
    )
    return generate_latest(_Families([*_merged(families), asked, answered]))


def _labelled(family: Metric, labels: dict[str, str]) -> Metric:
    labelled = Metric(family.name, family.documentation, family.type, family.unit)
    labelled.samples = [
        Sample(sample.name, {**labels, **sample.labels}, sample.value)
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    return labelled


def _merged(families: Iterable[Metric]) -> Iterable[Metric]:
    """Merge families of the same name."""
    merged: dict[str, Metric] = {}
    for family in families:
        if family.name in merged:
            merged[family.name].samples.extend(family.samples)
        else:
            merged[family.name] = family
    return merged.values()


class _Families(Collector):
    """Families that have already been collected."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
