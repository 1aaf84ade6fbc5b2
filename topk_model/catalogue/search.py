"""Which neurons stand for a text: those that fire on it more than on the catalogue's texts. Knows no model.

A score is the z-score of a log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi, Quinn 2008,
"Fightin' Words", section 3.5): firing against not firing on the text, relative to the same at the neuron's base rate in
its catalogue, which as the prior counts as `PRIOR_TOKENS` tokens of text. So a neuron of grammar, which fires
everywhere, needs much evidence, and a single firing in a few words is not overrated. Three things help with short
texts:

- a token counts by its information, -log2 of its frequency in the catalogue's texts, in units of the mean: a neuron
  that fires on "soldier" says more about a text than one that fires on "the"; the base rates weight tokens likewise;
- a firing counts by its strength, see `firing_strength`: TopK keeps k neurons at every position, many of them weak;
- at the first positions of a text the base rate is that of first positions: some neurons fire there in any text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topk_model.catalogue.file import EARLY_POSITIONS, firing_strength
from topk_model.catalogue.reader import Catalogue
from topk_model.traces import TraceChunk

#: Number of tokens of text at the base rate that are added to the measured ones.
PRIOR_TOKENS = 10.0


@dataclass(frozen=True, kw_only=True)
class TextFirings:
    """The firings on some text, without special tokens. The firings of several texts can be added."""

    counts: NDArray[np.int64]  # [TopK layers, hidden_size]: tokens at which each neuron is active
    num_tokens: int
    observed: NDArray[np.float64]  # [TopK layers, hidden_size]: the same, weighted by information and strength
    expected: NDArray[np.float64]  # [TopK layers, hidden_size]: the same at the base rate
    information: float  # of all tokens, in units of a token's mean

    @classmethod
    def none(cls, catalogue: Catalogue) -> "TextFirings":
        """The firings on an empty text."""
        zeros = np.zeros(catalogue.densities.shape)
        return cls(counts=zeros.astype(np.int64), num_tokens=0, observed=zeros, expected=zeros, information=0.0)

    @classmethod
    def of(cls, chunk: TraceChunk, token_ids: Sequence[int], catalogue: Catalogue) -> "TextFirings":
        """The firings on a part of a text, from its complete trace of every TopK layer, without special tokens.

        Args:
            chunk: rows in order of (token, layer).
            token_ids: the part's tokens.

        Raises:
            ValueError: the trace does not have that many tokens or not all of the catalogue's layers.
        """
        num_layers, hidden_size = catalogue.densities.shape
        num_rows = len(chunk.offsets) - 1
        if num_rows != len(token_ids) * num_layers:
            raise ValueError(f"a trace of {len(token_ids)} tokens and {num_layers} layers cannot have {num_rows} rows")
        weights = catalogue.information[np.asarray(token_ids, dtype=np.int64)]
        is_counted = weights > 0
        rows = np.repeat(np.arange(num_rows), np.diff(chunk.offsets))
        tokens = rows // num_layers
        usable = is_counted[tokens]
        neurons = ((rows % num_layers) * hidden_size + chunk.indices)[usable]
        observed = firing_strength(chunk.values[usable], catalogue.means.ravel()[neurons]) * weights[tokens[usable]]
        is_early = chunk.first_position + np.arange(len(token_ids)) < EARLY_POSITIONS
        early, late = float(weights[is_early].sum()), float(weights[~is_early].sum())
        size, shape = num_layers * hidden_size, (num_layers, hidden_size)
        return cls(
            counts=np.bincount(neurons, minlength=size).reshape(shape),
            num_tokens=int(np.count_nonzero(is_counted)),
            observed=np.bincount(neurons, observed, minlength=size).reshape(shape).astype(np.float64),
            expected=early * base_rates(catalogue, catalogue.early_rates)
            + late * base_rates(catalogue, catalogue.rates),
            information=early + late,
        )

    def __add__(self, other: "TextFirings") -> "TextFirings":
        return TextFirings(
            counts=self.counts + other.counts,
            num_tokens=self.num_tokens + other.num_tokens,
            observed=self.observed + other.observed,
            expected=self.expected + other.expected,
            information=self.information + other.information,
        )


def score_text(firings: TextFirings) -> NDArray[np.float64]:
    """How much more each neuron fires on a text than in the catalogue's texts.

    Returns:
        z-scores `[TopK layers, hidden_size]`; above 0: more than in the catalogue's texts.

    Raises:
        ValueError: the text has only special tokens.
    """
    log_odds, variance = log_odds_ratio(firings)
    return log_odds / np.sqrt(variance)


def hits(scores: NDArray[np.float64], catalogue: Catalogue, layers: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """The neurons of `layers` with the highest scores above 0, at most `limit`; equal ones by layer and neuron.

    A neuron that is the same in several layers is one hit, in the layer in which it scores highest.

    Args:
        scores: `[TopK layers, hidden_size]`.

    Returns:
        (place of the layer among the TopK layers, neuron), the highest score first.
    """
    known, hidden_size = catalogue.facts.layers, scores.shape[1]
    found: list[tuple[int, int]] = []
    found_layers: dict[int, set[int]] = {}  # by neuron, of the hits and of what is the same
    for number in np.argsort(-scores, axis=None, kind="stable").tolist():
        place, neuron = divmod(number, hidden_size)
        if scores[place, neuron] <= 0 or len(found) == limit:
            break
        if known[place] not in layers or known[place] in found_layers.get(neuron, ()):
            continue
        found.append((place, neuron))
        found_layers.setdefault(neuron, set()).update(catalogue.also_in[number])
    return found


def score_contrast(positive: TextFirings, negative: TextFirings) -> NDArray[np.float64]:
    """How much more each neuron fires on one set of texts than on another.

    Returns:
        z-scores `[TopK layers, hidden_size]`; above 0: more on the positive texts.

    Raises:
        ValueError: one of the sets has only special tokens.
    """
    ours, our_variance = log_odds_ratio(positive)
    theirs, their_variance = log_odds_ratio(negative)
    return (ours - theirs) / np.sqrt(our_variance + their_variance)


def log_odds_ratio(firings: TextFirings) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-odds of firing on the text minus those of the base rate, and their variance."""
    if not firings.num_tokens:
        raise ValueError("the text has only special tokens")
    base = firings.expected / firings.information
    firing = firings.observed + PRIOR_TOKENS * base
    silent = firings.information - firings.observed + PRIOR_TOKENS * (1 - base)
    return np.log(firing / silent) - np.log(base / (1 - base)), 1 / firing + 1 / silent


def base_rates(catalogue: Catalogue, rates: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rates, at least half a firing away from 0 and 1, so that even a neuron that was never active has a rate."""
    num_tokens = catalogue.facts.num_tokens
    return (rates.astype(np.float64) * num_tokens + 0.5) / (num_tokens + 1)
