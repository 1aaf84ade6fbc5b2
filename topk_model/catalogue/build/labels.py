"""Labels of neurons, found without any other model: at which words does it fire, before which, or where the text is
about what?

A label is one rule or two, chosen on one part of the text and scored on another. Knows no model and no file.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from topk_model.catalogue.build.firings import Firings
from topk_model.catalogue.build.kinds import KINDS, OF_WORDS
from topk_model.catalogue.build.lexicon import MIN_COUNT, PIECE_INFORMATION, Lexicon
from topk_model.catalogue.build.rules import (
    MAX_WORDS,
    PRIOR,
    REACH,
    STRONG_QUANTILE,
    Fit,
    Passage,
    Relation,
    Rule,
    Strengths,
    add_words,
    dense,
    fit,
    sparse_rows,
)
from topk_model.catalogue.neuron import Label

#: Words of a rule that the label's text shows; fewer where it has two rules.
SHOWN_WORDS, SHOWN_OF_TWO = 5, 3
#: So many of the most frequent words say nothing of what a text is about.
COMMON_WORDS = 120
#: A rule of another relation than "at" must be better than that by this factor, and a second rule add this much.
PREFERENCE, SECOND_GAIN = 1.08, 0.06
#: The same for a rule of pieces of words.
PIECE_PREFERENCE, PIECE_GAIN = 1.25, 0.1
#: A label must fit this well on held-out text, where the neuron fires so many times.
MIN_FIT = 0.15
MIN_FIRINGS = 20

DEFINITIONS = {
    "label": f"One rule or two of where the neuron fires. A rule is a list of up to {MAX_WORDS} whole words, or a "
    "named kind of words or places (names, sentence ends, quoted speech); the neuron fires at one of them, or, if the "
    "text begins with 'before' or 'after', at the token before or after it, or, if it begins with 'about', at most "
    f"{REACH} tokens behind one of them. Of words that are several tokens it may name pieces that many have in common, "
    "with a dash where the word goes on. Words are added one by one, each time the one that raises the fit on the "
    f"catalogue's texts most. The text shows the first {SHOWN_WORDS}, or {SHOWN_OF_TWO} of each of two rules, the "
    "evidence all.",
    "score": "The fit on held-out text, times the information of the words that the label names, at most 1: -log2 of "
    f"a token's frequency, over the mean of a token; of a piece of a word {PIECE_INFORMATION:g} times that. The fit is "
    "the harmonic mean of two shares, of positions weighed by their tokens' information. Of the positions that the "
    f"label names, how much the neuron fires at: twice the magnitude over its {STRONG_QUANTILE:g} quantile, at most 1. "
    "Of its strong firing, how much is at the positions that the label names: square of the magnitude over that "
    f"quantile, at most 1. Labels that fit less than {MIN_FIT}, or are tested on fewer than {MIN_FIRINGS} firings, are "
    "dropped.",
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A rule with what speaks for it on the text it was found on."""

    rule: Rule
    fit: float


