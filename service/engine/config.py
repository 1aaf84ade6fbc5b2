"""The engine's sizes, checked once."""

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

Weights = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes of the engine, fixed for its life.

    Raises:
        ValueError: the sizes do not fit each other.
    """

    # Sequences running at once. On a CPU a step of n takes about a + b * n from the first on: at 32 nearly all of the
    # tokens per second are there, and a step under overload takes less than twice that of a busy moment below it.
    max_num_seqs: int = 32
    max_step_tokens: int = 256  # tokens of one forward pass
    max_waiting: int = 256  # sequences waiting for admission, those of the largest request included
    # So many in front, beyond the free slots, and a request is refused. By Little's law the wait behind m of them is
    # m / max_num_seqs of a sequence's own time in the batch, on every model and machine: here an eighth. Bursts are
    # taken by the slots, where they cost everyone a little; in the queue they would cost time to the first token.
    max_backlog: int = 4
    num_blocks: int = 2048  # KV cache blocks
    block_size: int = 16  # positions of a block
    prefill_chunk: int = 64  # prompts are cut at multiples of this, whatever the load
    num_threads: int = 1  # CPU threads of a step
    #: "auto": the compiled step if it can be had, else torch's. A GPU's is always torch's.
    cpu_step: Literal["auto", "compiled", "torch"] = "auto"
    #: What the compiled step keeps its matrices in; sums are float32.
    weights: Weights = "float32"

    def __post_init__(self) -> None:
        for name in ("cpu_step", "weights"):
            allowed = get_args(get_type_hints(type(self))[name])
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, must be one of {', '.join(allowed)}")
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1")
        if self.block_size % 16:
            raise ValueError(
                f"block_size is {self.block_size}, must be a multiple of 16: attention rounds by 16 positions"
            )
        if self.max_step_tokens < self.max_num_seqs + self.prefill_chunk:
            raise ValueError(
                f"max_step_tokens is {self.max_step_tokens}, must be at least max_num_seqs + prefill_chunk "
                f"({self.max_num_seqs + self.prefill_chunk}): a step decodes every sequence and reads a prompt"
            )
