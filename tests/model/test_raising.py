"""What raising a neuron does: against whole passes, and the strength that is chosen from its curve."""

import numpy as np
import pytest
import torch

from tests.support.tiny import BOS, tiny_model
from topk_model.catalogue.build import raising
from topk_model.catalogue.build.raising import (
    CURVE,
    LEAST,
    MAX_COST,
    MOST,
    OPENING_TOKENS,
    OPENINGS,
    Point,
    Raising,
    best_strength,
    openings,
    raise_all,
)
from topk_model.catalogue.build.texts import Texts
from topk_model.modeling import TopKLMForCausalLM, topk

WORDS, PLANTED, LAYER = (20, 21, 22), 7, 1


@pytest.fixture(scope="module")
def planted() -> TopKLMForCausalLM:
    """A model in which one coordinate of the residual stream writes three words."""
    model = tiny_model().float()
    with torch.no_grad():
        model.lm_head.weight[:, PLANTED] = 0
        model.lm_head.weight[list(WORDS), PLANTED] = 3.0
    return model


@pytest.fixture(scope="module")
def texts() -> Texts:
    rng = np.random.default_rng(0)
    windows = [rng.integers(10, 60, size) for size in (40, 5, 30, *[20] * 30)]
    return Texts.make(windows, [None] * len(windows), [])


@pytest.fixture(scope="module")
def measured(planted: TopKLMForCausalLM, texts: Texts) -> Raising:
    return Raising(planted, texts, BOS, torch.ones(planted.config.vocab_size, dtype=torch.bool))


def test_openings_are_the_first_tokens_of_windows_long_enough(texts: Texts) -> None:
    rows = openings(texts, BOS, 2 * OPENINGS)
    assert rows.shape == (2 * OPENINGS, 1 + OPENING_TOKENS)
    assert (rows[:, 0] == BOS).all()
    first = {tuple(texts.ids[at : at + OPENING_TOKENS]) for at in texts.starts[:-1]}
    assert {tuple(row[1:]) for row in rows} <= first
    assert openings(texts, None, 4).shape == (4, OPENING_TOKENS)


def test_the_words_that_a_neuron_brings_are_found(measured: Raising) -> None:
    words = measured.words(LAYER, PLANTED, 6.0)
    assert {token for token, _ in words} >= set(WORDS)
    assert {token for token, _ in words[:3]} == set(WORDS)
    assert all(rise > 0 for _, rise in words)
    assert measured.words(LAYER, PLANTED, 0.0) == []


def test_a_point_is_what_two_whole_passes_differ_by(
    planted: TopKLMForCausalLM, texts: Texts, measured: Raising
) -> None:
    value = 2.5
    ids = torch.from_numpy(openings(texts, BOS, 2 * OPENINGS)[1::2])  # the half that words are not found on

    def raised(layer: int, hidden: torch.Tensor) -> torch.Tensor:
        if layer < planted.config.num_topk_layers:
            hidden = topk(hidden, planted.config.topk_k, planted.config.topk_select)
        if layer == LAYER:
            hidden = hidden.clone()
            hidden[:, 1:, PLANTED] += value
        return hidden

    with torch.inference_mode():
        plain = planted(input_ids=ids).logits[:, 1:].double().log_softmax(-1)
        after = planted(input_ids=ids, sparsify=raised).logits[:, 1:].double().log_softmax(-1)
    p, q = (x.exp()[..., list(WORDS)].sum(-1) for x in (plain, after))
    [point] = measured.points(LAYER, PLANTED, [value], WORDS)
    assert point.share == pytest.approx(q.mean().item(), rel=1e-4)
    assert point.log_odds == pytest.approx(((q / (1 - q)).log() - (p / (1 - p)).log()).mean().item(), rel=1e-3)
    assert point.cost == pytest.approx(((plain.exp() - after.exp()) * plain).sum(-1).mean().item(), rel=1e-3, abs=1e-5)


def test_the_best_strength_stands_on_the_curve(measured: Raising) -> None:
    page = measured.steering(LAYER, PLANTED, 8.0)
    assert page is not None
    strengths = [point[0] for point in page["curve"]]
    assert strengths == sorted({0.0, *CURVE, page["best"]})
    assert page["curve"][0][2:] == [0.0, 0.0]
    fixed = [point for point in page["curve"] if point[0] != page["best"]]
    curve = [Point(share=share, log_odds=rise, cost=cost) for _, share, rise, cost in fixed]
    assert page["best"] == best_strength([point[0] for point in fixed], curve)


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [Point(share=share, log_odds=0.0, cost=cost) for share, cost in pairs]


def test_the_best_strength_is_the_weakest_that_shows() -> None:
    shows = points((0.01, 0), (0.03, 0.05), (0.09, 0.2), (0.5, 2.0))
    assert best_strength([0, 0.1, 0.2, 0.4], shows) == pytest.approx(0.15)


def test_the_best_strength_costs_what_it_may_if_that_does_not_show() -> None:
    dear = points((0.0, 0), (0.001, MAX_COST / 4), (0.002, 4 * MAX_COST))
    assert best_strength([0, 0.1, 0.2], dear) == pytest.approx(0.1 + 0.1 / 3, abs=1e-3)


def test_the_best_strength_is_kept_within_bounds() -> None:
    assert best_strength([0, 0.5, 1], points((0, 0), (0, 0), (0, 0))) == MOST
    assert best_strength([0, 0.1], points((1, 0), (1, 9))) == LEAST


def test_a_silent_neuron_is_not_raised(measured: Raising, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raising, "CURVE", (0.5,))
    maxima = np.zeros((1, 8), dtype=np.float32)
    maxima[0, PLANTED] = 20.0
    done: list[int] = []
    [found] = raise_all(measured, [LAYER], maxima, done.append)
    assert [page is None for page in found] == [True] * 7 + [False]
    assert sum(done) == 8
