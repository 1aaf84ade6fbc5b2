"""The engine: `EngineCore` turns requests into events, step by step; `Engine` does so in a thread of its own."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from service.engine.config import EngineConfig
from service.engine.request import EngineRequest, Event, FinishEvent, FinishReason, PromptEvent, TokenEvent
from service.engine.runner import PieceResult, Runner
from service.engine.scheduler import Piece, Scheduler
from service.engine.scheduler import Sequence as Seq
from topk_model.interventions import Receipt
from topk_model.modeling import TopKLMForCausalLM

__all__ = ["Engine", "EngineConfig", "EngineCore", "EngineDeadError", "EngineStats", "OnEvents", "QueueFullError"]

logger = logging.getLogger(__name__)

#: Called once a step from the engine's thread with everything that happened in it: (request id, event), in order.
OnEvents = Callable[[list[tuple[str, Event]]], None]
#: How long the idle thread sleeps between two heartbeats, seconds.
IDLE_S = 0.5
#: Longest that a stop waits for the step under way, seconds.
STOP_TIMEOUT_S = 10.0


class QueueFullError(Exception):
    """The waiting queue has no room for the requests; nothing of them was taken."""


class EngineDeadError(Exception):
    """The engine's thread has ended; the replica must be replaced."""


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """A snapshot; counters since start."""

    num_running: int
    max_num_seqs: int  # most that run at once
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    heartbeat_age_s: float  # since the thread last passed its loop; it passes at least every second when idle
    is_alive: bool
    num_prompt_tokens: int
    num_generated_tokens: int
    num_steps: int


