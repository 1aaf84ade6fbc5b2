"""Searching for levers: what is measured, what it is compared with, and what is found."""

import copy
import itertools
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from tests.support.tiny import BOS, tiny_model
from topk_model.checkpoints import load_model
from topk_model.modeling import TopKLMForCausalLM
from topk_model.steering.bench import Lever, SteeringBench, moved
from topk_model.steering.finder import LeverFinder, OrdinaryTexts, ordinary_texts
from topk_model.steering.levers import MIN_RATE, CostMap, LeverBench, next_factor, standard_error
from topk_model.steering.readings import Layout, Reading, packed
from topk_model.steering.targets import WordTarget
from topk_model.steering.words import Contrast, WordTree, as_written, word_ids

WORDS = ((40,), (41,), (42, 50), (42, 51, 52))
PLANTED = 17


def texts(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 101, (rows, length), generator=generator)
    ids[:, 0] = BOS
    return ids


class Quiet:
    """Waits for a search to its end."""

    def report(self, stage: str, done: int, total: int) -> None:
        assert 0 <= done < total, stage

    def checkpoint(self) -> None:
        pass


QUIET = Quiet()


@pytest.fixture(scope="module")
def planted() -> TopKLMForCausalLM:
    """A model whose unembedding lets one neuron speak for the words' tokens and for nothing else."""
    model = tiny_model(tie_word_embeddings=False).cpu()
    with torch.no_grad():
        model.lm_head.weight[:, PLANTED] = 0
        model.lm_head.weight[sorted({token for word in WORDS for token in word}), PLANTED] = 3.0
    return model


@pytest.fixture(scope="module")
def finder(planted: TopKLMForCausalLM) -> LeverFinder:
    ordinary = OrdinaryTexts(source="held_out", finding=texts(6, 24), measuring=texts(8, 24, seed=1))
    return LeverFinder(planted, ordinary)


def log_odds_of_words(model: TopKLMForCausalLM, prefix: list[int], lever: Lever | None = None) -> float:
    """That any of the words comes after `prefix`, each by a pass of its own over the text and the whole word."""
    total = 0.0
    for word in WORDS:
        ids = torch.tensor([[*prefix, *word]])
        with torch.inference_mode():
            logits = model(input_ids=ids, sparsify=moved(model, lever) if lever else None).logits[0].double()
        each = logits.log_softmax(-1)[len(prefix) - 1 : -1].gather(-1, torch.tensor(word)[:, None])
        total += each.sum().exp().item()
    return torch.logit(torch.tensor(total, dtype=torch.float64)).item()


def test_words_that_share_a_beginning_share_its_node_and_one_inside_another_is_counted_once() -> None:
    tree = WordTree.of([(1,), (1, 2), (3, 4), (3, 5, 6), (3, 4)])
    assert tree.words == ((1,), (3, 4), (3, 5, 6))
    assert tree.nodes == ((-1, 3), (0, 5))
    assert tree.paths == ((-1,), (-1, 0), (-1, 0, 1))
    assert tree.depth == 2
    with pytest.raises(ValueError, match="no token"):
        WordTree.of([(1,), ()])


@pytest.mark.parametrize(
    ("word", "written"),
    [("snow", " snow"), ("7", " 7"), ("?", "?"), (" ice", " ice"), ("été", " été"), ("雪", "雪"), ("ゆき", "ゆき")],
)
def test_a_word_is_read_as_it_stands_inside_a_sentence(word: str, written: str) -> None:
    assert as_written(word) == written


def test_a_tokenizer_that_puts_a_space_before_a_text_does_not_do_so_inside() -> None:
    def metaspace(text: str) -> list[int]:
        return [ord(letter) for letter in f"▁{text}".replace(" ", "▁")]

    assert word_ids(metaspace, "ice") == tuple(map(ord, "▁ice"))
    assert word_ids(metaspace, "?") == (ord("?"),)


def test_a_word_of_several_tokens_counts_as_its_whole_sequence(planted, finder) -> None:
    bench = finder._word_bench(finder.texts.measuring, WordTree.of(WORDS), planted, QUIET)
    lever = Lever(layer=1, neuron=PLANTED, value=3.0)
    effect = bench.effect(lever)
    rows = [row for row in bench.read.rows.tolist() if row < 24]
    places = bench.target._rows[:, 0, 0].tolist()
    assert len(places) > 1
    risen, plain, rate = [], [], []
    for text, place in itertools.product(finder.texts.measuring.tolist(), places):
        prefix = text[: rows[place] + 1]
        plain.append(log_odds_of_words(planted, prefix))
        steered = log_odds_of_words(planted, prefix, lever)
        risen.append(steered - plain[-1])
        rate.append(torch.tensor(steered).sigmoid().item())
    assert bench.log_odds == pytest.approx(sum(plain) / len(plain), abs=1e-4)
    assert effect.log_odds == pytest.approx(sum(risen) / len(risen), abs=1e-4)
    assert effect.rate == pytest.approx(sum(rate) / len(rate), abs=1e-4)


