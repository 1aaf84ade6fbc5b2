"""One model as it is served: its engine, answering validated requests.

Knows no other model, no transport and no Ray.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

from service.answers.answer import Answer, Kind
from service.answers.fields import model_entry, tokenization
from service.engine import engine as engine_module
from service.engine.ablation import Ablator
from service.engine.engine import Engine, EngineStats
from service.engine.request import Event, FinishEvent
from service.errors import (
    BadRequestError,
    DeadlineError,
    InternalError,
    QueueFullError,
    ServiceError,
    UnavailableError,
    UnfitTextError,
)
from service.observability.metrics import ModelMetrics
from service.requests.edit_schema import InterventionSpec, PresetSpec
from service.requests.planning import Plan, PlannedRow, Planner
from service.requests.preset_edits import OP
from service.requests.resolving import check_token_ids
from service.requests.schema import (
    ActivationsRequest,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from service.serving.dispatch import Dispatcher
from service.serving.loading import LoadedModel, engine_config, load
from service.settings import Settings
from topk_model.interventions import Intervention

logger = logging.getLogger(__name__)


class ServedModel:
    """A loaded model and its users.

    While loaded, it occupies its weights (4 bytes per number in float32; a tied embedding twice, because on the CPU
    the unembedding is packed separately); a KV cache of 2 × layers × kv_heads × head_dim numbers for each of
    `num_blocks` × `block_size` positions; and one thread, with `num_threads` - 1 more for its matrix products.

    It may be made in any thread; everything else belongs to the event loop in which `start` was called.
    """

    def __init__(self, loaded: LoadedModel, settings: Settings, metrics: ModelMetrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.facts = loaded.facts
        self.folder = loaded.folder
        self.tokenizer = loaded.tokenizer
        self.catalogue = loaded.catalogue
        self.checkpoints = loaded.checkpoints
        self.created = int(time.time())
        self.is_stopping = False
        self.is_stopped = False
        self._num_users = 0
        self._is_unused = asyncio.Event()
        self._is_unused.set()
        self._dispatcher = Dispatcher(metrics)
        sizes = engine_config(settings, loaded)
        self.planner = Planner(
            loaded.facts, loaded.tokenizer, settings.request_timeout_s, sizes.num_blocks * sizes.block_size
        )
        self._engine = Engine(loaded.model, sizes, self._dispatcher.on_events, loaded.facts.special_ids)

    @classmethod
    def load(
        cls, settings: Settings, metrics: ModelMetrics, *, model_id: str, folder: Path, step: int | None = None
    ) -> "ServedModel":
        """The model in `folder`, or its checkpoint of training step `step`, served as `model_id`.

        Raises:
            FileNotFoundError, ValueError: as for `topk_model.checkpoints.load_model`.
        """
        began = time.monotonic()
        served = cls(load(settings, model_id=model_id, folder=folder, step=step), settings, metrics)
        metrics.load_time.observe(time.monotonic() - began)
        return served

    async def start(self) -> None:
        """Start the engine's thread and the reaper."""
        self._dispatcher.start(self._engine, self.check_health)
        self._engine.start()
        self.metrics.watch(self._engine.stats)

    async def stop(self) -> None:
        """Accept no more users, wait at most `drain_timeout_s` for the present ones, and end the engine's thread.

        The weights and the cache are freed with the last reference to this object.
        """
        self.is_stopping = True
        if self._num_users:
            try:
                await asyncio.wait_for(self._is_unused.wait(), self.settings.drain_timeout_s)
            except TimeoutError:
                num_left = self._dispatcher.num_unfinished
                logger.warning("stopping %s with %d sequences unfinished", self.facts.id, num_left)
        await self._dispatcher.stop()
        if not await asyncio.to_thread(self._engine.stop):
            logger.error("the engine of %s hangs and is abandoned", self.facts.id)
        self.metrics.unwatch()
        self.metrics.unloads.inc()
        self.is_stopped = True

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the model loaded while the context is open; must not be entered if `is_stopping`."""
        self._num_users += 1
        self._is_unused.clear()
        try:
            yield
        finally:
            self._num_users -= 1
            if not self._num_users:
                self._is_unused.set()

    def check_health(self) -> None:
        """Check the engine without waiting for it.

        Raises:
            UnavailableError: its thread has ended unexpectedly or hangs.
        """
        stats = self.stats()
        if not stats.is_alive and not self.is_stopping:
            raise UnavailableError(f"the engine's thread of {self.facts.id} has ended", code="engine_dead")
        if stats.is_alive and stats.heartbeat_age_s > self.settings.max_heartbeat_age_s:
            raise UnavailableError(
                f"the engine of {self.facts.id} has not responded for {stats.heartbeat_age_s:.0f} s", code="engine_hung"
            )

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def ablator(
        self, prompt_ids: Sequence[int], interventions: Sequence[Intervention], layers: Sequence[int]
    ) -> Ablator:
        """Ablations of a prompt, for a side job; see `Ablator`."""
        return self._engine.ablator(prompt_ids, interventions, layers)

    async def answer(
        self, request: CompletionRequest | ChatCompletionRequest | ActivationsRequest, request_id: str
    ) -> Answer:
        """The request's complete answer.

        Raises:
            ServiceError: it cannot be served.
        """
        answer = self._begin(request, request_id)
        async with aclosing(self.generate(answer.plan)) as batches:
            async for events in batches:
                answer.add(events)
        return answer

    async def stream(
        self, request: CompletionRequest | ChatCompletionRequest, request_id: str
    ) -> AsyncGenerator[Answer, None]:
        """The request's answer each time it has grown; its `chunks` are what is new.

        Raises:
            ServiceError: it cannot be served or cannot be continued.
        """
        answer = self._begin(request, request_id)
        async with aclosing(self.generate(answer.plan)) as batches:
            async for events in batches:
                answer.add(events)
                yield answer

    async def generate(self, plan: Plan) -> AsyncGenerator[list[tuple[int, Event]], None]:
        """Run a plan: yields (row, event) pairs as they arrive, until every row has finished.

        A caller that stops early closes the iterator, which aborts all sequences that still run.

        Raises:
            ServiceError: the plan does not fit now or ever, its time ran out, or a row failed.
        """
        requests = [row.request for row in plan.rows]
        if len(requests) > self.settings.max_waiting:
            raise BadRequestError(
                f"the request has {len(requests)} sequences, but at most {self.settings.max_waiting} may wait"
            )
        try:
            subscription = self._dispatcher.submit(requests)
        except engine_module.QueueFullError as error:
            raise QueueFullError(str(error), retry_after_s=self.settings.retry_after_s) from None
        except engine_module.EngineDeadError:
            code = "stopping" if self.is_stopping else "engine_dead"
            raise UnavailableError(f"the engine's thread of {self.facts.id} has ended", code=code) from None
        except ValueError as error:
            # Only a length can be rejected there; activations request no tokens.
            raise UnfitTextError(str(error), param="max_tokens" if requests[0].max_tokens else "input") from None
        num_unfinished = len(requests)
        try:
            while num_unfinished:
                events = await subscription.next_events()
                for row, event in events:
                    if isinstance(event, FinishEvent):
                        check_finish(event, plan.rows[row])
                        num_unfinished -= 1
                yield events
        finally:
            subscription.close()

    def model_entry(self) -> dict[str, Any]:
        return model_entry(
            self.facts,
            created=self.created,
            checkpoints=self.checkpoints,
            has_catalogue=self.catalogue is not None,
        )

    async def tokenize(self, request: TokenizeRequest) -> dict[str, Any]:
        ids = await asyncio.to_thread(
            self.tokenizer.encode, request.prompt, add_special_tokens=request.add_special_tokens
        )
        return tokenization(ids, self.facts, self.tokenizer)

    def detokenize(self, request: DetokenizeRequest) -> dict[str, Any]:
        check_token_ids(request.tokens, "tokens", self.facts)
        return {"prompt": self.tokenizer.decode(request.tokens)}

    def _begin(
        self, request: CompletionRequest | ChatCompletionRequest | ActivationsRequest, request_id: str
    ) -> Answer:
        # Clients may send the same id twice, but the engine's ids must be unique.
        plan = self._plan(request, uuid.uuid4().hex)
        self.count_interventions(request.interventions)
        kind: Kind = "chat" if isinstance(request, ChatCompletionRequest) else "completion"
        options = None if isinstance(request, ActivationsRequest) else request.stream_options
        return Answer(
            plan,
            kind,
            request_id=request_id,
            facts=self.facts,
            tokenizer=self.tokenizer,
            metrics=self.metrics,
            include_usage=bool(options and options.include_usage),
            continuous_usage=bool(options and options.continuous_usage_stats),
        )

    def count_interventions(self, specs: Sequence[InterventionSpec | PresetSpec]) -> None:
        for spec in specs:
            self.metrics.interventions.labels(OP if isinstance(spec, PresetSpec) else spec.op).inc()

    def _plan(self, request: CompletionRequest | ChatCompletionRequest | ActivationsRequest, request_id: str) -> Plan:
        if isinstance(request, CompletionRequest):
            return self.planner.completion(request, request_id)
        if isinstance(request, ChatCompletionRequest):
            return self.planner.chat(request, request_id)
        return self.planner.activations(request, request_id)


def check_finish(event: FinishEvent, row: PlannedRow) -> None:
    """Raises the ServiceError for a sequence that did not end normally."""
    if event.reason in ("stop", "length"):
        return
    error: ServiceError
    if event.reason == "deadline":
        error = DeadlineError()
    elif event.reason == "overflow":
        error = UnfitTextError(event.error or "the edits are too strong", param="interventions", code="overflow")
    elif event.reason == "abort":
        error = UnavailableError("the replica is stopping", code="stopping")
    else:
        error = InternalError(event.error or "internal error in the engine")
    raise error
