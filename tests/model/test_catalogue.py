"""The figures of a catalogue against plain, slow recomputation."""

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.catalogued import NUM_TOKENS
from tests.support.small_vocabulary import TEXTS
from topk_model.catalogue.build.build import CatalogueConfig, gather
from topk_model.catalogue.build.examples import DISTINCT_TOKENS, PIECE_WEIGHT
from topk_model.catalogue.build.statistics import FULL, MIN_TOGETHER, SAME_NEURON
from topk_model.catalogue.build.texts import texts_of_file
from topk_model.catalogue.build.words import Vocabulary, entropy, semantic_entropy, word_vectors
from topk_model.catalogue.file import EARLY_POSITIONS
from topk_model.catalogue.neuron import Example
from topk_model.catalogue.reader import Catalogue
from topk_model.checkpoints import load_model
from topk_model.modeling import TopKLMForCausalLM, topk
from topk_model.training.data import train_tokenizer

LAYERS, HIDDEN, K = 2, 32, 6
NEURONS = [(layer, neuron) for layer in range(LAYERS) for neuron in range(HIDDEN)]


@pytest.fixture(scope="module")
def catalogue(catalogued_model: Path) -> Catalogue:
    return Catalogue.open(catalogued_model)


@pytest.fixture(scope="module")
def model(catalogued_model: Path) -> TopKLMForCausalLM:
    return load_model(catalogued_model, device="cpu")[0]


class Plain:
    """What the model does on the catalogue's texts, window by window, as dense arrays."""

    def __init__(self, catalogued_model: Path, data_folder: Path, model: TopKLMForCausalLM) -> None:
        self.tokenizer = load_model(catalogued_model, device="cpu")[1]
        config = CatalogueConfig(model=catalogued_model, data=data_folder, tokens=NUM_TOKENS)
        self.material = gather(config, self.tokenizer, model.config.max_position_embeddings, model.config.vocab_size)
        texts = self.material.texts
        self.ids = texts.ids
        self.windows = [slice(*pair) for pair in pairwise(texts.starts.tolist())]
        states: list[list[torch.Tensor]] = []

        def keep(layer: int, hidden: torch.Tensor) -> torch.Tensor:
            if layer < LAYERS:
                hidden = topk(hidden, K, model.config.topk_select)
                states[layer].append(hidden[0, 1:])
            return hidden

        states += [[] for _ in range(LAYERS)]
        with torch.inference_mode():
            for window in self.windows:
                row = torch.tensor([[self.tokenizer.bos_token_id, *self.ids[window].tolist()]])
                model(input_ids=row, sparsify=keep)
        self.states = torch.stack([torch.cat(layer) for layer in states]).numpy()  # [layers, positions, hidden]
        self.places = np.concatenate([1 + np.arange(w.stop - w.start) for w in self.windows])  # BOS is at 0
        self.is_counted = ~np.isin(self.ids, self.tokenizer.all_special_ids)
        self.states[:, ~self.is_counted] = 0

    def firings(self, layer: int, neuron: int) -> tuple[np.ndarray, np.ndarray]:
        values = self.states[layer, :, neuron]
        return np.flatnonzero(values), values[values != 0]


@pytest.fixture(scope="module")
def plain(catalogued_model: Path, data_folder: Path, model: TopKLMForCausalLM) -> Plain:
    return Plain(catalogued_model, data_folder, model)


