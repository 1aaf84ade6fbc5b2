"""What the service says of itself while it is under load, and whether it comes to rest afterwards."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

IDLE_TIMEOUT_S = 15.0
POLL_S = 0.2


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
    """Raises httpx.HTTPError where the page cannot be had."""
    page = (await http.get("/metrics")).raise_for_status().text
    # One value a replica and model that it serves.
    samples = {family.name: family.samples for family in text_string_to_metric_families(page)}
    running, waiting, usage = (
        [one.value for one in samples[name]]
        for name in ("topk_num_requests_running", "topk_num_requests_waiting", "topk_kv_cache_usage_ratio")
    )
    return ServerSample(
        elapsed_s=elapsed_s,
        num_running=sum(running),
        num_waiting=sum(waiting),
        kv_cache_usage=max(usage),
        replicas=frozenset(one.labels.get("replica", "") for one in samples["topk_num_requests_running"]),
    )


async def watch(
    http: httpx.AsyncClient, now: Callable[[], float], period_s: float, samples: list[ServerSample]
) -> None:
    """Append a sample each period, until cancelled; a page that cannot be had is left out."""
    while True:
        with contextlib.suppress(httpx.HTTPError, KeyError):
            samples.append(await sample(http, now()))
        await asyncio.sleep(period_s)


async def wait_idle(http: httpx.AsyncClient, now: Callable[[], float]) -> ServerSample:
    """The service at rest, or how it was when it should have been.

    Raises:
        httpx.HTTPError: the page cannot be had.
    """
    end = now() + IDLE_TIMEOUT_S
    while True:
        found = await sample(http, now())
        if found.is_idle or now() > end:
            return found
        await asyncio.sleep(POLL_S)
