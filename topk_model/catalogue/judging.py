"""Neurons drawn at random, for somebody to judge whether their labels fit: passages without labels, and the labels.

The judge reads the passages of each neuron first, and its label then. Knows no model and no server.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from topk_model.catalogue.neuron import Example
from topk_model.catalogue.reader import Catalogue

PASSAGES = 5
#: Names of the two files.
PASSAGES_FILE, LABELS_FILE = "passages.json", "labels.json"


def write_sample(catalogue: Catalogue, count: int, seed: int, folder: Path) -> int:
    """Write the passages and the labels of `count` neurons, and return how many there were.

    They are drawn from all that ever fired, with a label or without, each as likely as another.
    """
    alive = np.flatnonzero(catalogue.densities > 0)
    chosen = np.random.default_rng(seed).permutation(alive)[:count]
    passages, labels = [], []
    for number, place in enumerate(chosen.tolist(), start=1):
        row, neuron = divmod(place, catalogue.densities.shape[1])
        page = catalogue.neuron(catalogue.facts.layers[row], neuron)
        passages.append({"number": number, "passages": [marked(one) for one in page.top_examples[:PASSAGES]]})
        labels.append(
            {"number": number, "layer": page.layer, "neuron": neuron, "label": page.label and page.label.text}
        )
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / PASSAGES_FILE, passages)
    write(folder / LABELS_FILE, labels)
    return len(chosen)


def marked(example: Example) -> str:
    """The tokens; between « and » stand the firings at least half as strong as the strongest."""
    tokens = list(example.tokens)
    for i, activation in enumerate(example.activations):
        if activation and abs(activation) >= abs(example.max) / 2:
            tokens[i] = f"{' ' * tokens[i].startswith(' ')}«{tokens[i].removeprefix(' ')}»"
    return "".join(tokens)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
