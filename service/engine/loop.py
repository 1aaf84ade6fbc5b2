"""The engine's thread: takes requests, steps the scheduler and the runner, hands out events."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.engine.request import EngineRequest, Event

#: Called once a step from the engine's thread with everything that happened in it: (request id, event), in order.
OnEvents = Callable[[list[tuple[str, Event]]], None]


class QueueFullError(Exception):
    """The waiting queue has no room for the requests; nothing of them was taken."""


class EngineDeadError(Exception):
    """The engine's thread has ended; the replica must be replaced."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes of the engine, fixed for its life."""

    max_num_seqs: int = 64  # sequences running at once
    max_step_tokens: int = 256  # tokens of one forward pass
    max_waiting: int = 256  # sequences waiting for admission
    num_blocks: int = 2048  # KV cache blocks
    block_size: int = 16  # positions of a block
    prefill_chunk: int = 64  # prompts are cut at multiples of this, whatever the load
    num_threads: int = 0  # CPU threads of the matrix products; 0: leave torch's own
    max_edits: int = 64  # interventions of a request
    max_conditions: int = 8  # of an intervention


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """A snapshot; counters since start."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    heartbeat_age_s: float  # since the thread last passed its loop; it passes at least every second when idle
    is_alive: bool
    num_prompt_tokens: int
    num_generated_tokens: int
    num_steps: int


class Engine:
    """Continuous batching over one model, in a thread of its own. Every method may be called from any thread."""

    def __init__(self, model: object, config: EngineConfig, on_events: OnEvents) -> None: ...

    def start(self) -> None:
        """Start the thread."""

    def stop(self) -> None:
        """End the thread; every unfinished request gets a FinishEvent of reason "abort"."""

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """Queue sequences, all or none.

        Raises:
            QueueFullError: there is no room for all of them.
            EngineDeadError: the thread has ended.
            ValueError: a sequence could never be admitted (needs more blocks than there are).
        """

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop sequences, waiting or running; unknown and finished ids are passed over. Each dropped one gets a
        FinishEvent of reason "abort" before the next step."""

    def stats(self) -> EngineStats: ...
