"""Finding the neuron that steers towards a concept, and measuring what it does."""

import copy
import json
import math

import pytest
import torch

from service.engine.request import TokenEvent
from tests.support.presets import preset
from tests.support.tiny import BOS, make_request, run, tiny_core, tiny_model
from topk_model.interventions import Intervention
from topk_model.steering.bench import (
    Lever,
    SteeringBench,
    continuation_loss,
    continue_rows,
    moved,
    repetition,
)
from topk_model.steering.presets import read_presets, write_presets

WORDS = (40, 41, 42, 43)
PLANTED = 17
PLANTED_UNIT = Lever(layer=1, neuron=PLANTED, value=2.0)


def texts(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 101, (rows, length), generator=generator)
    ids[:, 0] = BOS
    return ids


@pytest.fixture(scope="module")
def planted():
    """A model whose unembedding lets one neuron speak for some words and for nothing else."""
    model = tiny_model(tie_word_embeddings=False).cpu()
    with torch.no_grad():
        model.lm_head.weight[:, PLANTED] = 0
        model.lm_head.weight[list(WORDS), PLANTED] = 3.0
    return model


@pytest.fixture(scope="module")
def bench(planted):
    layers = planted.config.topk_layers
    return SteeringBench(planted, texts(6, 24), layers)


@pytest.fixture(scope="module")
def scales(planted):
    return torch.full((len(planted.config.topk_layers), 64), 2.0)


def test_the_planted_neuron_is_found(bench, scales):
    lever, effect = bench.levers(WORDS, scales, max_cost=5.0)[0]
    assert lever.neuron == PLANTED
    assert effect.log_odds > 1.0


def test_a_lever_costs_what_it_may_and_no_more(bench, scales):
    rises = []
    for max_cost in (0.1, 0.3, 0.5):
        _, effect = bench.levers(WORDS, scales, max_cost)[0]
        assert 0.8 * max_cost <= effect.cost <= max_cost
        rises.append(effect.log_odds)
    assert rises == sorted(rises)


def test_a_neuron_that_lowers_the_words_is_no_lever(bench):
    others = [word + len(WORDS) for word in WORDS]
    assert bench.strongest(PLANTED_UNIT, others, max_cost=5.0) is None


def test_a_neuron_that_lowers_the_words_is_lowered(planted, scales):
    turned = copy.deepcopy(planted)
    with torch.no_grad():
        turned.lm_head.weight[:, PLANTED] *= -1
    bench = SteeringBench(turned, texts(6, 24), turned.config.topk_layers)
    lever, effect = bench.levers(WORDS, scales, max_cost=5.0)[0]
    assert lever.neuron == PLANTED
    assert lever.value < 0
    assert effect.log_odds > 1.0


def test_a_neuron_that_promises_far_less_than_another_is_given_up(bench):
    whole = bench.strongest(PLANTED_UNIT, WORDS, max_cost=0.5)
    given_up = bench.strongest(PLANTED_UNIT, WORDS, max_cost=0.5, best_so_far=1000.0)
    assert given_up[0].value < whole[0].value
    assert bench.strongest(PLANTED_UNIT, WORDS, max_cost=0.5, best_so_far=whole[1].log_odds) == whole


def test_an_effect_is_what_two_whole_passes_differ_by(planted, bench):
    lever = Lever(layer=1, neuron=PLANTED, value=3.0)
    effect = bench.effect(lever, WORDS)
    ids = bench.ids
    with torch.inference_mode():
        plain = planted(input_ids=ids).logits[:, 1:].double().log_softmax(-1)
        steered = planted(input_ids=ids, sparsify=moved(planted, lever)).logits[:, 1:].double().log_softmax(-1)
    odds = [torch.logit(p.exp()[..., list(WORDS)].sum(-1)) for p in (plain, steered)]
    assert effect.log_odds == pytest.approx((odds[1] - odds[0]).mean().item(), rel=1e-3)
    cost = -(steered.exp() * plain).sum(-1).mean() + (plain.exp() * plain).sum(-1).mean()
    assert effect.cost == pytest.approx(cost.item(), rel=1e-3)


