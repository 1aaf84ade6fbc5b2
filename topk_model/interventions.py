"""Edits of neurons, as data.

`Intervention` is what a request asks for, `Receipt` is the result. `editing` applies them. Knows no request format,
no text and no tensors.
"""

from dataclasses import dataclass
from typing import Literal

Op = Literal["set", "add", "scale", "ablate", "clamp"]
Site = Literal["post_topk", "pre_topk"]
Test = Literal["active", "inactive", "above"]

#: Maximum number of edits per request, and of conditions per edit.
MAX_EDITS = 64
MAX_CONDITIONS = 8


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A condition on one neuron at the edited position.

    A condition on an earlier layer reads that layer's output, including its edits; one on the edited layer itself reads
    that layer before any edit.
    """

    layer: int  # no later than the first edited layer
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
    unit_values: tuple[float, ...] | None = None  # one per layer: the value of a unit; None: the position's k-th value
    site: Site = "post_topk"
    start: int = 0  # half-open range of positions, from the first prompt token
    end: int | None = None
    include_special: bool = False
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What one intervention did.

    `positions_applied`, `first` and `last` count positions; the others count applications, one for each position and
    edited layer. The means are over applications; None if there were none. Values before and after
    are those of the edited site: before selection for a pre_topk edit, after it for a post_topk edit.
    """

    positions_applied: int
    first: int | None
    last: int | None
    active_before: int  # applications at which the neuron was among the kept ones
    mean_before: float | None
    mean_after: float | None
    evicted: int  # how often a pre_topk edit brought in a neuron that TopK would have left out
    num_applications: int
    num_changed: int  # applications that changed the neuron's value
