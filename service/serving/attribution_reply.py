"""What clients get of attributions: HTTP's and gRPC's documents are made of these dataclasses."""

from dataclasses import dataclass
from typing import Annotated, Literal

from service.answers.fields import Usage

#: Changes whenever a field or a meaning does.
ATTRIBUTION_VERSION = 1
GRAPH_VERSION = 1

EFFECT = (
    "by how much the target's score falls if this alone is ablated: above 0, it held the target up; below 0, it held "
    "it down"
)


@dataclass(frozen=True, kw_only=True)
class ScoredToken:
    """A token that may follow, as the model has it."""

    token_id: int
    token: str
    logprob: Annotated[float, "nats"]


@dataclass(frozen=True, kw_only=True)
class AttributedNeuron:
    """A neuron at a position."""

    position: int
    layer: int
    neuron: int
    token: Annotated[str, "the position's token"]
    value: float
    label: Annotated[str | None, "the catalogue's; null without a catalogue or for a dead neuron"]


@dataclass(frozen=True, kw_only=True)
class AttributionTarget:
    """What was explained."""

    position: Annotated[int, "of the token, or where the neuron is active"]
    score: Annotated[
        float,
        "what effects are on: the token's log-probability in nats, its difference to that of `against`, or the "
        "neuron's value",
    ]
    unit: Annotated[Literal["nats", "activation"], "of the score and of all effects"]
    token: ScoredToken | None
    against: ScoredToken | None
    neuron: AttributedNeuron | None


@dataclass(frozen=True, kw_only=True)
class NeuronEffect(AttributedNeuron):
    """An active neuron, ablated at its position alone."""

    effect: Annotated[float, EFFECT]


@dataclass(frozen=True, kw_only=True)
class PositionEffect:
    """All neurons of a position, ablated in all layers asked for; 0 after the target, which nothing there can reach."""

    position: int
    token_id: int
    token: str
    is_special: bool
    num_neurons: Annotated[int, "active ones, which were ablated one by one, too"]
    effect: Annotated[float, EFFECT]


@dataclass(frozen=True, kw_only=True)
class LayerEffect:
    """All neurons of a layer, ablated at all positions asked for."""

    layer: int
    num_neurons: Annotated[int, "active ones, over the positions"]
    effect: Annotated[float, EFFECT]


@dataclass(frozen=True, kw_only=True)
class EffectSums:
    """Effects do not add up: what neurons do together is not the sum of what each does alone."""

    everything: Annotated[float, "effect of ablating all of these neurons at once"]
    neurons: Annotated[float, "sum of the effects of all ablated neurons, returned or not"]
    positions: Annotated[float, "sum of the effects of the positions"]
    layers: Annotated[float, "sum of the effects of the layers"]
    neurons_gap: Annotated[float, "neurons less everything"]
    positions_gap: Annotated[float, "positions less everything"]
    layers_gap: Annotated[float, "layers less everything"]


@dataclass(frozen=True, kw_only=True)
class GraphNode(NeuronEffect):
    """One of the neurons with the largest effects."""

    id: Annotated[int, "by which edges name it"]


@dataclass(frozen=True, kw_only=True)
class GraphEdge:
    """A neuron that holds up, or down, a later one, whether directly or through others."""

    source: Annotated[int, "id of the node that was ablated"]
    target: Annotated[int, "id of the node whose value changed"]
    effect: Annotated[float, "by how much the target's value falls if the source alone is ablated"]
    share: Annotated[float, "effect over the target's value; 1: without the source it is not active"]


@dataclass(frozen=True, kw_only=True)
class AttributionGraph:
    """The strongest neurons, and which of them hold up which. A node's own effect is its edge to the target."""

    graph_version: int
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    min_share: Annotated[float, "edges of a smaller share, either way, are left out"]
    effect: Annotated[float, "effect of ablating all nodes at once"]
    share: Annotated[float | None, "that over the effect of ablating everything; null if that is 0"]


@dataclass(frozen=True, kw_only=True)
class AttributionReceipt:
    """What one intervention did."""

    positions_applied: int
    first: int | None
    last: int | None
    active_before: int
    mean_before: float | None
    mean_after: float | None
    evicted: int


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Which neurons a target rests on, each measured by ablating it in the model as it runs, edits included."""

    object: Literal["attribution"] = "attribution"
    attribution_version: int
    model: str
    checkpoint: str | None
    target: AttributionTarget
    neurons: Annotated[tuple[NeuronEffect, ...], "largest effects first, either way"]
    num_neurons: Annotated[int, "neurons that were ablated"]
    positions: tuple[PositionEffect, ...]
    layers: tuple[LayerEffect, ...]
    sums: EffectSums
    graph: AttributionGraph | None
    interventions: Annotated[tuple[AttributionReceipt, ...], "one for each intervention of the request"]
    warnings: tuple[str, ...]
    usage: Usage
