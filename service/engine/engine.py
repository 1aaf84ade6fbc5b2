"""`EngineCore` in a thread of its own: continuous batching that any thread may use."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from service.engine.ablation import Ablator
from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.request import EngineRequest, Event
from topk_model.interventions import Intervention
from topk_model.modeling import TopKLMForCausalLM

logger = logging.getLogger(__name__)

#: Most threads that compute ablations, which are to leave a large machine's cores to generations.
MAX_ABLATOR_THREADS = 8
#: Called once per step from the engine's thread with all of the step's events: (request id, event), in order.
OnEvents = Callable[[list[tuple[str, Event]]], None]
#: How long the idle thread sleeps between two heartbeats, seconds.
IDLE_S = 0.5
#: Maximum time that a stop waits for the current step, seconds.
STOP_TIMEOUT_S = 10.0


class QueueFullError(Exception):
    """The waiting queue has no room for the requests; none of them was queued."""


class EngineDeadError(Exception):
    """The engine's thread has ended; the replica must be replaced."""


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """A snapshot; counters since start."""

    num_running: int
    max_num_seqs: int  # maximum number that run at once
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    heartbeat_age_s: float  # since the last iteration of the thread's loop; it iterates at least every second when idle
    is_alive: bool
    num_prompt_tokens: int
    num_generated_tokens: int
    num_steps: int
    num_preemptions: int  # number of times that a sequence lost its blocks to another
    num_prefix_tokens: int  # prompt tokens that were looked up in the prefix cache
    num_prefix_hits: int  # of these, the ones that were found and not read again


class Engine:
    """Continuous batching over one model, in a thread of its own. Every method may be called from any thread.

    Args:
        special_ids: tokens that edits skip by default (default: those that the model's configuration
            names).
    """

    def __init__(
        self,
        model: TopKLMForCausalLM,
        config: EngineConfig,
        on_events: OnEvents,
        special_ids: Iterable[int] | None = None,
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

        Returns false if the thread hangs and was abandoned after `STOP_TIMEOUT_S`.
        """
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
        return not self._thread.is_alive()

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """Queue all sequences or none.

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
                    f"{self.num_backlog} sequences wait for others to end, the limit is {self.config.max_backlog}"
                )
            if self.num_waiting + len(requests) > self.config.max_waiting:
                raise QueueFullError(f"{self.num_waiting} sequences wait, the limit is {self.config.max_waiting}")
            self._num_unread += len(requests)
            for request in requests:
                self._inbox.put(request)

    def ablator(
        self, prompt_ids: Sequence[int], interventions: Sequence[Intervention], layers: Sequence[int]
    ) -> Ablator:
        """Ablations of a prompt, to be run in another thread beside the engine's steps; see `Ablator`."""
        num_threads = min(MAX_ABLATOR_THREADS, len(os.sched_getaffinity(0)))
        return self._core.runner.ablator(prompt_ids, interventions, layers, num_threads)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop sequences, waiting or running; unknown and finished ids are skipped. Each dropped one gets a
        FinishEvent of reason "abort" before the next step."""
        self._inbox.put(tuple(request_ids))

    @property
    def num_waiting(self) -> int:
        """Sequences submitted but not yet admitted."""
        return self._num_unread + len(self._core.scheduler.waiting)

    @property
    def num_backlog(self) -> int:
        """How many more sequences wait than there are free slots; these wait for other sequences to end."""
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
            num_preemptions=core.scheduler.num_preemptions,
            num_prefix_tokens=core.scheduler.num_prefix_tokens,
            num_prefix_hits=core.scheduler.num_prefix_hits,
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
        """Process new requests and aborts, waiting for one if there is nothing to run; returns false to stop."""
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