def test_effects_are_those_of_the_bench_that_finds_presets(planted, finder) -> None:
    ids = finder.texts.measuring
    words = [(40,), (41,)]
    reading = Reading(planted, Layout.of_texts(ids), (0, 1))
    target = WordTarget(WordTree.of(words), 23, range(23), len(ids), ids.device)
    ours = LeverBench(reading, 23, target, reading, QUIET)
    theirs = SteeringBench(planted, ids, (0, 1))
    lever = Lever(layer=0, neuron=9, value=2.0)
    mine, other = ours.effect(lever), theirs.effect(lever, [40, 41])
    assert (mine.log_odds, mine.cost) == pytest.approx((other.log_odds, other.cost), rel=1e-4)


def test_the_gradient_is_what_a_small_move_does(planted, finder) -> None:
    bench = finder._word_bench(finder.texts.finding, WordTree.of(WORDS), planted, QUIET)
    gradient = bench.gradient()
    strongest = gradient[1].abs().argmax().item()
    assert strongest == PLANTED
    small = bench.effect(Lever(layer=1, neuron=PLANTED, value=0.01)).log_odds
    assert small / 0.01 == pytest.approx(gradient[1, PLANTED].item(), rel=0.05)


def test_costs_are_predicted_for_small_moves(planted, finder) -> None:
    reading = Reading(planted, Layout.of_texts(texts(12, 40, seed=5)), (0, 1))
    costs = CostMap.of(reading, QUIET)
    moves = costs.moves(torch.ones(2, 64), max_cost=0.02)
    bench = finder._word_bench(finder.texts.measuring, WordTree.of(WORDS), planted, QUIET)
    spent = []
    for neuron in range(0, 64, 4):
        spent.append(bench.effect(Lever(layer=1, neuron=neuron, value=moves[1, neuron].item())).cost)
    assert sum(spent) / len(spent) == pytest.approx(0.02, rel=0.4)


def test_the_planted_neuron_is_found_and_measured_on_other_texts(finder) -> None:
    found = finder.of_words(WordTree.of(WORDS), max_cost=0.5, limit=2, watch=QUIET)
    first = found.search.levers[0]
    assert first.lever.neuron == PLANTED
    assert first.effect.log_odds > 0.5
    assert first.effect.is_rise(0.5)
    assert 0 < first.effect.cost <= 0.5
    bench = finder._word_bench(finder.texts.measuring, WordTree.of(WORDS), finder.model, QUIET)
    again = bench.effect(first.lever)
    assert (again.log_odds, again.cost) == pytest.approx((first.effect.log_odds, first.effect.cost), rel=1e-3)
    assert [point.lever.value / first.lever.value for point in first.curve] == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1.4], rel=1e-3
    )
    rises = [point.effect.log_odds for point in first.curve]
    assert rises == sorted(rises)


def test_a_neuron_that_lowers_the_words_is_lowered(planted, finder) -> None:
    turned = copy.deepcopy(planted)
    with torch.no_grad():
        turned.lm_head.weight[:, PLANTED] *= -1
    found = LeverFinder(turned, finder.texts).of_words(WordTree.of(WORDS), max_cost=0.5, limit=1, watch=QUIET)
    [lever] = found.search.levers
    assert lever.lever.neuron == PLANTED
    assert lever.lever.value < 0


def test_no_lever_costs_more_than_it_may_on_the_measuring_texts(finder) -> None:
    for max_cost in (0.02, 0.1, 1.0):
        found = finder.of_words(WordTree.of(WORDS), max_cost=max_cost, limit=3, watch=QUIET)
        assert found.search.levers
        assert all(lever.effect.cost <= max_cost for lever in found.search.levers)
        assert len(found.search.levers) <= 3 <= len(found.search.tried)


def test_words_that_never_come_have_no_lever_and_it_is_told_what_was_tried(planted, finder) -> None:
    deaf = copy.deepcopy(planted)
    with torch.no_grad():  # whatever the state is, the word is next to impossible
        deaf.lm_head.weight[40] = -3 * deaf.lm_head.weight.abs().amax(0)
    found = LeverFinder(deaf, finder.texts).of_words(WordTree.of([(40,) * 8]), max_cost=0.1, limit=3, watch=QUIET)
    assert found.search.levers == ()
    assert found.rate < MIN_RATE
    assert found.search.tried


