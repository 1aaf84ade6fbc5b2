"""The description of a neuron, from its firings over the texts: its figures and its page, with the definitions.

Knows no model and no file.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topk_model.catalogue.build.examples import DISTINCT_TOKENS, PIECE_WEIGHT, stretch, top_passages, top_positions
from topk_model.catalogue.build.firings import Firings
from topk_model.catalogue.build.texts import Texts
from topk_model.catalogue.build.words import entropy, semantic_entropy
from topk_model.catalogue.file import firing_strength

QUANTILES = (0.5, 0.9, 0.99, 0.999)
HISTOGRAM_BINS = 20
#: One index is one neuron in two layers if their firing correlates so much.
SAME_NEURON = 0.5
#: Two neurons must be active together at so many positions to be called related.
MIN_TOGETHER = 20
#: Number of tokens that a list shows per neuron, and of words by which it can be found.
SUMMARY_TOKENS = 5
SEARCHABLE_WORDS = 20


@dataclass(frozen=True, kw_only=True)
class Detail:
    """How much a catalogue stores about each neuron."""

    passages: int
    strongest: int
    before: int  # tokens of an example before its strongest firing
    after: int
    tokens: int = 16
    effects: int = 10  # tokens at each end of an effect
    related: int = 10
    positions: int = 24
    steering: bool = False  # whether it is measured what raising it does

    @property
    def length(self) -> int:
        """Tokens per passage."""
        return self.before + 1 + self.after


#: About 3.0 kB a neuron in the file, its share of the index included, and about 1.3 kB.
FULL = Detail(passages=8, strongest=4, before=26, after=13, steering=True)
BRIEF = Detail(passages=2, strongest=1, before=16, after=9, tokens=10, effects=5, related=5, positions=16)


ACTIVE = {
    "signed": "A neuron is active at a position where TopK keeps it and its value is not 0. Selection is signed: the "
    "k largest values are kept, so a kept value is negative where fewer than k are positive. Strength is the value; "
    "weights of shares and entropies are magnitudes.",
    "abs": "A neuron is active at a position where TopK keeps it and its value is not 0. Selection is by magnitude; "
    "max, mean, quantiles and histogram are of magnitudes, examples show values with their sign.",
}
DEFINITIONS = {
    "density": "Share of all counted positions at which the neuron is active. Special tokens are never counted.",
    "max": "Largest strength seen.",
    "mean": "Mean strength where active.",
    "quantiles": "Quantiles of the strength where active, linearly interpolated.",
    "histogram": f"Numbers of firings in {HISTOGRAM_BINS} bins of equal width from the least to the largest strength.",
    "is_dead": "Never active at a counted position.",
    "top_tokens": "The tokens at which it fires, by share: share(t) = sum of |activation| at token t / sum of "
    "|activation| at all tokens. count: firings; mean: mean strength there.",
    "token_entropy": "H = -sum_t share(t) log2 share(t), in bits, over the tokens at which the neuron fires, each "
    "weighed by its share of the activation. 0: it fires on one token.",
    "semantic_entropy": "The same over whole words w (lower-cased) instead of tokens, with words of like meaning taken "
    "for one: H = -sum_w p(w) log2 sum_v p(v) Z(w, v), in bits, Z(w, v) = max(0, cos) of word vectors learned from "
    "the same texts (PPMI of words up to 4 apart, SVD to 100 dimensions); a word without a vector is like itself "
    "alone (Leinster and Cobbold 2012, order 1). 0: all its words mean the same; never more than the words' entropy.",
    "top_examples": f"The passages of {FULL.length} tokens ({BRIEF.length} for a training checkpoint) in which it "
    "fires most: by the sum of activation² over the tokens it fires at, a token that comes again in the passage "
    f"counted once, a piece of a longer word {PIECE_WEIGHT} times. Of each window of text the best, and none that "
    f"shares {DISTINCT_TOKENS} tokens in a row with one before it.",
    "strongest_firings": "The text around its strongest firings, strongest first, at most one of a window of text, and "
    f"none that repeats the {DISTINCT_TOKENS} tokens up to a stronger one.",
    "also_in": "Other layers in which the neuron of the same index fires at the same positions: the correlation of the "
    f"two firing is {SAME_NEURON} or more. The residual stream carries it from layer to layer: it is one neuron.",
    "related": "Neurons by pointwise mutual information of being active at the same position, log2(p(a, b) / (p(a) "
    f"p(b))), in bits, among those active together at {MIN_TOGETHER} positions or more.",
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The data from which all neurons' figures are computed."""

    texts: Texts
    select: str
    is_early: NDArray[np.bool_]  # [positions]: among the first of its window
    is_piece: NDArray[np.bool_]  # [positions]: a part of a word of several tokens
    information: NDArray[np.float64]  # [positions]: of the token there; 0 if it is not counted
    vocab_size: int
    word_of: NDArray[np.int32]  # number of the word at each position
    vectors: NDArray[np.float32]  # of the first words
    words: Sequence[str]
    decode: Callable[[Sequence[int]], str]
    tokens: Sequence[str]  # text of every token id
    detail: Detail


