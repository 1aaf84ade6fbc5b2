"""Turns requests into events, step by step. Knows no thread."""

import logging
from collections.abc import Iterable

from service.engine.config import EngineConfig
from service.engine.native.choice import make_runner
from service.engine.request import (
    EngineRequest,
    Event,
    FinishEvent,
    FinishReason,
    PromptEvent,
    TokenEvent,
    TokenLogprobs,
)
from service.engine.scheduler import Scheduler
from service.engine.sequence import Piece, PieceResult, Sequence
from topk_model.interventions import Receipt
from topk_model.modeling import TopKLMForCausalLM
from topk_model.traces import TraceChunk

logger = logging.getLogger(__name__)


class EngineCore:
    """Scheduler and runner, for use in one thread."""

    def __init__(
        self, model: TopKLMForCausalLM, config: EngineConfig, special_ids: Iterable[int] | None = None
    ) -> None:
        self.config = config
        self.runner = make_runner(model, config, special_ids)
        self.scheduler = Scheduler(config, self.runner.close, is_cut_free=self.runner.is_cut_free)
        self.num_prompt_tokens = self.num_generated_tokens = self.num_steps = 0
        self._events: list[tuple[str, Event]] = []

    def check(self, request: EngineRequest) -> None:
        """Raises ValueError if the request could never be admitted."""
        vocab_size = self.runner.shape.vocab_size
        if not request.prompt_ids or request.max_tokens < 0:
            raise ValueError("a request needs at least one prompt token and a max_tokens of at least 0")
        if not all(0 <= token_id < vocab_size for token_id in request.prompt_ids):
            raise ValueError(f"a prompt token is not in the vocabulary of {vocab_size}")
        self.runner.edits.check(request.interventions)
        if request.trace is not None and not set(request.trace.layers) <= set(self.runner.shape.topk_layers):
            raise ValueError(f"layers {request.trace.layers} to trace are not all TopK layers")
        needed = self.scheduler.num_blocks_of(request.num_positions)
        if needed > self.config.num_blocks:
            raise ValueError(
                f"the request needs {needed} KV blocks ({request.num_positions} positions), but the engine has "
                f"{self.config.num_blocks}"
            )

    @property
    def is_idle(self) -> bool:
        return not self.scheduler.running and not self.scheduler.waiting

    def add(self, request: EngineRequest) -> None:
        self.scheduler.add(request)

    def finish(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        """End a sequence, whether waiting or running, and free all its resources."""
        receipts: tuple[Receipt, ...] = ()
        if sequence.slot >= 0:
            receipts = self.runner.receipts(sequence)
        self.scheduler.remove(sequence, is_sound=reason != "error")
        self._emit(sequence, FinishEvent(reason=reason, receipts=receipts, error=error))

    def take_events(self) -> list[tuple[str, Event]]:
        """The events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def step(self, now: float) -> None:
        """Drop sequences past their deadlines, admit others, run one step, and record its events."""
        for sequence in self.scheduler.all():
            if sequence.request.deadline is not None and now > sequence.request.deadline:
                self.finish(sequence, "deadline")
        for sequence in self.scheduler.admit():
            sequence.admitted_at = now
            try:
                self.runner.open(sequence)
                if sequence.tally is not None:
                    self.runner.edits.go_on_from(sequence.slot, *sequence.tally)
            except Exception:
                logger.exception("%s cannot be started; dropping it", sequence.request_id)
                self.finish(sequence, "error", "internal error in the engine")
        pieces = self.scheduler.plan()
        if not pieces:
            return
        try:
            results = self.runner.run(pieces)
        except Exception:
            # A fault of ours: the sequences in the step are lost, those that wait are not.
            logger.exception("a step failed; dropping its %d sequences", len(pieces))
            for piece in pieces:
                self.finish(piece.sequence, "error", "internal error in the engine")
            return
        self.num_steps += 1
        for piece, result in zip(pieces, results, strict=True):
            self._advance(piece, result)

    def _emit(self, sequence: Sequence, event: Event) -> None:
        self._events.append((sequence.request_id, event))

    def _emit_token(self, sequence: Sequence, logprobs: TokenLogprobs | None, trace: TraceChunk | None) -> None:
        """Emit the sequence's last token."""
        token_id = sequence.output_ids[-1]
        is_end = self._is_end(sequence, token_id)
        self._emit(sequence, TokenEvent(token_id=token_id, is_end=is_end, logprobs=logprobs, trace=trace))

    def _is_end(self, sequence: Sequence, token_id: int) -> bool:
        """Whether a drawn token ends the sequence's text."""
        return token_id in self.runner.eos_ids and not sequence.request.ignore_eos

    def _advance(self, piece: Piece, result: PieceResult) -> None:
        """Advance one sequence by the result of its piece."""
        sequence = piece.sequence
        if not result.is_finite:
            if sequence.request.interventions:
                self.finish(sequence, "overflow", "the interventions drove the model's output to infinity")
            else:
                self.finish(sequence, "error", "the model's output is not finite")
            return
        sequence.num_read = piece.end
        if piece.is_repeated:
            return
        sequence.num_known = piece.end
        if piece.end % self.config.block_size == 0 or piece.is_prefill:
            self._keep(sequence, has_drawn=result.token_id is not None)
        if piece.start < sequence.num_prompt:
            self.num_prompt_tokens += piece.num_tokens
            self._emit(
                sequence,
                PromptEvent(
                    num_tokens=sequence.num_cached + piece.num_tokens,
                    num_cached=sequence.num_cached,
                    logprobs=result.prompt_logprobs,
                    trace=result.trace,
                    admitted_at=sequence.admitted_at,
                ),
            )
            sequence.num_cached = 0
        elif sequence.is_holding:
            sequence.is_holding = False
            self._emit_token(sequence, sequence.held_logprobs, result.trace)
        if sequence.finish_reason is not None:
            self.finish(sequence, sequence.finish_reason)
        elif result.token_id is not None:
            self._append(sequence, result.token_id, result)
        elif not sequence.is_prefilling:
            self.finish(sequence, "length")  # max_tokens is 0

    def _keep(self, sequence: Sequence, *, has_drawn: bool) -> None:
        """Offer the blocks that the sequence has filled to others."""
        is_shared = self.scheduler.prefixes.is_kept_up_to(sequence, sequence.num_read)
        if is_shared and (edits := self.scheduler.prefixes.begun(sequence, sequence.num_read)):
            sequence.tallies[sequence.num_read] = self.runner.edits.tally_of(sequence.slot, edits)
        # Only finite logits prove that the edits have not driven a state to infinity.
        if has_drawn or not sequence.request.interventions:
            self.scheduler.keep(sequence)

    def _append(self, sequence: Sequence, token_id: int, result: PieceResult) -> None:
        """Accept a drawn token, even an end token, and end the sequence if it is the last."""
        request = sequence.request
        sequence.output_ids.append(token_id)
        self.num_generated_tokens += 1
        reason: FinishReason | None = "stop" if self._is_end(sequence, token_id) else None
        try:
            if reason is None and request.is_stop is not None and request.is_stop(token_id):
                reason = "stop"
        except Exception:
            logger.exception("the stop condition of %s failed", request.request_id)
            self.finish(sequence, "error", "internal error in the stop condition")
            return
        if reason is None and len(sequence.output_ids) == request.max_tokens:
            reason = "length"
        sequence.finish_reason = reason
        if request.trace is not None and request.trace.covers(sequence.num_tokens - 1):
            sequence.is_holding, sequence.held_logprobs = True, result.logprobs
            return
        self._emit_token(sequence, result.logprobs, None)
        if reason is not None:
            self.finish(sequence, reason)
