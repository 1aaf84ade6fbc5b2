"""Linear layers packed for oneDNN, for inference on CPU.

There are two reasons: on few rows they reach far more of the memory bandwidth than `torch.nn.functional.linear`, and a
row's result does not depend on the number of other rows, which TopK needs (a changed last bit can change a neuron set).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Number of rows for which the packed layout is chosen; the layout works for any number of rows.
PACKED_ROWS = 64
#: (rows, step): up to that many rows, products use a multiple of the step, and beyond a multiple of the last step.
ROW_STEPS = ((16, 1), (32, 2), (64, 4), (256, 8))


def padded_rows(num_rows: int) -> int:
    """The number of rows used for a product of `num_rows`.

    oneDNN compiles and keeps a kernel, 0.6 MB, for every shape and number of rows: a batch that grows and shrinks
    freely would gradually take a gigabyte, and compiling would add to its latency.
    """
    step = next((step for most, step in ROW_STEPS if num_rows <= most), ROW_STEPS[-1][1])
    return -(-num_rows // step) * step


class PackedLinear(nn.Module):
    """A linear layer without bias whose weight exists only in oneDNN's own layout; it cannot be trained or saved.

    Its products run on `num_threads` threads and everything between them on one: a kernel that splits its work by the
    number of rows may round by the number of rows.
    """

    def __init__(self, weight: Tensor, num_threads: int) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.num_threads = num_threads
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), PACKED_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` -> `[..., out_features]`"""
        rows = x.reshape(-1, self.in_features)
        num_rows = len(rows)
        if num_missing := padded_rows(num_rows) - num_rows:
            rows = F.pad(rows, (0, 0, 0, num_missing))
        return self._product(rows)[:num_rows].view(*x.shape[:-1], self.out_features)

    def _product(self, rows: Tensor) -> Tensor:
        """`[rows, in_features]` -> `[rows, out_features]`"""
        if self.num_threads == 1:
            return cast(Tensor, torch.ops.mkldnn._linear_pointwise(rows, self.packed, None, "none", [], ""))
        torch.set_num_threads(self.num_threads)
        out: Any = torch.ops.mkldnn._linear_pointwise(rows, self.packed, None, "none", [], "")
        torch.set_num_threads(1)
        return cast(Tensor, out)


def pack_linears(model: nn.Module, num_threads: int) -> None:
    """Replace every `nn.Linear` of a float32 CPU model by a `PackedLinear`, in place.

    Tied weights are packed once more for the unembedding; the embedding keeps its own.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child.weight, num_threads))
