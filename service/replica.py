"""One replica: a model with its tokenizer and engine, answering validated requests.

HTTP and gRPC both stand on this; it knows neither, nor Ray.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal, cast

import torch
from prometheus_client import Metric
from transformers import PreTrainedTokenizerFast

from service.admission import Admission
from service.dispatch import Dispatcher
from service.engine import loop
from service.engine.loop import Engine, EngineStats
from service.engine.request import Event, FinishEvent
from service.errors import (
    BadRequestError,
    DeadlineError,
    InternalError,
    NotFoundError,
    QueueFullError,
    ServiceError,
    UnavailableError,
)
from service.metrics import Metrics
from service.planning import Plan, PlannedRow, plan_activations, plan_chat, plan_completion
from service.replies import Answer, Kind
from service.resolving import ModelFacts, check_token_ids
from service.responses import model_card, tokenization
from service.schema import (
    ActivationsRequest,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    InterventionSpec,
    TokenizeRequest,
)
from service.settings import Settings
from service.text import TextTokenizer
from topk_model.checkpoints import list_checkpoints, load_model
from topk_model.modeling import TopKLMForCausalLM

logger = logging.getLogger(__name__)

#: Stream items that a replica makes in a second at most, over all streams; what comes faster is put together.
MAX_STREAM_ITEMS_PER_S = 2000
_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def model_facts(model: TopKLMForCausalLM, tokenizer: TextTokenizer, settings: Settings) -> ModelFacts:
    """What planning must know of `model`."""
    config = model.config
    folder = settings.model.resolve()
    return ModelFacts(
        id=settings.resolved_model_id,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        topk_layers=tuple(config.topk_layers),
        n_nontopk=config.n_nontopk,
        k=config.topk_k,
        select=cast(Literal["signed", "abs"], config.topk_select),
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        special_ids=tokenizer.special_ids,
        checkpoint=folder.name if folder.parent.name == "checkpoints" else None,
        has_chat_template=tokenizer.has_chat_template,
    )


class Replica:
    """Model, tokenizer and engine of one process.

    All methods belong to the event loop in which `start` was called.
    """

    def __init__(
        self, model: TopKLMForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: Settings, *, name: str = "0"
    ) -> None:
        self.settings = settings
        self.name = name
        self.metrics = Metrics()
        self.api_keys = settings.all_api_keys()
        self.admission = Admission(max_requests=settings.max_ongoing_requests, retry_after_s=settings.retry_after_s)
        self.tokenizer = TextTokenizer(tokenizer)
        self.facts = model_facts(model, self.tokenizer, settings)
        self.checkpoints = tuple(f"step-{step}" for step in list_checkpoints(settings.model))
        self._dispatcher = Dispatcher(self.metrics)
        self._engine = Engine(model, settings.engine_config(), self._dispatcher.on_events)
        self._num_streams = 0
        self._created = int(time.time())
        self._is_stopping = False

    @classmethod
    def load(cls, settings: Settings, *, name: str = "0") -> "Replica":
        """The replica of the model that `settings` names.

        Raises:
            FileNotFoundError, ValueError: as `topk_model.checkpoints.load_model`.
        """
        model, tokenizer = load_model(settings.model, device=settings.device, dtype=_DTYPES[settings.dtype])
        return cls(model, cast(PreTrainedTokenizerFast, tokenizer), settings, name=name)

    async def start(self) -> None:
        """Start the engine's thread and the reaper."""
        self._dispatcher.start(self._engine)
        self._engine.start()

    async def stop(self) -> None:
        """Take nothing more, let what runs finish for at most `drain_timeout_s`, and end the engine's thread."""
        self._is_stopping = True
        if not await self._dispatcher.wait_idle(self.settings.drain_timeout_s):
            logger.warning("stopping with %d sequences unfinished", self._dispatcher.num_unfinished)
        await self._dispatcher.stop()
        await asyncio.to_thread(self._engine.stop)

    def check_health(self) -> None:
        """Look at the engine without waiting for it.

        Raises:
            UnavailableError: its thread has ended or hangs.
        """
        stats = self._engine.stats()
        if not stats.is_alive:
            raise UnavailableError("the engine's thread has ended", code="engine_dead")
        if stats.heartbeat_age_s > self.settings.max_heartbeat_age_s:
            raise UnavailableError(f"the engine has been silent for {stats.heartbeat_age_s:.0f} s", code="engine_hung")

    def check_ready(self) -> None:
        """Raises UnavailableError where the replica is unhealthy or stopping."""
        if self._is_stopping:
            raise UnavailableError("the replica is stopping", code="stopping")
        self.check_health()

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def collect_metrics(self) -> list[Metric]:
        """Every metric family, labelled with this replica."""
        self.metrics.observe_engine(self._engine.stats())
        return self.metrics.collect(self.name)

    def check_model(self, name: str) -> None:
        """Raises NotFoundError where `name` is not the model served here."""
        if name != self.facts.id:
            raise NotFoundError(
                f"model {name[:100]!r} is not served here, {self.facts.id!r} is", param="model", code="model_not_found"
            )

    async def answer(
        self, request: CompletionRequest | ChatCompletionRequest | ActivationsRequest, request_id: str
    ) -> Answer:
        """The request's answer, once all of it is there.

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
        """The request's answer whenever it has grown; its `chunks` say by what.

        Raises:
            ServiceError: it cannot be served, or no longer.
        """
        answer = self._begin(request, request_id)
        clock = asyncio.get_running_loop().time
        self._num_streams += 1
        try:
            async with aclosing(self.generate(answer.plan)) as batches:
                last = clock()
                async for events in batches:
                    answer.add(events)
                    yield answer
                    rest = last + self._num_streams / MAX_STREAM_ITEMS_PER_S - clock()
                    if rest > 0:
                        await asyncio.sleep(rest)
                    last = clock()
        finally:
            self._num_streams -= 1

    async def generate(self, plan: Plan) -> AsyncGenerator[list[tuple[int, Event]], None]:
        """Run a plan: (row, event) pairs as they come, until every row has finished by itself.

        Whoever leaves early closes the iterator; all that still runs is then aborted.

        Raises:
            ServiceError: the plan does not fit in now or ever, its time is up, or a row failed.
        """
        if self._is_stopping:
            raise UnavailableError("the replica is stopping", code="stopping")
        requests = [row.request for row in plan.rows]
        if len(requests) > self.settings.max_waiting:
            raise BadRequestError(
                f"the request has {len(requests)} sequences, at most {self.settings.max_waiting} may wait"
            )
        try:
            subscription = self._dispatcher.submit(requests)
        except loop.QueueFullError as error:
            self.metrics.request_rejections.labels("queue_full").inc()
            raise QueueFullError(str(error), retry_after_s=self.settings.retry_after_s) from None
        except loop.EngineDeadError:
            raise UnavailableError("the engine's thread has ended", code="engine_dead") from None
        except ValueError as error:
            raise BadRequestError(str(error), param="max_tokens") from None
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

    def model_card(self) -> dict[str, Any]:
        return model_card(self.facts, created=self._created, checkpoints=self.checkpoints)

    def tokenize(self, request: TokenizeRequest) -> dict[str, Any]:
        self.check_model(request.model)
        ids = self.tokenizer.encode(request.prompt, add_special_tokens=request.add_special_tokens)
        return tokenization(ids, self.facts, self.tokenizer)

    def detokenize(self, request: DetokenizeRequest) -> dict[str, Any]:
        self.check_model(request.model)
        check_token_ids(request.tokens, "tokens", self.facts)
        return {"prompt": self.tokenizer.decode(request.tokens)}

    def _begin(
        self, request: CompletionRequest | ChatCompletionRequest | ActivationsRequest, request_id: str
    ) -> Answer:
        self.check_model(request.model)
        # Clients may send the same id twice; the engine's ids must be unique.
        plan = self._plan(request, uuid.uuid4().hex)
        for spec in request.interventions:
            self._count_intervention(spec)
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
        )

    def _plan(self, request: CompletionRequest | ChatCompletionRequest | ActivationsRequest, request_id: str) -> Plan:
        timeout_s = self.settings.request_timeout_s
        if isinstance(request, CompletionRequest):
            return plan_completion(request, self.facts, self.tokenizer, request_id=request_id, timeout_s=timeout_s)
        if isinstance(request, ChatCompletionRequest):
            return plan_chat(request, self.facts, self.tokenizer, request_id=request_id, timeout_s=timeout_s)
        return plan_activations(request, self.facts, self.tokenizer, request_id=request_id, timeout_s=timeout_s)

    def _count_intervention(self, spec: InterventionSpec) -> None:
        self.metrics.interventions.labels(spec.op).inc()


def check_finish(event: FinishEvent, row: PlannedRow) -> None:
    """Raises the ServiceError for a sequence that did not end by itself."""
    if event.reason in ("stop", "length"):
        return
    error: ServiceError
    if event.reason == "deadline":
        error = DeadlineError("the request's time was up before its answer was whole")
    elif event.reason == "overflow":
        error = BadRequestError(event.error or "the edits are too strong", param="interventions", code="overflow")
    elif event.reason == "abort":
        error = UnavailableError("the replica is stopping", code="stopping")
    else:
        error = InternalError(event.error or "internal error in the engine")
    raise error