class EngineCore:
    """Scheduler and runner, for one thread."""

    def __init__(self, model: TopKLMForCausalLM, config: EngineConfig, special_ids: Iterable[int] = ()) -> None:
        self.config = config
        self.scheduler = Scheduler(config)
        self.runner = Runner(model, config, special_ids)
        self.num_prompt_tokens = self.num_generated_tokens = self.num_steps = 0
        self._events: list[tuple[str, Event]] = []

    def check(self, request: EngineRequest) -> None:
        """Raises ValueError where the request could never be admitted."""
        vocab_size = self.runner.shape.vocab_size
        if not request.prompt_ids or request.max_tokens < 0:
            raise ValueError("a request needs at least one prompt token, and max_tokens of at least 0")
        if not all(0 <= token_id < vocab_size for token_id in request.prompt_ids):
            raise ValueError(f"a prompt token is not in the vocabulary of {vocab_size}")
        self.runner.edits.check(request.interventions)
        if request.trace is not None and not set(request.trace.layers) <= set(self.runner.shape.topk_layers):
            raise ValueError(f"layers {request.trace.layers} to trace are not all TopK layers")
        needed = self.scheduler.num_blocks_of(request)
        if needed > self.config.num_blocks:
            raise ValueError(
                f"the request needs {needed} KV blocks ({request.num_positions} positions), the engine has "
                f"{self.config.num_blocks}"
            )

    @property
    def is_idle(self) -> bool:
        return not self.scheduler.running and not self.scheduler.waiting

    def add(self, request: EngineRequest) -> None:
        self.scheduler.add(request)

    def finish(self, sequence: Seq, reason: FinishReason, error: str | None = None) -> None:
        """End a sequence, wherever it is, and free everything it holds."""
        receipts: tuple[Receipt, ...] = ()
        if sequence.slot >= 0:
            receipts = self.runner.receipts(sequence)
            self.runner.close(sequence)
        self.scheduler.remove(sequence)
        self._emit(sequence, FinishEvent(reason=reason, receipts=receipts, error=error))

    def take_events(self) -> list[tuple[str, Event]]:
        """The events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def step(self, now: float) -> None:
        """Drop what is past its deadline, admit, run one step, and note its events."""
        for sequence in self.scheduler.all():
            if sequence.request.deadline is not None and now > sequence.request.deadline:
                self.finish(sequence, "deadline")
        for sequence in self.scheduler.admit():
            sequence.admitted_at = now
            try:
                self.runner.open(sequence)
            except Exception:
                logger.exception("%s cannot be opened; dropping it", sequence.request_id)
                self.finish(sequence, "error", "internal error in the engine")
        pieces = self.scheduler.plan()
        if not pieces:
            return
        try:
            results = self.runner.run(pieces)
        except Exception:
            # A fault of ours: what was in the step is lost, what waits is not.
            logger.exception("a step failed; dropping its %d sequences", len(pieces))
            for piece in pieces:
                self.finish(piece.sequence, "error", "internal error in the engine")
            return
        self.num_steps += 1
        for piece, result in zip(pieces, results, strict=True):
            self._advance(piece, result)

    def _emit(self, sequence: Seq, event: Event) -> None:
        self._events.append((sequence.request_id, event))

    def _advance(self, piece: Piece, result: PieceResult) -> None:
        """Bring one sequence forward by what its piece gave."""
        sequence = piece.sequence
        if not result.is_finite:
            if sequence.request.interventions:
                self.finish(sequence, "overflow", "the interventions drove the model's output to infinity")
            else:
                self.finish(sequence, "error", "the model's output is not finite")
            return
        sequence.num_read = piece.end
        if piece.is_prefill:
            self.num_prompt_tokens += piece.num_tokens
            self._emit(
                sequence,
                PromptEvent(
                    num_tokens=piece.num_tokens,
                    logprobs=result.prompt_logprobs,
                    trace=result.trace,
                    admitted_at=sequence.admitted_at,
                ),
            )
        elif sequence.is_holding:
            sequence.is_holding = False
            held = TokenEvent(token_id=sequence.output_ids[-1], logprobs=sequence.held_logprobs, trace=result.trace)
            self._emit(sequence, held)
        if sequence.finish_reason is not None:
            self.finish(sequence, sequence.finish_reason)
        elif result.token_id is not None:
            self._append(sequence, result.token_id, result)
        elif not sequence.is_prefilling:
            self.finish(sequence, "length")  # max_tokens is 0

    def _append(self, sequence: Seq, token_id: int, result: PieceResult) -> None:
        """Take a drawn token, and end the sequence where it is the last."""
        request = sequence.request
        if token_id in self.runner.eos_ids and not request.ignore_eos:
            self.finish(sequence, "stop")
            return
        sequence.output_ids.append(token_id)
        self.num_generated_tokens += 1
        reason: FinishReason | None = None
        try:
            if request.is_stop is not None and request.is_stop(token_id):
                reason = "stop"
        except Exception:
            logger.exception("the stop condition of %s failed", request.request_id)
            self.finish(sequence, "error", "internal error in the stop condition")
            return
        if reason is None and len(sequence.output_ids) == request.max_tokens:
            reason = "length"
        sequence.finish_reason = reason
        if request.trace is not None and request.trace.covers(sequence.num_tokens - 1):
            sequence.is_holding, sequence.held_logprobs = True, result.logprobs
            return
        self._emit(sequence, TokenEvent(token_id=token_id, logprobs=result.logprobs))
        if reason is not None:
            self.finish(sequence, reason)


class Engine:
    """Continuous batching over one model, in a thread of its own. Every method may be called from any thread.

    Args:
        special_ids: tokens that edits pass over unless told otherwise, beside those that the model's configuration
            names.
    """

    def __init__(
        self, model: TopKLMForCausalLM, config: EngineConfig, on_events: OnEvents, special_ids: Iterable[int] = ()
    ) -> None:
        self.config = config
        self._core = EngineCore(model, config, special_ids)
        self._on_events = on_events
        self._inbox: queue.SimpleQueue[EngineRequest | tuple[str, ...] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards _num_unread
        self._num_unread = 0  # requests in the inbox
        self._heartbeat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> bool:
        """End the thread; every unfinished request gets a FinishEvent of reason "abort".

        Returns false where the thread hangs and was left behind, after `STOP_TIMEOUT_S`.
        """
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
        return not self._thread.is_alive()

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """Queue sequences, all or none.

        Raises:
            QueueFullError: there is no room for all of them.
            EngineDeadError: the thread has ended.
            ValueError: a sequence could never be admitted (needs more blocks than there are).
        """
        if not self._thread.is_alive():
            raise EngineDeadError("the engine's thread has ended")
        for request in requests:
            self._core.check(request)
        with self._lock:
            if self.num_backlog >= self.config.max_backlog:
                raise QueueFullError(
                    f"{self.num_backlog} sequences wait for others to end, at most {self.config.max_backlog} may"
                )
            if self.num_waiting + len(requests) > self.config.max_waiting:
                raise QueueFullError(f"{self.num_waiting} sequences are waiting, at most {self.config.max_waiting} may")
            self._num_unread += len(requests)
            for request in requests:
                self._inbox.put(request)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop sequences, waiting or running; unknown and finished ids are passed over. Each dropped one gets a
        FinishEvent of reason "abort" before the next step."""
        self._inbox.put(tuple(request_ids))

    @property
    def num_waiting(self) -> int:
        """Sequences submitted and not yet admitted."""
        return self._num_unread + len(self._core.scheduler.waiting)

    @property
    def num_backlog(self) -> int:
        """Of those that wait, how many more there are than free slots; they wait for another sequence's end."""
        return max(0, self.num_waiting + len(self._core.scheduler.running) - self.config.max_num_seqs)

    def stats(self) -> EngineStats:
        core = self._core
        return EngineStats(
            num_running=len(core.scheduler.running),
            max_num_seqs=self.config.max_num_seqs,
            num_waiting=self.num_waiting,
            num_blocks=core.scheduler.blocks.num_blocks,
            num_free_blocks=core.scheduler.blocks.num_free,
            heartbeat_age_s=time.monotonic() - self._heartbeat,
            is_alive=self._thread.is_alive(),
            num_prompt_tokens=core.num_prompt_tokens,
            num_generated_tokens=core.num_generated_tokens,
            num_steps=core.num_steps,
        )

    def _run(self) -> None:
        core = self._core
        try:
            while self._read_inbox():
                self._heartbeat = time.monotonic()
                core.step(self._heartbeat)
                self._hand_out()
        except Exception:
            logger.exception("the engine's thread has failed")
            raise
        finally:
            for sequence in core.scheduler.all():
                core.finish(sequence, "abort")
            self._hand_out()

    def _hand_out(self) -> None:
        events = self._core.take_events()
        if events:
            self._on_events(events)

    def _read_inbox(self) -> bool:
        """Take in what has arrived, waiting for something where there is nothing to run; false: stop."""
        core = self._core
        wait = core.is_idle
        while True:
            try:
                message = self._inbox.get(timeout=IDLE_S) if wait else self._inbox.get_nowait()
            except queue.Empty:
                return True
            wait = False
            if message is None:
                return False
            if isinstance(message, EngineRequest):
                with self._lock:
                    self._num_unread -= 1
                    core.add(message)
            else:
                dropped = set(message)
                for sequence in core.scheduler.all():
                    if sequence.request_id in dropped:
                        core.finish(sequence, "abort")
