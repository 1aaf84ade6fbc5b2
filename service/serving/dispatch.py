"""From the engine's thread to asyncio: passes every sequence's events to the task that waits for them.

Records which task waits for which sequence, since when, and ends sequences whose client is gone. Knows no text, no
HTTP and no Ray.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.engine.engine import Engine, EngineDeadError
from service.engine.request import EngineRequest, Event, FinishEvent, PromptEvent, TokenEvent
from service.errors import DeadlineError, UnavailableError
from service.observability.metrics import SUCCESS_REASONS, ModelMetrics
from service.observability.telemetry import SequenceProgress, current_progress

logger = logging.getLogger(__name__)

REAPER_PERIOD_S = 1.0
#: Extra time that the engine gets after a deadline before the client is answered without it.
DEADLINE_GRACE_S = 2.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Unfinished:
    """A sequence that the engine has not finished, and the task that waits for it."""

    row: int
    subscription: "Subscription"
    progress: SequenceProgress


class Subscription:
    """The events of one request's sequences, for the task that submitted it."""

    def __init__(self, dispatcher: "Dispatcher", request_ids: Sequence[str], deadline: float | None) -> None:
        self.request_ids = tuple(request_ids)
        self._dispatcher = dispatcher
        self.progress = current_progress()
        self._owner = asyncio.current_task()
        self._pending: list[tuple[int, Event]] = []
        self._wakeup = asyncio.Event()
        self._error: Exception | None = None
        self._timer = None
        if deadline is not None:
            loop = asyncio.get_running_loop()
            delay = max(0.0, deadline - time.monotonic()) + DEADLINE_GRACE_S
            self._timer = loop.call_later(delay, self.fail, DeadlineError("the request's time ran out"))

    @property
    def is_orphaned(self) -> bool:
        """Whether the task that last read the events has ended."""
        return self._owner is not None and self._owner.done()

    def put(self, row: int, event: Event) -> None:
        self._pending.append((row, event))
        self._wakeup.set()

    def fail(self, error: Exception) -> None:
        """Make the reader raise `error` after it has read all earlier events."""
        self._error = self._error or error
        self._wakeup.set()

    async def next_events(self) -> list[tuple[int, Event]]:
        """All events since the last call, at least one: (row, event), in order.

        Raises:
            ServiceError: the engine has ended or hangs; no more events will come.
        """
        self._owner = asyncio.current_task()
        await self._wakeup.wait()
        self._wakeup.clear()
        events, self._pending = self._pending, []
        if not events and self._error is not None:
            raise self._error
        if self._error is not None:
            self._wakeup.set()
        return events

    def close(self) -> None:
        """Release the sequences; those still running are aborted."""
        if self._timer is not None:
            self._timer.cancel()
        self._dispatcher.release(self)


