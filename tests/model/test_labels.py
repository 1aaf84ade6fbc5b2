"""Labels on texts whose answers are known, and on a real small model."""

from pathlib import Path

import numpy as np
import pytest

from topk_model.catalogue.build.firings import Firings
from topk_model.catalogue.build.kinds import KINDS
from topk_model.catalogue.build.labels import MIN_FIRINGS, MIN_FIT, SHOWN_WORDS, Labeller
from topk_model.catalogue.build.lexicon import Lexicon, SplitText, prepare
from topk_model.catalogue.build.rules import Passage, Rule, Strengths, add_words, fit
from topk_model.catalogue.build.texts import Texts
from topk_model.catalogue.build.words import Vocabulary, split_words
from topk_model.catalogue.file import information
from topk_model.catalogue.neuron import Label
from topk_model.catalogue.reader import Catalogue, NeuronQuery

SEA = ("sea", "ship", "boat")
FILL = tuple(f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("lan", "rit", "mok", "nub", "sap", "tis"))
END = "<end>"


def story(rng: np.random.Generator, *, is_at_sea: bool) -> list[str]:
    """Tokens of a story of a few sentences, with a name, a saying, and, if it is at sea, words of the sea."""
    tokens: list[str] = []
    for _ in range(5):
        name = str(rng.choice(["Lily", "Tom", "Ben"]))
        words = [f" {rng.choice(FILL)}" for _ in range(6)]
        if is_at_sea:
            words[int(rng.integers(6))] = f" {rng.choice(SEA)}"
        words[int(rng.integers(6))] = f" {name}"
        tokens += [" The", *words, " walk", "ed", "."]
        if rng.random() < 0.5:
            tokens += [' "', "Go", f" {rng.choice(FILL)}", '."']
    return [*tokens, END]


