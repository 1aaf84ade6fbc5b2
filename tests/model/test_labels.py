"""Labels on texts whose answers are known, and on a real small model."""

from pathlib import Path

import numpy as np
import pytest

from topk_model.catalogue.build.firings import Firings
from topk_model.catalogue.build.labels import (
    MIN_FIRINGS,
    MIN_SCORE,
    REACH,
    SHOWN_WORDS,
    Labeller,
    Passage,
    add_words,
    matthews,
)
from topk_model.catalogue.build.words import Vocabulary
from topk_model.catalogue.reader import Catalogue, NeuronQuery

SEA = ("sea", "ship", "boat")
FILL = tuple(f"w{i}" for i in range(300))
WINDOW = 40


def text(rng: np.random.Generator, num_windows: int) -> list[str]:
    """Windows of common words, in every third of which a word of the sea stands now and then."""
    words: list[str] = []
    for window in range(num_windows):
        share = 0.1 if window % 3 == 0 else 0.0
        words += [str(rng.choice(SEA)) if rng.random() < share else str(rng.choice(FILL)) for _ in range(WINDOW)]
    return words


class World:
    """Two texts and one layer of neurons that fire where a function of the words says."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.words = [np.array(text(rng, count)) for count in (240, 80)]
        self.vocabulary = Vocabulary.of([*self.words[0], *["common"] * 5])
        self.passages = [
            Passage(
                words=self.vocabulary.number(words.tolist()),
                starts=np.arange(0, len(words) + 1, WINDOW),
                is_counted=np.ones(len(words), dtype=bool),
            )
            for words in self.words
        ]
        self.rng = rng

    def labels(self, *neurons: list[np.ndarray]) -> list:
        """Labels of neurons, each given as its activations on either text."""
        firings = []
        for which in range(2):
            values = np.stack([neuron[which] for neuron in neurons]).astype(np.float32)
            counts = np.count_nonzero(values, axis=1)
            places = values.nonzero()
            firings.append(
                Firings(
                    starts=np.concatenate([[0], np.cumsum(counts)]),
                    positions=places[1].astype(np.int32),
                    values=values[places],
                )
            )
        return Labeller(self.vocabulary, *self.passages).layer_labels(*firings)

    def after_sea(self, which: int) -> np.ndarray:
        """1 where a word of the sea is among the words before in the window."""
        is_sea = np.isin(self.words[which], SEA)
        out = np.zeros(len(is_sea))
        for position in np.flatnonzero(is_sea):
            end = min(position + REACH + 1, (position // WINDOW + 1) * WINDOW)
            out[position + 1 : end] = 1
        return out


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_a_neuron_is_labelled_by_the_words_it_fires_on(world: World) -> None:
    strengths = {"sea": 5.0, "ship": 3.0, "boat": 1.0}
    neuron = [np.array([strengths.get(word, 0.0) for word in words]) for words in world.words]
    [label] = world.labels(neuron)
    assert label.text == "sea, ship, boat"  # the strongest first
    assert label.score == pytest.approx(1.0)
    assert label.source == "automatic"
    counts = {word: int((world.words[0] == word).sum()) for word in SEA}
    assert label.evidence == tuple(f"{word}: 100% of {counts[word]}" for word in ("sea", "ship", "boat"))


def test_a_neuron_is_labelled_by_what_stands_before(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topk_model.catalogue.build.labels.COMMON_WORDS", 0)  # there are only a few words here
    [label] = world.labels([world.after_sea(which) for which in range(2)])
    assert label.text.startswith("after ")
    assert set(label.text.removeprefix("after ").split(", ")) >= set(SEA)
    assert label.score > 0.9


def test_the_score_is_that_on_held_out_text(world: World) -> None:
    on_sea = [np.isin(words, SEA).astype(float) for words in world.words]
    elsewhere = np.isin(world.words[1], FILL[:20]).astype(float)
    half = on_sea[1] * (np.arange(len(on_sea[1])) % 2)
    learned, changed, weaker = world.labels(on_sea, [on_sea[0], elsewhere], [on_sea[0], half])
    assert learned.score == pytest.approx(1.0)
    assert changed is None
    marks, fires = on_sea[1] > 0, half > 0
    expected = np.corrcoef(marks, fires)[0, 1]
    assert weaker.score == pytest.approx(expected, abs=1e-6)


def test_a_neuron_that_nothing_predicts_has_no_label(world: World) -> None:
    noise = [(world.rng.random(len(words)) < 0.1).astype(float) for words in world.words]
    rare = [np.where(np.cumsum(np.isin(words, SEA)) < MIN_FIRINGS, np.isin(words, SEA), 0.0) for words in world.words]
    silent = [np.zeros(len(words)) for words in world.words]
    assert world.labels(noise, rare, silent) == [None, None, None]


def test_matthews_is_the_correlation_of_two_properties() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.random(500) < 0.3, rng.random(500) < 0.2
    other |= one & (rng.random(500) < 0.5)
    found = matthews(np.sum(one & other), np.sum(one), np.sum(other), 500)
    assert found == pytest.approx(np.corrcoef(one, other)[0, 1])
    assert matthews(0, 0, 10, 500) == 0
    assert matthews(5, 500, 5, 500) == 0
    assert matthews(60.7, 60.7, 60.7, 133.6) == 1  # unbounded, rounding makes it 1.0000000000000002


def test_words_are_added_while_each_helps() -> None:
    hits, marked = np.array([50.0, 40.0, 0.0, 1.0]), np.array([50.0, 45.0, 80.0, 60.0])
    assert add_words(hits, marked, 100.0, 1000.0) == [0, 1]
    assert add_words(np.zeros(3), np.ones(3), 10.0, 100.0) == []


def test_signs_in_a_label_are_quoted(world: World) -> None:
    words = ["," if word == "w1" else word for word in world.words[0].tolist()]
    assert "," in words
    vocabulary = Vocabulary.of(words)
    passage = Passage(
        words=vocabulary.number(words), starts=world.passages[0].starts, is_counted=world.passages[0].is_counted
    )
    values = np.array([[word == "," for word in words]], dtype=np.float32)
    positions = np.flatnonzero(values[0]).astype(np.int32)
    firings = Firings(
        starts=np.array([0, len(positions)]), positions=positions, values=np.ones(len(positions), np.float32)
    )
    [label] = Labeller(vocabulary, passage, passage).layer_labels(firings, firings)
    assert label.text == "‘,’"


def test_labels_of_a_trained_model_predict_where_its_neurons_fire(catalogued_model: Path) -> None:
    catalogue = Catalogue.open(catalogued_model)
    summaries, _ = catalogue.neurons(NeuronQuery(limit=1000))
    labelled = [summary for summary in summaries if summary.label]
    assert len(labelled) > len(summaries) // 3
    for summary in labelled:
        label = catalogue.neuron(summary.layer, summary.neuron).label
        assert label is not None
        assert MIN_SCORE <= label.score <= 1
        assert len(label.text.split(", ")) <= SHOWN_WORDS
        assert len(label.evidence) >= len(label.text.split(", "))
