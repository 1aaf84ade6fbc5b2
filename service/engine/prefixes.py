"""Which prefixes of a sequence can be shared with others, and their keys. No tensors.

A position's keys and values depend on the tokens up to it and on the edits that start at or before it, and on nothing
else in a request. So the two sides of a comparison share everything before the first edited position.
"""

import math
from array import array
from hashlib import blake2b

from service.engine.config import EngineConfig
from service.engine.sequence import Sequence

KEY_BYTES = 20


class Prefixes:
    """The rules of one engine.

    Args:
        is_cut_free: whether a position's numbers are independent of how its prompt is cut, and of whether the token was
            read or generated. If not, only complete pieces of prompts are shared, so that the rest is cut as usual.
    """

    def __init__(self, config: EngineConfig, *, is_cut_free: bool) -> None:
        self._is_on, self._is_cut_free = config.prefix_cache, is_cut_free
        self._block_size = config.block_size
        self._unit = config.block_size if is_cut_free else math.lcm(config.block_size, config.prefill_chunk)

    def key(self, sequence: Sequence, number: int) -> bytes:
        """The key of the sequence's block `number`, whose tokens must be known."""
        keys, size = sequence.keys, self._block_size
        while len(keys) <= number:
            start = len(keys) * size
            digest = blake2b(keys[-1] if keys else b"", digest_size=KEY_BYTES)
            digest.update(array("q", sequence.tokens(start, start + size)).tobytes())
            if begun := self.begun(sequence, start + size):
                digest.update(repr([sequence.request.interventions[i] for i in begun]).encode())
            keys.append(digest.digest())
        return keys[number]

    def num_to_share(self, sequence: Sequence) -> int:
        """Number of blocks of the prompt that the sequence may reuse instead of reading their tokens."""
        request = sequence.request
        if not self._is_on or request.prompt_logprobs is not None:
            return 0
        end = sequence.num_prompt - 1  # the last token must be read, since it predicts the next one
        if request.trace is not None:
            end = min(end, request.trace.start)
        return self._whole(end)

    def num_to_resume(self, sequence: Sequence) -> int:
        """Number of blocks that a preempted sequence may reuse; their results have been reported."""
        end = min(sequence.num_known, sequence.num_tokens - 1)
        return min(self._whole(end), self.num_to_keep(sequence, end)) if self._is_on else 0

    def num_to_keep(self, sequence: Sequence, end: int) -> int:
        """Number of blocks within the first `end` positions that others may reuse."""
        if not self._is_on:
            return 0
        # A prompt that continues generated text has other edits, since their positions depend on the prompt's length.
        if not self._is_cut_free or sequence.request.interventions:
            end = min(end, sequence.num_prompt)
        return self._whole(end)

    def is_kept_up_to(self, sequence: Sequence, end: int) -> bool:
        """Whether others may reuse exactly the first `end` positions."""
        return self.num_to_keep(sequence, end) * self._block_size == end

    @staticmethod
    def begun(sequence: Sequence, end: int) -> list[int]:
        """Indices of the sequence's interventions that start before position `end`."""
        return [i for i, edit in enumerate(sequence.request.interventions) if edit.start < end]

    def whole_blocks(self, num_blocks: int) -> int:
        """How many of the first `num_blocks` blocks can be reused: all, or the complete pieces among them."""
        return self._whole(num_blocks * self._block_size)

    def _whole(self, end: int) -> int:
        return end // self._unit * self._unit // self._block_size
