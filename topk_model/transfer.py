"""Between the host and the device, without the host waiting for it more often than it must.

A copy from pageable memory to a GPU, and any reading of a GPU's tensor, makes the host wait until all that was queued
before it is done: the GPU then idles while the next step is prepared. So what goes up goes from pinned memory and is
not waited for, and what comes down comes together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """An array on the device. On a CPU it is the array itself; on a GPU the copy is queued, not waited for."""
    tensor = torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def to_host(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Arrays of what stands in `tensors`, all of one device; on a GPU the host waits once for all of them."""
    if not tensors or tensors[0].device.type != "cuda":
        return [tensor.numpy() for tensor in tensors]
    landed = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for here, there in zip(landed, tensors, strict=True):
        here.copy_(there, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [here.numpy() for here in landed]
