"""Drawing tokens: the rules, and that each row's draw is its own."""

import numpy as np
import pytest
import torch

from service.engine.request import SamplingParams
from service.engine.sampler import Sampler, top_logprobs, uniforms

VOCAB = 12


def draw(logits, params, count=4000):
    """`count` draws of one row's logits, by steps of one stream."""
    sampler = Sampler(1, VOCAB, torch.device("cpu"))
    sampler.load(0, params)
    slots = np.zeros(1, dtype=np.int64)
    return [int(sampler.sample(logits[None], slots, np.array([step]))) for step in range(count)]


def shares(ids):
    return np.bincount(ids, minlength=VOCAB) / len(ids)


LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -5.0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_distribution(temperature):
    expected = torch.softmax(LOGITS / temperature, -1).numpy()
    np.testing.assert_allclose(
        shares(draw(LOGITS, SamplingParams(temperature=temperature, seed=7))), expected, atol=0.025
    )


def test_temperature_0_is_the_most_probable_token():
    assert set(draw(LOGITS, SamplingParams(temperature=0.0, seed=1), 20)) == {0}


@pytest.mark.long
@pytest.mark.parametrize(
    ("rule", "allowed"),
    [({"top_k": 3}, 3), ({"top_p": 0.6}, 2), ({"min_p": 0.5}, 2), ({"top_k": 1}, 1), ({"top_p": 1e-9}, 1)],
)
def test_a_rule_keeps_the_most_probable_tokens_and_their_proportions(rule, allowed):
    got = shares(draw(LOGITS, SamplingParams(seed=3, **rule)))
    expected = torch.softmax(LOGITS, -1).numpy().copy()
    expected[allowed:] = 0
    np.testing.assert_allclose(got, expected / expected.sum(), atol=0.025)


def test_a_bias_is_added_and_bans():
    got = shares(draw(LOGITS, SamplingParams(seed=3, logit_bias=((0, -100.0), (11, 100.0)))))
    assert got[11] == 1.0
    assert draw(LOGITS, SamplingParams(temperature=0.0, logit_bias=((0, -100.0),)), 1) == [1]


def test_penalties_count_generated_tokens():
    flat = torch.zeros(VOCAB)
    flat[3] = 0.9
    ids = draw(flat, SamplingParams(temperature=0.0, presence_penalty=1.0), 3)
    assert ids[0] == 3
    assert ids[1] != 3
    repeated = draw(flat, SamplingParams(temperature=0.0, frequency_penalty=0.4), 4)
    assert repeated[:3] == [3, 3, 3]  # 0.9, 0.5 and 0.1 above the rest
    assert repeated[3] != 3


def test_a_slot_forgets_its_last_owner():
    sampler = Sampler(1, VOCAB, torch.device("cpu"))
    slots = np.zeros(1, dtype=np.int64)
    sampler.load(0, SamplingParams(temperature=0.0, presence_penalty=2.0, logit_bias=((5, 100.0),)))
    assert int(sampler.sample(LOGITS[None], slots, np.array([0]))) == 5
    sampler.load(0, SamplingParams(temperature=0.0, presence_penalty=2.0))
    assert int(sampler.sample(LOGITS[None], slots, np.array([0]))) == 0


def test_a_draw_does_not_depend_on_its_neighbours():
    sampler = Sampler(3, VOCAB, torch.device("cpu"))
    rules = [SamplingParams(seed=1), SamplingParams(seed=2, top_p=0.8), SamplingParams(temperature=0.0)]
    for slot, params in enumerate(rules):
        sampler.load(slot, params)
    rows = torch.stack((LOGITS, LOGITS.flip(0), LOGITS.roll(4)))
    for step in range(50):
        steps = np.full(3, step)
        together = sampler.sample(rows, np.arange(3), steps).tolist()
        alone = [int(sampler.sample(rows[i : i + 1], np.array([i]), steps[:1])) for i in range(3)]
        assert together == alone


def test_streams_are_uniform_and_unlike_each_other():
    seeds = np.arange(100).repeat(100)
    numbers = uniforms(seeds, np.tile(np.arange(100), 100)).reshape(100, 100)
    assert ((numbers >= 0) & (numbers < 1)).all()
    np.testing.assert_allclose(np.histogram(numbers, 10, (0, 1))[0], 1000, atol=150)
    assert abs(np.corrcoef(numbers)[np.triu_indices(100, 1)]).mean() < 0.1
    assert (uniforms(np.array([5]), np.array([9])) == uniforms(np.array([5]), np.array([9]))).all()


def test_logprobs_are_the_models_own():
    (chosen, top), (other, none) = top_logprobs(torch.stack((LOGITS, LOGITS)), torch.tensor([4, 0]), [3, 0])
    expected = torch.log_softmax(LOGITS, -1)
    assert chosen == pytest.approx(expected[4].item())
    assert [i for i, _ in top] == [0, 1, 2]
    assert other == pytest.approx(expected[0].item())
    assert none == []
