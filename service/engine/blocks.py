"""Which blocks of the KV cache are free, and which can be reused because they hold a known prefix. Reads no tensor.

A full block can be kept under a key that identifies everything its keys and values depend on. Sequences with the same
prefix share the block. If no sequence holds it, it counts as free, but keeps its content until the space is needed; the
least recently used block goes first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True, kw_only=True, eq=False)
class KeptBlock:
    """A block under a key."""

    block: int
    key: bytes
    #: Tallies, after this block, of the edits that the key names; None if it names none or they are unknown.
    tally: tuple[Tensor, ...] | None


class BlockPool:
    """Blocks 1 to num_blocks, each of them free or held by one or more sequences."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks, 0, -1))
        self._holders = [0] * (num_blocks + 1)
        self._by_key: dict[bytes, KeptBlock] = {}
        self._by_block: dict[int, KeptBlock] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # kept but not held, least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free) + len(self._idle)

    def allocate(self, count: int) -> list[int]:
        """Take `count` unshared blocks; that many must be free."""
        assert count <= self.num_free, "the scheduler admits by free blocks"
        while len(self._free) < count:
            block, _ = self._idle.popitem(last=False)
            del self._by_key[self._by_block.pop(block).key]
            self._free.append(block)
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        for block in taken:
            self._holders[block] = 1
        return taken

    def find(self, key: bytes) -> KeptBlock | None:
        return self._by_key.get(key)

    def share(self, kept: Sequence[KeptBlock]) -> list[int]:
        """Hold kept blocks, possibly together with other sequences."""
        blocks = [one.block for one in kept]
        for block in blocks:
            self._holders[block] += 1
            self._idle.pop(block, None)
        return blocks

    def keep(self, block: int, key: bytes, tally: tuple[Tensor, ...] | None = None) -> None:
        """Let others share a held block that will no longer change; does nothing if the key has a block already."""
        if key not in self._by_key and block not in self._by_block:
            self._by_key[key] = self._by_block[block] = KeptBlock(block=block, key=key, tally=tally)

    def forget(self, blocks: Sequence[int]) -> None:
        """Stop offering these blocks to other sequences."""
        for block in blocks:
            if (kept := self._by_block.pop(block, None)) is not None:
                del self._by_key[kept.key]

    def release(self, blocks: Sequence[int]) -> list[int]:
        """Release a sequence's blocks; returns those that are neither held nor kept any more.

        Among kept blocks, later ones are dropped first: a prefix is useful without its end, not vice versa.
        """
        freed = []
        for block in reversed(blocks):
            self._holders[block] -= 1
            assert self._holders[block] >= 0, "a block was released twice"
            if self._holders[block]:
                continue
            if block in self._by_block:
                self._idle[block] = None
            else:
                freed.append(block)
        self._free += freed
        return freed
