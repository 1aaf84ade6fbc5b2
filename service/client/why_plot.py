"""The picture of an attribution: what each position does, and the strongest neurons with what they hold up."""

from pathlib import Path
from typing import Any

from topk_model.pictures import figure

#: Effects that hold the target up, and that hold it down.
UP, DOWN = "#1f6f8b", "#c8553d"


def plot_attribution(attribution: Any, path: Path) -> None:
    """Draw the message `Attribution`, with its graph, as a PNG."""
    positions, graph = attribution.positions, attribution.graph
    width = max(8.0, 0.35 * len(positions))
    layers = sorted({node.layer for node in graph.nodes} | {one.layer for one in attribution.layers})
    sizes = {"height_ratios": [1, 2]}
    with figure(path, 2, 1, figsize=(width, 6.5), sharex=True, gridspec_kw=sizes) as (whole, axes):
        bars, plane = axes[:, 0]
        effects = [one.effect for one in positions]
        places = [one.position for one in positions]
        bars.bar(places, effects, color=[UP if effect >= 0 else DOWN for effect in effects])
        bars.set_ylabel("effect of the\nwhole position")
        strongest = max((abs(node.effect) for node in graph.nodes), default=1.0) or 1.0
        at = {node.id: (node.position, node.layer) for node in graph.nodes}
        for edge in graph.edges:
            plane.annotate(
                "",
                xy=at[edge.target],
                xytext=at[edge.source],
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": UP if edge.share >= 0 else DOWN,
                    "alpha": min(1.0, 0.15 + abs(edge.share)),
                    "shrinkA": 6,
                    "shrinkB": 6,
                },
            )
        named: dict[tuple[int, int], list[str]] = {}
        for node in graph.nodes:
            size = 30 + 250 * abs(node.effect) / strongest
            plane.scatter(*at[node.id], s=size, color=UP if node.effect >= 0 else DOWN, alpha=0.7, zorder=3)
            named.setdefault(at[node.id], []).append(str(node.neuron))
        for place, neurons in named.items():
            plane.annotate(
                "\n".join(neurons), place, textcoords="offset points", xytext=(7, 5), fontsize=7, va="bottom"
            )
        plane.set_yticks(layers)
        plane.margins(y=0.25)
        plane.set_ylabel("layer (neurons by their index)")
        names = [one.token.strip() or "␣" for one in positions]
        plane.set_xticks(places, names, rotation=60, ha="right", fontsize=8)
        whole.suptitle(title(attribution.target))


def title(target: Any) -> str:
    if target.HasField("token"):
        against = f" and not {target.against.token!r}" if target.HasField("against") else ""
        return f"why {target.token.token!r}{against} at position {target.position}"
    return f"why layer {target.neuron.layer}, neuron {target.neuron.neuron} at position {target.position}"
