"""Transfers between the host and the device in which the host waits no more often than necessary.

A copy from pageable memory to a GPU, and any read of a GPU's tensor, makes the host wait until everything queued
before it is done: the GPU then idles while the next step is prepared. So uploads come from pinned memory and are not
waited for, and downloads are combined.
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
    """The contents of `tensors`, all on one device, as arrays; on a GPU the host waits once for all of them."""
    if not tensors or tensors[0].device.type != "cuda":
        return [tensor.numpy() for tensor in tensors]
    landed = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for here, there in zip(landed, tensors, strict=True):
        here.copy_(there, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [here.numpy() for here in landed]
