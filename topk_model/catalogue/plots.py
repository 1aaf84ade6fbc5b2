"""Pictures of measured figures, as PNG files. Knows no model."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from topk_model.catalogue.history import NeuronHistory, Stage
from topk_model.steering.presets import MAX_COST, MIN_LOG_ODDS

#: Of the steering curves, so many are in colour and named.
NAMED_CURVES = 10
#: Nats per token up to which they are drawn.
SHOWN_COST = 1.0


@contextmanager
def picture(path: Path, **labels: Any) -> Iterator[Any]:
    """Axes to draw on, written to `path` at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.grid(alpha=0.3)
    yield axes
    axes.set(**labels)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def plot_steering(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Effect against cost over the strength, a line a preset; the strongest that steer in colour, one a neuron."""
    named: dict[tuple[int, int], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -row["log_odds"]):
        if row["steers"] and len(named) < NAMED_CURVES:
            named.setdefault((row["layer"], row["neuron"]), row)
    with picture(path, xlabel="cost, nats per token", ylabel="log-odds of the concept's words, nats") as axes:
        for row in rows:
            axes.plot(*curve(row), lw=0.5, color="0.8")
        for row in named.values():
            axes.plot(*curve(row), "o-", ms=3, lw=1.2, label=f"{row['name']} ({row['layer']}/{row['neuron']})")
        axes.axhline(MIN_LOG_ODDS, lw=0.8, ls=":", color="black")
        axes.axvline(MAX_COST, lw=0.8, ls=":", color="black")
        shown = [y for row in rows for x, y in zip(*curve(row), strict=True) if x <= SHOWN_COST]
        axes.set_xlim(-0.02, SHOWN_COST)
        axes.set_ylim(0, 1.1 * max(shown, default=1.0))
        if named:
            axes.legend(fontsize=7, ncols=2, loc="upper left")


def curve(row: dict[str, Any]) -> tuple[list[float], list[float]]:
    return [point["cost"] for point in row["curve"]], [point["log_odds"] for point in row["curve"]]


def plot_emergence(steps: Sequence[dict[str, Any]], path: Path) -> None:
    """How many neurons had become what they are, over training."""
    if not steps:
        return
    names = [str(step["step"]) if step["step"] is not None else "final" for step in steps]
    with picture(path, xlabel="training step", ylabel="labelled neurons", ylim=(0, 1.02)) as axes:
        axes.plot(names, [step["share_become"] for step in steps], "o-", label="share that has become what it is")
        axes.plot(names, [step["median_overlap"] for step in steps], "s--", label="median overlap with the final one")
        axes.legend()


def plot_history(history: NeuronHistory, path: Path) -> None:
    """One neuron over the checkpoints of its model's training, and over the finished model's layers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(3, 2, figsize=(11, 8), sharex="col", sharey="row", squeeze=False)
    steps = ["final" if stage.step is None else str(stage.step) for stage in history.checkpoints]
    columns: tuple[tuple[str, Sequence[str], Sequence[Stage]], ...] = (
        ("training step", steps, history.checkpoints),
        ("layer of the finished model", [str(stage.layer) for stage in history.layers], history.layers),
    )
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
        overlap.set_xticks(range(len(names)), [f"{name}\n\n{text}" for name, text in zip(names, words, strict=True)])
        overlap.tick_params(axis="x", labelsize=7)
    for axes, label in zip(rows[:, 0], ("density", "entropy, bits", "overlap with the final neuron"), strict=True):
        axes.set_ylabel(label)
    for axes in rows.flat:
        axes.grid(alpha=0.3)
    rows[1, 0].legend()
    rows[2, 0].legend()
    final = history.checkpoints[-1]
    title = f"layer {history.layer}, neuron {history.neuron}" + (f": {final.label}" if final.label else "")
    figure.suptitle(title)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def drawn(values: Iterable[float | None]) -> list[float]:
    """What is not known is a gap in the line."""
    return [math.nan if value is None else value for value in values]
