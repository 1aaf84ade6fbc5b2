"""The picture of a neuron's history. Knows no model."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from topk_model.catalogue.history import NeuronHistory, Stage
from topk_model.pictures import figure


def plot_history(history: NeuronHistory, path: Path) -> None:
    """One neuron over the checkpoints of its model's training, and over the finished model's layers."""
    steps = ["final" if stage.step is None else str(stage.step) for stage in history.checkpoints]
    columns: tuple[tuple[str, Sequence[str], Sequence[Stage]], ...] = (
        ("training step", steps, history.checkpoints),
        ("layer of the finished model", [str(stage.layer) for stage in history.layers], history.layers),
    )
    with figure(path, 3, 2, figsize=(11, 8), sharex="col", sharey="row") as (whole, rows):
        for column, (label, names, stages) in enumerate(columns):
            density, entropy, overlap = rows[:, column]
            density.plot(names, [stage.density for stage in stages], "o-")
            entropy.plot(names, drawn(stage.token_entropy for stage in stages), "o-", label="of tokens")
            entropy.plot(names, drawn(stage.semantic_entropy for stage in stages), "s--", label="of meanings")
            overlap.plot(names, drawn(stage.token_overlap for stage in stages), "o-", label="of top tokens")
            overlap.plot(names, drawn(stage.example_overlap for stage in stages), "s--", label="of strongest firings")
            overlap.set_ylim(-0.02, 1.02)
            overlap.set_xlabel(label)
            # What it fired on, below each stage.
            words = ["\n".join(token.strip() or "␣" for token in stage.top_tokens[:4]) for stage in stages]
            ticks = [f"{name}\n\n{text}" for name, text in zip(names, words, strict=True)]
            overlap.set_xticks(range(len(names)), ticks)
            overlap.tick_params(axis="x", labelsize=7)
        for axes, label in zip(rows[:, 0], ("density", "entropy, bits", "overlap with the final neuron"), strict=True):
            axes.set_ylabel(label)
        rows[1, 0].legend()
        rows[2, 0].legend()
        final = history.checkpoints[-1]
        whole.suptitle(f"layer {history.layer}, neuron {history.neuron}" + (f": {final.label}" if final.label else ""))


def drawn(values: Iterable[float | None]) -> list[float]:
    """Unknown values are gaps in the line."""
    return [math.nan if value is None else value for value in values]
