"""Turns a valid request into sequences for the engine: one row per choice, with its own seed, edits and trace.

Raises for anything that this model cannot serve. Knows no transport and runs nothing.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import product
from typing import Literal

from jinja2.exceptions import TemplateError

from service.engine.request import EngineRequest
from service.errors import BadRequestError, UnfitTextError
from service.requests.advice import late_edits, unread_special
from service.requests.conversation import Conversation
from service.requests.edit_schema import (
    InterventionSpec,
    PresetSpec,
    TraceRequest,
)
from service.requests.facts import ModelFacts
from service.requests.limits import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_TIMEOUT_S,
    MAX_GENERATED_TOKENS,
    MAX_ROWS,
    MAX_TRACE_ENTRIES,
)
from service.requests.neuron_schema import NeuronSearchRequest
from service.requests.resolving import (
    Prompt,
    PromptValue,
    check_length,
    check_text_length,
    given,
    num_prompts,
    read_prompt,
    read_prompts,
    resolve_interventions,
    resolve_sampling,
    resolve_trace,
)
from service.requests.schema import (
    ActivationsRequest,
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
)
from service.text import StopChecker, TextStream, TextTokenizer
from topk_model.traces import PackedType

Variant = Literal["default", "steered"]


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """One sequence, and the choice of the response that it becomes."""

    index: int
    prompt_index: int
    variant: Variant | None  # None without compare
    request: EngineRequest
    prompt_text: str | None = None  # as sent; None if token ids were sent
    warnings: tuple[str, ...] = ()  # known before anything ran


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request as the engine runs it. Rows are in the order of the response's choices."""

    rows: tuple[PlannedRow, ...]
    num_prompt_tokens: int  # each prompt counted once, as in the usage
    trace: TraceRequest | None = None
    differences: int = 0  # neurons to name of each pair of variants; 0: the variants are not compared
    echo: bool = False
    stop: tuple[str, ...] = ()

    @property
    def dtype(self) -> PackedType:
        """Type of the values of packed traces."""
        return "float32" if self.trace is None else self.trace.dtype

    def text_stream(self, row: PlannedRow, tokenizer: TextTokenizer) -> TextStream:
        """The stream that turns this row's events into text."""
        return TextStream(
            tokenizer,
            prompt_ids=row.request.prompt_ids,
            prompt_text=row.prompt_text,
            echo=self.echo,
            stop=self.stop,
            keeps_tokens=row.request.logprobs is not None or row.request.trace is not None,
        )


