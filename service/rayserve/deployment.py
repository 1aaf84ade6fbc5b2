"""The Ray Serve deployment that contains the complete service, so that a request makes no hop inside the cluster.

Holds the replica (model, tokenizer, engine thread), its HTTP application and its gRPC methods. Knows no route.
"""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray
from fastapi import FastAPI
from prometheus_client import Metric
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import LoggingConfig

from service.grpc_api.methods import RpcMethods
from service.rayserve.confinement import confine_servers
from service.settings import Settings, settings_from_arguments

if TYPE_CHECKING:
    from service.observability.metrics_page import Collected
    from service.serving.model import ServedModel
    from service.serving.registry import LoadModel

DEPLOYMENT_NAME = "TopKService"
#: Requests that Serve admits to a replica above our own limit, so that we refuse them, with our error body.
SPARE_REQUESTS = 64
METRICS_TIMEOUT_S = 2.0
DRAIN_POLL_S = 0.1


class TopKService(RpcMethods):
    """One replica of the service: Ray Serve constructs it, checks its health and drains it."""

    async def __init__(self, arguments: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        # Imported here: the process that starts the service does not need torch, which costs seconds and 250 MB.
        from service.http_api.app import create_app
        from service.observability.logs import configure
        from service.serving.replica import Replica

        confine_servers()
        settings = Settings(**arguments)
        self._context = serve.get_replica_context()
        self._num_replicas = 1  # the last known number
        name = self._context.replica_id.unique_id
        configure(settings.log_format, settings.log_level, replica=name)
        self._replica = Replica.load(settings, name=name, multiplex=multiplexed_by_serve)
        await self._replica.start()
        # Serve's own server puts the request's id on the response.
        self._app = create_app(self._replica, collect_metrics=self._collect_everywhere, sends_request_id=False)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def check_health(self) -> None:
        """Raises if the engine's thread has ended or hangs; Serve then replaces the replica."""
        self._replica.check_health()

    async def collect_metrics(self) -> list[Metric]:
        """This replica's metrics."""
        return self._replica.collect_metrics()

    async def _collect_everywhere(self) -> "Collected":
        """The metrics of all replicas that answer within `METRICS_TIMEOUT_S`; one that hangs is left out."""
        from service.observability.metrics_page import Collected

        # Only Serve knows how many there are: it scales, and a cluster's configuration may override our settings.
        handle = serve.get_deployment_handle(self._context.deployment, self._context.app_name)
        # The public `results_async` returns all answers or none.
        asking = handle.broadcast("collect_metrics")._fetch_replica_results_async()
        try:
            answers = await asyncio.wait_for(asking, METRICS_TIMEOUT_S)
        except (TimeoutError, DeploymentUnavailableError):
            answers = []
        if not answers:  # Serve hangs, or has not yet noticed that we run
            return Collected(replicas=[self._replica.collect_metrics()], num_asked=self._num_replicas)
        self._num_replicas = len(answers)
        waiting = [asyncio.ensure_future(answer.get_async()) for answer in answers]
        done, late = await asyncio.wait(waiting, timeout=METRICS_TIMEOUT_S)
        for task in late:
            task.cancel()
        replicas = [task.result() for task in done if task.exception() is None]
        return Collected(replicas=replicas, num_asked=len(answers))

    async def __del__(self) -> None:
        if hasattr(self, "_replica"):  # missing if loading failed
            await self._replica.stop()


def multiplexed_by_serve(load: "LoadModel", max_models: int) -> "LoadModel":
    """The loader behind Serve's multiplexing. It is called with the name in a request's body; a client that also sends
    it as the header `serve_multiplexed_model_id` is routed to a replica that already has the checkpoint loaded."""

    async def load_checkpoint(name: str) -> "ServedModel":
        served = await load(name)
        # Serve awaits `__del__` of models that it drops; on the class, Python's garbage collector would call it again.
        vars(served)["__del__"] = served.stop
        return served

    cached: LoadModel = serve.multiplexed(load_checkpoint, max_num_models_per_replica=max_models)
    return cached


def build(arguments: Mapping[str, Any] | Settings) -> serve.Application:
    """The application, for `serve.run`, and for a cluster's configuration with this function's name as `import_path`.

    Args:
        arguments: settings, or their fields; missing ones come from the environment or else from the defaults.

    Raises:
        pydantic.ValidationError: as for `Settings`.
    """
    settings = arguments if isinstance(arguments, Settings) else settings_from_arguments(arguments)
    configure = serve.deployment(
        name=DEPLOYMENT_NAME,
        **scale(settings),
        max_surge_percent=settings.max_surge_percent,
        max_ongoing_requests=settings.max_ongoing_requests + SPARE_REQUESTS,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=settings.retry_after_s),
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": num_gpus(settings)},
        health_check_period_s=settings.health_check_period_s,
        health_check_timeout_s=settings.health_check_timeout_s,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        max_constructor_retry_count=1,
        logging_config=serve_logging(settings),
    )
    # Only the proxy terminates TLS: a replica on another machine need not have its files.
    return configure(serve.ingress()(TopKService)).bind(settings.model_dump(exclude={"tls_certificate", "tls_key"}))


def scale(settings: Settings) -> dict[str, Any]:
    """Serve's options for the number of replicas: fixed, or following the number of ongoing requests."""
    if settings.max_replicas is None:
        return {"num_replicas": settings.num_replicas or 1}
    delays = {"upscale_delay_s": settings.upscale_delay_s, "downscale_delay_s": settings.downscale_delay_s}
    autoscaling = AutoscalingConfig(
        min_replicas=settings.min_replicas or 1,
        max_replicas=settings.max_replicas,
        target_ongoing_requests=settings.target_ongoing_requests or settings.max_num_seqs / 2,
        **{name: delay for name, delay in delays.items() if delay is not None},
    )
    return {"autoscaling_config": autoscaling}


def serve_logging(settings: Settings) -> LoggingConfig:
    """The logging configuration of Serve's own processes; we log the requests."""
    level = serve_log_level(settings)
    return LoggingConfig(encoding=settings.log_format.upper(), log_level=level, enable_access_log=False)


def serve_log_level(settings: Settings) -> str:
    """Serve's log level: Serve logs much at levels at which we log little."""
    return {"DEBUG": "INFO", "INFO": "WARNING"}.get(settings.log_level, settings.log_level)


def num_gpus(settings: Settings) -> float:
    """GPUs that a replica reserves."""
    if settings.num_gpus is not None:
        return settings.num_gpus
    if settings.device == "auto" and ray.is_initialized():
        return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
    return 1.0 if settings.device == "cuda" else 0.0
