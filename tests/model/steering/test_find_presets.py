"""How neurons are given to concepts, and how strong a click is."""

import pytest
import torch

from tests.support.tiny import tiny_model
from topk_model.steering.bench import Lever, WordEffect
from topk_model.steering.concepts import Concept
from topk_model.steering.find_presets import MULTIPLES, Clicks, affordable_moves, assigned

WORDS, PLANTED = (20, 21, 22), 7


def concept(name: str) -> Concept:
    return Concept(name=name, words=("a", "b"))


def lever(neuron: int, share: float, layer: int = 0) -> tuple[Lever, WordEffect]:
    return Lever(layer=layer, neuron=neuron, value=1.0), WordEffect(log_odds=2.0, cost=0.2, share=share)


def given(found: dict[str, list[tuple[Lever, WordEffect]]]) -> dict[str, tuple[int, int]]:
    """(layer, neuron) by concept."""
    pairs = assigned({concept(name): levers for name, levers in found.items()})
    return {one.name: (own.layer, own.neuron) for one, own in pairs}


def test_no_neuron_is_two_presets() -> None:
    found = {"sea": [lever(5, 0.05), lever(6, 0.01)], "boats": [lever(5, 0.04)], "food": []}
    assert given(found) == {"sea": (0, 6), "boats": (0, 5)}  # two concepts, if not with the most of their words


def test_a_concept_without_a_neuron_of_its_own_is_left_out() -> None:
    assert given({"sea": [lever(5, 0.05)], "boats": [lever(5, 0.06)]}) == {"boats": (0, 5)}
    assert given({}) == {}


def test_an_index_is_one_neuron_in_all_layers_and_the_best_of_them_is_taken() -> None:
    found = {"sea": [lever(5, 0.01, layer=0), lever(5, 0.03, layer=2)], "boats": [lever(5, 0.02, layer=1)]}
    assert given(found) == {"sea": (2, 5)}


@pytest.fixture(scope="module")
def planted():
    """A model in which one coordinate of the residual stream writes three words."""
    model = tiny_model().float()
    with torch.no_grad():
        model.lm_head.weight[:, PLANTED] = 0
        model.lm_head.weight[list(WORDS), PLANTED] = 3.0
    return model


def openings(rows: int) -> torch.Tensor:
    return torch.randint(10, 60, (rows, 8), generator=torch.Generator().manual_seed(1))


def test_a_click_is_as_strong_as_it_needs_to_be(planted) -> None:
    clicks = Clicks(planted, openings(12))
    strong, num_texts = clicks.weakest_that_shows(Lever(layer=1, neuron=PLANTED, value=3.0), WORDS)
    assert num_texts > 0
    assert strong.value / 3.0 in [pytest.approx(multiple) for multiple in MULTIPLES]
    # One that shows at once is not made stronger.
    weak, num_texts = clicks.weakest_that_shows(Lever(layer=1, neuron=PLANTED, value=1e-6), tuple(range(60)))
    assert (weak.value, num_texts) == (pytest.approx(MULTIPLES[0] * 1e-6), 12)
    # One that never shows keeps the strength at which it was found to steer.
    unshown = Lever(layer=1, neuron=PLANTED, value=1e-6)
    assert clicks.weakest_that_shows(unshown, ()) == (unshown, 0)


def test_what_may_be_paid_for_is_further_for_more(planted) -> None:
    layers = tuple(planted.config.topk_layers)
    near, far = (affordable_moves(planted, openings(3), layers, cost) for cost in (0.05, 0.5))
    assert near.shape == (len(layers), planted.config.hidden_size)
    assert (near > 0).all()
    assert (far >= near).all()
    assert far.sum() > 1.5 * near.sum()
