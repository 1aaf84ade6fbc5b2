"""The KV cache of torch's runner. `blocks` manages which of its blocks are free."""

import numpy as np
import torch
from torch import Tensor

from topk_model.configuration import TopKLMConfig
from topk_model.transfer import to_device

#: A block that no sequence owns; it stays zero and pads block tables.
NULL_BLOCK = 0


class KVCache:
    """Keys and values, `[layers, blocks, block_size, kv_heads, head_dim]` each."""

    def __init__(
        self, config: TopKLMConfig, num_blocks: int, block_size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.num_hidden_layers, num_blocks + 1, block_size, config.num_key_value_heads, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def write(self, layer: int, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Store `key` and `value` `[rows, kv_heads, head_dim]` at `places` `[rows]` (block * block_size + offset)."""
        self.keys[layer].flatten(0, 1).index_copy_(0, places, key)
        self.values[layer].flatten(0, 1).index_copy_(0, places, value)

    def read(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the block tables `[seqs, blocks]`: `[seqs, kv_heads, blocks * block_size, head_dim]`."""
        flat = tables.flatten()
        key, value = (
            cache[layer].index_select(0, flat).view(len(tables), -1, *cache.shape[3:]).transpose(1, 2)
            for cache in (self.keys, self.values)
        )
        return key, value

    def wipe(self, blocks: list[int]) -> None:
        """Zero blocks whose content could be infinite or NaN: masked attention still multiplies what it masks."""
        index = to_device(np.array(blocks), self.keys.device)
        self.keys.index_fill_(1, index, 0.0)
        self.values.index_fill_(1, index, 0.0)
