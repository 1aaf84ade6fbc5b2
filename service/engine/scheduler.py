"""Which sequences run, and which of their tokens go into the next step. No tensors, no clock, no threads.

A sequence is admitted when the blocks of its longest possible run are free, so nothing admitted is ever put back.
"""

from collections import deque
from collections.abc import Iterator

from service.engine.config import EngineConfig
from service.engine.kv_cache import BlockPool
from service.engine.request import EngineRequest
from service.engine.sequence import Piece, Sequence


class Scheduler:
    """First come, first served."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.blocks = BlockPool(config.num_blocks)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._free_slots = list(range(config.max_num_seqs - 1, -1, -1))

    def num_blocks_of(self, request: EngineRequest) -> int:
        """Blocks of the request's longest possible run."""
        return -(-request.num_positions // self.config.block_size)

    def add(self, request: EngineRequest) -> None:
        self.waiting.append(Sequence(request=request))

    def admit(self) -> list[Sequence]:
        """Move sequences from the queue's head to running while slots and blocks last; returns them."""
        admitted = []
        while self.waiting and self._free_slots:
            needed = self.num_blocks_of(self.waiting[0].request)
            if needed > self.blocks.num_free:
                break
            sequence = self.waiting.popleft()
            sequence.slot = self._free_slots.pop()
            sequence.blocks = self.blocks.allocate(needed)
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def plan(self) -> list[Piece]:
        """The next step: one token of every sequence that decodes, then pieces of prompts while the budget lasts.

        A prompt is cut at multiples of `prefill_chunk` and nowhere else, and a piece that does not fit waits: where
        the load cut it instead, the load would change its rounding.
        """
        decodes = [Piece(sequence=s, start=s.num_read, end=s.num_tokens) for s in self.running if not s.is_prefilling]
        budget = self.config.max_step_tokens - len(decodes)
        return decodes + list(self._prefills(budget))

    def _prefills(self, budget: int) -> Iterator[Piece]:
        chunk = self.config.prefill_chunk
        for sequence in self.running:
            if not sequence.is_prefilling:
                continue
            start = sequence.num_read
            end = min(start - start % chunk + chunk, sequence.num_prompt)
            if end - start > budget:
                return
            budget -= end - start
            yield Piece(sequence=sequence, start=start, end=end)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free what it holds."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self._free_slots.append(sequence.slot)
        self.blocks.release(sequence.blocks)
        sequence.slot, sequence.blocks = -1, []

    def all(self) -> list[Sequence]:
        return [*self.running, *self.waiting]