class Dispatcher:
    """The records of all unfinished sequences of one engine. All but `on_events` belongs to the event loop's thread."""

    def __init__(self, metrics: ModelMetrics) -> None:
        self._metrics = metrics
        self._sequences: dict[str, _Unfinished] = {}
        self._released: set[str] = set()
        self._suspects: list[Subscription] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engine: Engine | None = None
        self._reaper: asyncio.Task[None] | None = None
        self._check_health: Callable[[], None] = lambda: None

    def start(self, engine: Engine, check_health: Callable[[], None]) -> None:
        """Bind to the running event loop and to the engine whose `on_events` is this dispatcher's.

        Args:
            check_health: raises UnavailableError if the engine has ended or hangs.
        """
        self._loop = asyncio.get_running_loop()
        self._engine = engine
        self._check_health = check_health
        self._reaper = self._loop.create_task(self._reap_for_ever())

    async def stop(self) -> None:
        """End the reaper and inform every reader that no more events will come."""
        self.fail_all(UnavailableError("the model is being unloaded, or the service is shutting down"))
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
        # All of these refer back to us, and a model's memory should not wait for the garbage collector.
        self._engine = self._reaper = None
        self._check_health = lambda: None

    @property
    def num_unfinished(self) -> int:
        return len(self._sequences)

    def submit(self, requests: Sequence[EngineRequest]) -> Subscription:
        """Queue all of a request's sequences or none; row i of the subscription is `requests[i]`.

        Raises:
            service.engine.engine.QueueFullError, EngineDeadError, ValueError: as for `Engine.submit`.
        """
        if self._engine is None:
            raise EngineDeadError("the dispatcher has been stopped")
        deadlines = [request.deadline for request in requests if request.deadline is not None]
        subscription = Subscription(self, [r.request_id for r in requests], max(deadlines, default=None))
        subscription.progress.model = self._metrics.model
        progress = [SequenceProgress(submitted_at=time.monotonic()) for _ in requests]
        books = {
            request.request_id: _Unfinished(row=row, subscription=subscription, progress=progress[row])
            for row, request in enumerate(requests)
        }
        assert len(books) == len(requests), "request ids must be unique"
        assert books.keys().isdisjoint(self._sequences), "request ids must be unique"
        self._sequences.update(books)
        try:
            self._engine.submit(requests)
        except BaseException:
            for request_id in books:
                del self._sequences[request_id]
            subscription.close()
            raise
        subscription.progress.sequences += progress
        return subscription

    def release(self, subscription: Subscription) -> None:
        """Abort the sequences of a subscription that still run."""
        unfinished = self._unfinished(subscription)
        if unfinished and self._engine is not None:
            self._released.update(unfinished)
            self._engine.abort(unfinished)

    def _unfinished(self, subscription: Subscription) -> list[str]:
        return [request_id for request_id in subscription.request_ids if request_id in self._sequences]

    def fail_all(self, error: UnavailableError) -> None:
        for sequence in self._sequences.values():
            sequence.subscription.fail(error)

    def on_events(self, events: list[tuple[str, Event]]) -> None:
        """Accept a step's events; called in the engine's thread."""
        if self._loop is None or self._loop.is_closed():
            return
        try:
            self._loop.call_soon_threadsafe(self._deliver, events, time.monotonic())
        except RuntimeError:  # the loop was closed in the meantime, so there are no readers left
            logger.debug("events after the end of the event loop")

    def _deliver(self, events: list[tuple[str, Event]], now: float) -> None:
        """Count a step's events and pass each one to its reader."""
        sequences, released = self._sequences, self._released
        num_prompt = num_cached = num_generated = 0
        num_by_last: dict[float, int] = {}  # number of tokens by the time of the previous token
        for request_id, event in events:
            sequence = sequences.get(request_id)
            if sequence is None:
                continue
            progress = sequence.progress
            if isinstance(event, TokenEvent):
                num_generated += 1
                progress.num_generated_tokens += 1
                if (last := progress.last_token_at) is None:
                    self._observe_first(progress, now)
                else:
                    num_by_last[last] = num_by_last.get(last, 0) + 1
                progress.last_token_at = now
            elif isinstance(event, PromptEvent):
                num_prompt += event.num_tokens
                num_cached += event.num_cached
                self._observe_prompt(progress, event)
            else:
                self._observe_end(progress, event, now)
                del sequences[request_id]
                released.discard(request_id)
            if request_id not in released:
                sequence.subscription.put(sequence.row, event)
        metrics = self._metrics
        for last, count in num_by_last.items():
            metrics.inter_token_latency.observe(now - last, count)
        if num_generated:
            metrics.generation_tokens.inc(num_generated)
        if num_prompt:
            metrics.prompt_tokens.inc(num_prompt)
        if num_prompt or num_generated:
            metrics.iteration_tokens.observe(num_prompt - num_cached + num_generated)

    def _observe_prompt(self, progress: SequenceProgress, event: PromptEvent) -> None:
        progress.num_prompt_tokens += event.num_tokens
        if progress.admitted_at is None:
            progress.admitted_at = event.admitted_at
            self._metrics.queue_time.observe(event.admitted_at - progress.submitted_at)

    def _observe_first(self, progress: SequenceProgress, now: float) -> None:
        progress.first_token_at = now
        self._metrics.time_to_first_token.observe(now - progress.submitted_at)
        self._metrics.prefill_time.observe(now - (progress.admitted_at or now))

    def _observe_end(self, progress: SequenceProgress, event: FinishEvent, now: float) -> None:
        metrics = self._metrics
        progress.finish_reason = event.reason
        if event.reason not in SUCCESS_REASONS:
            metrics.request_failure.labels(event.reason).inc()
            return
        metrics.request_success.labels(event.reason).inc()
        metrics.e2e_latency.observe(now - progress.submitted_at)
        metrics.request_prompt_tokens.observe(progress.num_prompt_tokens)
        metrics.request_generation_tokens.observe(progress.num_generated_tokens)
        if progress.first_token_at is not None:
            metrics.decode_time.observe((progress.last_token_at or now) - progress.first_token_at)

    async def _reap_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REAPER_PERIOD_S)
            try:
                self._reap()
            except Exception:
                logger.exception("the reaper failed and continues")

    def _reap(self) -> None:
        """Abort sequences that have lost their reader, and again those that should have ended; inform the readers if
        the engine has ended or hangs.

        A stream passes from the task that waits for its first token to the one that sends the rest, so a
        sequence counts as lost only if it has no reader for two rounds.
        """
        assert self._engine is not None
        subscriptions = {id(s.subscription): s.subscription for s in self._sequences.values()}
        orphans = [subscription for subscription in subscriptions.values() if subscription.is_orphaned]
        for subscription in orphans:
            if subscription in self._suspects and not self._released.issuperset(self._unfinished(subscription)):
                num_lost = len(self._unfinished(subscription))
                logger.warning("%d sequences had lost their client unnoticed", num_lost)
                self._metrics.reaped.inc(num_lost)
                subscription.close()
        self._suspects = orphans
        if self._released:
            self._engine.abort(sorted(self._released))
        try:
            self._check_health()
        except UnavailableError as error:
            self.fail_all(error)
