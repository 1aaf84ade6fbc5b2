"""Which sequences run, and which of their tokens go into the next step. No tensors, no clock, no threads.

A sequence gets blocks as it needs them. If none are left, the sequence admitted last loses all of its blocks: it keeps
its slot and its tokens, and reads them again, in the same pieces, when there is room. So the
sequence admitted first always continues, and a request's numbers are the same however often it was preempted.
"""

from collections import deque
from collections.abc import Callable, Iterator

from service.engine.blocks import BlockPool, KeptBlock
from service.engine.config import EngineConfig
from service.engine.prefixes import Prefixes
from service.engine.request import EngineRequest
from service.engine.sequence import Piece, Sequence


class Scheduler:
    """First come, first served, except that a sequence whose prefix another one is reading lets others go first.

    Args:
        on_release: called with a sequence that has lost its blocks, and those of them that are now free.
        is_cut_free: as in `Prefixes`.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_release: Callable[[Sequence, list[int]], None] = lambda _, __: None,
        *,
        is_cut_free: bool = False,
    ) -> None:
        self.config = config
        self.blocks = BlockPool(config.num_blocks)
        self.prefixes = Prefixes(config, is_cut_free=is_cut_free)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission
        self.num_preemptions = 0
        self.num_prefix_tokens = self.num_prefix_hits = 0  # prompt tokens looked up; found
        self._readers: dict[bytes, Sequence] = {}  # the sequence that is about to read a key's block
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
        followers: list[Sequence] = []
        while self.waiting and self._free_slots:
            sequence = self.waiting[0]
            shared = self._find_beginning(sequence)
            if self._is_being_read(sequence, len(shared)):
                followers.append(self.waiting.popleft())
                continue
            blocks = self.blocks.share(shared)
            longest = self.num_blocks_of(sequence.request.num_positions)
            needed = min(self.num_blocks_of(sequence.num_prompt) + len(self.running), longest) - len(blocks)
            if needed > self.blocks.num_free:
                self.blocks.release(blocks)
                break
            self.waiting.popleft()
            sequence.slot = self._free_slots.pop()
            sequence.blocks = blocks + self.blocks.allocate(self.num_blocks_of(sequence.num_prompt) - len(blocks))
            self._begin(sequence, shared)
            self.running.append(sequence)
            admitted.append(sequence)
        self.waiting.extendleft(reversed(followers))
        return admitted

    def _find(self, sequence: Sequence, num_blocks: int) -> list[KeptBlock]:
        """The longest reusable prefix of the sequence, of at most `num_blocks` blocks."""
        found: list[KeptBlock] = []
        for number in range(num_blocks):
            kept = self.blocks.find(self.prefixes.key(sequence, number))
            if kept is None:
                break
            found.append(kept)
        return found[: self.prefixes.whole_blocks(len(found))]

    def _find_beginning(self, sequence: Sequence) -> list[KeptBlock]:
        """The longest prefix that a new sequence can reuse: it must end where the tallies of its edits are known."""
        found = self._find(sequence, self.prefixes.num_to_share(sequence))
        size = self.config.block_size
        while found and found[-1].tally is None and self.prefixes.begun(sequence, len(found) * size):
            found = found[: self.prefixes.whole_blocks(len(found) - 1)]
        return found

    def _is_being_read(self, sequence: Sequence, num_found: int) -> bool:
        """Whether a running sequence is about to read blocks, after the first `num_found`, that this one can reuse."""
        numbers = range(num_found, self.prefixes.num_to_share(sequence))
        return any(self.prefixes.key(sequence, number) in self._readers for number in numbers)

    def _begin(self, sequence: Sequence, shared: list[KeptBlock]) -> None:
        """Record what an admitted sequence reuses, and which blocks others can expect from it."""
        self._reuse(sequence, shared)
        sequence.num_cached = sequence.num_known = sequence.num_read
        if shared and shared[-1].tally is not None:
            sequence.tally = self.prefixes.begun(sequence, sequence.num_read), shared[-1].tally
        if self.config.prefix_cache:
            self.num_prefix_tokens += sequence.num_prompt
            self.num_prefix_hits += sequence.num_cached
        for number in range(len(shared), self.prefixes.num_to_keep(sequence, sequence.num_prompt)):
            self._readers.setdefault(self.prefixes.key(sequence, number), sequence)

    def _reuse(self, sequence: Sequence, shared: list[KeptBlock]) -> None:
        sequence.num_read = len(shared) * self.config.block_size
        sequence.num_kept = len(shared)

    def keep(self, sequence: Sequence) -> None:
        """Offer the blocks that a sequence has filled to others."""
        end = self.prefixes.num_to_keep(sequence, sequence.num_read)
        for number in range(sequence.num_kept, end):
            key = self.prefixes.key(sequence, number)
            tally = sequence.tallies.get((number + 1) * self.config.block_size)
            self.blocks.keep(sequence.blocks[number], key, tally)
            if self._readers.get(key) is sequence:
                del self._readers[key]
        sequence.num_kept = max(sequence.num_kept, end)

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
            shared = self._find(sequence, self.prefixes.num_to_resume(sequence))
            blocks = self.blocks.share(shared)
            needed = self.num_blocks_of(sequence.num_tokens) - len(blocks)
            if needed > self.blocks.num_free:
                self.blocks.release(blocks)
                return
            sequence.blocks = blocks + self.blocks.allocate(needed)
            self._reuse(sequence, shared)

    def _release(self, sequence: Sequence) -> None:
        if sequence.blocks:
            for key in sequence.keys:
                if self._readers.get(key) is sequence:
                    del self._readers[key]
            freed = self.blocks.release(sequence.blocks)
            sequence.blocks = []
            self._on_release(sequence, freed)

    def remove(self, sequence: Sequence, *, is_sound: bool = True) -> None:
        """Remove a sequence, whether waiting or running, and free its resources.

        Args:
            is_sound: whether its blocks may still be offered to others.
        """
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self._free_slots.append(sequence.slot)
        if not is_sound:
            self.blocks.forget(sequence.blocks)
        self._release(sequence)
        sequence.slot = -1

    def all(self) -> list[Sequence]:
        return [*self.running, *self.waiting]
