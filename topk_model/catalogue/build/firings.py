"""The pass over text: which neurons of every TopK layer are active where, and how often two are active together.

Knows no words, no labels and no file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from topk_model.catalogue.build.texts import Texts
from topk_model.modeling import TopKLMForCausalLM, cached_attention, topk_mask
from topk_model.traces import index_type

#: Windows per forward pass.
BATCH_WINDOWS = 8
#: Positions per matrix product that counts which neurons are active together.
CHUNK_POSITIONS = 4096


@dataclass(frozen=True, kw_only=True)
class States:
    """The k kept entries of each position in one TopK layer; ascending indices, value 0 if it is not counted."""

    indices: NDArray[np.unsignedinteger]  # [positions, k]
    values: NDArray[np.float32]  # [positions, k]

    def first(self, num_positions: int) -> "States":
        return States(indices=self.indices[:num_positions], values=self.values[:num_positions])

    def counts(self, hidden_size: int) -> NDArray[np.int64]:
        """Firings of each neuron."""
        return np.bincount(self.indices[self.values != 0], minlength=hidden_size)


@dataclass(frozen=True, kw_only=True)
class Firings:
    """One layer's active entries by neuron, positions ascending within each neuron."""

    starts: NDArray[np.int64]  # [hidden_size + 1]
    positions: NDArray[np.int32]  # [firings]
    values: NDArray[np.float32]  # [firings]

    @classmethod
    def of(cls, states: States, hidden_size: int) -> "Firings":
        k = states.indices.shape[1]
        values = states.values.ravel()
        order = np.argsort(states.indices.ravel(), kind="stable")
        order = order[values[order] != 0]
        return cls(
            starts=np.concatenate([[0], np.cumsum(states.counts(hidden_size))]),
            positions=(order // k).astype(np.int32),
            values=values[order],
        )

    def __getitem__(self, neuron: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Positions and values of one neuron."""
        own = slice(self.starts[neuron], self.starts[neuron + 1])
        return self.positions[own], self.values[own]


@torch.inference_mode()
def read_states(
    model: TopKLMForCausalLM, texts: Texts, bos_id: int | None, advance: Callable[[int], object] = lambda _: None
) -> list[States]:
    """The states of every TopK layer over `texts`; every window is read separately.

    Args:
        advance: called after each batch with its number of windows.

    Raises:
        FloatingPointError: an activation is not finite.
    """
    config = model.config
    shape = len(texts.ids), config.topk_k
    states = [
        States(indices=np.zeros(shape, dtype=index_type(config.hidden_size)), values=np.zeros(shape, dtype=np.float32))
        for _ in config.topk_layers
    ]
    attend = cached_attention(config, None, None)
    before = int(bos_id is not None)
    for which, rows in texts.batches(bos_id, BATCH_WINDOWS):
        ids = torch.from_numpy(rows).to(model.device)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        hidden = model.model.embed_tokens(ids)
        rope = model.model.rotary_emb(positions, hidden.dtype)
        in_batch = slice(texts.starts[which.start], texts.starts[which.stop])
        lengths = np.diff(texts.starts[which.start : which.stop + 1])
        in_text = np.zeros(rows.shape, dtype=bool)
        for row, length in enumerate(lengths):
            in_text[row, before : before + length] = True
        is_counted = texts.is_counted[in_batch, None]
        # Only the TopK layers: the states of the dense ones are not needed.
        for layer, block in enumerate(model.model.layers[: config.num_topk_layers]):
            hidden = block(hidden, rope, attend, lambda _, dense: dense)
            mask = topk_mask(hidden, config.topk_k, config.topk_select)
            kept, indices = entries(hidden, mask, config.topk_k)
            if not np.isfinite(kept[in_text]).all():
                raise FloatingPointError(f"layer {layer} has activations that are not finite")
            states[layer].indices[in_batch] = indices[in_text]
            states[layer].values[in_batch] = np.where(is_counted, kept[in_text], 0)
            hidden = torch.where(mask, hidden, 0.0)
        advance(len(lengths))
    return states


def entries(hidden: Tensor, mask: Tensor, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k kept values of each vector and their indices, `[..., k]` both.

    Raises:
        FloatingPointError: a vector has NaN, so that its k largest values are undefined.
    """
    shape = (*hidden.shape[:-1], k)
    if int(mask.sum()) != int(np.prod(shape)):
        raise FloatingPointError("an activation is not a number")
    values = hidden[mask].float().reshape(shape)
    return values.cpu().numpy(), mask.nonzero()[:, -1].reshape(shape).cpu().numpy()


def count_together(states: list[States], hidden_size: int, layer: int) -> NDArray[np.float32]:
    """At how many positions each neuron of one layer is active together with each of all layers.

    Returns:
        `[hidden_size, layers * hidden_size]`; exact, as float32 counts to 2**24.
    """
    together = torch.zeros(hidden_size, len(states) * hidden_size)
    for chunk in chunks(len(states[0].values)):
        active = torch.zeros(len(states), chunk.stop - chunk.start, hidden_size)
        for place, state in enumerate(states):
            indices = torch.from_numpy(state.indices[chunk].astype(np.int64))
            fires = torch.from_numpy(state.values[chunk] != 0)
            active[place].scatter_(1, indices, fires.float())
        everywhere = active.transpose(0, 1).reshape(chunk.stop - chunk.start, -1)
        together.addmm_(active[layer].T, everywhere)
    return together.numpy()


def chunks(num_positions: int) -> Iterator[slice]:
    for first in range(0, num_positions, CHUNK_POSITIONS):
        yield slice(first, min(first + CHUNK_POSITIONS, num_positions))
