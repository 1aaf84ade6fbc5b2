"""What a catalogue stores about a neuron, as data. Knows no file and no model.

A text in an annotation describes the field, here and in the documents of the interfaces that return it.
"""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, kw_only=True)
class Label:
    """A few words for what a neuron fires on, or for what it fires before."""

    text: str
    source: Annotated[str, '"automatic"']
    score: Annotated[float, "how well it predicts where the neuron fires on held-out text"]
    evidence: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """`counts[i]` active values lie between `edges[i]` and `edges[i + 1]`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TopToken:
    """A token that a neuron fires on."""

    token_id: int
    token: str
    count: Annotated[int, "firings"]
    share: Annotated[float, "fraction of the neuron's total activation"]
    mean: Annotated[float, "activation"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A piece of text in which a neuron fires."""

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    activations: Annotated[tuple[float, ...], "one per token, 0 at tokens where the neuron is not active"]
    peak: Annotated[int, "index of the strongest token"]
    max: float
    source: Annotated[str | None, "the text's title"]


@dataclass(frozen=True, kw_only=True)
class TokenEffect:
    """A token that a neuron makes more or less probable."""

    token_id: int
    token: str
    value: float


@dataclass(frozen=True, kw_only=True)
class LogitEffect:
    """What a neuron adds to the logits directly; strongest first."""

    note: Annotated[str, "how it was computed, and what it leaves out"]
    positive: tuple[TokenEffect, ...]
    negative: tuple[TokenEffect, ...]


@dataclass(frozen=True, kw_only=True)
class AblationEffect:
    """The effect on the next token of ablating a neuron where it fires."""

    positive: Annotated[tuple[TokenEffect, ...], "mean change in log-probability, nats; strongest first"]
    negative: tuple[TokenEffect, ...]
    loss_change: Annotated[float, "nats per token"]
    num_positions: int


@dataclass(frozen=True, kw_only=True)
class SteeringPoint:
    """What raising a neuron by one strength does."""

    in_units_of_max: Annotated[float, "what is added, in multiples of the neuron's largest activation"]
    share: Annotated[float, "of the next token's probability that its words have"]
    log_odds: Annotated[float, "mean change of the log-odds of its words, nats"]
    cost: Annotated[float, "nats a token by which what is drawn is less likely under the plain model"]


@dataclass(frozen=True, kw_only=True)
class Steering:
    """What raising a neuron does, measured, and the strength that is best for it."""

    words: Annotated[tuple[TokenEffect, ...], "what it brings, most first; value: rise of the log-probability, nats"]
    value: Annotated[float, "the best value to add"]
    in_units_of_max: Annotated[float, "the same, in multiples of the neuron's largest activation"]
    curve: Annotated[tuple[SteeringPoint, ...], "ascending strengths from 0, the best one among them"]


@dataclass(frozen=True, kw_only=True)
class Related:
    """A neuron that fires at the same positions."""

    layer: int
    neuron: int
    pmi: Annotated[float, "bits"]
    label: str | None


@dataclass(frozen=True, kw_only=True)
class NeuronSummary:
    """One row of a list; null: the neuron never fired."""

    layer: int
    neuron: int
    label: str | None
    score: Annotated[float | None, "the label's"]
    density: Annotated[float, "fraction of positions at which it is active"]
    max: Annotated[float | None, "its largest activation: the value of an intervention's unit max"]
    mean: Annotated[float | None, "mean of its activations where it is active"]
    token_entropy: Annotated[float | None, "bits"]
    semantic_entropy: Annotated[float | None, "bits"]
    is_dead: bool
    top_tokens: tuple[str, ...]
    also_in: Annotated[tuple[int, ...], "other layers in which the neuron of this index fires at the same positions"]


@dataclass(frozen=True, kw_only=True)
class Neuron:
    """Everything in the catalogue about one neuron; null and empty: it never fired."""

    layer: int
    neuron: int
    label: Label | None
    density: Annotated[float, "fraction of positions at which it is active"]
    max: Annotated[float | None, "its largest activation: the value of an intervention's unit max"]
    mean: Annotated[float | None, "mean of its activations where it is active"]
    quantiles: Annotated[dict[str, float], 'quantiles of its active values: "0.5", "0.9", "0.99", "0.999"']
    is_dead: bool
    histogram: Histogram
    token_entropy: Annotated[float | None, "bits"]
    semantic_entropy: Annotated[float | None, "bits"]
    top_tokens: tuple[TopToken, ...]
    top_examples: Annotated[tuple[Example, ...], "passages in which it fires most, in descending order"]
    strongest_firings: Annotated[tuple[Example, ...], "strongest first"]
    logit_effect: LogitEffect
    steering: Annotated[
        Steering | None, "what raising it does; null if it brings no word, and for a training checkpoint"
    ]
    ablation_effect: AblationEffect | None
    related: tuple[Related, ...]
    also_in: Annotated[tuple[int, ...], "other layers in which the neuron of this index fires at the same positions"]
