"""From a valid request for an attribution to what is to be computed, checked against a model. Runs nothing."""

from dataclasses import dataclass

from service.errors import BadRequestError, UnfitTextError, invalid, unfit
from service.requests.attribution_schema import AttributionRequest, TargetSpec
from service.requests.facts import ModelFacts
from service.requests.limits import MAX_ATTRIBUTION_ROWS
from service.requests.resolving import (
    Prompt,
    check_has_topk,
    check_layer,
    check_neuron,
    check_token_ids,
    given,
    read_prompt,
    resolve_interventions,
    resolve_layers,
    resolve_positions,
)
from service.text import TextTokenizer
from topk_model.interventions import Intervention


@dataclass(frozen=True, kw_only=True)
class AttributionPlan:
    """One attribution. What is read ends with the token before the target, or with the target neuron's own."""

    prompt: Prompt
    read_ids: tuple[int, ...]
    interventions: tuple[Intervention, ...]
    position: int  # of the target
    token_id: int | None  # None: the most probable token; meaningless with a neuron
    neuron: tuple[int, int] | None  # (layer, neuron) whose value is explained
    against_id: int | None
    layers: tuple[int, ...]  # whose neurons are ablated, ascending
    start: int  # half-open range of positions whose neurons are ablated
    end: int
    top_n: int
    min_effect: float
    max_nodes: int  # 0: no graph


def plan_attribution(request: AttributionRequest, facts: ModelFacts, tokenizer: TextTokenizer) -> AttributionPlan:
    """Raises BadRequestError for what the model cannot serve."""
    check_has_topk("model", facts)
    prompt = read_prompt(request.prompt, "prompt", facts, tokenizer)
    num_tokens = len(prompt.ids)
    if num_tokens > facts.context_length:
        raise unfit("prompt", f"must have at most {facts.context_length} tokens, the model's context", prompt.ids)
    target = given(request.target, TargetSpec())
    is_neuron = target.neuron is not None
    position = resolve_target_position(target, num_tokens, is_neuron)
    num_read = position + 1 if is_neuron else position
    layers = tuple(sorted(resolve_layers(request.layers, "layers", facts)))
    neuron = None
    if target.layer is not None and target.neuron is not None:
        check_layer(target.layer, "target.layer", facts)
        check_neuron(target.neuron, "target.neuron", facts)
        neuron = target.layer, target.neuron
        layers = tuple(layer for layer in layers if layer < target.layer)
    start, end = resolve_positions(request.positions, "positions", prompt, 0)
    end = min(num_read, given(end, num_read))
    if start >= end:
        raise invalid("positions", f"must hold a position before the target's ({num_read})", start)
    num_rows = len(layers) * facts.k * sum(num_read - at for at in range(start, end))
    if num_rows > MAX_ATTRIBUTION_ROWS:
        raise UnfitTextError(
            f"the attribution would compute up to {num_rows} positions, must be at most {MAX_ATTRIBUTION_ROWS}: ask "
            "for fewer layers or positions, or for a target nearer to the prompt's start",
            param="prompt",
            code="attribution_too_large",
        )
    token_id = None if target.token is None else resolve_token(target.token, "target.token", facts, tokenizer)
    if token_id is None and position < num_tokens:
        token_id = prompt.ids[position]
    return AttributionPlan(
        prompt=prompt,
        read_ids=prompt.ids[:num_read],
        interventions=resolve_interventions(request.interventions, prompt, 0, facts),
        position=position,
        token_id=token_id,
        neuron=neuron,
        against_id=None if request.against is None else resolve_token(request.against, "against", facts, tokenizer),
        layers=layers,
        start=start,
        end=end,
        top_n=request.top_n,
        min_effect=request.min_effect,
        max_nodes=request.max_nodes if request.graph else 0,
    )


def resolve_target_position(target: TargetSpec, num_tokens: int, is_neuron: bool) -> int:
    """A token's is at least 1, since nothing is read before the first, and at most the prompt's length."""
    first, last = (0, num_tokens - 1) if is_neuron else (1, num_tokens)
    position = given(target.position, last)
    position = position + num_tokens if position < 0 else position
    if not first <= position <= last:
        raise unfit(
            "target.position", f"must be from {first} to {last} for a prompt of {num_tokens} tokens", target.position
        )
    return position


def resolve_token(token: int | str, path: str, facts: ModelFacts, tokenizer: TextTokenizer) -> int:
    """The id of a token that is named by its id or its text.

    Raises:
        BadRequestError: the model has no such token.
    """
    if isinstance(token, int):
        if token >= facts.vocab_size:
            raise invalid(path, f"must be below the vocabulary's size ({facts.vocab_size})", token)
        return token
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1:
        pieces = ", ".join(repr(tokenizer.token_text(one)) for one in ids[:4]) + (", …" if len(ids) > 4 else "")
        raise BadRequestError(
            f"{path} must be one token, {token[:100]!r} is {len(ids)} ({pieces}); a word within a text begins "
            "with its space",
            param=path,
        )
    check_token_ids(ids, path, facts)
    return ids[0]
