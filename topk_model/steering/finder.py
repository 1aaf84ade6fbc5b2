"""Levers for one model: its ordinary texts, half of them for finding and half for measuring, and searches on them.

Knows no server, no catalogue and no tokenizer: words and texts are token ids.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from topk_model.modeling import TopKLMForCausalLM
from topk_model.steering.bench import continue_rows
from topk_model.steering.held_out import held_out_texts, steered_layers
from topk_model.steering.levers import CostMap, LeverBench, Search, Watch, find_levers
from topk_model.steering.readings import Layout, Reading, packed
from topk_model.steering.targets import TextTarget, WordTarget
from topk_model.steering.words import Contrast, WordTree

#: Ordinary texts for finding and for measuring, and tokens of each, the first one included.
FINDING_TEXTS, MEASURING_TEXTS, TEXT_TOKENS = 8, 12, 64
#: Every so many positions of them, predictions are compared.
ROW_STEP = 3
#: Most rows of a text that words of several tokens may add: they are asked for at as many of its positions.
BRANCH_ROWS = 24
#: Most numbers of predictions that a bench holds in memory.
MAX_PREDICTIONS = 2**24
#: The seed of texts that the model writes itself.
SEED = 0


@dataclass(frozen=True, kw_only=True)
class OrdinaryTexts:
    """Texts that ask for nothing, on which effects and costs are measured."""

    source: Literal["held_out", "written"]  #: texts kept from training, or written by the model itself
    finding: Tensor  #: token ids `[texts, length]`, the beginning-of-text token first
    measuring: Tensor  #: others, the same


def ordinary_texts(
    folder: Path, model: TopKLMForCausalLM, tokenizer: PreTrainedTokenizerBase, watch: Watch
) -> OrdinaryTexts:
    """From the held-out texts in `folder`; if it has none, or too few, the model writes some at temperature 1."""
    context = model.config.max_position_embeddings
    length = min(TEXT_TOKENS, context)
    if (folder / "validation.npy").exists() and tokenizer.bos_token_id is not None:
        halves = [held_out_texts(folder, tokenizer, context, half) for half in (0, 1)]
        if all(len(texts) for texts in halves):
            finding, measuring = (
                texts[spread(len(texts), wanted), :length].to(model.device)
                for texts, wanted in zip(halves, (FINDING_TEXTS, MEASURING_TEXTS), strict=True)
            )
            return OrdinaryTexts(source="held_out", finding=finding, measuring=measuring)
    first = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)
    prompts = torch.full((FINDING_TEXTS + MEASURING_TEXTS, 1), first, device=model.device)
    num_steps, num_layers = length - 1, model.config.num_hidden_layers
    num_called = 0

    def watched(layer: int, hidden: Tensor) -> Tensor:
        nonlocal num_called
        watch.report("writing texts", num_called // num_layers, num_steps)
        watch.checkpoint()
        num_called += 1
        return model.model.sparsify(layer, hidden)

    written = torch.cat((prompts, continue_rows(model, prompts, num_steps, SEED, watched)), 1)
    return OrdinaryTexts(source="written", finding=written[:FINDING_TEXTS], measuring=written[FINDING_TEXTS:])


def spread(count: int, wanted: int) -> np.ndarray:
    """Indices of `wanted` of `count` texts, evenly spread, or of all."""
    return np.linspace(0, count - 1, min(wanted, count)).round().astype(int)


class LeverFinder:
    """Searches one model for levers. Holds its ordinary texts and, from the first search on, its `CostMap`.

    Args:
        model: in float32, with its weights.
    """

    def __init__(self, model: TopKLMForCausalLM, texts: OrdinaryTexts) -> None:
        self.model, self.texts = model, texts
        self._costs: CostMap | None = None
        self.layers = steered_layers(model.config)

    def of_words(self, tree: WordTree, *, max_cost: float, limit: int, watch: Watch) -> "Found":
        """Levers that make some words likelier."""
        fast = packed(self.model)
        benches = [self._word_bench(texts, tree, fast, watch) for texts in (self.texts.finding, self.texts.measuring)]
        return self._find(*benches, max_cost=max_cost, limit=limit, watch=watch)

    def of_texts(self, contrast: Contrast, *, max_cost: float, limit: int, watch: Watch) -> "Found":
        """Levers that make some texts likelier than others."""
        halves = (self.texts.finding, contrast.half(0)), (self.texts.measuring, contrast.half(1))
        fast = packed(self.model)
        benches = [self._text_bench(texts, half, fast, watch) for texts, half in halves]
        return self._find(*benches, max_cost=max_cost, limit=limit, watch=watch)

    def _find(
        self, finding: LeverBench, measuring: LeverBench, *, max_cost: float, limit: int, watch: Watch
    ) -> "Found":
        if self._costs is None:
            ordinary = Reading(self.model, Layout.of_texts(self.texts.finding), self.layers)
            self._costs = CostMap.of(ordinary, watch)
        search = find_levers(finding, measuring, self._costs, max_cost=max_cost, limit=limit, watch=watch)
        return Found(search=search, log_odds=measuring.log_odds, rate=measuring.rate)

    def _rows(self, texts: Tensor) -> list[int]:
        """Positions of each text at which predictions are compared."""
        most = MAX_PREDICTIONS // (len(texts) * self.model.config.vocab_size)
        rows = list(range(1, texts.shape[1], ROW_STEP))
        return [rows[i] for i in spread(len(rows), max(1, most))]

    def _word_bench(self, texts: Tensor, tree: WordTree, fast: TopKLMForCausalLM, watch: Watch) -> LeverBench:
        # The longest word is read behind the last position, and has to fit the model's context, too.
        length = min(texts.shape[1], self.model.config.max_position_embeddings - tree.depth)
        texts, num_nodes = texts[:, :length], len(tree.nodes)
        rows = self._rows(texts)
        places = spread(len(rows), max(1, BRANCH_ROWS // num_nodes) if num_nodes else len(rows)).tolist()
        layout = Layout.branching(texts, [rows[i] for i in places], tree.nodes)
        branches = range(length, layout.ids.shape[1])
        all_rows = torch.tensor([*rows, *branches], device=texts.device)
        reading = Reading(self.model, layout, self.layers, all_rows, fast=fast)
        target = WordTarget(tree, len(rows), places, len(texts), texts.device)
        return LeverBench(reading, len(rows), target, reading, watch)

    def _text_bench(self, texts: Tensor, contrast: Contrast, fast: TopKLMForCausalLM, watch: Watch) -> LeverBench:
        rows = torch.tensor(self._rows(texts), device=texts.device)
        ordinary = Reading(self.model, Layout.of_texts(texts), self.layers, rows, fast=fast)
        several = [*contrast.towards, *contrast.away]
        ids = torch.zeros(len(several), max(map(len, several)), dtype=torch.long, device=texts.device)
        for row, one in zip(ids, several, strict=True):
            row[: len(one)] = torch.tensor(one)
        is_towards = [True] * len(contrast.towards) + [False] * len(contrast.away)
        target = TextTarget(ids, [len(one) for one in several], is_towards)
        read = Reading(self.model, Layout.of_texts(ids), self.layers, fast=fast)
        return LeverBench(ordinary, len(rows), target, read, watch)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of a search, and where it began: figures of the texts for measuring under the plain model."""

    search: Search
    log_odds: float
    rate: float | None
