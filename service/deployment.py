"""The Ray Serve deployment that is the whole service, so that a request makes no hop inside the cluster.

Holds the replica (model, tokenizer, engine thread), its HTTP application and its gRPC methods. Knows no route.
"""

from typing import Any

import ray
from fastapi import FastAPI
from prometheus_client import Metric
from ray import serve
from ray.serve.config import BackpressureConfig

from service.rpc import RpcMethods
from service.settings import Settings

DEPLOYMENT_NAME = "TopKService"
#: Requests that Serve lets into a replica above our own limit, so that it is we who refuse, with our error body.
SPARE_REQUESTS = 64
METRICS_TIMEOUT_S = 2.0
DRAIN_POLL_S = 0.1


class TopKService(RpcMethods):
    """One replica of the service: Ray Serve constructs it, asks after its health and drains it."""

    async def __init__(self, arguments: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        # Imported here: the process that starts the service needs no torch, which costs seconds and 250 MB.
        from service.http import create_app
        from service.replica import Replica

        settings = Settings(**arguments)
        self._num_replicas = settings.num_replicas
        self._context = serve.get_replica_context()
        self._replica = Replica.load(settings, name=self._context.replica_id.unique_id)
        await self._replica.start()
        # Serve's own server puts the request's id on the response.
        self._app = create_app(self._replica, collect_metrics=self._collect_everywhere, sends_request_id=False)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def check_health(self) -> None:
        """Raises where the engine's thread has ended or hangs; Serve then replaces the replica."""
        self._replica.check_health()

    async def collect_metrics(self) -> list[Metric]:
        """This replica's metrics."""
        return self._replica.collect_metrics()

    async def _collect_everywhere(self) -> list[list[Metric]]:
        if self._num_replicas == 1:
            return [self._replica.collect_metrics()]
        handle = serve.get_deployment_handle(self._context.deployment, self._context.app_name)
        everyone: list[list[Metric]] = await handle.broadcast("collect_metrics").results_async(
            timeout_s=METRICS_TIMEOUT_S
        )
        return everyone

    async def __del__(self) -> None:
        if hasattr(self, "_replica"):  # not where its loading failed
            await self._replica.stop()


def application(settings: Settings) -> serve.Application:
    """The application that Serve is to run."""
    configure = serve.deployment(
        name=DEPLOYMENT_NAME,
        num_replicas=settings.num_replicas,
        max_ongoing_requests=settings.max_ongoing_requests + SPARE_REQUESTS,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=settings.retry_after_s),
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": num_gpus(settings)},
        health_check_period_s=settings.health_check_period_s,
        health_check_timeout_s=settings.health_check_timeout_s,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        max_constructor_retry_count=1,
        logging_config={"log_level": settings.log_level, "enable_access_log": False},
    )
    return configure(serve.ingress()(TopKService)).bind(settings.model_dump())


def num_gpus(settings: Settings) -> float:
    """GPUs that a replica reserves."""
    if settings.num_gpus is not None:
        return settings.num_gpus
    if settings.device == "auto" and ray.is_initialized():
        return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
    return 1.0 if settings.device == "cuda" else 0.0