def test_the_figures_are_those_of_a_plain_count(catalogue: Catalogue, plain: Plain) -> None:
    num_counted = int(plain.is_counted.sum())
    assert catalogue.facts.num_tokens == num_counted
    for layer, neuron in NEURONS:
        page, (positions, values) = catalogue.neuron(layer, neuron), plain.firings(layer, neuron)
        assert page.density == pytest.approx(len(values) / num_counted)
        assert catalogue.densities[layer, neuron] == pytest.approx(page.density)
        assert page.is_dead == (len(values) == 0)
        if page.is_dead:
            assert (page.max, page.mean, page.token_entropy, page.top_tokens) == (None, None, None, ())
            continue
        assert page.max == pytest.approx(values.max(), rel=1e-4)
        assert catalogue.maximum(layer, neuron) == pytest.approx(page.max)
        assert page.mean == pytest.approx(values.mean(), rel=1e-3)
        strength = np.minimum(np.abs(values) / (2 * abs(page.mean)), 1)
        weight = catalogue.information[plain.ids]
        rate = (strength * weight[positions]).sum() / weight[plain.is_counted].sum()
        assert catalogue.rates[layer, neuron] == pytest.approx(rate, rel=1e-3)
        early = plain.places[positions] < EARLY_POSITIONS
        rate = (strength * weight[positions])[early].sum() / weight[
            plain.is_counted & (plain.places < EARLY_POSITIONS)
        ].sum()
        assert catalogue.early_rates[layer, neuron] == pytest.approx(rate, rel=1e-3)
        for name, quantile in page.quantiles.items():
            assert quantile == pytest.approx(np.quantile(values, float(name)), rel=1e-3)
        assert sum(page.histogram.counts) == len(values)
        assert len(page.histogram.edges) == len(page.histogram.counts) + 1
        assert page.histogram.edges[-1] == pytest.approx(page.max, rel=1e-3)


def test_every_position_has_k_active_neurons(catalogue: Catalogue) -> None:
    assert catalogue.densities.sum(1) == pytest.approx([K] * LAYERS, rel=1e-3)


def test_special_tokens_are_never_counted(catalogue: Catalogue, plain: Plain) -> None:
    assert not plain.is_counted.all()  # there is an end-of-text token among the texts
    special = set(plain.tokenizer.all_special_ids)
    for layer, neuron in NEURONS:
        page = catalogue.neuron(layer, neuron)
        assert not special & {top.token_id for top in page.top_tokens}
        for example in (*page.top_examples, *page.strongest_firings):
            assert example.token_ids[example.peak] not in special
            assert all(not a for i, a in zip(example.token_ids, example.activations, strict=True) if i in special)


def test_token_entropy_and_top_tokens_follow_the_formula(catalogue: Catalogue, plain: Plain) -> None:
    for layer, neuron in NEURONS:
        page, (positions, values) = catalogue.neuron(layer, neuron), plain.firings(layer, neuron)
        weights: Counter[int] = Counter()
        for position, value in zip(positions.tolist(), np.abs(values).tolist(), strict=True):
            weights[int(plain.ids[position])] += value
        total = sum(weights.values())
        bits = -sum(w / total * math.log2(w / total) for w in weights.values())
        assert (page.token_entropy or 0.0) == pytest.approx(bits, abs=1e-3)
        shares = [top.share for top in page.top_tokens]
        assert shares == sorted(shares, reverse=True)
        for top in page.top_tokens:
            at = plain.ids[positions] == top.token_id
            assert top.count == at.sum()
            assert top.share == pytest.approx(weights[top.token_id] / total, rel=1e-3)
            assert top.mean == pytest.approx(values[at].mean(), rel=1e-3)


def test_semantic_entropy_takes_alike_words_for_one() -> None:
    same, opposite = np.float32([[1, 0], [1, 0]]), np.float32([[1, 0], [-1, 0]])
    weights = np.array([[3.0, 1.0], [1.0, 1.0], [0.0, 2.0]])
    assert semantic_entropy(weights, same) == pytest.approx([0, 0, 0], abs=1e-6)
    assert semantic_entropy(weights, opposite) == pytest.approx(entropy(weights), abs=1e-6)
    half = np.float32([[1, 0], [0.5, math.sqrt(0.75)]])
    assert semantic_entropy(weights, half)[1] == pytest.approx(-math.log2(0.75), abs=1e-6)
    assert semantic_entropy(weights, np.zeros((0, 1), np.float32)) == pytest.approx(entropy(weights), abs=1e-6)


def test_signs_and_numbers_are_like_nothing_but_themselves() -> None:
    text = ("the cat sat , the dog ran . 7 cats ; " * 30).split()
    vocabulary = Vocabulary.of(text)
    vectors = word_vectors(text, vocabulary)
    has_none = np.array([not name.isalpha() for name in vocabulary.names[: len(vectors)]])
    assert has_none.sum() == 4
    assert (vectors[has_none] == 0).all()
    assert np.linalg.norm(vectors[~has_none], axis=1) == pytest.approx(np.ones((~has_none).sum()), abs=1e-5)