def test_texts_are_set_against_others(planted, finder) -> None:
    towards = [(BOS, *(40 + (i + j) % 2 for j in range(12))) for i in range(4)]
    away = [(BOS, *(60 + (i * j) % 30 for j in range(9))) for i in range(5)]
    contrast = Contrast(towards=towards, away=away)
    assert contrast.can_be_held_out
    assert contrast.half(1) == Contrast(towards=towards[1::2], away=away[1::2])
    found = finder.of_texts(contrast, max_cost=0.3, limit=1, watch=QUIET)
    [lever] = found.search.levers
    assert lever.lever.neuron == PLANTED
    assert lever.effect.rate is None

    def mean_log_p(several, edit):
        each = []
        for text in several:
            with torch.inference_mode():
                sparsify = moved(planted, edit) if edit else None
                logits = planted(input_ids=torch.tensor([text]), sparsify=sparsify).logits[0, 1:-1]
            each.append(logits.log_softmax(-1).gather(-1, torch.tensor(text[2:])[:, None]).mean().item())
        return sum(each) / len(each)

    half = contrast.half(1)
    plain, steered = (mean_log_p(half.towards, edit) - mean_log_p(half.away, edit) for edit in (None, lever.lever))
    assert found.log_odds == pytest.approx(plain, abs=1e-4)
    assert lever.effect.log_odds == pytest.approx(steered - plain, abs=1e-4)


def test_single_texts_are_measured_where_they_were_found() -> None:
    contrast = Contrast(towards=[(BOS, 40, 41)], away=[(BOS, 60, 61), (BOS, 62, 63)])
    assert not contrast.can_be_held_out
    assert contrast.half(0) == contrast.half(1) == contrast


def test_a_search_ends_when_the_caller_raises(finder) -> None:
    class GoneError(Exception):
        pass

    class Leaving(Quiet):
        stages: ClassVar[list[str]] = []

        def report(self, stage: str, done: int, total: int) -> None:
            self.stages.append(stage)

        def checkpoint(self) -> None:
            if self.stages.count("trying") == 3:
                raise GoneError

    with pytest.raises(GoneError):
        finder.of_words(WordTree.of(WORDS), max_cost=0.5, limit=2, watch=Leaving())
    assert Leaving.stages[-3:] == ["trying"] * 3
    assert all(parameter.requires_grad for parameter in finder.model.parameters())


def test_the_packed_twin_predicts_the_same_and_shares_the_weights(planted) -> None:
    twin = packed(planted)
    ids = texts(2, 20)
    with torch.inference_mode():
        assert torch.allclose(twin(input_ids=ids).logits, planted(input_ids=ids).logits, atol=1e-5)
    assert twin.model.embed_tokens.weight.data_ptr() == planted.model.embed_tokens.weight.data_ptr()
    assert isinstance(planted.lm_head, torch.nn.Linear)


def test_a_multiple_is_chosen_by_the_parabola_through_what_was_measured() -> None:
    def cost(multiple: float) -> float:
        return -0.05 * multiple + 0.15 * multiple**2

    exact = next_factor([(1.0, cost(1.0))], slope=-0.05, wanted=0.2)
    assert cost(exact) == pytest.approx(0.2)
    guessed = next_factor([(1.0, cost(1.0))], slope=0.0, wanted=0.2)
    assert cost(next_factor([(1.0, cost(1.0)), (guessed, cost(guessed))], slope=0.0, wanted=0.2)) == pytest.approx(0.2)
    assert next_factor([(1.0, -0.1)], slope=0.0, wanted=0.2) == 2.0


def test_a_standard_error_is_within_the_groups() -> None:
    assert standard_error([1.0, 3.0, 11.0, 13.0], [0, 0, 1, 1]) == pytest.approx((2 * 2 + 2 * 2) ** 0.5)
    assert standard_error([1.0, 3.0, 11.0], [0, 0, 1]) == pytest.approx(2.0)
    assert standard_error([1.0, 9.0], [0, 1]) == 0


def test_ordinary_texts_are_halves_of_what_was_held_out(catalogued_model: Path, data_folder: Path) -> None:
    model, tokenizer = load_model(catalogued_model, device="cpu")
    held_out = ordinary_texts(data_folder, model, tokenizer, QUIET)
    assert held_out.source == "held_out"
    both = {tuple(row) for row in held_out.finding.tolist()} | {tuple(row) for row in held_out.measuring.tolist()}
    assert len(both) == len(held_out.finding) + len(held_out.measuring)


def test_a_model_without_held_out_texts_writes_its_own(tiny_model_path: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny_model_path, device="cpu")
    written = ordinary_texts(tmp_path, model, tokenizer, QUIET)
    assert written.source == "written"
    assert (written.finding[:, 0] == tokenizer.bos_token_id).all()
    assert (len(written.finding), len(written.measuring)) == (8, 12)
    again = ordinary_texts(tmp_path, model, tokenizer, QUIET)
    assert torch.equal(written.measuring, again.measuring)
