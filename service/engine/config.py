"""The engine's sizes, validated once."""

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

Weights = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes of the engine, fixed for its lifetime.

    Raises:
        ValueError: a size is invalid or does not fit the others.
    """

    # Sequences running at once. On a CPU a step of n sequences takes about a + b * n: at 32, nearly the maximum of
    # tokens per second is reached, and a step under overload takes less than twice as long as one under normal load.
    max_num_seqs: int = 32
    max_step_tokens: int = 256  # tokens of one forward pass
    max_waiting: int = 256  # sequences waiting for admission, including those of the largest request
    # If this many sequences wait beyond the free slots, a request is refused. By Little's law the wait behind m of them
    # is m / max_num_seqs of a sequence's own time in the batch, for every model and machine: here an eighth. Bursts are
    # absorbed by the slots, where they slow everyone a little; in the queue they would delay the first token.
    max_backlog: int = 4
    num_blocks: int = 2048  # KV cache blocks
    block_size: int = 16  # positions per block
    prefill_chunk: int = 64  # prompts are cut at multiples of this, whatever the load
    prefix_cache: bool = True  # sequences with the same prefix share its blocks
    num_threads: int = 1  # CPU threads of a step
    #: "auto": the compiled step if it is available, otherwise torch's. On a GPU it is always torch's.
    cpu_step: Literal["auto", "compiled", "torch"] = "auto"
    #: Type in which the compiled step stores its matrices; sums are float32.
    weights: Weights = "float32"

    def __post_init__(self) -> None:
        for name in ("cpu_step", "weights"):
            allowed = get_args(get_type_hints(type(self))[name])
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(allowed)}")
        for name, value in vars(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")
        if self.block_size % 16:
            raise ValueError(
                f"block_size is {self.block_size}, but must be a multiple of 16: attention rounds by 16 positions"
            )
        if self.max_step_tokens < self.max_num_seqs + self.prefill_chunk:
            raise ValueError(
                f"max_step_tokens is {self.max_step_tokens}, but must be at least max_num_seqs + prefill_chunk "
                f"({self.max_num_seqs + self.prefill_chunk}): a step decodes every sequence and reads a prompt"
            )