def test_semantic_entropy_follows_the_formula(catalogue: Catalogue, plain: Plain) -> None:
    material = plain.material
    names, vectors = material.vocabulary.names, material.vectors
    assert len(vectors) > 20
    for layer, neuron in NEURONS[::7]:
        positions, values = plain.firings(layer, neuron)
        if not len(values):
            continue
        p = np.bincount(material.word_of[positions], np.abs(values), minlength=len(names))
        p /= p.sum()
        bits = 0.0
        for w in np.flatnonzero(p):
            alike = p[w]
            for v in np.flatnonzero(p):
                if v != w and v < len(vectors) and w < len(vectors):
                    alike += p[v] * max(0.0, float(vectors[v] @ vectors[w]))
            bits -= p[w] * math.log2(alike)
        assert catalogue.neuron(layer, neuron).semantic_entropy == pytest.approx(bits, abs=2e-3)


def stretch_of(example: Example, window: slice, layer: int, neuron: int, plain: Plain) -> slice:
    """Where in the window the example stands, and that it is told as it is."""
    size, ids = len(example.token_ids), list(example.token_ids)
    starts = [at for at in range(window.start, window.stop + 1 - size) if plain.ids[at : at + size].tolist() == ids]
    stretches = [slice(at, at + size) for at in starts]
    states = plain.states[layer, :, neuron]
    at = next(s for s in stretches if example.activations == pytest.approx(states[s], rel=1e-3, abs=1e-6))
    assert example.text == "".join(example.tokens)
    assert example.max == example.activations[example.peak]
    return at


def test_the_strongest_firings_are_those_of_different_texts(catalogue: Catalogue, plain: Plain) -> None:
    window_of = np.repeat(np.arange(len(plain.windows)), [w.stop - w.start for w in plain.windows])
    sources = plain.material.texts.sources
    assert set(sources) != {None}
    for layer, neuron in NEURONS:
        page, (_, values) = catalogue.neuron(layer, neuron), plain.firings(layer, neuron)
        if page.is_dead:
            assert page.strongest_firings == ()
            continue
        peaks = catalogue.top_positions(layer, neuron)
        windows = window_of[peaks].tolist()
        assert len(set(windows)) == len(windows)
        assert len(page.strongest_firings) == min(FULL.strongest, len(peaks))
        assert page.strongest_firings[0].max == pytest.approx(values.max(), rel=1e-3)
        for peak, window, example in zip(peaks, windows, page.strongest_firings, strict=False):
            assert stretch_of(example, plain.windows[window], layer, neuron, plain).start + example.peak == peak
            assert example.source == sources[window]
        endings = [plain.ids[max(0, p + 1 - DISTINCT_TOKENS) : p + 1].tobytes() for p in peaks]
        assert len(set(endings)) == len(endings)


def most(states: np.ndarray, ids: np.ndarray, is_piece: np.ndarray, length: int) -> float:
    """The largest sum of squares over distinct tokens of any `length` tokens of a window, pieces of words for less."""
    weights = np.where(is_piece, PIECE_WEIGHT, 1) * np.square(states.astype(np.float64))
    best = 0.0
    for begin in np.flatnonzero(states).tolist():
        first: dict[int, float] = {}
        for token, value in zip(ids[begin : begin + length].tolist(), weights[begin:][:length].tolist(), strict=True):
            if value:
                first.setdefault(token, value)
        best = max(best, sum(first.values()))
    return best


