"""What a catalogue tells of a neuron, as data. Knows no file and no model."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Label:
    """A few words for what a neuron fires on."""

    text: str
    source: str  # "automatic"
    score: float  # how well it predicts where the neuron fires on held-out text; see the definitions
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
    count: int  # firings
    share: float  # of the neuron's whole activation
    mean: float  # activation


@dataclass(frozen=True, kw_only=True)
class Example:
    """A piece of text in which a neuron fires."""

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    activations: tuple[float, ...]  # one a token, 0 where the neuron is not active
    peak: int  # index of the strongest token
    max: float
    source: str | None  # the text's title


@dataclass(frozen=True, kw_only=True)
class TokenEffect:
    token_id: int
    token: str
    value: float


@dataclass(frozen=True, kw_only=True)
class LogitEffect:
    """What a neuron writes to the logits directly."""

    note: str
    positive: tuple[TokenEffect, ...]  # strongest first
    negative: tuple[TokenEffect, ...]


@dataclass(frozen=True, kw_only=True)
class AblationEffect:
    """What ablating a neuron where it fires does to the next token."""

    positive: tuple[TokenEffect, ...]  # mean change of log-probability, nats; strongest first
    negative: tuple[TokenEffect, ...]
    loss_change: float  # nats per token
    num_positions: int


@dataclass(frozen=True, kw_only=True)
class Related:
    """A neuron that fires at the same positions."""

    layer: int
    neuron: int
    pmi: float  # bits
    label: str | None


@dataclass(frozen=True, kw_only=True)
class NeuronSummary:
    """One row of a list. None: the neuron never fired."""

    layer: int
    neuron: int
    label: str | None
    score: float | None  # the label's
    density: float  # share of positions at which it is active
    max: float | None
    mean: float | None
    token_entropy: float | None  # bits
    semantic_entropy: float | None  # bits
    is_dead: bool
    top_tokens: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Neuron:
    """All that is known of one neuron. None and empty: it never fired."""

    layer: int
    neuron: int
    label: Label | None
    density: float  # share of positions at which it is active
    max: float | None
    mean: float | None
    quantiles: dict[str, float]  # of active values, by "0.5", "0.9", "0.99", "0.999"
    is_dead: bool
    histogram: Histogram
    token_entropy: float | None  # bits
    semantic_entropy: float | None  # bits
    top_tokens: tuple[TopToken, ...]
    top_examples: tuple[Example, ...]  # passages in which it fires most, most first
    strongest_firings: tuple[Example, ...]  # strongest first
    logit_effect: LogitEffect
    ablation_effect: AblationEffect | None
    related: tuple[Related, ...]
