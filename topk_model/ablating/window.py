"""A text that is read once, and then again from wherever something in it is ablated. Knows no file and no request."""

import torch
from torch import Tensor
from torch.nn import functional as F

from topk_model.modeling import Sparsify, TopKLMForCausalLM, cached_attention


class AblatedWindow:
    """A text's keys, values and states, and rows that stand in for its positions from some layer on.

    Args:
        ids: the text's tokens `[length]`.
        sparsify: replaces the model's own, as where there are edits.

    Attributes:
        states: what each TopK layer hands on `[topk layers, length, hidden_size]`.
        hidden: what the unembedding reads `[length, hidden_size]`.
    """

    @torch.inference_mode()
    def __init__(self, model: TopKLMForCausalLM, ids: Tensor, sparsify: Sparsify | None = None) -> None:
        self.model = model
        self.length = len(ids)
        self._groups = model.config.num_attention_heads // model.config.num_key_value_heads
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._mask = torch.empty(0)
        self._within = cached_attention(model.config, None, None)
        states: list[Tensor] = []
        apply = sparsify or model.model.sparsify

        def kept(layer: int, hidden: Tensor) -> Tensor:
            hidden = apply(layer, hidden)
            if layer < model.config.num_topk_layers:
                states.append(hidden)
            return hidden

        embedded = model.model.embed_tokens(ids)
        positions = torch.arange(self.length, device=ids.device)
        self.hidden = model.model.run_blocks(embedded, positions, self._attend_text, kept)
        self.states = torch.stack(states) if states else embedded.new_empty(0, *embedded.shape)

    @torch.inference_mode()
    def run(
        self,
        hidden: Tensor,
        positions: Tensor,
        runs: Tensor,
        starts: Tensor,
        first_layer: int,
        sparsify: Sparsify | None = None,
    ) -> Tensor:
        """Run rows from `first_layer` on; each sees the text before its run's start, and its run from there to itself.

        Args:
            hidden: the rows' states before that layer `[rows, hidden_size]`.
            positions: where each row stands in the text `[rows]`.
            runs: which rows belong together `[rows]`.
            starts: the first position of each row's run `[rows]`.

        Returns:
            What the unembedding reads `[rows, hidden_size]`.
        """
        before = torch.arange(self.length, device=starts.device) < starts[:, None]
        own = (runs[:, None] == runs) & (positions <= positions[:, None])
        self._mask = torch.cat((before, own), dim=1)
        return self.model.model.run_blocks(hidden, positions, self._attend_rows, sparsify, first_layer)

    def _attend_text(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention of `[length, heads, head_dim]`; keys and values are kept."""
        self._keys[layer], self._values[layer] = key, value
        return self._within(layer, query[None], key[None], value[None])[0]

    def _attend_rows(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of rows `[rows, heads, head_dim]`."""
        keys, values = torch.cat((self._keys[layer], key)), torch.cat((self._values[layer], value))
        query, keys, values = (x.transpose(0, 1) for x in (query, keys, values))  # [heads, rows, head_dim]
        keys, values = (x.repeat_interleave(self._groups, dim=0) for x in (keys, values))
        out = F.scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=self._mask)
        return out[0].transpose(0, 1).flatten(1)
