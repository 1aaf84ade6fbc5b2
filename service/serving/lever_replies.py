"""What clients get of a search for levers, and how it is made of what was found. Runs nothing.

The replies are dataclasses: the documents of HTTP and gRPC are made of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from service.answers.fields import Usage
from topk_model.catalogue.reader import Catalogue
from topk_model.steering.bench import Lever
from topk_model.steering.finder import Found
from topk_model.steering.levers import MIN_RATE, Measurement, Tried
from topk_model.steering.targets import MIN_TEXT_RISE, MIN_WORD_RISE

#: Decimals of what was measured.
DECIMALS = 4

MAX = "the same in multiples of the neuron's largest activation in the catalogue; null if that is not known"
LOG_ODDS = "change of the target's log-odds, nats"
COST = "nats per token that what is written is less likely under the plain model"
RATE = "how often one of the words is to be expected in 1,000 tokens; null for texts"


@dataclass(frozen=True, kw_only=True)
class LeverWord:
    """A word as it was read."""

    word: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LeverTexts:
    """The texts that levers were found and measured on."""

    source: Annotated[
        Literal["held_out", "written"], "held_out: kept from the model's training; written: by the model itself"
    ]
    num_finding: Annotated[int, "ordinary texts that levers were found on"]
    num_measuring: Annotated[int, "others, that they were measured on"]
    num_tokens: Annotated[int, "tokens of each"]
    is_target_held_out: Annotated[bool, "whether the target's own texts were divided, too; true for words"]


@dataclass(frozen=True, kw_only=True)
class LeverPlace:
    """A neuron."""

    layer: int
    neuron: int
    label: str | None


@dataclass(frozen=True, kw_only=True)
class LeverPoint:
    """What one value of a neuron does."""

    value: Annotated[float, "what is added to the neuron's activation"]
    value_in_max: Annotated[float | None, MAX]
    log_odds: Annotated[float, LOG_ODDS]
    cost: Annotated[float, COST]
    per_1000_tokens: Annotated[float | None, RATE]


@dataclass(frozen=True, kw_only=True)
class TriedNeuron(LeverPoint, LeverPlace):
    """A neuron that was tried, at its best value, on the texts for finding; above max_cost if every value was."""


@dataclass(frozen=True, kw_only=True)
class LeverEdit:
    """An intervention, ready to be sent."""

    layer: int
    neuron: int
    op: Literal["add"] = "add"
    value: float


@dataclass(frozen=True, kw_only=True)
class FoundLever(TriedNeuron):
    """A neuron that moves the target, measured on texts that it was not found on."""

    error: Annotated[float, "standard error of log_odds over these texts, nats"]
    curve: Annotated[tuple[LeverPoint, ...], "several values, the weakest first"]
    intervention: LeverEdit
    continuation: Annotated[str | None, "of the prompt, steered; null if none was asked for"]


@dataclass(frozen=True, kw_only=True)
class LeverPrompt:
    """What was continued, and by the plain model how."""

    text: str
    token_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int
    continuation: Annotated[str, "by the plain model"]


@dataclass(frozen=True, kw_only=True)
class LeverReply:
    """Levers for some words, or for some texts against others."""

    object: Literal["levers"] = "levers"
    model: str
    is_moved: Annotated[bool, "whether any neuron moves the target"]
    message: Annotated[str, "what was found, in a sentence"]
    max_cost: Annotated[float, COST]
    log_odds: Annotated[
        float,
        "under the plain model, nats: mean log-odds that any of the words comes next; or by how much the texts' tokens "
        "are likelier than those of the others",
    ]
    per_1000_tokens: Annotated[float | None, RATE]
    words: Annotated[tuple[LeverWord, ...] | None, "null for texts"]
    texts: LeverTexts
    levers: Annotated[tuple[FoundLever, ...], "the strongest first; none if the target is not moved"]
    tried: Annotated[tuple[TriedNeuron, ...], "every neuron that was tried, the strongest first"]
    prompt: Annotated[LeverPrompt | None, "null if no continuation was asked for"]
    usage: Annotated[Usage, "of the continuations"]


@dataclass(frozen=True, kw_only=True)
class Neurons:
    """What the catalogue says of the neurons of a search."""

    labels: dict[tuple[int, int], str | None]
    maxima: dict[tuple[int, int], float | None]

    @classmethod
    def of(cls, found: Found, catalogue: Catalogue | None) -> "Neurons":
        """Of a model without a catalogue, nothing is known."""
        pairs = list(dict.fromkeys((one.lever.layer, one.lever.neuron) for one in found.search.tried))
        if catalogue is None:
            return cls(labels=dict.fromkeys(pairs), maxima=dict.fromkeys(pairs))
        labels = dict(zip(pairs, catalogue.labels(pairs), strict=True))
        return cls(labels=labels, maxima={pair: catalogue.maximum(*pair) for pair in pairs})

    def tried(self, one: Tried) -> TriedNeuron:
        place = one.lever.layer, one.lever.neuron
        return TriedNeuron(
            layer=one.lever.layer,
            neuron=one.lever.neuron,
            label=self.labels[place],
            **self._point(one.lever, one.effect),
        )

    def point(self, one: Tried) -> LeverPoint:
        return LeverPoint(**self._point(one.lever, one.effect))

    def _point(self, lever: Lever, effect: Measurement) -> dict[str, Any]:
        largest = self.maxima[lever.layer, lever.neuron]
        return {
            "value": lever.value,
            "value_in_max": round(lever.value / largest, DECIMALS) if largest else None,
            "log_odds": round(effect.log_odds, DECIMALS),
            "cost": round(effect.cost, DECIMALS),
            "per_1000_tokens": per_1000(effect.rate),
        }


def found_levers(found: Found, neurons: Neurons, continuations: Sequence[str | None]) -> tuple[FoundLever, ...]:
    """The levers of a search, each with what it makes of the prompt."""
    levers = []
    for one, continuation in zip(found.search.levers, continuations, strict=True):
        fields = vars(neurons.tried(Tried(lever=one.lever, effect=one.effect)))
        levers.append(
            FoundLever(
                **fields,
                error=round(one.effect.error, DECIMALS),
                curve=tuple(map(neurons.point, one.curve)),
                intervention=edit_of(one.lever),
                continuation=continuation,
            )
        )
    return tuple(levers)


def edit_of(lever: Lever) -> LeverEdit:
    return LeverEdit(layer=lever.layer, neuron=lever.neuron, value=lever.value)


def per_1000(rate: float | None) -> float | None:
    return None if rate is None else round(1000 * rate, DECIMALS)


def message_of(found: Found, max_cost: float, *, are_words: bool) -> str:
    """What was found, in a sentence."""
    target = "the words" if are_words else "the texts"
    search = found.search
    if search.levers:
        best, count = search.levers[0].effect, len(search.levers)
        neurons = "1 neuron raises" if count == 1 else f"{count} neurons raise"
        return (
            f"{neurons} the log-odds of {target}, the strongest by {best.log_odds:.2f} nats at {best.cost:.2f} nats a "
            "token."
        )
    text = f"No neuron moves {target}: {len(search.tried)} were tried"
    within = [one.effect for one in search.tried if one.effect.cost <= max_cost]
    if not within:
        return f"{text}, none within {max_cost:g} nats a token."
    best = max(within, key=lambda effect: effect.log_odds)
    text += f"; within {max_cost:g} nats a token the best changed their log-odds by {best.log_odds:.2f} nats"
    if best.rate is not None and best.rate < MIN_RATE:
        return f"{text}, and the words still come less than once in {1 / MIN_RATE:,.0f} tokens."
    least = MIN_WORD_RISE if are_words else MIN_TEXT_RISE
    return f"{text} where it was found, and on other texts by less than {least} nats or twice the standard error."
