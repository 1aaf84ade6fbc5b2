"""Sparse activation traces: which neurons were active at which token of which layer, and how strongly.

A trace is held in compressed sparse rows, row = token * len(layers) + place of the layer in `layers`, ascending
neuron indices within a row. Knows no requests and no transport.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

TRACE_VERSION = 1
#: Hidden sizes above this need 32-bit indices in a packed trace.
MAX_UINT16_WIDTH = 65_536


@dataclass(frozen=True, kw_only=True)
class TraceSpec:
    """What of a sequence's states to keep.

    Positions are half-open and absolute, counted from the first prompt token; `end` None runs to the last token.
    """

    layers: tuple[int, ...]  # TopK layers, in the order of the rows
    start: int = 0
    end: int | None = None
    neurons: tuple[int, ...] | None = None  # None: all
    top_n: int | None = None  # only the strongest of each row
    min_value: float | None = None  # only entries of at least this value (by magnitude in an "abs" model)
    by_magnitude: bool = False  # the model selects by "abs"

    def covers(self, position: int) -> bool:
        return self.start <= position and (self.end is None or position < self.end)


@dataclass(frozen=True, kw_only=True)
class TraceChunk:
    """Rows of consecutive tokens: `offsets` `[tokens * layers + 1]`, `indices` and `values` `[entries]`."""

    first_position: int
    num_tokens: int
    offsets: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    is_complete: bool = True  # no filter cut an entry of these rows

    @property
    def num_entries(self) -> int:
        return len(self.indices)