#: A neuron's columns and its page, as the file names them.
Columns = dict[str, Any]
Page = dict[str, Any]
DEAD_COLUMNS: Columns = {
    "density": 0.0, "rate": 0.0, "early_rate": 0.0, "max": None, "mean": None, "token_entropy": None,
    "top_tokens": "[]",
}  # fmt: skip
DEAD_PAGE: Page = {
    "quantiles": {}, "range": [0, 0], "counts": [], "top_tokens": [], "positions": [], "passages": [], "strongest": []
}  # fmt: skip


def definitions(select: str) -> dict[str, str]:
    """What each figure means, by the name of its field, for a model of this selection."""
    return {"active": ACTIVE[select]} | DEFINITIONS


def strengths(values: NDArray[np.float32], select: str) -> NDArray[np.float32]:
    """The measure of strength: the value, or its magnitude if the model selects by magnitude."""
    return np.abs(values) if select == "abs" else values


def layer_figures(firings: Firings, reading: Reading) -> list[tuple[Columns, Page, list[str]]]:
    """The columns of each neuron of a layer, what of its page follows from its firings, and the words it fires on."""
    num_neurons = len(firings.starts) - 1
    weights = np.zeros((num_neurons, len(reading.words)), dtype=np.float32)
    found = []
    for neuron in range(num_neurons):
        positions, values = firings[neuron]
        found.append(neuron_figures(positions, values, reading))
        weights[neuron] = np.bincount(reading.word_of[positions], np.abs(values), minlength=len(reading.words))
    entropies = semantic_entropy(weights, reading.vectors).tolist()
    out = []
    for (columns, page), bits, row in zip(found, entropies, weights, strict=True):
        columns["semantic_entropy"] = bits if columns["density"] else None
        out.append((columns, page, [reading.words[i] for i in largest(row, SEARCHABLE_WORDS)]))
    return out


def neuron_figures(positions: NDArray[np.int32], values: NDArray[np.float32], reading: Reading) -> tuple[Columns, Page]:
    """Columns and page of one neuron, from where it fires and how strongly, positions ascending."""
    texts, detail = reading.texts, reading.detail
    strength = strengths(values, reading.select)
    if not len(values):
        return dict(DEAD_COLUMNS), dict(DEAD_PAGE)
    ids = texts.ids[positions]
    weight = np.bincount(ids, np.abs(values), minlength=reading.vocab_size)
    count = np.bincount(ids, minlength=reading.vocab_size)
    total = np.bincount(ids, strength, minlength=reading.vocab_size)
    top = largest(weight, detail.tokens)
    low, high = float(strength.min()), float(strength.max())
    if low == high:
        low -= abs(high)  # numpy would put bins half a unit to either side, at strengths that no firing has
    counts, edges = np.histogram(strength.astype(np.float64), HISTOGRAM_BINS, (low, high))
    peaks = top_positions(positions, strength, texts, detail.positions)
    passages = top_passages(positions, values, texts, detail.length, detail.passages, reading.is_piece)
    mean = float(strength.mean(dtype=np.float64))
    full = firing_strength(values, mean) * reading.information[positions]
    early = reading.is_early[positions]
    columns: Columns = {
        "density": len(values) / texts.num_counted,
        "rate": float(full.sum() / reading.information.sum()),
        "early_rate": float(full[early].sum() / reading.information[reading.is_early].sum()),
        "max": float(strength.max()),
        "mean": mean,
        "token_entropy": float(entropy(weight)),
        "top_tokens": json.dumps(top[:SUMMARY_TOKENS]),
    }
    page: Page = {
        "quantiles": {str(q): float(v) for q, v in zip(QUANTILES, np.quantile(strength, QUANTILES), strict=True)},
        "range": [edges[0].item(), edges[-1].item()],
        "counts": counts.tolist(),
        "top_tokens": [[i, int(count[i]), float(weight[i] / weight.sum()), float(total[i] / count[i])] for i in top],
        "positions": peaks,
        "passages": [example(*passage, positions, values, reading) for passage in passages],
        "strongest": [
            example(*stretch(peak, detail.before, detail.length, texts), positions, values, reading, peak)
            for peak in peaks[: detail.strongest]
        ],
    }
    return columns, page


