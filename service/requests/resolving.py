"""The parts of a request, checked against a model and resolved: prompts become token ids, layers lists, positions
absolute, units numbers. Every function raises BadRequestError for what the model cannot serve. Knows no engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

from service.engine.request import SamplingParams
from service.errors import BadRequestError, UnfitTextError, invalid, unfit
from service.requests.edit_schema import (
    ConditionSpec,
    InterventionSpec,
    PositionRange,
    PresetSpec,
    TraceRequest,
)
from service.requests.facts import ModelFacts
from service.requests.preset_edits import edit_of
from service.requests.schema import (
    GenerationRequest,
)
from service.text import TextTokenizer
from topk_model.interventions import Condition, Intervention
from topk_model.traces import TraceSpec

Value = TypeVar("Value")
PromptValue = str | list[str] | list[int] | list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt of a request, with its path there."""

    path: str
    ids: tuple[int, ...]
    text: str | None = None  # as sent; None if token ids were sent


def given(value: Value | None, default: Value) -> Value:
    return default if value is None else value


def several(value: PromptValue) -> list[str | list[int]] | None:
    """The prompts of a list; None if `value` is a single prompt."""
    if isinstance(value, list) and isinstance(value[0], str | list):
        return cast(list[str | list[int]], value)
    return None


def num_prompts(value: PromptValue) -> int:
    return len(several(value) or [value])


def read_prompts(
    value: PromptValue, path: str, facts: ModelFacts, tokenizer: TextTokenizer, *, parse_special: bool
) -> list[Prompt]:
    """Encode texts; check token ids and take them as they are."""
    many = several(value)
    read = partial(read_prompt, facts=facts, tokenizer=tokenizer, parse_special=parse_special)
    if many is None:
        return [read(cast(str | list[int], value), path)]
    return [read(one, f"{path}[{i}]") for i, one in enumerate(many)]


def read_prompt(
    value: str | list[int], path: str, facts: ModelFacts, tokenizer: TextTokenizer, *, parse_special: bool = False
) -> Prompt:
    if isinstance(value, list):
        check_token_ids(value, path, facts)
        return Prompt(path=path, ids=tuple(value))
    check_text_length(value, path, facts, tokenizer)
    ids = tokenizer.encode(value, parse_special=parse_special)
    if facts.bos_id is not None and ids[:2] == (facts.bos_id, facts.bos_id):
        raise unfit(path, "must not begin with the BOS token, which is put before every text", value)
    return Prompt(path=path, ids=ids, text=value)


def check_token_ids(ids: Sequence[int], path: str, facts: ModelFacts) -> None:
    """Raises UnfitTextError for an id outside the model's vocabulary."""
    for i, token in enumerate(ids):
        if token >= facts.vocab_size:
            raise unfit(f"{path}[{i}]", f"must be below the vocabulary's size ({facts.vocab_size})", token)


def check_text_length(text: str, path: str, facts: ModelFacts, tokenizer: TextTokenizer) -> None:
    """Raises UnfitTextError for a text that cannot fit the context, without encoding megabytes."""
    if (least := tokenizer.least_tokens(text)) > facts.context_length:
        raise too_long(path, f"at least {least}", f"the model's context is {facts.context_length}")


def check_length(prompt: Prompt, max_tokens: int, facts: ModelFacts, max_positions: int | None = None) -> None:
    """Check that a sequence fits into the model's context, and into the engine's cache of `max_positions`."""
    num_tokens = len(prompt.ids)
    limit = min(facts.context_length, given(max_positions, facts.context_length))
    what = f"the model's context is {limit}" if limit == facts.context_length else f"the KV cache has room for {limit}"
    if num_tokens + min(max_tokens, 1) > limit:
        raise too_long(prompt.path, str(num_tokens), what)
    if num_tokens + max_tokens > limit:
        raise BadRequestError(
            f"max_tokens must be at most {limit - num_tokens} for {prompt.path} of {num_tokens} tokens ({what}), got "
            f"{max_tokens}",
            param="max_tokens",
        )


def too_long(path: str, num_tokens: str, what: str) -> UnfitTextError:
    return UnfitTextError(
        f"{path} is too long: {num_tokens} tokens; {what}",
        param=path,
        code="context_length_exceeded",
    )


def resolve_sampling(request: GenerationRequest, facts: ModelFacts) -> SamplingParams:
    """Sampling parameters without the seed, which differs by row."""
    top_k = given(request.top_k, 0)
    if top_k > facts.vocab_size:
        raise invalid("top_k", f"must be at most the vocabulary's size ({facts.vocab_size})", top_k)
    bias = [(int(token), float(value)) for token, value in (request.logit_bias or {}).items()]
    for token, _ in bias:
        if token >= facts.vocab_size:
            raise invalid(f"logit_bias.{token}", f"must be below the vocabulary's size ({facts.vocab_size})", token)
    return SamplingParams(
        temperature=0.0 if request.is_greedy else given(request.temperature, 1.0),
        top_p=given(request.top_p, 1.0) or 1.0,
        top_k=max(top_k, 0),
        min_p=given(request.min_p, 0.0),
        presence_penalty=given(request.presence_penalty, 0.0),
        frequency_penalty=given(request.frequency_penalty, 0.0),
        logit_bias=tuple(bias),
    )


def resolve_interventions(
    specs: Sequence[InterventionSpec | PresetSpec], prompt: Prompt, max_tokens: int, facts: ModelFacts
) -> tuple[Intervention, ...]:
    return tuple(
        resolve_intervention(spec, f"interventions[{i}]", prompt, max_tokens, facts) for i, spec in enumerate(specs)
    )


