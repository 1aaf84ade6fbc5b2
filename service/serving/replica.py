"""One replica: all models of a process, with its keys, its counts and its health.

HTTP and gRPC are both built on it; it knows neither, nor Ray.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

from prometheus_client import Metric

from service.admission import Admission
from service.answers.answer import Answer
from service.errors import ServiceError, UnavailableError
from service.observability.metrics import Metrics
from service.observability.metrics_page import collect
from service.observability.telemetry import Telemetry, current_progress
from service.requests.attributing import plan_attribution
from service.requests.attribution_schema import AttributionRequest
from service.requests.resolving import given
from service.requests.schema import (
    ActivationsRequest,
    ActivationsStreamRequest,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from service.serving.attribution import attribute
from service.serving.attribution_reply import Attribution
from service.serving.bulk import answer_each
from service.serving.levers import Levers
from service.serving.model import ServedModel
from service.serving.neurons import Neurons
from service.serving.registry import ModelRegistry, Multiplex, RecentModels
from service.serving.side_jobs import Progress, SideJobs
from service.settings import Settings

#: Maximum number of stream items per second of a replica, over all streams; faster ones are merged.
MAX_STREAM_ITEMS_PER_S = 2000


class Replica:
    """All models of one process.

    All methods belong to the event loop in which `start` was called.
    """

    def __init__(self, registry: ModelRegistry, metrics: Metrics, settings: Settings, *, name: str = "0") -> None:
        self.settings = settings
        self.name = name
        self.metrics = metrics
        self.registry = registry
        self.neurons = Neurons(registry, settings)
        self.telemetry = Telemetry(metrics, otlp_endpoint=settings.otlp_endpoint, replica=name)
        self.api_keys = settings.open_api_keys()
        metrics.watch_keys(self.api_keys)
        self.admission = Admission(max_requests=settings.max_ongoing_requests, retry_after_s=settings.retry_after_s)
        self.side_jobs = SideJobs(
            metrics.side_jobs,
            max_jobs=settings.max_side_jobs,
            retry_after_s=settings.retry_after_s,
            is_busy=self._is_generating,
        )
        self.levers = Levers(registry, self.neurons.catalogues, self.side_jobs, settings)
        self._num_streams = 0
        self._is_stopping = False

    @classmethod
    def load(cls, settings: Settings, *, name: str = "0", multiplex: Multiplex = RecentModels) -> "Replica":
        """The replica of the models that `settings` names.

        Raises:
            FileNotFoundError, ValueError: as for `topk_model.checkpoints.load_model`.
        """
        metrics = Metrics()
        models = {
            model_id: ServedModel.load(settings, metrics.of(model_id), model_id=model_id, folder=folder)
            for model_id, folder in settings.served_models().items()
        }
        return cls(ModelRegistry(models, settings, metrics, multiplex=multiplex), metrics, settings, name=name)

    async def start(self) -> None:
        """Start the models' engines."""
        await self.registry.start()

    async def stop(self) -> None:
        """Accept no more requests, wait at most `drain_timeout_s` for those running, and end every engine."""
        self._is_stopping = True
        await self.registry.stop()
        await self.side_jobs.stop()
        await asyncio.to_thread(self.telemetry.stop)

    def check_health(self) -> None:
        """Check every engine without waiting for it.

        Raises:
            UnavailableError: an engine has ended or hangs.
        """
        for served in self.registry.running:
            served.check_health()

    def _is_generating(self) -> bool:
        """Whether any engine has sequences to run."""
        return any(served.stats().num_running for served in self.registry.running)

    def check_ready(self) -> None:
        """Raises UnavailableError if the replica is unhealthy or stopping."""
        if self._is_stopping:
            raise UnavailableError("the replica is stopping", code="stopping")
        self.check_health()

    def collect_metrics(self) -> list[Metric]:
        """Every metric family, labelled with this replica."""
        self.api_keys.refresh()
        return collect(self.metrics, self.name)

    def model_entry(self, model: str) -> dict[str, Any]:
        """Raises ServiceError like `ModelRegistry.card`."""
        return self.registry.card(model)

    def model_entries(self) -> list[dict[str, Any]]:
        """The models that are always loaded; each lists its checkpoints."""
        return [served.model_entry() for served in self.registry.models.values()]

    @asynccontextmanager
    async def use(self, model: str, timeout_s: float | None = None) -> AsyncIterator[ServedModel]:
        """A model or checkpoint, while the context is open; see `ModelRegistry.use`.

        Args:
            timeout_s: maximum time for loading it, if the request gives one.
        """
        async with self.registry.use(model, given(timeout_s, self.settings.request_timeout_s)) as served:
            yield served

    async def answer(
        self, request: CompletionRequest | ChatCompletionRequest | ActivationsRequest, request_id: str
    ) -> Answer:
        """The request's complete answer.

        Raises:
            ServiceError: it cannot be served.
        """
        async with self.use(request.model, request.timeout_s) as served:
            return await served.answer(request, request_id)

    async def stream(
        self, request: CompletionRequest | ChatCompletionRequest, request_id: str
    ) -> AsyncGenerator[Answer, None]:
        """The request's answer each time it has grown; its `chunks` are what is new.

        Raises:
            ServiceError: it cannot be served or cannot be continued.
        """
        clock = asyncio.get_running_loop().time
        async with (
            self.use(request.model, request.timeout_s) as served,
            aclosing(served.stream(request, request_id)) as answers,
        ):
            self._num_streams += 1
            try:
                last = clock()
                async for answer in answers:
                    yield answer
                    rest = last + self._num_streams / MAX_STREAM_ITEMS_PER_S - clock()
                    if rest > 0:
                        await asyncio.sleep(rest)
                    last = clock()
            finally:
                self._num_streams -= 1

    async def answer_each(
        self, request: ActivationsStreamRequest, request_id: str
    ) -> AsyncGenerator[tuple[int, Answer | ServiceError], None]:
        """(input, answer) pairs as they become ready; see `answer_each`."""
        async with (
            self.use(request.model, request.timeout_s) as served,
            aclosing(answer_each(served, request, request_id)) as answers,
        ):
            async for pair in answers:
                yield pair

    async def attribute(self, request: AttributionRequest) -> AsyncGenerator[Progress | Attribution, None]:
        """Why a token was likely: progress, and then the attribution.

        Raises:
            ServiceError: it cannot be computed, or too many computations wait.
        """
        timeout_s = given(request.timeout_s, self.settings.request_timeout_s)
        async with self.use(request.model, timeout_s) as served:
            current_progress().model = served.facts.id
            plan = await asyncio.to_thread(plan_attribution, request, served.facts, served.tokenizer)
            served.count_interventions(request.interventions)
            work = partial(attribute, served=served, plan=plan)
            async with aclosing(self.side_jobs.run("attribution", work, timeout_s=timeout_s)) as events:
                async for event in events:
                    yield event

    async def tokenize(self, request: TokenizeRequest) -> dict[str, Any]:
        """Raises ServiceError like `ModelRegistry.find`. A checkpoint need not be loaded: it uses its model's
        tokenizer."""
        return await self.registry.find(request.model)[0].tokenize(request)

    def detokenize(self, request: DetokenizeRequest) -> dict[str, Any]:
        """Raises ServiceError like `ModelRegistry.find`, and for invalid ids."""
        return self.registry.find(request.model)[0].detokenize(request)