class Planner:
    """Plans the requests to one model.

    Every method raises BadRequestError for what the model cannot serve, and names its sequences `{request_id}-{row}`.

    Args:
        timeout_s: the timeout of a request that gives none.
        max_positions: maximum length of a sequence in the engine (default: the model's context).
    """

    def __init__(
        self,
        facts: ModelFacts,
        tokenizer: TextTokenizer,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_positions: int | None = None,
    ) -> None:
        self.facts = facts
        self.max_positions = min(facts.context_length, given(max_positions, facts.context_length))
        self.tokenizer = tokenizer
        self.timeout_s = timeout_s

    def completion(self, request: CompletionRequest, request_id: str) -> Plan:
        """Sequences of a completion request."""
        max_tokens = given(request.token_limit, DEFAULT_MAX_TOKENS)
        check_rows(request, num_prompts(request.prompt), max_tokens)
        prompts = self._prompts(request.prompt, "prompt", request.parse_special)
        for prompt in prompts:
            check_length(prompt, max_tokens, self.facts, self.max_positions)
        logprobs, echo = request.logprobs, bool(request.echo)
        plan = self._generation(request, prompts, max_tokens, request_id, logprobs=logprobs, echo=echo)
        return self._with_warnings(plan, prompts, request.parse_special)

    def chat(self, request: ChatCompletionRequest, request_id: str) -> Plan:
        """Sequences of a chat completion request."""
        facts = self.facts
        if not facts.has_chat_template:
            raise BadRequestError(
                f"model {facts.id} has no chat template: it only continues text; use /v1/completions", param="model"
            )
        try:
            said = Conversation(self.tokenizer, [message.as_template_fields() for message in request.messages])
        except (TemplateError, ValueError, TypeError) as error:
            raise BadRequestError(
                f"messages were rejected by the model's chat template: {error}", param="messages"
            ) from None
        check_text_length(said.text, "messages", facts, self.tokenizer)
        prompt = Prompt(path="messages", ids=said.encode())
        rest = min(self.max_positions - len(prompt.ids), MAX_GENERATED_TOKENS // num_rows(request, 1))
        max_tokens = given(request.token_limit, max(1, rest))
        check_rows(request, 1, max_tokens)
        check_length(prompt, max_tokens, facts, self.max_positions)
        logprobs = given(request.top_logprobs, 0) if request.logprobs else None
        return self._generation(request, [prompt], max_tokens, request_id, logprobs=logprobs, echo=False)

    def activations(self, request: ActivationsRequest, request_id: str) -> Plan:
        """Sequences of an activations request, one per input."""
        prompts = self._prompts(request.input, "input", request.parse_special)
        rows = self._reading(prompts, request.trace, request.interventions, request.timeout_s, request_id)
        check_trace_size(rows, self.facts)
        plan = Plan(rows=rows, num_prompt_tokens=sum(len(p.ids) for p in prompts), trace=request.trace)
        return self._with_warnings(plan, prompts, request.parse_special)

    def search(self, request: NeuronSearchRequest, request_id: str) -> Plan:
        """Sequences of a search: the text, or the positive and then the negative texts.

        Their complete traces are counted but not stored, so only the size of the texts is limited.
        """
        if request.contrast is None:
            texts = [("text", request.text or "")]
        else:
            sides = ("positive", request.contrast.positive), ("negative", request.contrast.negative)
            texts = [(f"contrast.{side}[{i}]", text) for side, several in sides for i, text in enumerate(several)]
        prompts = [read_prompt(text, path, self.facts, self.tokenizer) for path, text in texts]
        rows = self._reading(prompts, TraceRequest(), (), request.timeout_s, request_id)
        return Plan(rows=rows, num_prompt_tokens=sum(len(p.ids) for p in prompts))

    def _prompts(self, value: PromptValue, path: str, parse_special: bool | None) -> list[Prompt]:
        return read_prompts(value, path, self.facts, self.tokenizer, parse_special=bool(parse_special))

    def _with_warnings(self, plan: Plan, prompts: Sequence[Prompt], parse_special: bool | None) -> Plan:
        """The plan with a warning for each prompt that may be a mistake, on the first of its rows."""
        unread = {
            at: unread_special(prompt.path, special)
            for at, prompt in enumerate(prompts)
            if parse_special is None
            and prompt.text is not None
            and (special := self.tokenizer.first_special(prompt.text)) is not None
        }
        if not unread:
            return plan
        rows = []
        for row in plan.rows:
            told = unread.pop(row.prompt_index, None)
            rows.append(row if told is None else replace(row, warnings=(*row.warnings, told)))
        return replace(plan, rows=tuple(rows))

    def _deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + given(timeout_s, self.timeout_s)

    def _reading(
        self,
        prompts: Sequence[Prompt],
        trace: TraceRequest,
        interventions: Sequence[InterventionSpec | PresetSpec],
        timeout_s: float | None,
        request_id: str,
    ) -> tuple[PlannedRow, ...]:
        """One row per prompt, which is traced but not continued."""
        deadline = self._deadline(timeout_s)
        rows = []
        for index, prompt in enumerate(prompts):
            check_length(prompt, 0, self.facts, self.max_positions)
            row = EngineRequest(
                request_id=f"{request_id}-{index}",
                prompt_ids=prompt.ids,
                max_tokens=0,
                interventions=resolve_interventions(interventions, prompt, 0, self.facts),
                trace=resolve_trace(trace, prompt, 0, self.facts),
                deadline=deadline,
            )
            rows.append(PlannedRow(index=index, prompt_index=index, variant=None, request=row))
        return tuple(rows)

    def _generation(
        self,
        request: GenerationRequest,
        prompts: Sequence[Prompt],
        max_tokens: int,
        request_id: str,
        *,
        logprobs: int | None,
        echo: bool,
    ) -> Plan:
        """Rows in the order variant, prompt, choice. Both variants of a choice share its seed."""
        facts, stop = self.facts, request.stop_strings
        # To tell variants apart, their states have to be known, whether or not they are returned.
        trace = request.trace or (TraceRequest() if request.differences is not None else None)
        sampling, deadline = resolve_sampling(request, facts), self._deadline(request.timeout_s)
        seeds = [given(request.seed, secrets.randbits(63)) for _ in prompts]
        edits = [resolve_interventions(request.interventions, prompt, max_tokens, facts) for prompt in prompts]
        traces = [None if trace is None else resolve_trace(trace, prompt, max_tokens, facts) for prompt in prompts]
        variants: tuple[Variant | None, ...] = ("default", "steered") if request.compare else (None,)
        rows: list[PlannedRow] = []
        late = late_edits(edits, [len(prompt.ids) for prompt in prompts]) if max_tokens else ()
        for variant, (at, prompt), choice in product(variants, enumerate(prompts), range(given(request.n, 1))):
            index = len(rows)
            row = EngineRequest(
                request_id=f"{request_id}-{index}",
                prompt_ids=prompt.ids,
                max_tokens=max_tokens,
                sampling=replace(sampling, seed=row_seed(seeds[at], choice)),
                ignore_eos=bool(request.ignore_eos),
                logprobs=logprobs,
                prompt_logprobs=logprobs if echo else None,
                interventions=() if variant == "default" else edits[at],
                trace=traces[at],
                deadline=deadline,
                is_stop=StopChecker(self.tokenizer, stop) if stop else None,
            )
            planned = PlannedRow(index=index, prompt_index=at, variant=variant, request=row, prompt_text=prompt.text)
            if late and row.interventions:  # once per request
                planned, late = replace(planned, warnings=late), ()
            rows.append(planned)
        check_trace_size(rows, facts)
        num_prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        return Plan(
            rows=tuple(rows),
            num_prompt_tokens=num_prompt_tokens,
            trace=request.trace,
            differences=request.differences or 0,
            echo=echo,
            stop=stop,
        )


def row_seed(seed: int, choice: int) -> int:
    """The seed of one of n choices: 63 bits that depend on the request's seed and the choice's index only."""
    return int.from_bytes(blake2b(f"{seed}/{choice}".encode(), digest_size=8).digest()) >> 1


def num_rows(request: GenerationRequest, num_prompts: int) -> int:
    return num_prompts * given(request.n, 1) * (2 if request.compare else 1)


def check_rows(request: GenerationRequest, num_prompts: int, max_tokens: int) -> None:
    rows = num_rows(request, num_prompts)
    if rows > MAX_ROWS:
        raise BadRequestError(
            f"n × prompts × variants is {rows}, must be at most {MAX_ROWS}", param="n" if request.n != 1 else "prompt"
        )
    if rows * max_tokens > MAX_GENERATED_TOKENS:
        raise BadRequestError(
            f"max_tokens × n × prompts × variants is {rows * max_tokens}, must be at most {MAX_GENERATED_TOKENS}",
            param="max_tokens",
        )


def check_trace_size(rows: Sequence[PlannedRow], facts: ModelFacts) -> None:
    entries = sum(num_trace_entries(row.request, facts) for row in rows)
    if entries > MAX_TRACE_ENTRIES:
        raise UnfitTextError(
            f"trace is too large: up to {entries} neurons, must be at most {MAX_TRACE_ENTRIES}; "
            "request fewer layers, positions or rows, or set top_n",
            param="trace",
        )


def num_trace_entries(request: EngineRequest, facts: ModelFacts) -> int:
    """Maximum number of entries in a row's trace, not counting neurons that edits force."""
    spec = request.trace
    if spec is None:
        return 0
    end = request.num_positions if spec.end is None else min(spec.end, request.num_positions)
    of_row = min(facts.k, given(spec.top_n, facts.k), facts.k if spec.neurons is None else len(spec.neurons))
    return (end - spec.start) * len(spec.layers) * of_row
