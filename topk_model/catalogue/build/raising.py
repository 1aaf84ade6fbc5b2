"""What raising a neuron does to what comes next, and at what cost: measured, and the strength that is best for it.

Everything is measured on short openings of held-out texts, at every position but the first, with the neuron raised by
the same amount at each of them, as a click on it does. Its words are found on one half of the openings, and their share
and cost are measured on the other. Knows no file.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from topk_model.catalogue.build.texts import Texts
from topk_model.modeling import TopKLMForCausalLM, cached_attention

#: Openings in each half, and tokens of one that are read after the beginning-of-text token.
OPENINGS, OPENING_TOKENS = 8, 12
#: Strengths that the curve is drawn at, in multiples of the neuron's max, besides the best; its words are found at one.
CURVE = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
WORDS_AT = 0.35
NUM_WORDS = 10
#: A word is brought if its log-probability rises so much, in nats.
MIN_CHANGE = 0.1
#: Words come often enough if this share of all tokens are theirs: 19 of 20 texts of 48 tokens then hold one.
ENOUGH_SHARE = 0.06
#: What the best strength may cost at most, in nats a token.
MAX_COST = 0.4
#: No strength is told below or above, in multiples of the neuron's max.
LEAST, MOST = 0.02, 1.0
#: Rows of logits in memory at once: these stay in the processor's cache.
CHUNK_ROWS = 512

DEFINITIONS = {
    "steering": f"Measured on {OPENINGS} openings of held-out texts, {OPENING_TOKENS} tokens each, with the same value "
    "added to the neuron after TopK at every token of them. words: tokens that it brings, found on as many other "
    f"openings at {WORDS_AT} of its max: the largest (p' - p) log(p'/p), with p and p' the mean probability of the "
    f"next token, plain and steered; their value is log(p'/p), in nats, at least {MIN_CHANGE:g}. share: how much of "
    "the next token's probability is theirs; log_odds: mean change of the log-odds of one of them, in nats; cost: nats "
    "a token by which what is drawn under steering is less likely under the plain model. value: the strength at which "
    f"their share is {ENOUGH_SHARE:.0%} or, if that costs more than {MAX_COST} nats a token, the one that costs "
    f"{MAX_COST}; of straight lines between the curve's points, and at most {MOST:g} of its max.",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one strength does."""

    share: float
    log_odds: float
    cost: float


class Raising:
    """Openings that were read once, from whose states passes with one neuron raised go on.

    Args:
        texts: the openings are the first tokens of their windows, evenly spread.
        is_shown: which tokens may be called a neuron's words `[vocab]`.
    """

    def __init__(self, model: TopKLMForCausalLM, texts: Texts, bos_id: int | None, is_shown: Tensor) -> None:
        self.model, self.is_shown = model, is_shown.to(model.device)
        self.attend = cached_attention(model.config, None, None)
        self.first = int(bos_id is not None)
        ids = openings(texts, bos_id, 2 * OPENINGS)
        self.halves = [self.read(torch.from_numpy(part).to(model.device)) for part in (ids[::2], ids[1::2])]

    @torch.inference_mode()
    def read(self, ids: Tensor) -> "Half":
        """Raises nothing; `ids` are `[openings, length]`."""
        states: dict[int, Tensor] = {}

        def keep(layer: int, hidden: Tensor) -> Tensor:
            states[layer] = self.model.model.sparsify(layer, hidden)
            return states[layer]

        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        hidden = self.model.model.run_blocks(self.model.model.embed_tokens(ids), positions, self.attend, keep)
        plain = self.log_probs(hidden)
        return Half(states=states, positions=positions, plain=plain, expected=torch.linalg.vecdot(plain.exp(), plain))

    def log_probs(self, hidden: Tensor) -> Tensor:
        """Of the next token `[rows, vocab]`, after all positions but the first of `[openings, length, hidden_size]`."""
        return self.model.lm_head(hidden[:, self.first :].flatten(0, 1)).float().log_softmax(-1)

    @torch.inference_mode()
    def raised(self, half: "Half", layer: int, neuron: int, values: Sequence[float]) -> list[Tensor]:
        """The next token's log-probabilities `[rows, vocab]` with each of `values` added to the neuron."""
        state = half.states[layer]
        per_pass = max(1, CHUNK_ROWS // len(half.plain))
        out: list[Tensor] = []
        for first in range(0, len(values), per_pass):
            own = values[first : first + per_pass]
            edited = state.repeat(len(own), 1, 1)
            added = torch.tensor(own, device=state.device).repeat_interleave(len(state))
            edited[:, self.first :, neuron] += added[:, None]
            hidden = self.model.model.run_blocks(edited, half.positions, self.attend, start=layer + 1)
            out += self.log_probs(hidden).chunk(len(own))
        return out

    def words(self, layer: int, neuron: int, value: float) -> list[tuple[int, float]]:
        """(token, log(p'/p)) of up to `NUM_WORDS` that raising it brings, the largest (p' - p) log(p'/p) first."""
        half = self.halves[0]
        [steered] = self.raised(half, layer, neuron, [value])
        before, after = half.plain.exp().mean(0), steered.exp().mean(0)
        change = (after / before).log()
        # Not p' log(p'/p): a word that is likely anyway, as "was", would lead with a small rise.
        gain = torch.where(self.is_shown & (change >= MIN_CHANGE), (after - before) * change, 0)
        best = gain.topk(min(NUM_WORDS, len(gain)))
        return [
            (i, change[i].item()) for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True) if value
        ]

    def points(self, layer: int, neuron: int, values: Sequence[float], token_ids: Sequence[int]) -> list[Point]:
        """What each of `values`, added to the neuron, does to the tokens, on the half that they were not found on."""
        half = self.halves[1]
        own = torch.tensor(token_ids, device=self.model.device)
        plain = log_odds(half.plain[:, own])
        points = []
        for steered in self.raised(half, layer, neuron, values):
            chosen = steered[:, own]
            rise = (log_odds(chosen) - plain).mean().item()
            share = chosen.exp().sum(-1).mean().item()
            cost = (half.expected - torch.linalg.vecdot(steered.exp(), half.plain)).mean().item()
            points.append(Point(share=share, log_odds=rise, cost=cost))
        return points

    def steering(self, layer: int, neuron: int, largest: float) -> dict[str, Any] | None:
        """What the neuron's page keeps; None if raising it brings no word.

        Args:
            largest: the neuron's max.
        """
        words = self.words(layer, neuron, WORDS_AT * largest)
        if not words:
            return None
        ids = [i for i, _ in words]
        share = self.halves[1].plain[:, torch.tensor(ids)].exp().sum(-1).mean().item()
        curve = {0.0: Point(share=share, log_odds=0.0, cost=0.0)}
        curve |= zip(CURVE, self.points(layer, neuron, [s * largest for s in CURVE], ids), strict=True)
        best = best_strength(list(curve), list(curve.values()))
        curve[best] = self.points(layer, neuron, [best * largest], ids)[0]
        return {
            "words": [list(pair) for pair in words],
            "best": best,
            "curve": [[s, p.share, p.log_odds, p.cost] for s, p in sorted(curve.items())],
        }