def test_candidates_are_ranked_by_what_a_small_rise_does(planted, bench, scales):
    [lever] = bench.candidates(WORDS, scales, count=1)
    ids, eps = bench.ids, 1e-3

    def risen(layer, hidden):
        hidden = planted.model.sparsify(layer, hidden).clone()
        if layer == lever.layer:
            hidden[:, 1:, lever.neuron] += eps * lever.value
        return hidden

    with torch.inference_mode():
        shares = [
            logits[:, 1:].double().softmax(-1)[..., list(WORDS)].sum(-1).mean()
            for logits in (planted(input_ids=ids).logits, planted(input_ids=ids, sparsify=risen).logits)
        ]
    assert shares[1] > shares[0]


def test_a_moved_neuron_is_what_the_service_does_on_request(planted):
    lever = Lever(layer=1, neuron=PLANTED, value=4.0)
    edit = Intervention(layers=(1,), neuron=PLANTED, op="add", value=4.0, unit_values=(1.0,))
    request = make_request(length=9, max_tokens=12, interventions=(edit,))
    events = run(tiny_core(copy.deepcopy(planted)), request)["r"]
    served = [event.token_id for event in events if isinstance(event, TokenEvent)]

    ids = torch.tensor([request.prompt_ids])
    sparsify = moved(planted, lever)
    with torch.inference_mode():
        for _ in range(12):
            logits = planted(input_ids=ids, sparsify=sparsify).logits
            ids = torch.cat((ids, logits[:, -1:].argmax(-1)), 1)
    assert served == ids[0, 9:].tolist()


def test_continuations_follow_from_the_seed_and_use_the_cache_rightly(planted):
    prompts = texts(5, 8, seed=3)
    one, again, other = (continue_rows(planted, prompts, 10, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    with torch.inference_mode():
        logits = planted(input_ids=torch.cat((prompts, one), 1)).logits[:, 7:-1].log_softmax(-1)
    expected = -logits.gather(-1, one[..., None]).mean().item()
    assert continuation_loss(planted, prompts, one) == pytest.approx(expected, rel=1e-5)


def test_words_come_more_often_under_steering(planted):
    prompts = texts(32, 8, seed=4)
    lever = Lever(layer=1, neuron=PLANTED, value=12.0)
    plain = continue_rows(planted, prompts, 16, seed=0)
    steered = continue_rows(planted, prompts, 16, seed=0, sparsify=moved(planted, lever))
    counts = [torch.isin(ids, torch.tensor(WORDS)).sum().item() for ids in (plain, steered)]
    assert counts[1] > 2 * counts[0]


@pytest.mark.parametrize(
    ("row", "share"),
    [([1, 2, 3, 4, 5, 6], 0.0), ([7, 7, 7, 7, 7, 7], 2 / 3), ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5), ([1, 2], 0.0)],
)
def test_repetition_is_the_share_of_runs_seen_before(row, share):
    assert math.isclose(repetition(torch.tensor([row])), share)


def test_presets_are_read_as_written(tmp_path):
    assert read_presets(tmp_path, "abc") == ()
    both = (preset(), preset("war", version=2))
    write_presets(tmp_path, "abc", 0.2, both)
    assert read_presets(tmp_path, "abc") == both


def test_presets_of_other_weights_are_refused(tmp_path):
    write_presets(tmp_path, "abc", 0.2, [preset()])
    with pytest.raises(ValueError, match="other weights"):
        read_presets(tmp_path, "abd")


@pytest.mark.parametrize("damage", ["{", '{"format_version": 1}', "[]"])
def test_damaged_presets_are_refused(tmp_path, damage):
    (tmp_path / "presets.json").write_text(damage)
    with pytest.raises(ValueError, match="not a file of presets"):
        read_presets(tmp_path, "abc")


def test_presets_of_a_later_format_are_refused(tmp_path):
    write_presets(tmp_path, "abc", 0.2, [preset()])
    path = tmp_path / "presets.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(ValueError, match="format version 2"):
        read_presets(tmp_path, "abc")
