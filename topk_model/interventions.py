"""Edits of neurons, as data.

`Intervention` says what a request wants; `EditTables` holds the edits of many requests as tensors; `EditedTopK`
applies them inside a forward pass, each row its own, and counts what happened for the receipts.
Knows no requests' format, no text and no cache.
"""

from dataclasses import dataclass
from typing import Literal

Op = Literal["set", "add", "scale", "ablate", "clamp"]
Site = Literal["post_topk", "pre_topk"]
Test = Literal["active", "inactive", "above"]


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A test of one neuron at the position that is edited."""

    layer: int  # not after the first edited layer
    neuron: int
    test: Test
    value: float = 0.0  # "above" means strictly above it


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """One edit, resolved: layers are a list, positions are absolute, units are numbers."""

    layers: tuple[int, ...]  # TopK layers, ascending
    neuron: int
    op: Op
    value: float = 0.0  # set, add: in units; scale: the factor
    min: float | None = None  # clamp, in units
    max: float | None = None
    unit_values: tuple[float, ...] | None = None  # one a layer: what a unit is worth; None: multiples of the k-th value
    site: Site = "post_topk"
    start: int = 0  # half-open range of positions, from the first prompt token
    end: int | None = None
    include_special: bool = False
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What one intervention did.

    `positions_applied`, `first` and `last` count positions; the others count applications, of which a position has
    one for each edited layer. The means are over applications; None where there was none.
    """

    positions_applied: int
    first: int | None
    last: int | None
    active_before: int
    mean_before: float | None
    mean_after: float | None
    evicted: int
    num_applications: int
    num_changed: int  # applications that changed the neuron's value
