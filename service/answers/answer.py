"""Answers as they are generated: events of sequences become text with its tokens, traces and receipts.

The same steps make a complete reply and the parts of a stream, so that the parts together equal the complete reply.
Knows no engine and no transport.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, cast

import numpy as np

from service.answers.differences import Differences, VariantDifference
from service.answers.fields import Usage
from service.answers.warnings import receipt_warnings
from service.engine.request import Event, FinishEvent, FinishReason, PromptEvent, TokenEvent
from service.observability.metrics import ModelMetrics, Transport
from service.requests.facts import ModelFacts
from service.requests.planning import Plan, PlannedRow
from service.text import StreamedToken, TextDelta, TextTokenizer
from topk_model.interventions import Receipt
from topk_model.traces import Trace, TraceChunk, concatenate

Kind = Literal["completion", "chat"]

_ID_PREFIXES = {"completion": "cmpl-", "chat": "chatcmpl-"}


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """What is new in one choice."""

    text: str
    tokens: tuple[StreamedToken, ...]
    trace: Trace | None
    finish_reason: FinishReason | None  # None until the choice is complete
    receipts: tuple[Receipt, ...] = ()
    is_first: bool = False


class Choice:
    """One sequence's answer."""

    def __init__(self, row: PlannedRow, plan: Plan, facts: ModelFacts, tokenizer: TextTokenizer) -> None:
        self.row = row
        self._facts = facts
        self._tokenizer = tokenizer
        self._stream = plan.text_stream(row, tokenizer)
        self._text: list[str] = []
        self._tokens: list[StreamedToken] = []
        self._prompt_traces: list[TraceChunk] = []
        self._end: FinishEvent | None = None
        self._num_taken = 0
        self._shows_trace = plan.trace is not None

    @property
    def is_finished(self) -> bool:
        return self._end is not None

    @property
    def num_generated(self) -> int:
        return self._stream.num_generated

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        return self._end.receipts if self._end is not None else ()

    def add(self, events: Sequence[Event]) -> None:
        """Add the sequence's next events."""
        for kind, group in groupby(events, type):
            if kind is TokenEvent:
                self._grow(self._stream.generated(list(cast(Iterator[TokenEvent], group))))
                continue
            for event in group:
                if isinstance(event, PromptEvent):
                    self._grow(self._stream.prompt(event))
                    if event.trace is not None:
                        self._prompt_traces.append(event.trace)
                elif isinstance(event, FinishEvent):
                    self._grow(self._stream.finish())
                    self._end = event

    def _grow(self, delta: TextDelta) -> None:
        if delta.text:
            self._text.append(delta.text)
        self._tokens += delta.tokens

    def take(self) -> Fragment | None:
        """What is new since the last call; None if there is nothing to show."""
        traces = self._prompt_traces + [token.trace for token in self._tokens if token.trace is not None]
        traces = traces if self._shows_trace else []
        if not (self._text or self._tokens or traces or self._end is not None):
            return None
        fragment = Fragment(
            text="".join(self._text),
            tokens=tuple(self._tokens),
            trace=self._trace(traces) if self._shows_trace else None,
            finish_reason=self._end.reason if self._end is not None else None,
            receipts=self.receipts,
            is_first=self._num_taken == 0,
        )
        self._num_taken += 1
        self._text, self._tokens, self._prompt_traces = [], [], []
        return fragment

    def _trace(self, chunks: Sequence[TraceChunk]) -> Trace:
        spec, prompt_ids = self.row.request.trace, self.row.request.prompt_ids
        assert spec is not None
        ids: list[int] = []
        for chunk in self._prompt_traces:
            ids += prompt_ids[chunk.first_position : chunk.first_position + chunk.num_tokens]
        num_prompt = len(ids)
        ids += [token.token_id for token in self._tokens if token.trace is not None]
        return Trace(
            model=self._facts.id,
            checkpoint=self._facts.checkpoint,
            k=self._facts.k,
            hidden_size=self._facts.hidden_size,
            layers=spec.layers,
            token_ids=tuple(ids),
            tokens=tuple(map(self._tokenizer.token_text, ids)),
            phases=tuple("prompt" if i < num_prompt else "generated" for i in range(len(ids))),
            is_special=tuple(token_id in self._facts.special_ids for token_id in ids),
            chunk=concatenate(chunks) if chunks else _EMPTY_CHUNK,
        )


_EMPTY_CHUNK = TraceChunk(
    first_position=0,
    num_tokens=0,
    offsets=np.zeros(1, dtype=np.int64),
    indices=np.empty(0, dtype=np.int32),
    values=np.empty(0, dtype=np.float32),
)


class Answer:
    """All choices of one request."""

    def __init__(
        self,
        plan: Plan,
        kind: Kind,
        *,
        request_id: str,
        facts: ModelFacts,
        tokenizer: TextTokenizer,
        metrics: ModelMetrics,
        include_usage: bool = False,
        continuous_usage: bool = False,
    ) -> None:
        self.plan = plan
        self.kind = kind
        self.choices = [Choice(row, plan, facts, tokenizer) for row in plan.rows]
        self._id = _ID_PREFIXES[kind] + request_id
        self.facts = facts
        self.tokenizer = tokenizer
        self._metrics = metrics
        self.include_usage = include_usage
        self.continuous_usage = continuous_usage
        self._created = int(time.time())
        self._told: set[int] = set()
        self._differences = Differences(plan, tokenizer) if plan.differences else None

    def add(self, events: Sequence[tuple[int, Event]]) -> None:
        """Add events: (row, event)."""
        if len(self.choices) == 1:
            self.choices[0].add([event for _, event in events])
            return
        by_row: dict[int, list[Event]] = {}
        for row, event in events:
            by_row.setdefault(row, []).append(event)
            if self._differences is not None:
                self._differences.add(row, event)
        for row, own in by_row.items():
            self.choices[row].add(own)

    @property
    def usage(self) -> Usage:
        return Usage.of(self.plan.num_prompt_tokens, sum(choice.num_generated for choice in self.choices))

    @property
    def warnings(self) -> list[str]:
        return [text for choice in self.choices for text in self.warnings_of(choice)]

    @property
    def differences(self) -> list[VariantDifference] | None:
        """Of each pair of variants, once all choices are finished; None if they were not asked for."""
        return None if self._differences is None else self._differences.found()

    @property
    def head(self) -> dict[str, Any]:
        """The fields with which every message of the answer begins."""
        return {"id": self._id, "created": self._created, "model": self.facts.id}

    def count_trace(self, transport: Transport, num_bytes: int) -> None:
        """Count a trace that is sent."""
        self._metrics.trace_bytes.labels(transport).inc(num_bytes)

    def warnings_of(self, choice: Choice) -> list[str]:
        row = choice.row
        return [*row.warnings, *receipt_warnings(choice.receipts, row.request, choice.num_generated, row.index)]

    def fragments(self) -> Iterator[tuple[Choice, Fragment]]:
        """What is new since the last call, for each choice."""
        for choice in self.choices:
            fragment = choice.take() if not self._is_told(choice) else None
            if fragment is not None:
                yield choice, fragment

    def _is_told(self, choice: Choice) -> bool:
        """Whether the end of the choice has been sent; marks it as sent."""
        if choice.row.index in self._told:
            return True
        if choice.is_finished:
            self._told.add(choice.row.index)
        return False