def largest(weights: NDArray, count: int) -> list[int]:
    """Indices of up to `count` largest entries above 0, largest first, ties to the lower index."""
    above = np.flatnonzero(weights > 0)
    return above[np.lexsort((above, -weights[above]))[:count]].tolist()


def example(
    begin: int,
    end: int,
    positions: NDArray[np.int32],
    values: NDArray[np.float32],
    reading: Reading,
    peak: int | None = None,
) -> dict[str, Any]:
    """The text from position `begin` to before `end`, within one window, as the file stores it.

    Args:
        positions: where the neuron fires, at least once in the text; ascending.
        peak: the firing that it is shown for (default: the strongest).
    """
    texts = reading.texts
    ids = texts.ids[begin:end].tolist()
    own = slice(*np.searchsorted(positions, [begin, end]))
    if peak is None:
        peak = int(positions[own][strengths(values[own], reading.select).argmax()])
    activations = np.zeros(end - begin)
    activations[positions[own] - begin] = values[own]
    kept = {
        "ids": ids,
        "activations": activations.tolist(),
        "peak": peak - begin,
        "source": texts.sources[texts.bounds(begin)[0]],
    }
    text = "".join(reading.tokens[i] for i in ids)
    if "\ufffd" in text:  # a character is split over several tokens
        kept["text"] = reading.decode(ids)
    return kept


def same_layers(
    together: NDArray[np.float32], counts: NDArray[np.int64], place: int, num_positions: int
) -> list[list[int]]:
    """For each neuron of the layer at `place`, the places of other layers in which its index is the same neuron.

    Args:
        together: `[hidden_size, layers * hidden_size]`; see `count_together`.
        counts: firings of every neuron `[layers, hidden_size]`.
    """
    neurons = np.arange(len(together))
    both = together.reshape(len(together), len(counts), -1)[neurons, :, neurons].T.astype(
        np.float64
    )  # [layers, hidden]
    own, total = counts[place].astype(np.float64), float(num_positions)
    spread = own * (total - own) * counts * (total - counts)
    correlation = np.where(spread > 0, (both * total - own * counts) / np.sqrt(np.maximum(spread, 1)), 0)
    correlation[place] = 0
    return [np.flatnonzero(column >= SAME_NEURON).tolist() for column in correlation.T]


def related(
    together: NDArray[np.float32], counts: NDArray[np.int64], place: int, num_positions: int, count: int
) -> list[list[tuple[int, int, float]]]:
    """For each neuron of the layer at `place`, related neurons as (place of the layer, neuron, PMI), strongest first.

    Args:
        together: `[hidden_size, layers * hidden_size]`; see `count_together`.
        counts: firings of every neuron `[layers, hidden_size]`.
    """
    hidden_size = len(together)
    own = counts[place].astype(np.float64)
    out: list[list[tuple[int, int, float]]] = []
    for neuron, row in enumerate(together.astype(np.float64)):
        row[place * hidden_size + neuron] = 0
        near = np.flatnonzero(row >= MIN_TOGETHER)
        pmi = np.log2(row[near] * num_positions / (own[neuron] * counts.ravel()[near]))
        best = near[np.lexsort((near, -pmi))[:count]]
        ranked = np.sort(pmi)[::-1][:count]
        out.append([(*divmod(int(n), hidden_size), float(bits)) for n, bits in zip(best, ranked, strict=True)])
    return out
