"""What is ablated in a prompt, run by run, and what comes of it. Knows no runner and no tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from topk_model.interventions import Receipt
from topk_model.traces import TraceChunk

EVERY_NEURON = -1


@dataclass(frozen=True, kw_only=True)
class Ablations:
    """Runs of one prompt, each with something of its own set to 0 after the edits. Arrays `[runs]`, int64."""

    layers: NDArray[np.int64]  # the first TopK layer in which something is ablated
    neurons: NDArray[np.int64]  # the neuron, or EVERY_NEURON
    starts: NDArray[np.int64]  # half-open range of positions; a neuron has one
    ends: NDArray[np.int64]
    is_through: NDArray[np.bool_]  # ablate the same in all later layers that the ablator was made for

    def __len__(self) -> int:
        return len(self.layers)

    def part(self, which: slice | NDArray[np.int64]) -> "Ablations":
        return Ablations(**{name: values[which] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The prompt as the model reads it, nothing ablated."""

    trace: TraceChunk  # of all positions and TopK layers
    logprobs: tuple[float, ...]  # of the targets, nats
    top: tuple[tuple[int, float], ...]  # (token id, logprob) of the most probable next tokens
    receipts: tuple[Receipt, ...]  # one for each edit


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of runs, in their order."""

    logprobs: NDArray[np.float64]  # [runs, targets], nats; NaN where the model's output is not finite
    values: NDArray[np.float32]  # [runs, watched]


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A neuron at a position, whose value is to be told of every run."""

    layer: int
    position: int
    neuron: int


def batches_of(ablations: Ablations, length: int, max_runs: int, max_rows: int) -> list[NDArray[np.int64]]:
    """Runs in batches of one layer, so that their rows begin together. A run has a row for each position from its start
    to the prompt's `length`."""
    found: list[NDArray[np.int64]] = []
    order = np.lexsort((ablations.starts, ablations.layers))
    sizes = length - ablations.starts
    begin, num_rows = 0, 0
    for place, run in enumerate(order):
        is_full = num_rows + sizes[run] > max_rows or place - begin == max_runs
        if place > begin and (is_full or ablations.layers[run] != ablations.layers[order[begin]]):
            found.append(order[begin:place])
            begin, num_rows = place, 0
        num_rows += int(sizes[run])
    return [*found, order[begin:]] if len(order) else []


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a batch of runs, one run after the other. Arrays `[rows]`."""

    runs: NDArray[np.int64]
    positions: NDArray[np.int64]
    is_inside: NDArray[np.bool_]  # whether the run ablates something at the row's position
    ends: NDArray[np.int64]  # [runs], one past each run's last row

    @classmethod
    def of(cls, batch: Ablations, length: int) -> "Rows":
        sizes = length - batch.starts
        ends = np.cumsum(sizes)
        runs = np.repeat(np.arange(len(batch)), sizes)
        positions = np.arange(len(runs)) - np.repeat(ends - sizes, sizes) + batch.starts[runs]
        return cls(runs=runs, positions=positions, is_inside=positions < batch.ends[runs], ends=ends)


def value_of(one: Watched, trace: TraceChunk, num_layers: int) -> float:
    """A neuron's value in a trace of all positions and TopK layers; 0 if it is not active there."""
    state = one.position * num_layers + one.layer
    entries = slice(*trace.offsets[state : state + 2])
    found = np.flatnonzero(trace.indices[entries] == one.neuron)
    return float(trace.values[entries][found[0]]) if len(found) else 0.0


class OverflowedError(Exception):
    """The edits drove the model's output to infinity."""


class Ablator(Protocol):
    """One prompt under one set of edits, read once and then again from where something in it is ablated.

    For one thread, which may be another than the engine's: it has a cache of its own.
    """

    def read(self, targets: Sequence[int] = (), num_top: int = 0) -> Reading:
        """Read the whole prompt.

        Raises:
            OverflowedError: the edits drive the model's output to infinity.
        """

    def batches(self, ablations: Ablations) -> list[NDArray[np.int64]]:
        """The runs in batches that `run` takes, those of one batch beside each other; each run is in one."""

    def run(self, batch: Ablations, targets: Sequence[int], watched: Sequence[Watched] = ()) -> Outcome:
        """Run one batch, once the prompt has been read."""

    def close(self) -> None:
        """Free its memory and its threads."""
