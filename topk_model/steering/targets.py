"""What a lever is to make likelier: words, each of them as a whole, or one set of texts against another.

A target says what is to be read and makes one number of the predictions: the log-odds of its words, or of its texts.
Knows no neuron and no server.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from topk_model.steering.bench import log_odds
from topk_model.steering.words import WordTree

#: The least rise of a target that counts: of words, and of texts, whose log-odds add up over all of their tokens.
MIN_WORD_RISE, MIN_TEXT_RISE = 0.1, 0.02


class Target(Protocol):
    """What a bench measures: a number that is the sum of what each sequence adds to it.

    Attributes:
        groups: of each sequence, which others it is like: within a group they differ by chance.
        min_rise: the least rise that counts, in nats.
    """

    groups: Sequence[int]
    min_rise: float

    def score(self, text: int, log_probs: Tensor) -> Tensor:
        """What sequence number `text` adds, a scalar, given the predictions `[rows, vocab]` of its rows."""
        ...

    def rate(self, log_probs: Tensor) -> float | None:
        """How probable the words are there at a position, on average; None if the target is no words."""
        ...


class WordTarget:
    """The mean log-odds that any of some words comes next, over some positions of each text.

    The probability of a word is the product of its tokens', each after those before it.

    Args:
        text_rows: number of the reading's rows that stand for positions of the text; behind them, for each place, come
            the rows of the tree's nodes.
        places: which of those rows the words are asked for at.
        num_texts: sequences of the reading.
    """

    def __init__(self, tree: WordTree, text_rows: int, places: Sequence[int], num_texts: int, device: torch.device):
        longest, num_nodes = tree.depth + 1, len(tree.nodes)
        rows = torch.zeros(len(places), len(tree.words), longest, dtype=torch.long)
        for i, place in enumerate(places):
            for w, path in enumerate(tree.paths):
                for j, node in enumerate(path):
                    rows[i, w, j] = place if node < 0 else text_rows + i * num_nodes + node
        tokens = torch.zeros(len(tree.words), longest, dtype=torch.long)
        is_token = torch.zeros(len(tree.words), longest)
        for w, word in enumerate(tree.words):
            tokens[w, : len(word)] = torch.tensor(word)
            is_token[w, : len(word)] = 1
        self._rows, self._tokens, self._is_token = rows.to(device), tokens.to(device), is_token.to(device)
        self._num_texts = num_texts
        self.groups: Sequence[int] = (0,) * num_texts
        self.min_rise = MIN_WORD_RISE

    def score(self, text: int, log_probs: Tensor) -> Tensor:
        """See `Target`."""
        return log_odds(self._any(log_probs)).mean() / self._num_texts

    def rate(self, log_probs: Tensor) -> float:
        """See `Target`."""
        return self._any(log_probs).exp().mean().item()

    def _any(self, log_probs: Tensor) -> Tensor:
        """Log-probability of any of the words at each place, `[places]`."""
        each = log_probs[self._rows, self._tokens]  # [places, words, tokens of the longest]
        return (each * self._is_token).sum(-1).logsumexp(-1)


class TextTarget:
    """By how many nats a token some texts are likelier than others: the log-odds of a text's being one of them.

    What the first token's prediction says is not counted: no edit reaches it.

    Args:
        ids: token ids `[texts, length]`, shorter ones padded.
        lengths: tokens of each.
        is_towards: of each, whether it is to become likelier; the others are to become less likely.
    """

    def __init__(self, ids: Tensor, lengths: Sequence[int], is_towards: Sequence[bool]) -> None:
        self._ids, self._lengths, self._is_towards = ids, lengths, is_towards
        self.groups: Sequence[int] = tuple(map(int, is_towards))
        self.min_rise = MIN_TEXT_RISE

    def score(self, text: int, log_probs: Tensor) -> Tensor:
        """See `Target`; the rows are all but the first."""
        length, is_towards = self._lengths[text], self._is_towards[text]
        predicted = self._ids[text, 2:length]
        each = log_probs[: length - 2].gather(-1, predicted[:, None])
        share = self._is_towards.count(is_towards)
        return each.mean() / share if is_towards else -each.mean() / share

    def rate(self, log_probs: Tensor) -> None:
        """See `Target`."""
