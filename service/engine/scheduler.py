"""Which sequences run, and which of their tokens go into the next step. No tensors, no clock, no threads.

A sequence gets blocks as it needs them. If none are left, the sequence admitted last loses all of its blocks: it keeps
its slot and its tokens, and reads them again, in the same pieces, when there is room. So the
sequence admitted first always continues, and a request's numbers are the same however often it was preempted.
"""

from collections import deque
from collections.abc import Callable, Iterator

from service.engine.config import EngineConfig
from service.engine.kv_cache import BlockPool
from service.engine.request import EngineRequest
from service.engine.sequence import Piece, Sequence


class Scheduler:
    """First come, first served.

    Args:
        on_release: called with a sequence whose blocks are about to be freed.
    """

    def __init__(self, config: EngineConfig, on_release: Callable[[Sequence], None] = lambda _: None) -> None:
        self.config = config
        self.blocks = BlockPool(config.num_blocks)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission
        self.num_preemptions = 0
        self._on_release = on_release
        self._free_slots = list(range(config.max_num_seqs - 1, -1, -1))

    def num_blocks_of(self, num_positions: int) -> int:
        """Number of blocks needed for that many positions."""
        return -(-num_positions // self.config.block_size)

    def add(self, request: EngineRequest) -> None:
        self.waiting.append(Sequence(request=request))

    def admit(self) -> list[Sequence]:
        """Move sequences from the head of the queue to running while there are slots and blocks; returns them.

        One is admitted if its prompt fits and leaves one block for each running sequence; none while a preempted
        sequence waits.
        """
        admitted: list[Sequence] = []
        if not self.waiting or any(sequence.is_preempted for sequence in self.running):
            return admitted
        while self.waiting and self._free_slots:
            sequence = self.waiting[0]
            longest = self.num_blocks_of(sequence.request.num_positions)
            needed = min(self.num_blocks_of(sequence.num_prompt) + len(self.running), longest)
            if needed > self.blocks.num_free:
                break
            self.waiting.popleft()
            sequence.slot = self._free_slots.pop()
            sequence.blocks = self.blocks.allocate(self.num_blocks_of(sequence.num_prompt))
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def plan(self) -> list[Piece]:
        """The next step: one token of every decoding sequence, then pieces of prompts up to the budget.

        A prompt is cut only at multiples of `prefill_chunk`, and a piece that does not fit waits: if the cuts depended
        on the load, so would the rounding.
        """
        self._resume()
        decodes = []
        for sequence in tuple(self.running):
            start = sequence.num_read
            if start >= sequence.num_prompt and self._grow(sequence):
                decodes.append(Piece(sequence=sequence, start=start, end=start + 1))
        budget = self.config.max_step_tokens - len(decodes)
        return decodes + list(self._prefills(budget))

    def _prefills(self, budget: int) -> Iterator[Piece]:
        chunk = self.config.prefill_chunk
        for sequence in self.running:
            if not sequence.is_prefilling or sequence.is_preempted:
                continue
            start = sequence.num_read
            end = min(start - start % chunk + chunk, sequence.num_prompt)
            if end - start > budget:
                return
            budget -= end - start
            yield Piece(sequence=sequence, start=start, end=end)

    def _grow(self, sequence: Sequence) -> bool:
        """Give a sequence the block for its next position; returns false if it was preempted instead."""
        if sequence.num_read < len(sequence.blocks) * self.config.block_size:
            return True
        if sequence.is_preempted:
            return False
        while not self.blocks.num_free:
            last = next(other for other in reversed(self.running) if other.blocks)
            self._preempt(last)
            if last is sequence:
                return False
        sequence.blocks += self.blocks.allocate(1)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.num_read = 0
        self.num_preemptions += 1

    def _resume(self) -> None:
        """Give preempted sequences blocks for all of their tokens, in order of admission."""
        for sequence in self.running:
            if not sequence.is_preempted:
                continue
            needed = self.num_blocks_of(sequence.num_tokens)
            if needed > self.blocks.num_free:
                return
            sequence.blocks = self.blocks.allocate(needed)

    def _release(self, sequence: Sequence) -> None:
        if sequence.blocks:
            self._on_release(sequence)
            self.blocks.release(sequence.blocks)
            sequence.blocks = []

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence, whether waiting or running, and free its resources."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self._free_slots.append(sequence.slot)
        self._release(sequence)
        sequence.slot = -1

    def all(self) -> list[Sequence]:
        return [*self.running, *self.waiting]
