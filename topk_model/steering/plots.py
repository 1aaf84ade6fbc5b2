"""The picture of levers: what each does to its target, over what it costs. Knows no model."""

from collections.abc import Sequence
from pathlib import Path

from topk_model.pictures import picture
from topk_model.steering.levers import FoundLever


def plot_levers(levers: Sequence[FoundLever], names: Sequence[str], path: Path) -> None:
    """A line for each lever through the values of its curve, from 0; a large dot at the value that is recommended."""
    labels = {"xlabel": "cost, nats a token", "ylabel": "change of log-odds, nats"}
    with picture(path, **labels, title="effect over cost, on texts that the levers were not found on") as axes:
        for lever, name in zip(levers, names, strict=True):
            costs = [0.0, *(point.effect.cost for point in lever.curve)]
            rises = [0.0, *(point.effect.log_odds for point in lever.curve)]
            [line] = axes.plot(costs, rises, ".-", label=name)
            axes.plot(lever.effect.cost, lever.effect.log_odds, "o", markersize=9, color=line.get_color())
        axes.legend(fontsize=8)
