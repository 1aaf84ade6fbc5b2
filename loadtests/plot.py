"""A picture of a load test: latency over time, percentiles, and the service's queue."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loadtests.asking import Outcome
from loadtests.results import e2el_s, tpot_s, ttft_s
from loadtests.server_metrics import ServerSample

_SERIES = (("TTFT", ttft_s, "tab:blue"), ("end to end", e2el_s, "tab:gray"), ("TPOT", tpot_s, "tab:green"))
_MARKS = (("refused", "tab:orange", "x"), ("failed", "tab:red", "X"))


def plot(outcomes: Sequence[Outcome], samples: Sequence[ServerSample], path: Path, title: str) -> None:
    """Write a PNG."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(figure)
    over_time, percentiles, queue = figure.subplots(3, 1)
    answered = [outcome for outcome in outcomes if outcome.status == "ok"]
    for name, latency, colour in _SERIES:
        points = [(o.call.arrival_s, value) for o in answered if (value := latency(o)) is not None]
        if not points:
            continue
        times, values = np.array(points).T
        over_time.plot(times, values, ".", markersize=2, color=colour, label=name)
        percentiles.plot(np.linspace(0, 100, len(values)), np.sort(values), color=colour, label=name)
    for status, colour, mark in _MARKS:
        marked = [(o.call.arrival_s, e2el_s(o)) for o in outcomes if o.status == status]
        if marked:
            over_time.plot(*np.array(marked).T, mark, markersize=4, color=colour, label=status, linestyle="none")
    over_time.set(title=title, xlabel="scheduled arrival, s", ylabel="latency, s", yscale="log")
    percentiles.set(xlabel="percentile of answered requests", ylabel="latency, s", yscale="log")
    times_s = [sample.elapsed_s for sample in samples]
    queue.plot(times_s, [sample.num_running for sample in samples], label="running")
    queue.plot(times_s, [sample.num_waiting for sample in samples], label="waiting")
    queue.set(xlabel="s", ylabel="sequences", ylim=(0, None))
    for axes in (over_time, percentiles, queue):
        axes.grid(visible=True, alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper right")
    figure.savefig(path, dpi=110)
