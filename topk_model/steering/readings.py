"""Sequences that a model has read once: passes in which one neuron is moved go on from the states that they left.

A sequence may branch: what stands beside the text at one of its positions is read as if it came next there, and the
text never sees it. Knows no target, no tokenizer and no server.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from topk_model.modeling import TopKLMForCausalLM, cached_attention
from topk_model.packing import pack_linears
from topk_model.steering.bench import Lever

#: Weights of a model that are held a second time for speed, at most.
MAX_PACKED_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is read, and where it stands."""

    ids: Tensor  #: token ids `[texts, length]`; the first of each is the beginning-of-text token, which is never edited
    positions: Tensor  #: `[1, length]`, position of each in its own sequence
    mask: Tensor | None  #: `[1, 1, length, length]`, true where a row sees a column; None: all before it, and itself

    @classmethod
    def of_texts(cls, ids: Tensor) -> Self:
        """Texts without branches."""
        return cls(ids=ids, positions=torch.arange(ids.shape[1], device=ids.device)[None], mask=None)

    @classmethod
    def branching(cls, ids: Tensor, places: Sequence[int], nodes: Sequence[tuple[int, int]]) -> Self:
        """Texts with the same branches at each of `places`: the branch of place p stands behind what p has read.

        Row `length + i * len(nodes) + n` holds node n of the i-th place.

        Args:
            nodes: (its parent among the nodes or -1, token id) of each; parents come first.
        """
        if not nodes:
            return cls.of_texts(ids)
        num_texts, length = ids.shape
        whole = length + len(places) * len(nodes)
        mask = torch.zeros(whole, whole, dtype=torch.bool)
        mask[:length, :length] = torch.ones(length, length).tril().bool()
        positions = list(range(length))
        for i, place in enumerate(places):
            first = length + i * len(nodes)
            for n, (parent, _) in enumerate(nodes):
                above = place if parent < 0 else first + parent
                mask[first + n] = mask[above]
                mask[first + n, first + n] = True
                positions.append(positions[above] + 1)
        branches = torch.tensor([token for _, token in nodes] * len(places), dtype=ids.dtype, device=ids.device)
        return cls(
            ids=torch.cat((ids, branches.expand(num_texts, -1)), 1),
            positions=torch.tensor(positions, device=ids.device)[None],
            mask=mask[None, None].to(ids.device),
        )


class Reading:
    """A layout's sequences, read once by the plain model.

    Args:
        layers: layers whose outputs may be edited.
        rows: rows of each sequence whose predictions matter; by default all but the first.
        fast: the same model for passes without a gradient, see `packed`; by default the model itself.
    """

    def __init__(
        self,
        model: TopKLMForCausalLM,
        layout: Layout,
        layers: Sequence[int],
        rows: Tensor | None = None,
        *,
        fast: TopKLMForCausalLM | None = None,
    ) -> None:
        self.model, self.layout, self.layers = model, layout, tuple(layers)
        self._fast = fast or model
        length = layout.ids.shape[1]
        self.rows = torch.arange(1, length, device=layout.ids.device) if rows is None else rows
        self._attend = cached_attention(model.config, layout.mask, None)
        self.states: dict[int, Tensor] = {}  # layer -> [texts, length, hidden_size]

        def keep(layer: int, hidden: Tensor) -> Tensor:
            hidden = model.model.sparsify(layer, hidden)
            if layer in self.layers:
                self.states[layer] = hidden
            return hidden

        with torch.no_grad():
            hidden = self._fast.model.embed_tokens(layout.ids)
            self._plain = self._fast.model.run_blocks(hidden, layout.positions, self._attend, keep)

    def __len__(self) -> int:
        return len(self.layout.ids)

    def scales(self) -> Tensor:
        """Largest magnitude of each neuron's activation in the sequences without their first token, `[layers,
        hidden_size]`."""
        return torch.stack([self.states[layer][:, 1:].abs().amax((0, 1)) for layer in self.layers])

    @torch.no_grad()
    def log_probs(self, lever: Lever | None = None) -> Iterator[Tensor]:
        """Of the next token after each of the rows, `[rows, vocab]`, one sequence after the other.

        Each may be changed by who gets it: what belongs to a vocabulary then stays in the processor's cache.

        Args:
            lever: which neuron is moved, at every row but the first.
        """
        hidden = self._plain
        if lever is not None:
            state = self.states[lever.layer].clone()
            state[:, 1:, lever.neuron] += lever.value
            positions, start = self.layout.positions, lever.layer + 1
            hidden = self._fast.model.run_blocks(state, positions, self._attend, start=start)
        for text in hidden:
            yield self._fast.lm_head(text[self.rows]).float().log_softmax(-1)

    def differentiable(self, text: int) -> tuple[Tensor, Tensor]:
        """Offsets `[layers, hidden_size]`, all 0, that are added to the states of one sequence, and the `log_probs`
        that depend on them. The caller holds the weights still, see `frozen`."""
        model, device = self.model.model, self.layout.ids.device
        size = len(self.layers), self.model.config.hidden_size
        offsets = torch.zeros(size, device=device, dtype=self._plain.dtype, requires_grad=True)

        def shifted(layer: int, hidden: Tensor) -> Tensor:
            hidden = model.sparsify(layer, hidden)
            if layer not in self.layers:
                return hidden
            return torch.cat((hidden[:, :1], hidden[:, 1:] + offsets[self.layers.index(layer)]), 1)

        hidden = model.embed_tokens(self.layout.ids[text : text + 1])
        hidden = model.run_blocks(hidden, self.layout.positions, self._attend, shifted)
        return offsets, self.model.lm_head(hidden[0, self.rows]).float().log_softmax(-1)


def packed(model: TopKLMForCausalLM) -> TopKLMForCausalLM:
    """The same model for passes without a gradient: on a CPU with its products packed for oneDNN, two to three times as
    fast. It shares the weights, and holds those of its products a second time, unless that would take much memory."""
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    if model.device.type != "cpu" or model.dtype != torch.float32 or num_bytes > MAX_PACKED_BYTES:
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    pack_linears(twin, num_threads=1)
    return twin
