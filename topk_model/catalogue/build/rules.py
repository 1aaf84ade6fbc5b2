"""Rules that say where a neuron fires: at, before or after some words or a kind of them, or where they were spoken of.

Of a longer word, which is several tokens, a rule may name a piece: what many words have in common is no whole word.

A rule is judged by two things that a reader would ask of a label: where it says so, does the neuron fire; and where the
neuron fires strongly, does it say so? Knows no neuron's label, no model and no file.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from topk_model.catalogue.build.kinds import KINDS, Layout

Relation = Literal["at", "piece", "before", "after", "about"]
#: How many positions up to a firing, its own word left out, are what the text is about.
REACH = 24
#: Words of a rule at most.
MAX_WORDS = 24
#: A firing of this quantile of a neuron's magnitudes, or above, is as strong as any.
STRONG_QUANTILE = 0.98
#: Firings at a word that are added to what is seen, of which none fires: a rare word has to earn its place.
PRIOR = 2.0


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Running text, as the rules see it."""

    words: NDArray[np.int32]  # number of the word at each position; -1: not in the vocabulary
    pieces: NDArray[np.int32]  # number of the piece of a longer word at each position; -1: it is a whole word
    layout: Layout
    kinds: NDArray[np.bool_]  # [positions, KINDS]
    information: NDArray[np.float64]  # of each position's token; 0 if it is not counted

    def neighbours(self, relation: Relation) -> NDArray[np.int64]:
        """The position whose word each position is judged by; -1: none."""
        if relation == "before":
            return self.layout.next_at
        return self.layout.previous_at if relation == "after" else np.arange(len(self.words))

    def words_seen(self, relation: Relation) -> NDArray[np.int32]:
        """The number of the word, or of the piece, that each position is judged by; -1: none."""
        if relation == "piece":
            return self.pieces
        at = self.neighbours(relation)
        return np.where(at >= 0, self.words[at], -1)

    def contexts(self, is_content: NDArray[np.bool_]) -> scipy.sparse.csr_array:
        """Whether a content word stands among the `REACH` positions before each, in the same story.

        Args:
            is_content: which words are content words `[words]`.

        Returns:
            `[positions, words]`; the rest of the same word is no context.
        """
        count = len(self.words)
        found = np.flatnonzero((self.words >= 0) & is_content[self.words] & (self.layout.begins == np.arange(count)))
        before, after = [], []
        for distance in range(1, REACH + 1):
            own = found[found + distance < count]
            ahead = own + distance
            usable = (self.layout.story[ahead] == self.layout.story[own]) & (self.layout.begins[ahead] != own)
            usable &= self.information[ahead] > 0
            before.append(own[usable])
            after.append(ahead[usable])
        rows, columns = np.concatenate(after), self.words[np.concatenate(before)]
        matrix = scipy.sparse.csr_array(
            (np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(count, len(is_content))
        )
        matrix.sum_duplicates()
        matrix.data[:] = 1
        return matrix


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The neuron fires where one of these words or pieces, or a word of this kind, stands in this relation."""

    relation: Relation
    words: tuple[int, ...] = ()  # in the order they were added
    kind: str | None = None

    def marks(self, passage: Passage, contexts: scipy.sparse.csr_array) -> NDArray[np.bool_]:
        """At which positions the rule expects the neuron to fire `[positions]`."""
        counted = passage.information > 0
        if self.kind is not None:
            at = passage.neighbours(self.relation)
            return np.where(at >= 0, passage.kinds[at, KINDS.index(self.kind)], False) & counted
        num_words = max(contexts.shape[1], int(passage.pieces.max(initial=-1)) + 1)
        wanted = np.zeros(num_words + 1, dtype=bool)  # the last one is for -1
        wanted[list(self.words)] = True
        if self.relation == "about":
            return (contexts @ wanted[: contexts.shape[1]].astype(np.float32) > 0) & counted
        return wanted[passage.words_seen(self.relation)] & counted


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """A neuron's firings on a passage, each weighed by its token's information."""

    positions: NDArray[np.int32]
    fires: NDArray[np.float64]  # how surely it fires there, 1 from half of its strong firing on
    strong: NDArray[np.float64]  # how much of its strong firing that is: the square of its magnitude, cut

    @classmethod
    def of(cls, positions: NDArray[np.int32], values: NDArray[np.float32], passage: Passage) -> "Strengths":
        magnitudes = np.abs(values).astype(np.float64)
        weights = passage.information[positions]
        scale = float(np.quantile(magnitudes, STRONG_QUANTILE)) if len(magnitudes) else 1.0
        return cls(
            positions=positions,
            fires=weights * np.minimum(2 * magnitudes / scale, 1),
            strong=weights * np.minimum(magnitudes / scale, 1) ** 2,
        )


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well a rule says where a neuron fires; all 0 to 1."""

    precision: float  # share of what the rule marks, by information, at which the neuron fires
    recall: float  # share of the neuron's strong firing that the rule marks

    @property
    def f1(self) -> float:
        return harmonic(self.precision, self.recall)


def harmonic(one: float, other: float) -> float:
    return 2 * one * other / (one + other) if one + other > 0 else 0.0


def fit(marks: NDArray[np.bool_], neuron: Strengths, passage: Passage) -> Fit:
    """How well positions that are marked are those at which the neuron fires."""
    inside = marks[neuron.positions]
    marked, strong = float(passage.information[marks].sum()), float(neuron.strong.sum())
    return Fit(
        precision=float(neuron.fires[inside].sum()) / marked if marked else 0.0,
        recall=float(neuron.strong[inside].sum()) / strong if strong else 0.0,
    )


def add_words(
    fires: NDArray[np.float64], strong: NDArray[np.float64], met: NDArray[np.float64], total: float
) -> list[int]:
    """Up to `MAX_WORDS` words, added one by one as each raises the harmonic mean of precision and recall most.

    Args:
        fires: the neuron's firing at each word `[words]`.
        strong: its strong firing at each word.
        met: what each word weighs in all of the text.
        total: the neuron's strong firing everywhere.
    """
    chosen: list[int] = []
    candidates = np.flatnonzero(strong > 0)
    hits = explained = marked = best = 0.0
    while len(chosen) < MAX_WORDS and len(candidates):
        precision = (hits + fires[candidates]) / (marked + met[candidates])
        recall = (explained + strong[candidates]) / total
        scores = 2 * precision * recall / (precision + recall)
        at = int(scores.argmax())
        if scores[at] <= best * 1.002:  # a word that adds nothing to speak of says nothing either
            break
        word = int(candidates[at])
        chosen.append(word)
        hits, explained, marked = hits + fires[word], explained + strong[word], marked + met[word]
        best = float(scores[at])
        candidates = np.delete(candidates, at)
    return chosen


def dense(matrix: scipy.sparse.csr_array, row: int) -> NDArray[np.float64]:
    """One row `[columns]`."""
    out = np.zeros(matrix.shape[1])
    own = slice(matrix.indptr[row], matrix.indptr[row + 1])
    out[matrix.indices[own]] = matrix.data[own]
    return out


def sparse_rows(
    positions: NDArray[np.int32], values: NDArray[np.float64], starts: NDArray[np.int64], width: int
) -> scipy.sparse.csr_array:
    """`[rows, width]` from the entries of each row, one row after the other."""
    return scipy.sparse.csr_array((values.astype(np.float32), positions, starts), shape=(len(starts) - 1, width))
