"""The service's own metrics while it is under load, and whether it becomes idle afterwards."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

IDLE_TIMEOUT_S = 15.0
POLL_S = 0.2


class NoReplicaError(RuntimeError):
    """The service answers, but none of its replicas does."""


@dataclass(frozen=True, kw_only=True)
class ServerSample:
    """Gauges of `/metrics`, of all replicas."""

    elapsed_s: float
    num_running: float
    num_waiting: float
    kv_cache_usage: float  # of the fullest replica
    replicas: frozenset[str]  # names of those that answered

    @property
    def is_idle(self) -> bool:
        return self.num_running == self.num_waiting == self.kv_cache_usage == 0


async def sample(http: httpx.AsyncClient, elapsed_s: float) -> ServerSample:
    """Raises httpx.HTTPError if the page is not available, NoReplicaError if it has no replica's figures."""
    page = (await http.get("/metrics")).raise_for_status().text
    # One value per replica and model that it serves.
    samples = {family.name: family.samples for family in text_string_to_metric_families(page)}
    running, waiting, usage = (
        [one.value for one in samples.get(name, ())]
        for name in ("topk_num_requests_running", "topk_num_requests_waiting", "topk_kv_cache_usage_ratio")
    )
    if not (running and waiting and usage):
        raise NoReplicaError("no replica answered /metrics")
    return ServerSample(
        elapsed_s=elapsed_s,
        num_running=sum(running),
        num_waiting=sum(waiting),
        kv_cache_usage=max(usage),
        replicas=frozenset(one.labels.get("serve_replica", "") for one in samples["topk_num_requests_running"]),
    )


async def watch(
    http: httpx.AsyncClient, now: Callable[[], float], period_s: float, samples: list[ServerSample]
) -> None:
    """Append a sample each period, until cancelled; skipped if the page is not available or has no replica."""
    while True:
        with contextlib.suppress(httpx.HTTPError, NoReplicaError):
            samples.append(await sample(http, now()))
        await asyncio.sleep(period_s)


async def wait_idle(http: httpx.AsyncClient, now: Callable[[], float]) -> ServerSample:
    """The idle service, or its state at the time when it should have been idle.

    Raises:
        NoReplicaError: no replica answered until then.
    """
    end = now() + IDLE_TIMEOUT_S
    while True:
        try:
            found = await sample(http, now())
            if found.is_idle or now() > end:
                return found
        except (httpx.HTTPError, NoReplicaError) as error:
            if now() > end:
                raise NoReplicaError(f"no replica answered /metrics {IDLE_TIMEOUT_S:g} s after the load") from error
        await asyncio.sleep(POLL_S)
