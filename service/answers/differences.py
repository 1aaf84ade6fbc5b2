"""Where the default and the steered variant of a choice first differ, and by which neurons. Knows no transport."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.request import Event, FinishEvent, TokenEvent
from service.requests.planning import Plan
from service.text import TextTokenizer
from topk_model.traces import TraceChunk, concatenate


@dataclass(frozen=True, kw_only=True)
class TokenDifference:
    """The first generated token that differs; null in the variant that has ended before it."""

    position: int
    default_token_id: int | None
    default_token: str | None
    steered_token_id: int | None
    steered_token: str | None


@dataclass(frozen=True, kw_only=True)
class NeuronDifference:
    """A neuron's value, or the mean of its values, in both variants."""

    layer: int
    neuron: int
    default: float
    steered: float
    difference: float  # steered less default


@dataclass(frozen=True, kw_only=True)
class StateDifference:
    """The first state that differs, by position and then by layer."""

    position: int
    layer: int
    neurons: tuple[NeuronDifference, ...]  # largest differences first


@dataclass(frozen=True, kw_only=True)
class VariantDifference:
    """How the two variants of one choice part."""

    default_choice: int  # index
    steered_choice: int
    num_shared_tokens: int  # that both begin with, the prompt's included
    token: TokenDifference | None  # None: both wrote the same
    state: StateDifference | None  # None: no state that is traced differs
    neurons: tuple[NeuronDifference, ...]  # means over the shared tokens, largest differences first


class Differences:
    """Collects what the rows of a plan do, until they can be compared."""

    def __init__(self, plan: Plan, tokenizer: TextTokenizer) -> None:
        self._plan, self._tokenizer = plan, tokenizer
        self._chunks: list[list[TraceChunk]] = [[] for _ in plan.rows]
        self._ids: list[list[int]] = [list(row.request.prompt_ids) for row in plan.rows]

    def add(self, row: int, event: Event) -> None:
        if isinstance(event, FinishEvent):
            return
        if event.trace is not None:
            self._chunks[row].append(event.trace)
        if isinstance(event, TokenEvent):
            self._ids[row].append(event.token_id)

    def found(self) -> list[VariantDifference]:
        """One for each pair of variants, once all rows have ended."""
        num_pairs = len(self._plan.rows) // 2
        return [self._compare(row, row + num_pairs) for row in range(num_pairs)]

    def _compare(self, default: int, steered: int) -> VariantDifference:
        row = self._plan.rows[default]
        ids = self._ids[default], self._ids[steered]
        num_shared = next((i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b), min(map(len, ids)))
        chunks = self._chunks[default], self._chunks[steered]
        state: StateDifference | None = None
        neurons: tuple[NeuronDifference, ...] = ()
        if all(chunks):
            spec = row.request.trace
            assert spec is not None
            traces = [concatenate(chunk) for chunk in chunks]
            state = first_state(traces, spec.layers, self._plan.differences)
            neurons = means(traces, spec.layers, num_shared, self._plan.differences)
        return VariantDifference(
            default_choice=row.index,
            steered_choice=self._plan.rows[steered].index,
            num_shared_tokens=num_shared,
            token=self._token(num_shared, *ids) if max(map(len, ids)) > num_shared else None,
            state=state,
            neurons=neurons,
        )

    def _token(self, at: int, default: Sequence[int], steered: Sequence[int]) -> TokenDifference:
        ids = [tokens[at] if at < len(tokens) else None for tokens in (default, steered)]
        texts = [None if one is None else self._tokenizer.token_text(one) for one in ids]
        return TokenDifference(
            position=at,
            default_token_id=ids[0],
            default_token=texts[0],
            steered_token_id=ids[1],
            steered_token=texts[1],
        )


def first_state(traces: Sequence[TraceChunk], layers: Sequence[int], count: int) -> StateDifference | None:
    """The first of the states, which begin at one position, that is not the same in both traces."""
    one, other = traces
    num_states = len(layers) * min(one.num_tokens, other.num_tokens)
    ends = [trace.offsets[1 : num_states + 1] for trace in traces]
    different = np.flatnonzero(ends[0] != ends[1])
    state = int(different[0]) if len(different) else num_states
    num_entries = int(one.offsets[state])
    is_other = one.indices[:num_entries] != other.indices[:num_entries]
    is_other |= one.values[:num_entries] != other.values[:num_entries]
    entries = np.flatnonzero(is_other)
    if len(entries):
        state = int(np.searchsorted(one.offsets, entries[0], side="right")) - 1
    if state == num_states:
        return None
    values: list[dict[int, float]] = []
    for trace in traces:
        part = slice(*trace.offsets[state : state + 2])
        values.append(dict(zip(trace.indices[part].tolist(), trace.values[part].tolist(), strict=True)))
    layer = layers[state % len(layers)]
    changed = [
        difference_of(layer, neuron, values[0].get(neuron, 0.0), values[1].get(neuron, 0.0))
        for neuron in sorted(values[0].keys() | values[1].keys())
        if values[0].get(neuron) != values[1].get(neuron)
    ]
    changed.sort(key=lambda one: -abs(one.difference))
    return StateDifference(
        position=one.first_position + state // len(layers), layer=layer, neurons=tuple(changed[:count])
    )


def means(
    traces: Sequence[TraceChunk], layers: Sequence[int], num_shared: int, count: int
) -> tuple[NeuronDifference, ...]:
    """The neurons whose mean values over the tokens that both begin with differ most."""
    num_tokens = min(num_shared - traces[0].first_position, *(trace.num_tokens for trace in traces))
    if num_tokens <= 0:
        return ()
    width = 1 + max(int(trace.indices.max(initial=0)) for trace in traces)
    default, steered = (mean_values(trace, len(layers), num_tokens, width) for trace in traces)
    difference = steered - default
    order = np.argsort(-np.abs(difference), axis=None, kind="stable")[:count]
    found = [divmod(int(at), width) for at in order if difference.flat[at]]
    return tuple(
        difference_of(layers[place], neuron, float(default[place, neuron]), float(steered[place, neuron]))
        for place, neuron in found
    )


def mean_values(trace: TraceChunk, num_layers: int, num_tokens: int, width: int) -> NDArray[np.float64]:
    """`[layers, width]`: mean values over the trace's first tokens."""
    offsets = trace.offsets[: num_tokens * num_layers + 1]
    places = np.repeat(np.arange(len(offsets) - 1) % num_layers, np.diff(offsets))
    entries = slice(0, int(offsets[-1]))
    at = places * width + trace.indices[entries]
    sums = np.bincount(at, trace.values[entries].astype(np.float64), minlength=num_layers * width)
    return sums.reshape(num_layers, width) / num_tokens


def difference_of(layer: int, neuron: int, default: float, steered: float) -> NeuronDifference:
    return NeuronDifference(layer=layer, neuron=neuron, default=default, steered=steered, difference=steered - default)
