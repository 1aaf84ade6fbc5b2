"""What clients get of neurons: the models that document the replies. Knows no catalogue and no transport.

The replies are made of the catalogue's own dataclasses, whose fields have the same names; a test holds the two to each
other.
"""

from typing import Literal

from pydantic import Field

from service.http_api.shapes import ResponseModel, Usage


class LabelFields(ResponseModel):
    """A few words for what a neuron fires on, and what speaks for them."""

    text: str
    source: str = Field(description='"automatic"')
    score: float = Field(description="how well it predicts where the neuron fires on held-out text")
    evidence: list[str]


class HistogramFields(ResponseModel):
    """counts[i] active values lie between edges[i] and edges[i + 1]."""

    edges: list[float]
    counts: list[int]


class TopTokenFields(ResponseModel):
    """A token that a neuron fires on."""

    token_id: int
    token: str
    count: int = Field(description="firings")
    share: float = Field(description="of the neuron's whole activation")
    mean: float = Field(description="activation")


class ExampleFields(ResponseModel):
    """A piece of text in which a neuron fires."""

    text: str
    token_ids: list[int]
    tokens: list[str]
    activations: list[float] = Field(description="one a token; 0 where it is not active")
    peak: int = Field(description="index of the strongest token")
    max: float
    source: str | None = Field(description="the text's title")


class TokenEffectFields(ResponseModel):
    """A token that a neuron makes more or less probable."""

    token_id: int
    token: str
    value: float


class LogitEffectFields(ResponseModel):
    """What a neuron writes to the logits directly; strongest first."""

    note: str = Field(description="how it was computed, and what it leaves out")
    positive: list[TokenEffectFields]
    negative: list[TokenEffectFields]


class AblationEffectFields(ResponseModel):
    """The measured effect of ablating a neuron where it fires: mean changes of log-probability, nats."""

    positive: list[TokenEffectFields]
    negative: list[TokenEffectFields]
    loss_change: float = Field(description="nats per token")
    num_positions: int


class RelatedFields(ResponseModel):
    """A neuron that fires at the same positions."""

    layer: int
    neuron: int
    pmi: float = Field(description="bits")
    label: str | None


class NeuronFields(ResponseModel):
    """What lists and pages of neurons share; null where it never fired."""

    layer: int
    neuron: int
    density: float = Field(description="share of positions at which it is active")
    max: float | None = Field(description="its largest activation; what an intervention's unit max is worth")
    mean: float | None = Field(description="of its activations where it is active")
    token_entropy: float | None = Field(description="bits")
    semantic_entropy: float | None = Field(description="bits")
    is_dead: bool


class NeuronSummaryFields(NeuronFields):
    """One row of a list."""

    label: str | None
    score: float | None = Field(description="the label's")
    top_tokens: list[str]


class NeuronPage(NeuronFields):
    """Everything that the catalogue knows of one neuron."""

    object: Literal["neuron"]
    model: str
    checkpoint: str | None = Field(description="step-… of the training checkpoint; null for the model as shipped")
    label: LabelFields | None
    quantiles: dict[str, float] = Field(description='of active values, by "0.5", "0.9", "0.99" and "0.999"')
    histogram: HistogramFields
    top_tokens: list[TopTokenFields]
    top_examples: list[ExampleFields] = Field(description="passages in which it fires most, most first")
    strongest_firings: list[ExampleFields] = Field(description="text around them, strongest first")
    logit_effect: LogitEffectFields
    ablation_effect: AblationEffectFields | None
    related: list[RelatedFields]


class NeuronList(ResponseModel):
    """One page of the neurons that were asked for."""

    object: Literal["list"]
    model: str
    data: list[NeuronSummaryFields]
    total: int = Field(description="neurons on all pages")
    limit: int
    offset: int


class NeuronMatch(ResponseModel):
    """A neuron that stands for the text."""

    layer: int
    neuron: int
    score: float = Field(description="z-score of its log-odds of firing, against its base rate or the negative texts")
    label: str | None
    density: float = Field(description="share of positions at which it is active at large")
    active: int = Field(description="tokens of the text, or of the positive texts, at which it is active")
    active_negative: int | None = Field(description="tokens of the negative texts at which it is; null without them")


class NeuronMatches(ResponseModel):
    """The neurons that stand for the text, highest score first; only scores above 0."""

    object: Literal["list"]
    model: str
    data: list[NeuronMatch]
    num_tokens: int = Field(description="tokens of the text, or of the positive texts, special ones left out")
    num_tokens_negative: int | None
    usage: Usage


class StageFields(ResponseModel):
    """A neuron's figures in one checkpoint or layer; overlaps are Jaccard indices with the neuron asked for."""

    density: float
    max: float | None
    mean: float | None
    token_entropy: float | None
    semantic_entropy: float | None
    is_dead: bool
    label: str | None
    top_tokens: list[str]
    example_overlap: float | None = Field(description="of where it fires most strongly")
    token_overlap: float | None = Field(description="of its top tokens")


class CheckpointStageFields(StageFields):
    """In one checkpoint."""

    step: int | None = Field(description="null: the finished model's, where it is not known")


class LayerStageFields(StageFields):
    """In one layer of the finished model."""

    layer: int


class NeuronHistoryReply(ResponseModel):
    """One neuron over the checkpoints of a model's training, and over its layers."""

    object: Literal["neuron.history"]
    model: str
    layer: int
    neuron: int
    checkpoints: list[CheckpointStageFields] = Field(description="ascending steps; the finished model is last")
    layers: list[LayerStageFields]
