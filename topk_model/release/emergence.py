"""When the labelled neurons became what they are, and to what extent an index means the same in consecutive layers.

Reads the catalogues of a model and of its checkpoints. A neuron in two checkpoints or layers is compared by the Jaccard
index of its ten top tokens. Knows no model and no server.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topk_model.catalogue.history import NUM_TOKENS, RunCatalogues, jaccard
from topk_model.catalogue.reader import Catalogue, NeuronQuery

#: A neuron has become what it is at the first step from which on its overlap with the final one is at least this.
SAME = 0.5


def emergence(model: Path) -> dict[str, Any]:
    """Figures over all labelled neurons of the model in folder `model`.

    Returns:
        `num_labelled`; `steps`, one entry per checkpoint: the median overlap with the final neurons, and the share of
        them that had become what they are by then; `layers`, one entry per pair of consecutive layers: the median
        overlap of an index with itself in the next layer, and with the following index there, which is unrelated.

    Raises:
        FileNotFoundError: the model has no catalogue.
        ValueError: a catalogue cannot be used.
    """
    catalogues = RunCatalogues.open(model)
    try:
        final, everyone = catalogues.final, (*catalogues.checkpoints, catalogues.final)
        summaries, _ = final.neurons(NeuronQuery(limit=final.densities.size))
        labelled = [(summary.layer, summary.neuron) for summary in summaries if summary.label is not None]
        tops = [[top_tokens(catalogue, *pair) for pair in labelled] for catalogue in everyone]
        overlaps = np.array([[overlap(a, b) for a, b in zip(top, tops[-1], strict=True)] for top in tops])
        return {
            "num_labelled": len(labelled),
            "steps": steps([catalogue.facts.step for catalogue in everyone], overlaps) if labelled else [],
            "layers": layer_pairs(final, labelled),
        }
    finally:
        catalogues.close()


def top_tokens(catalogue: Catalogue, layer: int, neuron: int) -> list[int]:
    return [top.token_id for top in catalogue.neuron(layer, neuron).top_tokens[:NUM_TOKENS]]


def overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """Jaccard index; 0 if a neuron never fired."""
    return jaccard(one, other) or 0.0


def steps(numbers: Sequence[int | None], overlaps: NDArray[np.float64]) -> list[dict[str, Any]]:
    """One entry per checkpoint, from `overlaps` `[checkpoints, neurons]`; the last one is the finished model's."""
    stays = np.logical_and.accumulate((overlaps >= SAME)[::-1])[::-1]
    return [
        {
            "step": number,
            "median_overlap": round(float(np.median(row)), 3),
            "share_become": round(float(is_so.mean()), 3),
        }
        for number, row, is_so in zip(numbers, overlaps, stays, strict=True)
    ]


def layer_pairs(catalogue: Catalogue, labelled: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """One entry per pair of consecutive layers, over the neurons that are labelled in the first."""
    facts = catalogue.facts
    found = []
    for first, second in zip(facts.layers[:-1], facts.layers[1:], strict=True):
        neurons = [neuron for layer, neuron in labelled if layer == first]
        own = [top_tokens(catalogue, first, neuron) for neuron in neurons]
        same = [top_tokens(catalogue, second, neuron) for neuron in neurons]
        other = [top_tokens(catalogue, second, (neuron + 1) % facts.hidden_size) for neuron in neurons]
        found.append(
            {
                "layers": [first, second],
                "num_neurons": len(neurons),
                "median_overlap": median([overlap(a, b) for a, b in zip(own, same, strict=True)]),
                "median_overlap_of_others": median([overlap(a, b) for a, b in zip(own, other, strict=True)]),
            }
        )
    return found


def median(values: Sequence[float]) -> float | None:
    return round(float(np.median(values)), 3) if values else None