def test_examples_are_the_passages_that_it_fires_in_most(catalogue: Catalogue, plain: Plain) -> None:
    for layer, neuron in NEURONS[::5]:
        page = catalogue.neuron(layer, neuron)
        states = plain.states[layer, :, neuron]
        is_piece = plain.material.labeller.shown.pieces >= 0
        sums = [most(states[w], plain.ids[w], is_piece[w], FULL.length) for w in plain.windows]
        found: list[float] = []
        runs: list[tuple[int, ...]] = []
        for example in page.top_examples:
            ids = example.token_ids
            text = np.array(ids, dtype=plain.ids.dtype).tobytes()
            window = next(window for window in plain.windows if text in plain.ids[window].tobytes())
            own = stretch_of(example, window, layer, neuron, plain)
            found.append(most(np.array(example.activations), np.array(ids), is_piece[own], FULL.length))
            runs += all_runs(np.array(ids))
        assert len(set(runs)) == len(runs)  # no text comes twice
        assert found == pytest.approx(sorted(found, reverse=True), rel=1e-3)
        assert (found or [0.0])[0] == pytest.approx(max(sums), rel=1e-3)
        # A better passage of another window is left out only for its text.
        unseen = [i for i, w in enumerate(plain.windows) if not any(run in all_runs(plain.ids[w]) for run in runs)]
        assert len(found) == FULL.passages or all(sums[i] == 0 for i in unseen)
        assert all(sums[i] <= min(found, default=0.0) * 1.001 for i in unseen)


def all_runs(ids: np.ndarray) -> set[tuple[int, ...]]:
    """All texts of `DISTINCT_TOKENS` tokens in a row."""
    return set(zip(*(ids[at:].tolist() for at in range(DISTINCT_TOKENS)), strict=False))


def test_an_example_names_the_book_it_is_from(catalogue: Catalogue, data_folder: Path, plain: Plain) -> None:
    texts = plain.material.texts
    documents = json.loads((data_folder / "sources.json").read_text())["documents"]["train"]
    books = [row["title"] for row in documents for _ in range(row["count"])]
    train = np.load(data_folder / "train.npy")
    ends = np.flatnonzero(train == plain.tokenizer.eos_token_id)
    assert len(ends) == len(books)
    found = 0
    for window, source in zip(plain.windows[:20], texts.sources, strict=False):
        ids = texts.ids[window]
        places = [
            p for p in range(len(train) - len(ids)) if train[p] == ids[0] and (train[p : p + len(ids)] == ids).all()
        ]
        found += source in {books[np.searchsorted(ends, place)] for place in places}
    assert found == 20


def test_related_neurons_are_those_of_highest_pmi(catalogue: Catalogue, plain: Plain) -> None:
    fires = plain.states.transpose(0, 2, 1).reshape(LAYERS * HIDDEN, -1) != 0  # [neurons, positions]
    num_counted = plain.is_counted.sum()
    for layer, neuron in NEURONS[::5]:
        own = fires[layer * HIDDEN + neuron]
        expected = {}
        for number, other in enumerate(fires):
            together = int((own & other).sum())
            if number != layer * HIDDEN + neuron and together >= MIN_TOGETHER:
                expected[divmod(number, HIDDEN)] = math.log2(together * num_counted / (own.sum() * other.sum()))
        page = catalogue.neuron(layer, neuron)
        assert len(page.related) == min(10, len(expected))
        strongest = sorted(expected.values(), reverse=True)
        for near, pmi in zip(page.related, strongest, strict=False):
            assert near.pmi == pytest.approx(pmi, abs=2e-3)
            assert expected[near.layer, near.neuron] == pytest.approx(pmi, abs=2e-3)
            assert [near.label] == catalogue.labels([(near.layer, near.neuron)])


def test_an_index_that_fires_at_the_same_positions_in_two_layers_is_one_neuron(
    catalogue: Catalogue, plain: Plain
) -> None:
    fires = plain.states[:, plain.is_counted] != 0  # [layers, positions, neurons]
    found = set()
    for layer, neuron in NEURONS:
        own, other = fires[layer, :, neuron], fires[1 - layer, :, neuron]
        varies = 0 < own.mean() < 1 and 0 < other.mean() < 1
        is_same = varies and np.corrcoef(own, other)[0, 1] >= SAME_NEURON
        assert catalogue.neuron(layer, neuron).also_in == ((1 - layer,) if is_same else ())
        found.add(is_same)
    assert found == {True, False}


def test_what_raising_does_is_kept_of_the_model_alone(catalogue: Catalogue, catalogued_model: Path) -> None:
    early = Catalogue.open(catalogued_model / "checkpoints" / "step-64")
    assert all(early.neuron(layer, neuron).steering is None for layer, neuron in NEURONS)
    steered = 0
    for layer, neuron in NEURONS:
        page = catalogue.neuron(layer, neuron)
        if page.steering is None:
            continue
        steered += 1
        assert page.max is not None
        assert page.steering.value == pytest.approx(page.steering.in_units_of_max * page.max)
        assert page.steering.in_units_of_max in [point.in_units_of_max for point in page.steering.curve]
        assert page.steering.words[0].token == catalogue.tokens[page.steering.words[0].token_id]
    assert steered > len(NEURONS) // 2


