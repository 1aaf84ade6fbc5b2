"""Labels of neurons, found without any other model: which words does it fire on, or which stand before it?

A label is a rule, "the current word is one of these" or "one of these stood among the last words", whose words are
chosen on one part of the text and whose score is measured on another. Knows no model and no file.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from topk_model.catalogue.build.firings import Firings
from topk_model.catalogue.build.texts import Texts
from topk_model.catalogue.build.words import Vocabulary
from topk_model.catalogue.neuron import Label

#: Words of a rule at most, and how many of them the label's text shows.
MAX_WORDS = 12
SHOWN_WORDS = 5
#: How many positions before a firing are its context.
REACH = 16
#: So many of the most frequent words say nothing as a context.
COMMON_WORDS = 150
#: A rarer word is no candidate.
MIN_COUNT = 5
#: A label must score this much on held-out text, where the neuron fires so many times.
MIN_SCORE = 0.2
MIN_FIRINGS = 20

DEFINITIONS = {
    "label": f"A rule of up to {MAX_WORDS} words: the current whole word is one of them; or, where the text begins "
    f"with 'after', one of them stands among the {REACH} tokens before. Words are added one by one, each time the one "
    "that raises the score on the catalogue's texts most; of the two kinds of rule the one that scores higher is "
    f"taken. The text shows the first {SHOWN_WORDS}, the evidence all.",
    "score": "Matthews correlation of rule and firing over positions of held-out text, each firing weighed by its "
    "|activation| over the mean: 1: the neuron fires where the rule says and nowhere else; 0: no better than chance. "
    f"Labels that score below {MIN_SCORE}, or are tested on fewer than {MIN_FIRINGS} firings, are dropped.",
}


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Running text, as the rules see it."""

    words: NDArray[np.int32]  # number of the word at each position; -1: not in the vocabulary
    starts: NDArray[np.int64]  # [windows + 1]
    is_counted: NDArray[np.bool_]  # [positions]

    @classmethod
    def of(cls, texts: Texts, words: NDArray[np.int32]) -> "Passage":
        return cls(words=words, starts=texts.starts, is_counted=texts.is_counted)

    @property
    def num_counted(self) -> int:
        return int(np.count_nonzero(self.is_counted))

    def followers(self, positions: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(position, one after it) for every one whose context each of `positions` belongs to, distance by distance.

        The context ends with the window, and the rest of the same word is none of it.
        """
        window_end = self.starts[np.searchsorted(self.starts, positions, side="right")]
        for distance in range(1, REACH + 1):
            inside = positions + distance < window_end
            before = positions[inside]
            differs = self.words[before + distance] != self.words[before]
            yield before[differs], before[differs] + distance


def matthews(hits: NDArray | float, marked: NDArray | float, firing: float, total: float) -> NDArray[np.float64]:
    """Matthews correlation of two yes-or-no properties of positions; 0 if one of them is constant.

    Args:
        hits: weight of the positions that have both, `[...]` like `marked`.
        marked: weight of those that have the one.
        firing: weight of those that have the other.
        total: weight of all.
    """
    spread = np.maximum(marked * (total - marked), 0) * max(firing * (total - firing), 0)
    correlation = (hits * total - marked * firing) / np.sqrt(np.where(spread > 0, spread, 1))
    return np.where(spread > 0, np.clip(correlation, -1, 1), 0.0)  # rounding may pass the bounds


@dataclass(frozen=True, kw_only=True)
class Rule:
    words: list[int]  # in the order they were added
    is_context: bool
    firings: NDArray[np.float64]  # how often the neuron fires where each word is met, and how often it is met
    met: NDArray[np.float64]
    score: float  # on the text it was found on

    def marks(self, passage: Passage, num_words: int) -> NDArray[np.bool_]:
        """At which positions the rule expects the neuron to fire."""
        is_wanted = np.zeros(num_words + 1, dtype=bool)  # the last one is for -1
        is_wanted[self.words] = True
        wanted = is_wanted[passage.words]
        if self.is_context:
            found = np.flatnonzero(wanted)
            wanted = np.zeros_like(wanted)
            for _, after in passage.followers(found):
                wanted[after] = True
        return wanted & passage.is_counted


class Labeller:
    """Finds the labels of neurons on one text, and scores them on another."""

    def __init__(self, vocabulary: Vocabulary, shown: Passage, held_out: Passage) -> None:
        self.vocabulary, self.shown, self.held_out = vocabulary, shown, held_out
        num_words, num_positions = len(vocabulary.names), len(shown.words)
        self.counts = np.bincount(shown.words[shown.is_counted], minlength=num_words).astype(np.float64)
        is_content = np.array([name.isalpha() for name in vocabulary.names]) & (self.counts >= MIN_COUNT)
        is_content[:COMMON_WORDS] = False
        pairs = [np.stack(pair) for pair in shown.followers(np.flatnonzero(is_content[shown.words]))]
        before, after = np.concatenate(pairs, axis=1)
        # [positions, words]: whether a word is among the context of a counted position.
        is_counted = shown.is_counted[after]
        before, after = before[is_counted], after[is_counted]
        ones = np.ones(len(after), dtype=np.float32)
        self.contexts = scipy.sparse.csr_array((ones, (after, shown.words[before])), shape=(num_positions, num_words))
        self.contexts.sum_duplicates()
        self.contexts.data[:] = 1
        self.context_counts = np.asarray(self.contexts.sum(axis=0)).ravel()

    def layer_labels(self, shown: Firings, held_out: Firings) -> list[Label | None]:
        """A label for each neuron of a layer, from its firings on either text; None: nothing predicts where it fires.

        The score is that on the held-out text.
        """
        num_neurons, num_words = len(shown.starts) - 1, len(self.counts)
        shape = num_neurons, len(self.shown.words)
        weights = np.concatenate([weigh(shown[neuron][1]) for neuron in range(num_neurons)])
        fires = scipy.sparse.csr_array((weights, shown.positions, shown.starts), shape=shape)
        context_hits = fires @ self.contexts
        fires.data = np.ones_like(weights)
        context_firings = fires @ self.contexts
        labels: list[Label | None] = []
        for neuron in range(num_neurons):
            own, tested = Weighted.of(*shown[neuron]), Weighted.of(*held_out[neuron])
            if min(len(own.positions), len(tested.positions)) < MIN_FIRINGS:
                labels.append(None)
                continue
            words = self.shown.words[own.positions]
            on_words = self.rule(
                own,
                np.bincount(words, own.weights, num_words).astype(np.float64),
                np.bincount(words, minlength=num_words).astype(np.float64),
                is_context=False,
            )
            on_contexts = self.rule(own, dense(context_hits, neuron), dense(context_firings, neuron), is_context=True)
            best = max(on_words, on_contexts, key=lambda rule: rule.score)
            score = self.score(best, self.held_out, tested)
            labels.append(self.label(best, score) if score >= MIN_SCORE else None)
        return labels

    def rule(
        self, neuron: "Weighted", hits: NDArray[np.float64], firings: NDArray[np.float64], *, is_context: bool
    ) -> Rule:
        """The best rule of one kind.

        Args:
            hits: weight of the firings at each word, or with it in the context, `[vocabulary]`.
            firings: their number.
        """
        met = self.context_counts if is_context else self.counts
        hits = np.where(self.counts >= MIN_COUNT, hits, 0)
        chosen = add_words(hits, met - firings + hits, neuron.weights.sum(), neuron.total(self.shown))
        rule = Rule(words=chosen, is_context=is_context, firings=firings[chosen], met=met[chosen], score=0.0)
        return replace(rule, score=self.score(rule, self.shown, neuron))

    def score(self, rule: Rule, passage: Passage, neuron: "Weighted") -> float:
        """The Matthews correlation of rule and firing; see `DEFINITIONS`."""
        marks = rule.marks(passage, len(self.counts))
        marked_firings = marks[neuron.positions]
        hits = neuron.weights[marked_firings].sum()
        silent = np.count_nonzero(marks) - np.count_nonzero(marked_firings)
        return float(matthews(hits, hits + silent, neuron.weights.sum(), neuron.total(passage)))

    def label(self, rule: Rule, score: float) -> Label:
        names = [readable(self.vocabulary.names[word]) for word in rule.words]
        text = ", ".join(names[:SHOWN_WORDS])
        return Label(
            text=f"after {text}" if rule.is_context else text,
            source="automatic",
            score=score,
            evidence=tuple(
                f"{name}: {firings / met:.0%} of {met:.0f}"
                for name, firings, met in zip(names, rule.firings, rule.met, strict=True)
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A neuron's firings, each with its weight."""

    positions: NDArray[np.int32]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, positions: NDArray[np.int32], values: NDArray[np.float32]) -> "Weighted":
        return cls(positions=positions, weights=weigh(values))

    def total(self, passage: Passage) -> float:
        """Weight of all positions: a silent one weighs 1."""
        return float(passage.num_counted - len(self.positions) + self.weights.sum())


