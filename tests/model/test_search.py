"""Which neurons stand for a text: the score's properties, and a search on a real small model."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from topk_model.catalogue.file import EARLY_POSITIONS
from topk_model.catalogue.reader import Catalogue
from topk_model.catalogue.search import PRIOR_TOKENS, TextFirings, base_rates, hits, score_contrast, score_text
from topk_model.checkpoints import load_model
from topk_model.generate import trace_text
from topk_model.traces import Trace, TraceChunk

TEXT = "Tom saw a ship. Ann found the rope and the map."
OTHER = '"My aunt sold a dog," said the boy. The old man took some bread.'


@pytest.fixture(scope="module")
def catalogue(catalogued_model: Path) -> Catalogue:
    return Catalogue.open(catalogued_model)


@pytest.fixture(scope="module")
def traces(catalogued_model: Path) -> dict[str, Trace]:
    model, tokenizer = load_model(catalogued_model, device="cpu")
    return {text: trace_text(model, tokenizer, text, name="small", step=None) for text in (TEXT, OTHER, TEXT * 3)}


def firings(trace: Trace, catalogue: Catalogue) -> TextFirings:
    return TextFirings.of(trace.chunk, trace.token_ids, catalogue)


def dense(trace: Trace, catalogue: Catalogue) -> np.ndarray:
    """`[tokens, layers, hidden]`"""
    layers, hidden = catalogue.densities.shape
    out = np.zeros((len(trace.token_ids), layers, hidden))
    for row in range(len(trace.token_ids) * layers):
        entries = slice(trace.chunk.offsets[row], trace.chunk.offsets[row + 1])
        out[row // layers, row % layers, trace.chunk.indices[entries]] = trace.chunk.values[entries]
    return out


def test_firings_are_those_of_a_plain_count(catalogue: Catalogue, traces: dict[str, Trace]) -> None:
    trace = traces[TEXT * 3]
    assert len(trace.token_ids) > EARLY_POSITIONS
    states = dense(trace, catalogue)
    found = firings(trace, catalogue)
    counts = np.zeros(catalogue.densities.shape)
    observed, expected, information = np.zeros_like(counts), np.zeros_like(counts), 0.0
    for place, (token_id, is_special) in enumerate(zip(trace.token_ids, trace.is_special, strict=True)):
        weight = catalogue.information[token_id]
        assert (weight == 0) == is_special
        if is_special:
            continue
        active = states[place] != 0
        counts += active
        never_seen = np.isnan(catalogue.means)
        scale = np.where(never_seen, 1e-9, 2 * np.abs(catalogue.means))
        observed += weight * np.where(active, np.minimum(np.abs(states[place]) / scale, 1), 0)
        early = place < EARLY_POSITIONS
        expected += weight * base_rates(catalogue, catalogue.early_rates if early else catalogue.rates)
        information += weight
    assert (found.counts == counts).all()
    assert found.num_tokens == len(trace.token_ids) - 1
    assert found.observed == pytest.approx(observed, rel=1e-5)
    assert found.expected == pytest.approx(expected, rel=1e-6)
    assert found.information == pytest.approx(information)


def test_the_score_is_the_z_score_of_a_log_odds_ratio(catalogue: Catalogue, traces: dict[str, Trace]) -> None:
    found = firings(traces[TEXT], catalogue)
    scores = score_text(found)
    for layer, neuron in ((0, 3), (1, 17), (1, 30)):
        base = found.expected[layer, neuron] / found.information
        firing = found.observed[layer, neuron] + PRIOR_TOKENS * base
        silent = found.information - found.observed[layer, neuron] + PRIOR_TOKENS * (1 - base)
        ratio = math.log(firing / silent) - math.log(base / (1 - base))
        assert scores[layer, neuron] == pytest.approx(ratio / math.sqrt(1 / firing + 1 / silent))


def made_of(base: list[float], observed: list[float], num_tokens: int) -> TextFirings:
    """Firings of as many neurons as there are rates, of tokens of equal information."""
    return TextFirings(
        counts=np.array([observed]).astype(np.int64),
        num_tokens=num_tokens,
        observed=np.array([observed], dtype=np.float64),
        expected=np.array([base]) * num_tokens,
        information=float(num_tokens),
    )


def test_a_rare_neuron_counts_for_more_than_one_of_grammar() -> None:
    # In nine tokens: a neuron of grammar fires on five, rare ones on three and on one.
    [[grammar, rare, once]] = score_text(made_of([0.4, 0.01, 0.01], [5, 3, 1], 9))
    assert rare > once > 0
    assert rare > 3 * grammar


def test_more_text_of_the_same_kind_is_more_evidence() -> None:
    short, long = (score_text(made_of([0.05], [n * 0.2], n))[0, 0] for n in (20, 200))
    assert long > 2 * short > 0


def test_a_text_at_the_base_rate_scores_nothing() -> None:
    assert score_text(made_of([0.1, 0.5], [10, 50], 100)) == pytest.approx(np.zeros((1, 2)), abs=1e-9)
    assert score_text(made_of([0.1], [0], 100))[0, 0] < 0


def test_a_contrast_is_turned_round_with_its_sides(catalogue: Catalogue, traces: dict[str, Trace]) -> None:
    one, other = (firings(traces[text], catalogue) for text in (TEXT, OTHER))
    scores = score_contrast(one, other)
    assert scores == pytest.approx(-score_contrast(other, one))
    assert score_contrast(one, one) == pytest.approx(np.zeros_like(scores), abs=1e-9)
    layer, neuron = np.unravel_index(scores.argmax(), scores.shape)
    assert one.observed[layer, neuron] / one.information > other.observed[layer, neuron] / other.information


def test_stretches_of_a_text_add_up_to_it(catalogue: Catalogue, traces: dict[str, Trace]) -> None:
    trace, num_layers = traces[TEXT * 3], len(catalogue.facts.layers)
    total = TextFirings.none(catalogue)
    for first in range(0, len(trace.token_ids), 7):
        ids = trace.token_ids[first : first + 7]
        offsets = trace.chunk.offsets[first * num_layers : (first + len(ids)) * num_layers + 1]
        entries = slice(offsets[0], offsets[-1])
        chunk = TraceChunk(
            first_position=first,
            num_tokens=len(ids),
            offsets=offsets - offsets[0],
            indices=trace.chunk.indices[entries],
            values=trace.chunk.values[entries],
        )
        total += TextFirings.of(chunk, ids, catalogue)
    assert score_text(total) == pytest.approx(score_text(firings(trace, catalogue)))
    assert (total.counts == firings(trace, catalogue).counts).all()


def test_one_neuron_in_several_layers_is_one_hit(catalogue: Catalogue) -> None:
    layers, hidden = catalogue.densities.shape
    assert layers == 2
    same = [(1,) if i == 3 else (0,) if i == hidden + 3 else () for i in range(layers * hidden)]
    known = replace(catalogue, also_in=tuple(same))
    scores = np.full((layers, hidden), -1.0)
    scores[0, 3], scores[1, 3], scores[0, 5], scores[1, 5] = 2.0, 3.0, 1.0, 0.5
    assert hits(scores, known, [0, 1], 10) == [(1, 3), (0, 5), (1, 5)]  # 5 is another neuron in each
    assert hits(scores, known, [0], 10) == [(0, 3), (0, 5)]
    assert hits(scores, known, [0, 1], 2) == [(1, 3), (0, 5)]
    assert hits(np.zeros((layers, hidden)), known, [0, 1], 2) == []


def test_special_tokens_alone_are_no_text(catalogue: Catalogue, traces: dict[str, Trace]) -> None:
    with pytest.raises(ValueError, match="only special tokens"):
        score_text(TextFirings.none(catalogue))
    with pytest.raises(ValueError, match="only special tokens"):
        score_contrast(firings(traces[TEXT], catalogue), TextFirings.none(catalogue))


def test_a_trace_of_other_layers_is_refused(catalogue: Catalogue, traces: dict[str, Trace]) -> None:
    chunk = replace(traces[TEXT].chunk, offsets=traces[TEXT].chunk.offsets[:-1])
    with pytest.raises(ValueError, match="cannot have"):
        TextFirings.of(chunk, traces[TEXT].token_ids, catalogue)


def test_a_word_finds_the_neurons_that_fire_on_it(catalogue: Catalogue, catalogued_model: Path) -> None:
    model, tokenizer = load_model(catalogued_model, device="cpu")
    hits = 0
    for word in ("ship", "rope", "dog", "bread", "lamp", "coat", "map"):
        trace = trace_text(model, tokenizer, f"Tom saw the {word}.", name="small", step=None)
        scores = score_text(firings(trace, catalogue))
        best = [divmod(int(i), scores.shape[1]) for i in np.argsort(-scores, axis=None)[:5]]
        examples = [e for place in best for e in catalogue.neuron(*place).strongest_firings]
        hits += any(word in "".join(e.tokens[max(0, e.peak - 3) : e.peak + 3]) for e in examples)
    assert hits >= 5
