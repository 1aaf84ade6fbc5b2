"""A request in the engine, the piece of it that one step reads, and the result of that piece."""

from dataclasses import dataclass, field

from torch import Tensor

from service.engine.request import EngineRequest, FinishReason, TokenLogprobs
from topk_model.traces import TraceChunk


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One request in the engine."""

    request: EngineRequest
    num_prompt: int = field(init=False)  # tokens
    slot: int = -1  # row in the per-sequence tables while running
    admitted_at: float = 0.0  # time.monotonic() when it left the queue
    blocks: list[int] = field(default_factory=list)
    num_read: int = 0  # tokens whose keys and values are cached
    num_known: int = 0  # tokens that have ever been read: the maximum of num_read before preemptions
    output_ids: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)  # of its first full blocks, as far as they have been computed
    num_kept: int = 0  # blocks at its start that are in the prefix cache, or that another block was there for
    num_cached: int = 0  # prompt tokens found in the prefix cache that no event has reported yet
    #: Which of its edits were applied there, and their tallies.
    tally: tuple[list[int], tuple[Tensor, ...]] | None = None
    tallies: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)  # of its edits, by the number of tokens read
    #: Set once the last token is known; a traced sequence still reads that token before it ends.
    finish_reason: FinishReason | None = None
    #: Log-probabilities of the last token, kept until its trace is available.
    held_logprobs: TokenLogprobs | None = None
    is_holding: bool = False

    def __post_init__(self) -> None:
        self.num_prompt = len(self.request.prompt_ids)

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_tokens(self) -> int:
        return self.num_prompt + len(self.output_ids)

    @property
    def is_preempted(self) -> bool:
        """Whether the sequence has lost its blocks and waits to read its tokens again."""
        return self.slot >= 0 and not self.blocks

    @property
    def is_prefilling(self) -> bool:
        return self.num_read < self.num_prompt

    def tokens(self, start: int, end: int) -> list[int]:
        """Its tokens at positions `[start, end)`."""
        own = list(self.request.prompt_ids[start:end])
        return own + self.output_ids[max(0, start - self.num_prompt) : max(0, end - self.num_prompt)]

    def token_at(self, position: int) -> int:
        if position < self.num_prompt:
            return self.request.prompt_ids[position]
        return self.output_ids[position - self.num_prompt]


@dataclass(slots=True, kw_only=True, eq=False)
class Piece:
    """The tokens `[start, end)` of one sequence that one step reads."""

    sequence: Sequence
    start: int
    end: int

    @property
    def num_tokens(self) -> int:
        return self.end - self.start

    @property
    def is_prefill(self) -> bool:
        return self.start < self.sequence.num_prompt

    @property
    def samples(self) -> bool:
        """Whether a next token is drawn after this piece."""
        sequence = self.sequence
        return sequence.finish_reason is None and self.end == sequence.num_tokens and sequence.request.max_tokens > 0

    @property
    def is_repeated(self) -> bool:
        """Whether the piece was already read before its sequence was preempted, so that its events were emitted."""
        return self.end <= self.sequence.num_known

    @property
    def counts(self) -> bool:
        """Whether its edits are counted in the receipts. Reading the last token for its trace does not count."""
        return self.sequence.finish_reason is None and not self.is_repeated

    @property
    def traced_range(self) -> tuple[int, int] | None:
        """The positions of the piece that its request traces, half-open; None if there are none."""
        spec = self.sequence.request.trace
        if spec is None or self.end <= self.sequence.num_known:
            return None
        start, end = max(self.start, spec.start), self.end if spec.end is None else min(self.end, spec.end)
        return (start, end) if start < end else None


@dataclass(slots=True, kw_only=True, eq=False)
class PieceResult:
    """The result of one step for one piece."""

    token_id: int | None = None  # drawn after the piece
    logprobs: TokenLogprobs | None = None  # of that token
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()  # of the piece's own tokens
    trace: TraceChunk | None = None
    is_finite: bool = True  # false: logits or edited states hold infinities or NaN; the other fields are meaningless