def weigh(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Weights of firings: their magnitudes over the mean."""
    magnitudes = np.abs(values).astype(np.float64)
    return magnitudes / magnitudes.mean() if len(magnitudes) else magnitudes


def dense(matrix: scipy.sparse.csr_array, row: int) -> NDArray[np.float64]:
    """One row `[columns]`."""
    out = np.zeros(matrix.shape[1])
    own = slice(matrix.indptr[row], matrix.indptr[row + 1])
    out[matrix.indices[own]] = matrix.data[own]
    return out


def readable(word: str) -> str:
    """A word as a label shows it: signs, which could be taken for the label's own, in quotes."""
    return word if any(map(str.isalnum, word)) else f"‘{word}’"


def add_words(hits: NDArray[np.float64], marked: NDArray[np.float64], firing: float, total: float) -> list[int]:
    """Up to `MAX_WORDS` words, added one by one as each raises the Matthews correlation most, while any does.

    Args:
        hits: weight of the firings at each word `[words]`.
        marked: weight of all positions of each word `[words]`.
        firing: weight of all firings.
        total: weight of all positions.
    """
    chosen: list[int] = []
    candidates = np.flatnonzero(hits)
    sum_hits = sum_marked = best = 0.0
    while len(chosen) < MAX_WORDS and len(candidates):
        scores = matthews(sum_hits + hits[candidates], sum_marked + marked[candidates], firing, total)
        scores[np.isin(candidates, chosen)] = -1
        at = int(scores.argmax())
        if scores[at] <= best:
            break
        word = int(candidates[at])
        chosen.append(word)
        sum_hits, sum_marked, best = sum_hits + hits[word], sum_marked + marked[word], float(scores[at])
    return chosen