def alike(ending: list[int], other: list[int]) -> bool:
    """Whether one is the end of the other: a window may cut a context short."""
    length = min(len(ending), len(other))
    return ending[-length:] == other[-length:]


def test_the_ablation_effect_is_that_of_an_ablation(
    catalogue: Catalogue, plain: Plain, model: TopKLMForCausalLM
) -> None:
    sample_end = int(plain.material.sample.starts[-1])
    window_of = np.repeat(np.arange(len(plain.windows)), [w.stop - w.start for w in plain.windows])
    checked = 0
    for layer, neuron in NEURONS[3::11]:
        effect = catalogue.neuron(layer, neuron).ablation_effect
        if effect is None:
            continue
        positions, values = plain.firings(layer, neuron)
        last = np.array([w.stop - 1 for w in plain.windows])
        usable = (positions < sample_end) & ~np.isin(positions, last)
        peaks, seen = [], []
        for position in positions[usable][np.argsort(-values[usable], kind="stable")].tolist():
            window = int(window_of[position])
            ending = plain.ids[max(plain.windows[window].start, position + 1 - DISTINCT_TOKENS) : position + 1].tolist()
            if window not in [w for w, _ in seen] and not any(alike(ending, e) for _, e in seen):
                peaks.append(position)
                seen.append((window, ending))
        peaks = peaks[: effect.num_positions]
        changes, losses = [], []
        for position in peaks:
            window = plain.windows[window_of[position]]
            row = torch.tensor([[plain.tokenizer.bos_token_id, *plain.ids[window].tolist()]])
            at = 1 + position - window.start

            def ablate(where: int, hidden: torch.Tensor, at: int = at) -> torch.Tensor:
                hidden = model.model.sparsify(where, hidden)
                if where == layer:  # noqa: B023, called at once
                    hidden[0, at, neuron] = 0  # noqa: B023
                return hidden

            with torch.inference_mode():
                after, before = (model(input_ids=row, sparsify=s).logits[0, at].log_softmax(-1) for s in (ablate, None))
            changes.append(after - before)
            losses.append(before[plain.ids[position + 1]] - after[plain.ids[position + 1]])
        mean = torch.stack(changes).mean(0)
        assert effect.loss_change == pytest.approx(float(torch.stack(losses).mean()), abs=1e-3)
        for token in (*effect.positive, *effect.negative):
            assert token.value == pytest.approx(float(mean[token.token_id]), abs=1e-3)
        assert all(token.value > 0 for token in effect.positive)
        assert all(token.value < 0 for token in effect.negative)
        checked += bool(effect.positive)
    assert checked > 2


def test_the_logit_effect_is_the_unembedding_behind_the_final_norm(
    catalogue: Catalogue, model: TopKLMForCausalLM
) -> None:
    written = (model.lm_head.weight * model.model.norm.weight).detach().numpy()
    for layer, neuron in NEURONS[::9]:
        effect = catalogue.neuron(layer, neuron).logit_effect
        assert effect.note.startswith("approximate")
        ends = effect.positive[0], effect.negative[0]
        assert ends[0].value > 0 > ends[1].value
        rows = [written[token.token_id, neuron] for token in ends]
        assert ends[0].value - ends[1].value == pytest.approx(rows[0] - rows[1], rel=1e-2)
        assert catalogue.neuron(1 - layer, neuron).logit_effect == effect


def test_short_documents_are_read_until_there_are_enough_tokens(tmp_path):
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps({"text": f"{number} the sea was calm"}) + "\n" for number in range(500)))
    shown, held_out = texts_of_file(path, train_tokenizer(iter(TEXTS * 4), 400), length=64, num_tokens=1000, seed=0)
    longest = int(np.diff(shown.starts).max())
    assert 1000 <= len(shown.ids) < 1000 + longest
    assert len(held_out) == 50