@dataclass(frozen=True, kw_only=True)
class Half:
    """Half of the openings, read without an edit."""

    states: dict[int, Tensor]  # by layer, `[openings, length, hidden_size]`
    positions: Tensor
    plain: Tensor  # log-probabilities `[rows, vocab]`
    expected: Tensor  # of what the plain model draws itself `[rows]`


def openings(texts: Texts, bos_id: int | None, count: int) -> NDArray[np.int64]:
    """The first tokens of `count` windows, evenly spread, `[count, length]`; windows that are shorter are left out."""
    length = min(OPENING_TOKENS, int(np.diff(texts.starts).max()))
    long_enough = np.flatnonzero(np.diff(texts.starts) >= length)
    chosen = long_enough[np.linspace(0, len(long_enough) - 1, count).round().astype(int)]
    rows = np.stack([texts.ids[at : at + length] for at in texts.starts[chosen]])
    return rows if bos_id is None else np.insert(rows, 0, bos_id, axis=1)


def log_odds(log_probs: Tensor) -> Tensor:
    """Log-odds that one of the tokens comes next `[rows]`, from their log-probabilities `[rows, tokens]`."""
    log_p = log_probs.logsumexp(-1)
    return log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))


def best_strength(strengths: Sequence[float], points: Sequence[Point]) -> float:
    """The strength, in the curve's units, at which the words come often enough, or that costs what it may.

    Args:
        strengths: ascending, the first 0.
    """
    shares = [point.share for point in points]
    # The cost grows with the square of a small strength: its root is nearly a straight line.
    roots = [math.sqrt(max(point.cost, 0.0)) for point in points]
    at = min(crossing(strengths, shares, ENOUGH_SHARE), crossing(strengths, roots, math.sqrt(MAX_COST)))
    return round(min(max(at, LEAST), MOST), 3)


def crossing(strengths: Sequence[float], values: Sequence[float], limit: float) -> float:
    """Where straight lines between the points first reach `limit`; beyond the last strength if they do not."""
    for i in range(1, len(values)):
        if values[i] >= limit:
            if values[i - 1] >= limit:
                return strengths[i - 1]
            along = (limit - values[i - 1]) / (values[i] - values[i - 1])
            return strengths[i - 1] + along * (strengths[i] - strengths[i - 1])
    return math.inf


def raise_all(
    raising: Raising,
    layers: Sequence[int],
    maxima: NDArray[np.float32],
    advance: Callable[[int], object],
) -> list[list[dict[str, Any] | None]]:
    """`Raising.steering` of every neuron, by layer; None for one that never fired.

    Args:
        maxima: `[layers, hidden_size]`; 0: it never fired.
        advance: told of neurons as they are done.
    """
    found = []
    for layer, row in zip(layers, maxima.tolist(), strict=True):
        pages = []
        for neuron, largest in enumerate(row):
            pages.append(raising.steering(layer, neuron, largest) if largest > 0 else None)
            advance(1)
        found.append(pages)
    return found
