"""Pictures of an evaluation's results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from topk_model.pictures import picture
from topk_model.steering.presets import MAX_COST, MIN_LOG_ODDS

#: Number of steering curves that are in colour and named.
NAMED_CURVES = 10
#: Nats per token up to which they are drawn.
SHOWN_COST = 1.0


def plot_steering(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Effect against cost by strength, one line per preset; the strongest that steer in colour, one per neuron."""
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
    """The share of neurons that had become what they are, over training."""
    if not steps:
        return
    names = [str(step["step"]) if step["step"] is not None else "final" for step in steps]
    with picture(path, xlabel="training step", ylabel="labelled neurons", ylim=(0, 1.02)) as axes:
        axes.plot(names, [step["share_become"] for step in steps], "o-", label="share that has become what it is")
        axes.plot(names, [step["median_overlap"] for step in steps], "s--", label="median overlap with the final one")
        axes.legend()
