"""One neuron over the checkpoints of a run and over the layers: when did it become what it is?

Neuron i is the same coordinate in every TopK layer and checkpoint of a run, so the comparison needs no matching.
Reads the catalogues in a model's folder and in its checkpoints. Knows no server.
"""

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from topk_model.catalogue.file import CATALOGUE_FILE
from topk_model.catalogue.neuron import Neuron
from topk_model.catalogue.reader import Catalogue
from topk_model.checkpoints import checkpoint_folder, list_checkpoints

#: Number of top tokens that a stage shows, and by which two stages are compared.
NUM_TOKENS = 10


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A neuron's figures in one checkpoint or layer; null: it never fired there.

    `example_overlap` compares where it fires most strongly, `token_overlap` its top tokens, with those of the requested
    neuron in the finished model: Jaccard indices, 1 if equal. The former needs catalogues of the same texts.
    """

    density: float
    max: float | None
    mean: float | None
    token_entropy: Annotated[float | None, "bits"]
    semantic_entropy: Annotated[float | None, "bits"]
    is_dead: bool
    label: str | None
    top_tokens: tuple[str, ...]
    example_overlap: Annotated[float | None, "overlap of the positions where it fires most strongly"]
    token_overlap: Annotated[float | None, "overlap of its top tokens"]


@dataclass(frozen=True, kw_only=True)
class CheckpointStage(Stage):
    """In one checkpoint."""

    step: Annotated[int | None, "null if the finished model's step is unknown"]


@dataclass(frozen=True, kw_only=True)
class LayerStage(Stage):
    """In one layer of the finished model."""

    layer: int


@dataclass(frozen=True, kw_only=True)
class NeuronHistory:
    """One neuron over the checkpoints of a model's training, and over its layers."""

    layer: int
    neuron: int
    checkpoints: Annotated[tuple[CheckpointStage, ...], "ascending steps; the finished model is last"]
    layers: Annotated[tuple[LayerStage, ...], "every TopK layer of the finished model"]


@dataclass(frozen=True, kw_only=True)
class RunCatalogues:
    """The catalogues of a model and of its checkpoints; keep it open to read many histories."""

    final: Catalogue
    checkpoints: tuple[Catalogue, ...]  # ascending steps, without the finished model

    @classmethod
    def open(cls, model: Path | str) -> "RunCatalogues":
        """Those of the model in folder `model`; a checkpoint without a catalogue is left out.

        Raises:
            FileNotFoundError: the model itself has no catalogue.
            ValueError: a catalogue cannot be used, or has another shape than the model's.
        """
        folders = [checkpoint_folder(model, step) for step in list_checkpoints(model)]
        with ExitStack() as opened:  # closed again if one cannot be used
            final = Catalogue.open(checkpoint_folder(model))
            opened.callback(final.close)
            checkpoints = []
            for folder in folders:
                if not (folder / CATALOGUE_FILE).is_file():
                    continue
                catalogue = Catalogue.open(folder)
                if catalogue.facts.weights == final.facts.weights:  # that of the last step, which is the model itself
                    catalogue.close()
                    continue
                opened.callback(catalogue.close)
                if (shape := catalogue.densities.shape) != final.densities.shape:
                    raise ValueError(f"{catalogue.path} has shape {shape}, but the model's has {final.densities.shape}")
                checkpoints.append(catalogue)
            opened.pop_all()
        return cls(final=final, checkpoints=tuple(checkpoints))

    def close(self) -> None:
        for catalogue in (self.final, *self.checkpoints):
            catalogue.close()

    def history(self, layer: int, neuron: int) -> NeuronHistory:
        """Raises IndexError if the model has no such TopK layer or neuron."""
        asked = Sight.of(self.final, layer, neuron)
        return NeuronHistory(
            layer=layer,
            neuron=neuron,
            checkpoints=tuple(
                CheckpointStage(step=c.facts.step, **Sight.of(c, layer, neuron).compared_with(asked))
                for c in (*self.checkpoints, self.final)
            ),
            layers=tuple(
                LayerStage(layer=other, **Sight.of(self.final, other, neuron).compared_with(asked))
                for other in self.final.facts.layers
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Sight:
    """A neuron as one catalogue shows it."""

    texts: str
    positions: list[int]  # those of its strongest firings, strongest first
    neuron: Neuron

    @classmethod
    def of(cls, catalogue: Catalogue, layer: int, neuron: int) -> "Sight":
        return cls(
            texts=catalogue.facts.texts,
            positions=catalogue.top_positions(layer, neuron),
            neuron=catalogue.neuron(layer, neuron),
        )

    def token_ids(self) -> list[int]:
        return [top.token_id for top in self.neuron.top_tokens[:NUM_TOKENS]]

    def compared_with(self, other: "Sight") -> dict[str, Any]:
        """The fields of a `Stage`."""
        neuron = self.neuron
        is_same_text = self.texts == other.texts
        count = min(len(self.positions), len(other.positions))
        return {
            "density": neuron.density,
            "max": neuron.max,
            "mean": neuron.mean,
            "token_entropy": neuron.token_entropy,
            "semantic_entropy": neuron.semantic_entropy,
            "is_dead": neuron.is_dead,
            "label": neuron.label.text if neuron.label else None,
            "top_tokens": tuple(top.token for top in neuron.top_tokens[:NUM_TOKENS]),
            "example_overlap": jaccard(self.positions[:count], other.positions[:count]) if is_same_text else None,
            "token_overlap": jaccard(self.token_ids(), other.token_ids()),
        }


def jaccard(one: Collection[int], other: Collection[int]) -> float | None:
    """Size of the intersection over that of the union; None if both are empty."""
    union = {*one, *other}
    return len({*one} & {*other}) / len(union) if union else None


def history(model: Path | str, layer: int, neuron: int) -> NeuronHistory:
    """The history of one neuron of the model in folder `model`; raises like `RunCatalogues`."""
    catalogues = RunCatalogues.open(model)
    try:
        return catalogues.history(layer, neuron)
    finally:
        catalogues.close()
