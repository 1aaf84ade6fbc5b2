"""Attention of one step over the paged KV cache, in torch. Knows no model and no edits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.batch import Batch
from service.engine.kv_cache import KVCache


class PagedAttention:
    """The `Attend` of one step: stores the rows' keys and values, then attends from each sequence to its own."""

    def __init__(self, cache: KVCache, batch: Batch, groups: int) -> None:
        self.cache, self.batch, self.groups = cache, batch, groups
        block_size = cache.keys.shape[2]
        count, bounds = batch.num_decodes, batch.bounds
        #: (rows, block tables, mask [seqs, 1, queries or 1, length]) of each call to the kernel
        self.calls: list[tuple[slice, Tensor, Tensor]] = []
        if count:
            ends = [-(-piece.end // block_size) for piece in batch.pieces[:count]]
            self._add(slice(0, count), batch.tables[:count, : max(ends)], batch.positions[:count, None], block_size)
        for i in range(count, len(batch.pieces)):
            rows = slice(int(bounds[i]), int(bounds[i + 1]))
            num_blocks = -(-batch.pieces[i].end // block_size)
            self._add(rows, batch.tables[i : i + 1, :num_blocks], batch.positions[None, rows], block_size)

    def _add(self, rows: slice, tables: Tensor, positions: Tensor, block_size: int) -> None:
        """`positions`: `[seqs, queries]`; each query attends to its own position and those before it."""
        length = torch.arange(tables.shape[1] * block_size, device=tables.device)
        mask = (length <= positions[..., None])[:, None]  # [seqs, 1, queries, length]
        if mask.shape[2] > 1:
            mask = mask.repeat(1, 1, self.groups, 1)
        self.calls.append((rows, tables, mask))

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.cache.write(layer, self.batch.places, key, value)
        out = torch.empty_like(query)  # [rows, heads, head_dim]
        for rows, tables, mask in self.calls:
            keys, values = self.cache.read(layer, tables)
            seqs, kv_heads, head_dim = keys.shape[0], keys.shape[1], keys.shape[3]
            # The queries of heads that share a key head are passed as queries of that head.
            mine = query[rows].view(seqs, -1, kv_heads, self.groups, head_dim)
            num_queries = mine.shape[1]
            mine = mine.permute(0, 2, 3, 1, 4).reshape(seqs, kv_heads, self.groups * num_queries, head_dim)
            seen = F.scaled_dot_product_attention(mine, keys, values, attn_mask=mask)
            seen = seen.view(seqs, kv_heads, self.groups, num_queries, head_dim).permute(0, 3, 1, 2, 4)
            out[rows] = seen.reshape(-1, kv_heads * self.groups, head_dim)
        return out.flatten(1)
