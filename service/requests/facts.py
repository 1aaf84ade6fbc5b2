"""The facts of one model that requests are checked against. Knows no weights and no engine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from topk_model.steering.examples import SteeringExample
from topk_model.steering.presets import Preset


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is needed of a model to check and plan a request."""

    id: str
    hidden_size: int
    num_layers: int
    topk_layers: tuple[int, ...]  # ascending
    n_nontopk: int
    k: int
    select: Literal["signed", "abs"]
    vocab_size: int
    context_length: int
    bos_id: int | None
    pad_id: int | None
    special_ids: frozenset[int]
    checkpoint: str | None  # "step-…", or None for the model as shipped
    has_chat_template: bool
    neuron_max: Callable[[int, int], float | None] | None = None  # (layer, neuron) -> the catalogue's maximum
    presets: tuple[Preset, ...] = ()
    examples: tuple[SteeringExample, ...] = ()
    weights_sha256: str | None = None  # see `topk_model.model_folder.weights_digest`; None: not loaded
