"""Words of a text, and the similarity of their meanings, learned from the text itself. Knows no model.

Word vectors are the usual count-based ones: positive pointwise mutual information of words that stand near each
other, with smoothed contexts, reduced by a truncated SVD (Levy, Goldberg, Dagan 2015), then centred (Mu and Viswanath
2018). They need no other corpus and no other model, and depend on the text only.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from sys import intern

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import NDArray

from topk_model.catalogue.build.texts import Texts

#: Number of words on each side that form a word's context.
REACH = 4
#: Rarer words have no vector: they are similar only to themselves.
MIN_COUNT = 10
MAX_VECTORS = 8000
DIMENSIONS = 100
#: The power that smooths the contexts' probabilities.
SMOOTHING = 0.75


def split_words(texts: Texts, tokens: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The whole word, lower-cased, that each position belongs to, and where it begins `[positions]`.

    Signs and numbers are words of their own.

    Args:
        tokens: the text of every token id; see `token_texts`.
    """
    words: list[str] = []
    begins: list[int] = []
    borders = set(texts.starts.tolist())
    begun = 0  # start of the word that is being read
    is_open = False  # whether it can continue
    for position, token_id in enumerate(texts.ids.tolist()):
        piece = tokens[token_id]
        if is_open and position not in borders and (piece.isalpha() or piece == "'t"):
            word = intern(words[begun] + piece.lower())
            words[begun:] = [word] * (position - begun + 1)
            begins.append(begun)
            continue
        word = intern(piece.strip().lower() or ("¶" if "\n" in piece else "␣"))
        words.append(word)
        begins.append(position)
        begun, is_open = position, word.isalpha()
    return words, np.array(begins, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The words of some texts, the most frequent first."""

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    numbers: dict[str, int]

    @classmethod
    def of(cls, words: Sequence[str]) -> "Vocabulary":
        ranked = sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))
        return cls(
            names=tuple(name for name, _ in ranked),
            counts=np.array([count for _, count in ranked], dtype=np.int64),
            numbers={name: number for number, (name, _) in enumerate(ranked)},
        )

    def number(self, words: Sequence[str]) -> NDArray[np.int32]:
        """The number of each word; -1 if it is not in the vocabulary."""
        return np.array([self.numbers.get(word, -1) for word in words], dtype=np.int32)


def word_vectors(words: Sequence[str], vocabulary: Vocabulary) -> NDArray[np.float32]:
    """Unit vectors `[count, dimensions]` of the vocabulary's first words, from running text `words`.

    Those of words without a vector, such as signs and numbers, are zero: such a word is similar only to itself. An
    immediately repeated word counts once: a word of several tokens occurs in `words` several times.
    """
    numbers = vocabulary.number(words)
    is_first = np.append(True, numbers[1:] != numbers[:-1])
    is_word = np.array([name[0].isalpha() for name in vocabulary.names], dtype=bool)
    running = numbers[is_first & is_word[numbers]]
    count = min(MAX_VECTORS, int(np.count_nonzero(vocabulary.counts >= MIN_COUNT)))
    dimensions = min(DIMENSIONS, count - 1)
    if dimensions < 1:
        return np.zeros((count, 1), dtype=np.float32)
    counts = scipy.sparse.csr_array((count, count), dtype=np.float64)
    for distance in range(1, REACH + 1):
        left, right = running[:-distance], running[distance:]
        near = (left < count) & (right < count)
        ones = np.ones(np.count_nonzero(near))
        counts = counts + scipy.sparse.coo_array((ones, (left[near], right[near])), shape=(count, count)).tocsr()
    counts = (counts + counts.T).tocoo()
    if not counts.nnz:
        return np.zeros((count, 1), dtype=np.float32)
    of_word = counts.sum(axis=1)
    of_context = of_word**SMOOTHING / (of_word**SMOOTHING).sum()
    rows, columns = counts.coords
    pmi = np.log(counts.data / (of_word[rows] * of_context[columns]))
    positive = scipy.sparse.csr_array((np.maximum(pmi, 0), (rows, columns)), shape=(count, count))
    start = np.ones(count) / np.sqrt(count)  # a fixed start of the iteration gives the same vectors every time
    left_vectors, strengths, _ = scipy.sparse.linalg.svds(positive, k=dimensions, v0=start)
    vectors = left_vectors * np.sqrt(strengths)
    # Signs, numbers and words without a neighbour have no vector; centred with the rest, they would all be similar.
    is_known = of_word[:, None] > 0
    vectors = np.where(is_known, vectors - vectors.mean(axis=0, where=is_known), 0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


def entropy(weights: NDArray) -> NDArray[np.float64]:
    """Entropy in bits of each row of `weights` `[..., outcomes]`, which need not sum to 1; 0 for a row of zeros."""
    total = weights.sum(-1, keepdims=True, dtype=np.float64)
    shares = weights / np.where(total > 0, total, 1)
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(-1)


def semantic_entropy(weights: NDArray, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Entropy in bits of each row of `weights` `[rows, vocabulary]`, with words of similar meaning counted as one.

    This is the similarity-sensitive entropy of order 1 of Leinster and Cobbold (2012), after Ricotta and Szeidl (2006):

        H = -sum_w p(w) log2 sum_v p(v) Z(w, v),   Z(w, v) = max(0, cos(w, v))

    0 if all words mean the same; the entropy of the words if no two are similar, and never more.
    """
    total = weights.sum(-1, keepdims=True, dtype=np.float64)
    shares = (weights / np.where(total > 0, total, 1)).astype(np.float32)
    count = len(vectors)
    ordinary = shares.copy()  # [rows, vocabulary]: how much of each row is similar to a word
    for first in range(0, count, 1024):
        block = slice(first, min(first + 1024, count))
        alike = np.maximum(vectors @ vectors[block].T, 0)
        alike[np.arange(block.start, block.stop), np.arange(block.stop - block.start)] = 1
        ordinary[:, block] = shares[:, :count] @ alike
    return -(shares * np.log2(np.where(shares > 0, ordinary, 1))).sum(-1, dtype=np.float64)