def resolve_intervention(
    spec: InterventionSpec | PresetSpec, path: str, prompt: Prompt, max_tokens: int, facts: ModelFacts
) -> Intervention:
    if isinstance(spec, PresetSpec):
        spec = edit_of(spec, path, facts.presets, facts.id)
    layers = resolve_layers([spec.layer] if isinstance(spec.layer, int) else spec.layer, f"{path}.layer", facts)
    layers = tuple(sorted(layers))
    check_neuron(spec.neuron, f"{path}.neuron", facts)
    start, end = resolve_positions(spec.positions, f"{path}.positions", prompt, max_tokens)
    return Intervention(
        layers=layers,
        neuron=spec.neuron,
        op=spec.op,
        value=given(spec.value, 0.0),
        min=spec.min,
        max=spec.max,
        unit_values=resolve_unit(spec, layers, path, facts),
        site=spec.site,
        start=start,
        end=end,
        include_special=spec.include_special,
        conditions=tuple(
            resolve_condition(condition, f"{path}.when[{i}]", layers[0], facts) for i, condition in enumerate(spec.when)
        ),
    )


def resolve_layers(layers: Sequence[int] | str, path: str, facts: ModelFacts) -> tuple[int, ...]:
    if isinstance(layers, str):
        check_has_topk(path, facts)
        return facts.topk_layers
    for layer in layers:
        check_layer(layer, path, facts)
    return tuple(layers)


def check_has_topk(path: str, facts: ModelFacts) -> None:
    if not facts.topk_layers:
        raise BadRequestError(
            f"{path}: model {facts.id} has no TopK layers: all entries of its states are in use, so there are no "
            "neurons to trace or edit; topk train --init-from turns it into a TopK model",
            param=path,
            code="no_topk_layer",
        )


def check_layer(layer: int, path: str, facts: ModelFacts) -> None:
    if layer in facts.topk_layers:
        return
    check_has_topk(path, facts)
    if layer >= facts.num_layers:
        raise invalid(path, f"must be below the number of layers ({facts.num_layers})", layer)
    raise invalid(path, f"must be a TopK layer (0 to {facts.topk_layers[-1]}); layer {layer} is dense", layer)


def check_neuron(neuron: int, path: str, facts: ModelFacts) -> None:
    if neuron >= facts.hidden_size:
        raise invalid(path, f"must be below hidden_size ({facts.hidden_size})", neuron)


def resolve_condition(spec: ConditionSpec, path: str, first_layer: int, facts: ModelFacts) -> Condition:
    check_layer(spec.layer, f"{path}.layer", facts)
    if spec.layer > first_layer:
        raise invalid(f"{path}.layer", f"must be no later than the first edited layer ({first_layer})", spec.layer)
    check_neuron(spec.neuron, f"{path}.neuron", facts)
    return Condition(layer=spec.layer, neuron=spec.neuron, test=spec.test, value=given(spec.value, 0.0))


def resolve_unit(
    spec: InterventionSpec, layers: Sequence[int], path: str, facts: ModelFacts
) -> tuple[float, ...] | None:
    """The value of a unit in each layer; None if it depends on the position."""
    if spec.unit == "kth":
        return None
    if spec.unit != "max":
        return (1.0,) * len(layers)
    if facts.neuron_max is None:
        raise invalid(f"{path}.unit", f"needs a neuron catalogue, which model {facts.id} does not have", "max")
    worth = []
    for layer in layers:
        value = facts.neuron_max(layer, spec.neuron)
        if value is None or value <= 0:
            raise invalid(
                f"{path}.unit", f"needs a maximum, but neuron {spec.neuron} of layer {layer} was never active", "max"
            )
        worth.append(float(value))
    return tuple(worth)


def resolve_positions(
    positions: str | PositionRange, path: str, prompt: Prompt, max_tokens: int
) -> tuple[int, int | None]:
    """Absolute half-open range; an end of None runs to the last token.

    Raises:
        BadRequestError: no token of any generation can be in the range.
        UnfitTextError: no token of this prompt or its continuation can be in the range.
    """
    num_prompt, num_all = len(prompt.ids), len(prompt.ids) + max_tokens
    if isinstance(positions, str):
        if positions == "generated" and max_tokens == 0:
            raise invalid(path, "can never apply: no token is generated", positions)
        ranges: dict[str, tuple[int, int | None]] = {
            "all": (0, None),
            "prompt": (0, num_prompt),
            "generated": (num_prompt, None),
            "continuation": (num_prompt - 1, None),
        }
        return ranges[positions]
    start, end = given(positions.start, 0), positions.end
    for name, value in (("start", positions.start), ("end", end)):
        if value is not None and value < -num_prompt:
            raise unfit(
                f"{path}.{name}", f"must be at least {-num_prompt} for {prompt.path} of {num_prompt} tokens", value
            )
    start = start + num_prompt if start < 0 else start
    end = end + num_prompt if end is not None and end < 0 else end
    if start >= num_all:
        raise unfit(f"{path}.start", f"must be below the last possible position + 1 ({num_all})", positions.start)
    if end is not None and end <= start:
        raise unfit(f"{path}.end", f"must be above start: the range from {start} to {end} is empty", positions.end)
    return start, end


def resolve_trace(spec: TraceRequest, prompt: Prompt, max_tokens: int, facts: ModelFacts) -> TraceSpec:
    for i, neuron in enumerate(spec.neurons or ()):
        check_neuron(neuron, f"trace.neurons[{i}]", facts)
    start, end = resolve_positions(spec.positions, "trace.positions", prompt, max_tokens)
    return TraceSpec(
        layers=resolve_layers(spec.layers, "trace.layers", facts),
        start=start,
        end=end,
        neurons=None if spec.neurons is None else tuple(spec.neurons),
        top_n=spec.top_n,
        min_value=spec.min_value,
        by_magnitude=facts.select == "abs",
    )
