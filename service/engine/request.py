"""The engine's input and output: requests of token ids and edits, and typed events. No text, no HTTP."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from topk_model.interventions import Intervention, Receipt
from topk_model.traces import TraceChunk, TraceSpec

#: "overflow": the edits drove the model's output to infinity; "error": a fault of ours.
FinishReason = Literal["stop", "length", "abort", "deadline", "overflow", "error"]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen; the neutral values turn a rule off."""

    temperature: float = 1.0  # 0: the most probable token
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0
    presence_penalty: float = 0.0  # counted over generated tokens
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    seed: int = 0  # always set: a caller without one draws one

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One sequence to run. All of the user's input has been validated before."""

    request_id: str
    prompt_ids: tuple[int, ...]  # at least one
    max_tokens: int  # 0: only read the prompt
    sampling: SamplingParams = SamplingParams()
    ignore_eos: bool = False
    logprobs: int | None = None  # number of most probable tokens to report besides the chosen one; None: not computed
    prompt_logprobs: int | None = None  # the same for the prompt's own tokens
    interventions: tuple[Intervention, ...] = ()
    trace: TraceSpec | None = None
    deadline: float | None = None  # time.monotonic() after which the request is dropped
    is_stop: Callable[[int], bool] | None = None  # called with every generated token in order; true ends the sequence

    @property
    def num_positions(self) -> int:
        """Maximum number of positions that the sequence can occupy."""
        return len(self.prompt_ids) + self.max_tokens


@dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """Log-probabilities under the model's own distribution, before temperature, penalties and bias; nats."""

    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, logprob), most probable first


@dataclass(frozen=True, kw_only=True)
class PromptEvent:
    """A part of the prompt has been read."""

    num_tokens: int
    num_cached: int = 0  # of these, tokens that were found in the prefix cache
    logprobs: tuple[TokenLogprobs | None, ...] = ()  # one per token; None for the first, which nothing predicts
    trace: TraceChunk | None = None  # of the tokens that the request traces
    admitted_at: float = 0.0  # time.monotonic() when the sequence left the queue


# One for each token: a frozen class would take three times as long to make.
@dataclass(slots=True, kw_only=True)
class TokenEvent:
    """A token was generated; this includes the end token. With a trace it comes one step later, once the token itself
    has been read."""

    token_id: int
    is_end: bool = False  # it ends the text and is not part of it
    logprobs: TokenLogprobs | None = None
    trace: TraceChunk | None = None


@dataclass(frozen=True, kw_only=True)
class FinishEvent:
    """The last event of every request, however it ended."""

    reason: FinishReason
    receipts: tuple[Receipt, ...] = ()  # one for each intervention, in the request's order
    error: str | None = None  # what went wrong, for reasons "overflow" and "error"; safe to show to the client


Event = PromptEvent | TokenEvent | FinishEvent
