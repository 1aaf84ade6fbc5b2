"""The texts that levers are found and measured on, and what a search must know of a model before it begins.

Knows no server, no catalogue and no concept.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from topk_model.configuration import TopKLMConfig
from topk_model.modeling import TopKLMForCausalLM
from topk_model.training.data import TokenWindows

#: Tokens per text, including the beginning-of-text token, if the model's context allows that many.
TEXT_TOKENS = 256


def held_out_texts(folder: Path, tokenizer: PreTrainedTokenizerBase, context: int, half: int) -> Tensor:
    """Every second held-out text, `[texts, length]`: half 0 is for finding, half 1 for measuring.

    No two overlap.

    Raises:
        FileNotFoundError: the folder has no `validation.npy`.
    """
    windows = TokenWindows.load(folder, "validation", min(TEXT_TOKENS, context), tokenizer.bos_token_id).disjoint()
    return torch.from_numpy(windows.rows(np.arange(half, len(windows), 2)))[:, :-1]


@torch.inference_mode()
def find_scales(model: TopKLMForCausalLM, texts: Tensor, layers: Sequence[int]) -> Tensor:
    """Largest magnitude of each neuron's activation over `texts` without their first token, `[layers, hidden_size]`."""
    scales = torch.zeros(len(layers), model.config.hidden_size, device=model.device)

    def look(layer: int, hidden: Tensor) -> Tensor:
        hidden = model.model.sparsify(layer, hidden)
        if layer in layers:
            place = layers.index(layer)
            scales[place] = torch.maximum(scales[place], hidden[:, 1:].abs().amax((0, 1)))
        return hidden

    for batch in texts.to(model.device).split(8):
        model(input_ids=batch, sparsify=look, logits_to_keep=1)
    return scales


def steered_layers(config: TopKLMConfig, count: int | None = None) -> tuple[int, ...]:
    """The TopK layers; for a model without any, the first `count` layers, or all."""
    return tuple(config.topk_layers) or tuple(range(config.num_hidden_layers))[:count]
