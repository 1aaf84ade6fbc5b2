"""What a reader gets who applies a preset with one click: do its words come, and does the text still read?

A click edits every generated token, and the last of the prompt, which chooses the first of them. Knows no server.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from topk_model.modeling import TopKLMForCausalLM
from topk_model.steering.bench import Lever, continuation_loss, continue_rows, moved
from topk_model.steering.presets import Preset, words_in

#: What is continued, with each of the seeds: nothing is picked.
PROMPTS = (
    "Once upon a time,",
    "One day, a little girl",
    "The dog looked at",
    "It was a sunny day and",
    "Tom and his mom went to",
)
SEEDS = (1, 2)
WRITTEN_TOKENS, TEMPERATURE = 48, 0.7
#: The presets that the page shows first: their file's order is by the texts in which their words come.
NUM_FIRST = 10
#: A model's steering shows and still reads where so many texts hold a word, at no more than this above the plain loss.
ENOUGH_TEXTS, MAX_COST = 0.6, 0.6


def clicks(
    model: TopKLMForCausalLM, tokenizer: PreTrainedTokenizerBase, presets: Sequence[Preset]
) -> dict[str, Any] | None:
    """Texts with one of the preset's words, plain and steered, and what steering costs; None without presets.

    Returns:
        `first`, of the first presets, `seeds`, one entry a seed over all presets and prompts, and `presets`, one entry
        a preset over all seeds: the share of texts that hold one of its words (`plain`, `steered`), and `cost`, nats a
        token of the steered texts' loss under the plain model above that of the plain texts.
    """
    if not presets:
        return None
    prompts = [torch.tensor([tokenizer(text).input_ids], device=model.device) for text in PROMPTS]
    plain = [[written(model, prompt, seed, None) for prompt in prompts] for seed in SEEDS]
    rows = []
    for preset in tqdm(presets, desc="clicks", unit="preset"):
        lever = Lever(layer=preset.layer, neuron=preset.neuron, value=preset.value)
        for seed, defaults in zip(SEEDS, plain, strict=True):
            steered = [written(model, prompt, seed, lever) for prompt in prompts]
            for (before, loss), (after, steered_loss) in zip(defaults, steered, strict=True):
                holds = [bool(words_in(tokenizer.decode(ids[0]), preset.words)) for ids in (before, after)]
                rows.append((preset.name, seed, *holds, steered_loss - loss))
    first = {preset.name for preset in presets[:NUM_FIRST]}
    return {
        "prompts": list(PROMPTS),
        "tokens": WRITTEN_TOKENS,
        "temperature": TEMPERATURE,
        **summed(rows),
        "first": {"presets": len(first), **summed([row for row in rows if row[0] in first])},
        "seeds": [{"seed": seed, **summed([row for row in rows if row[1] == seed])} for seed in SEEDS],
        "presets": [
            {"name": preset.name, **summed([row for row in rows if row[0] == preset.name])} for preset in presets
        ],
    }


def written(model: TopKLMForCausalLM, prompt: Tensor, seed: int, lever: Lever | None) -> tuple[Tensor, float]:
    """What the model writes after a prompt, and its loss under the plain model, nats a token."""
    sparsify = None if lever is None else moved(model, lever, only_continuation=True)
    ids = continue_rows(model, prompt, WRITTEN_TOKENS, seed, sparsify, TEMPERATURE)
    return ids, continuation_loss(model, prompt, ids)


def summed(rows: Sequence[tuple[str, int, bool, bool, float]]) -> dict[str, Any]:
    """Shares and mean cost of (preset, seed, plain holds one, steered holds one, cost)."""
    return {
        "texts": len(rows),
        "plain": round(sum(row[2] for row in rows) / len(rows), 3),
        "steered": round(sum(row[3] for row in rows) / len(rows), 3),
        "cost": round(sum(row[4] for row in rows) / len(rows), 3),
    }