class World:
    """Two texts and neurons that fire where a function of the tokens says."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        stories = [[story(rng, is_at_sea=i % 3 == 0) for i in range(count)] for count in (150, 60)]
        known = sorted({token for part in stories for one in part for token in one})
        self.tokens, number = known, {token: i for i, token in enumerate(known)}
        self.texts = [
            Texts.make([np.array([number[t] for t in one]) for one in part], [None] * len(part), [number[END]])
            for part in stories
        ]
        counts = np.bincount(self.texts[0].ids, minlength=len(known)).astype(np.float64)
        of_token = information(counts, [number[END]])
        split = [split_words(text, known) for text in self.texts]
        self.vocabulary = Vocabulary.of(split[0][0])
        parts = [
            SplitText(texts=t, words=self.vocabulary.number(words), begins=begins, information=of_token[t.ids])
            for t, (words, begins) in zip(self.texts, split, strict=True)
        ]
        self.lexicon: Lexicon
        self.passages: list[Passage]
        self.lexicon, *self.passages = prepare(self.vocabulary, known, *parts)
        self.labeller = Labeller(self.lexicon, *self.passages)
        self.words = [np.array(words) for words, _ in split]
        self.rng = rng

    def where(self, words: tuple[str, ...]) -> list[np.ndarray]:
        """1 at each position of one of the words."""
        return [np.isin(own, words).astype(float) for own in self.words]

    def of_kind(self, kind: str) -> list[np.ndarray]:
        return [passage.kinds[:, KINDS.index(kind)].astype(float) for passage in self.passages]

    def shown(self, kind: str) -> list[str]:
        """The tokens of a kind."""
        return [self.tokens[i] for i in self.texts[0].ids[self.of_kind(kind)[0] > 0]]

    def labels(self, *neurons: list[np.ndarray]) -> list[Label | None]:
        """Labels of neurons, each given as its activations on either text."""
        firings = []
        for which in range(2):
            values = np.stack([neuron[which] for neuron in neurons]).astype(np.float32)
            counts = np.count_nonzero(values, axis=1)
            places = values.nonzero()
            starts = np.concatenate([[0], np.cumsum(counts)])
            firings.append(Firings(starts=starts, positions=places[1].astype(np.int32), values=values[places]))
        return self.labeller.layer_labels(*firings)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def before(marks: list[np.ndarray], distance: int = 1) -> list[np.ndarray]:
    """One token earlier."""
    return [np.append(own[distance:], np.zeros(distance)) for own in marks]


def test_a_neuron_is_labelled_by_the_words_it_fires_on(world: World) -> None:
    strengths = {"sea": 5.0, "ship": 4.5, "boat": 4.0}
    neuron = [np.array([strengths.get(word, 0.0) for word in words]) for words in world.words]
    [label] = world.labels(neuron)
    assert label is not None
    assert set(label.text.split(", ")) == set(SEA)
    assert label.source == "automatic"
    assert label.score > 0.8
    counts = {word: int((world.words[0] == word).sum()) for word in SEA}
    assert set(label.evidence) == {f"{word}: 100% of {counts[word]}" for word in SEA}


def test_a_neuron_that_fires_before_words_is_said_to(world: World) -> None:
    [label] = world.labels(before(world.where(SEA)))
    assert label is not None
    assert label.text.startswith("before ")
    assert set(label.text.removeprefix("before ").split(", ")) == set(SEA)


def test_a_neuron_of_what_the_text_is_about_is_said_to_be(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topk_model.catalogue.build.labels.COMMON_WORDS", 0)  # there are only a few words here
    topical = Labeller(world.lexicon, *world.passages)
    rule = Rule(relation="about", words=tuple(world.vocabulary.numbers[word] for word in SEA))
    marks = [rule.marks(world.passages[0], topical.contexts), rule.marks(world.passages[1], topical.held_out_contexts)]
    firings = [
        Firings(
            starts=np.array([0, own.sum()]),
            positions=np.flatnonzero(own).astype(np.int32),
            values=np.ones(own.sum(), dtype=np.float32),
        )
        for own in marks
    ]
    [label] = topical.layer_labels(*firings)
    assert label is not None
    assert label.text.startswith("about ")
    assert set(SEA) <= set(label.text.removeprefix("about ").split(", "))


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("names", {" Lily", " Tom", " Ben"}),
        ("sentence ends", {".", '."'}),
        ("opening quotation marks", {' "'}),
        ("closing quotation marks", {'."'}),
        ("starts of speech", {"Go"}),
        ("sentence starts", {" The", "Go"}),
        ("later pieces of longer words", {"ed"}),
        ("past-tense verbs", {" walk", "ed"}),
    ],
)
def test_kinds_are_where_they_should_be(world: World, kind: str, tokens: set[str]) -> None:
    assert set(world.shown(kind)) == tokens


def test_a_kind_names_a_neuron_better_than_a_sign_does(world: World) -> None:
    ends, quotes, before_names = world.labels(
        world.of_kind("sentence ends"), world.of_kind("opening quotation marks"), before(world.of_kind("names"))
    )
    assert ends is not None
    assert quotes is not None
    assert before_names is not None
    assert (ends.text, quotes.text) == ("sentence ends", "opening quotation marks")
    assert before_names.text in ("before names", "before Lily, Tom, Ben") or set(
        before_names.text.removeprefix("before ").split(", ")
    ) == {"Lily", "Tom", "Ben"}


def test_a_piece_is_named_by_its_whole_word(world: World) -> None:
    pieces = [np.array([world.tokens[i] == "ed" for i in text.ids]).astype(float) for text in world.texts]
    [label] = world.labels(pieces)
    assert label is not None
    assert label.text == "later pieces of longer words"
    [label] = world.labels(world.where(("walked",)))
    assert label is not None
    assert label.text in ("walked", "past-tense verbs")


def test_two_rules_are_named_if_one_leaves_much_out(world: World) -> None:
    neuron = [np.maximum(a, b) for a, b in zip(world.where(SEA), world.of_kind("closing quotation marks"), strict=True)]
    [label] = world.labels(neuron)
    assert label is not None
    assert "; " in label.text
    assert "closing quotation marks" in label.text
    assert "sea" in label.text


def test_punctuation_scores_less_than_words_that_say_more(world: World) -> None:
    words, ends = world.labels(world.where(SEA), world.of_kind("sentence ends"))
    assert words is not None
    assert ends is not None
    assert words.score > ends.score


def test_the_score_is_that_on_held_out_text(world: World) -> None:
    on_sea = world.where(SEA)
    elsewhere = world.where(FILL[:20])[1]
    half = on_sea[1] * (np.cumsum(on_sea[1]) % 2)
    learned, changed, weaker = world.labels(on_sea, [on_sea[0], elsewhere], [on_sea[0], half])
    assert learned is not None
    assert weaker is not None
    assert changed is None
    # Of the words, half are fired at; of the firings, all are at the words.
    share = half.sum() / on_sea[1].sum()
    assert weaker.score / learned.score == pytest.approx(2 * share / (share + 1), rel=0.1)


def test_a_neuron_that_nothing_predicts_has_no_label(world: World) -> None:
    noise = [(world.rng.random(len(words)) < 0.05).astype(float) for words in world.words]
    rare = [np.where(np.cumsum(own) < MIN_FIRINGS, own, 0.0) for own in world.where(SEA)]
    silent = [np.zeros(len(words)) for words in world.words]
    assert world.labels(noise, rare, silent) == [None, None, None]


def test_a_fit_is_of_what_fires_strongly(world: World) -> None:
    passage, marks = world.passages[0], world.where(SEA)[0] > 0
    own, other = np.flatnonzero(marks)[:60], np.flatnonzero(world.where(FILL[:1])[0])[:10]
    positions = np.sort(np.concatenate([own, other])).astype(np.int32)
    values = np.where(np.isin(positions, own), 10.0, 1.0).astype(np.float32)
    found = fit(marks, Strengths.of(positions, values, passage), passage)
    assert found.recall > 0.99  # the weak firings elsewhere count for little
    assert 0 < found.precision <= 60 / marks.sum() * 1.2


def test_words_are_added_while_each_helps() -> None:
    fires, met = np.array([50.0, 40.0, 0.0, 1.0]), np.array([50.0, 45.0, 80.0, 60.0])
    assert add_words(fires, fires, met, 100.0) == [0, 1]
    assert add_words(np.zeros(3), np.zeros(3), np.ones(3), 10.0) == []


def test_labels_of_a_trained_model_predict_where_its_neurons_fire(catalogued_model: Path) -> None:
    catalogue = Catalogue.open(catalogued_model)
    summaries, _ = catalogue.neurons(NeuronQuery(limit=1000))
    labelled = [summary for summary in summaries if summary.label]
    assert len(labelled) > len(summaries) // 3
    for summary in labelled:
        label = catalogue.neuron(summary.layer, summary.neuron).label
        assert label is not None
        assert 0 < label.score <= 1
        for rule in label.text.split("; "):
            assert 1 <= len(rule.split(", ")) <= SHOWN_WORDS
            assert all(any(map(str.isalpha, word)) for word in rule.split(", "))
    assert MIN_FIT > 0