class Labeller:
    """Finds the labels of neurons on one text, and scores them on another."""

    #: Those in which a kind is told of, and those in which words are looked up by their number.
    RELATIONS: tuple[Relation, ...] = ("at", "before", "after")
    LISTED: tuple[Relation, ...] = ("at", "piece", "before", "after")

    def __init__(self, lexicon: Lexicon, shown: Passage, held_out: Passage) -> None:
        self.lexicon, self.shown, self.held_out = lexicon, shown, held_out
        num_words = self.num_words = max(len(lexicon.written), len(lexicon.pieces))
        topical = lexicon.is_content.copy()
        topical[:COMMON_WORDS] = False  # the vocabulary's first words are its commonest
        self.contexts = shown.contexts(topical)
        self.held_out_contexts = held_out.contexts(topical)
        weight = shown.information
        self.seen: dict[Relation, NDArray[np.int32]] = {r: shown.words_seen(r) for r in self.LISTED}
        self.met: dict[Relation, NDArray[np.float64]] = {
            relation: sums(seen[seen >= 0], weight[seen >= 0], num_words) for relation, seen in self.seen.items()
        }
        self.met["about"] = np.asarray(weight @ self.contexts).ravel()
        self.num_met: dict[Relation, NDArray[np.float64]] = {
            relation: np.bincount(seen[(seen >= 0) & (weight > 0)], minlength=num_words).astype(np.float64)
            for relation, seen in self.seen.items()
        }
        self.num_met["about"] = np.asarray((weight > 0).astype(np.float32) @ self.contexts).ravel()
        content, function, pieces = (
            np.append(own, np.zeros(num_words - len(own), dtype=bool))
            for own in (lexicon.is_content, lexicon.is_function, np.ones(len(lexicon.pieces), dtype=bool))
        )
        self.wanted: dict[Relation, tuple[NDArray[np.bool_], ...]] = {
            relation: (
                (pieces & (self.num_met["piece"] >= MIN_COUNT),)
                if relation == "piece"
                else (content, function, content | function)
            )
            for relation in self.LISTED
        }
        # [positions, relations * KINDS], and which of its columns a label may name
        blocks = []
        for relation in self.RELATIONS:
            at = shown.neighbours(relation)
            block = np.where(at[:, None] >= 0, shown.kinds[at], False) & (weight > 0)[:, None]
            blocks.append(scipy.sparse.csr_array(block.astype(np.float32)))
        self.kinds = scipy.sparse.hstack(blocks, format="csr")
        self.met_kinds = np.asarray(weight @ self.kinds).ravel()
        self.may_name = np.array([r == "at" or kind in OF_WORDS for r in self.RELATIONS for kind in KINDS])
        self.prior = PRIOR * float(weight.sum()) / max(1, int(np.count_nonzero(weight)))

    def layer_labels(self, shown: Firings, held_out: Firings) -> list[Label | None]:
        """A label for each neuron of a layer, from its firings on either text; None: nothing says where it fires.

        The score is that on the held-out text.
        """
        num_neurons = len(shown.starts) - 1
        neurons = [Strengths.of(*shown[neuron], self.shown) for neuron in range(num_neurons)]
        width = len(self.shown.words)
        fires, strong = (
            sparse_rows(shown.positions, np.concatenate([getattr(one, name) for one in neurons]), shown.starts, width)
            for name in ("fires", "strong")
        )
        of_kinds, of_contexts = [m @ self.kinds for m in (fires, strong)], [m @ self.contexts for m in (fires, strong)]
        labels: list[Label | None] = []
        for number, neuron in enumerate(neurons):
            positions, values = held_out[number]
            tested = Strengths.of(positions, values, self.held_out)
            if min(len(neuron.positions), len(positions)) < MIN_FIRINGS:
                labels.append(None)
                continue
            found = self.candidates(neuron)
            found += self.kind_candidates(neuron, *(dense(m, number) for m in of_kinds))
            found += self.topic(neuron, *(dense(m, number) for m in of_contexts))
            if not found:
                labels.append(None)
                continue
            rules = self.choose(neuron, found)
            labels.append(self.label(rules, neuron, tested))
        return labels

    def candidates(self, neuron: Strengths, among: NDArray[np.bool_] | None = None) -> list[Found]:
        """The best lists of content words and of function words in each relation.

        Args:
            among: which of the neuron's firings are looked at (default: all).
        """
        which = slice(None) if among is None else among
        positions, total = neuron.positions[which], neuron.strong.sum()
        found = []
        for relation in self.LISTED:
            words = self.seen[relation][positions]
            usable = words >= 0
            fires, strong = (
                sums(words[usable], values[which][usable], self.num_words) for values in (neuron.fires, neuron.strong)
            )
            for is_wanted in self.wanted[relation]:
                rule = self.list_of(relation, fires, np.where(is_wanted, strong, 0), total)
                if rule is not None:
                    found.append(rule)
        return found

    def list_of(
        self, relation: Relation, fires: NDArray[np.float64], strong: NDArray[np.float64], total: float
    ) -> Found | None:
        met = self.met[relation] + self.prior
        words = add_words(fires, strong, met, total)
        if not words:
            return None
        of = Fit(precision=fires[words].sum() / met[words].sum(), recall=strong[words].sum() / total)
        return Found(rule=Rule(relation=relation, words=tuple(words)), fit=of.f1)

    def kind_candidates(
        self, neuron: Strengths, fires: NDArray[np.float64], strong: NDArray[np.float64]
    ) -> list[Found]:
        """The best kind in each relation."""
        precision = fires / (self.met_kinds + self.prior)
        recall = strong / neuron.strong.sum()
        scores = np.where(
            self.may_name & (fires > 0), 2 * precision * recall / np.maximum(precision + recall, 1e-12), -1
        )
        found = []
        for place, relation in enumerate(self.RELATIONS):
            own = scores[place * len(KINDS) : (place + 1) * len(KINDS)]
            best = int(own.argmax())
            if own[best] > 0:
                found.append(Found(rule=Rule(relation=relation, kind=KINDS[best]), fit=float(own[best])))
        return found

    def topic(self, neuron: Strengths, fires: NDArray[np.float64], strong: NDArray[np.float64]) -> list[Found]:
        """The best list of words that the text is about where the neuron fires."""
        total = neuron.strong.sum()
        found = self.list_of("about", fires, strong, total)
        if found is None:
            return []
        exact = fit(found.rule.marks(self.shown, self.contexts), neuron, self.shown)
        return [Found(rule=found.rule, fit=exact.f1)]

    def choose(self, neuron: Strengths, found: list[Found]) -> list[Rule]:
        """The best rule, and a second one beside it where that says much more."""
        handicaps: dict[Relation, float] = {"at": 1.0, "piece": PIECE_PREFERENCE}
        best = max(found, key=lambda one: one.fit / handicaps.get(one.rule.relation, PREFERENCE))
        marks = best.rule.marks(self.shown, self.contexts)
        so_far = fit(marks, neuron, self.shown).f1
        rest = ~marks[neuron.positions]
        if not rest.any():
            return [best.rule]
        others = self.candidates(neuron, rest)
        positions = neuron.positions[rest]
        kinds = self.kinds[positions]
        others += self.kind_candidates(
            neuron,
            np.asarray(neuron.fires[rest] @ kinds).ravel(),
            np.asarray(neuron.strong[rest] @ kinds).ravel(),
        )
        second: tuple[float, Rule] | None = None
        for other in sorted(others, key=lambda one: -one.fit)[:4]:
            both = fit(marks | other.rule.marks(self.shown, self.contexts), neuron, self.shown).f1
            gain = both - so_far - (PIECE_GAIN if other.rule.relation == "piece" else SECOND_GAIN)
            if gain >= 0 and (second is None or gain > second[0]):
                second = gain, other.rule
        rules = [best.rule] if second is None else [best.rule, second[1]]
        return sorted(rules, key=lambda rule: rule.relation == "piece")  # pieces come last

    def label(self, rules: list[Rule], neuron: Strengths, tested: Strengths) -> Label | None:
        marks = np.zeros(len(self.held_out.words), dtype=bool)
        for rule in rules:
            marks |= rule.marks(self.held_out, self.held_out_contexts)
        found = fit(marks, tested, self.held_out).f1
        if found < MIN_FIT:
            return None
        shown = SHOWN_WORDS if len(rules) == 1 else SHOWN_OF_TWO
        return Label(
            text="; ".join(self.text(rule, shown) for rule in rules),
            source="automatic",
            score=found * min(1.0, self.informative(rules, neuron)),
            evidence=tuple(line for rule in rules for line in self.evidence(rule, neuron)),
        )

    def informative(self, rules: list[Rule], neuron: Strengths) -> float:
        """Information of the words that the rules name, as far as they explain the neuron's strong firing."""
        named, weights = [], []
        for rule in rules:
            is_inside = rule.marks(self.shown, self.contexts)[neuron.positions]
            inside, raw = neuron.positions[is_inside], neuron.strong[is_inside]
            if rule.relation == "about":
                bits = np.ones(len(inside))
            else:
                bits = self.shown.information[self.shown.neighbours(rule.relation)[inside]]
            named.append(bits)
            weights.append(raw / np.maximum(self.shown.information[inside], 1e-12))
        total = np.concatenate(weights).sum()
        return float((np.concatenate(named) * np.concatenate(weights)).sum() / total) if total else 0.0

    def text(self, rule: Rule, shown: int) -> str:
        words = rule.kind or ", ".join(self.name(rule.relation, word) for word in rule.words[:shown])
        if rule.relation == "piece":
            return f"words with {words}"
        return words if rule.relation == "at" else f"{rule.relation} {words}"

    def name(self, relation: Relation, word: int) -> str:
        if relation == "piece":
            return self.lexicon.pieces[word]
        written = self.lexicon.written[word]
        return f"‘{written}’" if self.lexicon.is_function[word] else written

    def evidence(self, rule: Rule, neuron: Strengths) -> list[str]:
        """How often the neuron fires where the rule says so, word by word."""
        before = "" if rule.relation in ("at", "piece") else f"{rule.relation} "
        if rule.kind is not None:
            marks = rule.marks(self.shown, self.contexts)
            fired_at, marked = int(np.count_nonzero(marks[neuron.positions])), int(np.count_nonzero(marks))
            return [share(f"{before}{rule.kind}", fired_at, marked)]
        if rule.relation == "about":
            own = self.contexts[neuron.positions]
            fired = np.asarray(own.sum(axis=0)).ravel()
        else:
            words = self.seen[rule.relation][neuron.positions]
            fired = np.bincount(words[words >= 0], minlength=self.num_words)
        met = self.num_met[rule.relation]
        return [share(before + self.name(rule.relation, word), int(fired[word]), int(met[word])) for word in rule.words]


def share(name: str, fired: int, met: int) -> str:
    return f"{name}: {fired / met:.0%} of {met}"


def sums(numbers: NDArray[np.int32], weights: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The sum of the weights of each number below `count`."""
    return np.bincount(numbers, weights, count).astype(np.float64)
