"""Which pieces of text show a neuron."""

import numpy as np

from topk_model.catalogue.build.examples import top_passages, top_positions
from topk_model.catalogue.build.texts import Texts

GUN, ARMY, FORT, DASH, OTHER = 1, 2, 3, 4, 50


def fired(*windows: dict[int, tuple[int, float]]) -> tuple[np.ndarray, np.ndarray, Texts]:
    """Where a neuron fires and how strongly: each window of 12 tokens is {place: (token, activation)}."""
    ids = np.arange(OTHER, OTHER + 12 * len(windows)).reshape(-1, 12)  # no two texts share a token
    places = [(12 * w + at, token, value) for w, one in enumerate(windows) for at, (token, value) in one.items()]
    for position, token, _ in places:
        ids.flat[position] = token
    positions, _, values = zip(*sorted(places), strict=True)
    texts = Texts.make(list(ids), [None] * len(ids), [])
    return np.array(positions, dtype=np.int32), np.array(values, dtype=np.float32), texts


def test_many_tokens_tell_more_than_one_strong_one() -> None:
    piece, war = {6: (DASH, 6.5)}, {4: (GUN, 4.0), 6: (ARMY, 4.0), 7: (FORT, 4.0)}
    positions, values, texts = fired(piece, war)
    assert top_passages(positions, values, texts, 6, 5) == [(15, 21), (4, 10)]  # firings in the middle
    assert top_positions(positions, values, texts, 5) == [6, 16]


def test_a_token_that_comes_again_counts_once() -> None:
    dashes, war = dict.fromkeys(range(2, 8), (DASH, 4.0)), {4: (GUN, 3.0), 6: (ARMY, 3.0)}
    positions, values, texts = fired(dashes, war)
    assert [begin // 12 for begin, _ in top_passages(positions, values, texts, 6, 5)] == [1, 0]


def test_a_passage_stays_in_its_window_and_takes_its_best_part() -> None:
    positions, values, texts = fired({0: (GUN, 1.0), 9: (ARMY, 3.0), 11: (FORT, 3.0)}, {0: (DASH, 4.0)})
    assert top_passages(positions, values, texts, 4, 5) == [(8, 12), (12, 16)]
    assert top_passages(positions, values, texts, 40, 5) == [(0, 12), (12, 24)]
    assert top_passages(positions, values, texts, 40, 1) == [(0, 12)]
    assert top_passages(positions[:0], values[:0], texts, 40, 5) == []


def test_strength_is_a_magnitude() -> None:
    positions, values, texts = fired({3: (GUN, 1.0)}, {3: (ARMY, -2.0)})
    assert [begin // 12 for begin, _ in top_passages(positions, values, texts, 6, 5)] == [1, 0]


def test_no_text_is_shown_twice() -> None:
    ids = np.arange(OTHER, OTHER + 12)
    texts = Texts.make([ids, ids, ids + 20], [None] * 3, [])
    positions, values = np.array([5, 17, 29], dtype=np.int32), np.array([2.0, 3.0, 1.0], dtype=np.float32)
    assert [begin // 12 for begin, _ in top_passages(positions, values, texts, 8, 5)] == [1, 2]
    assert top_positions(positions, values, texts, 5) == [17, 29]
