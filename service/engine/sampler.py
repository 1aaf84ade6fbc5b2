"""Draws next tokens, each row by its own rules and its own random stream.

A draw depends only on the row's logits, parameters, seed and step: there is no generator state that another row
could advance.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.request import SamplingParams
from topk_model.transfer import to_device


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seeds: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """The `steps`-th number in [0, 1) of each seed's stream: SplitMix64 as a counter-based generator."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        bits = _mix(_mix(seeds.astype(np.uint64)) + golden * (steps.astype(np.uint64) + np.uint64(1)))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Sampler:
    """Sampling rules of up to `num_slots` sequences, and the tokens that each has drawn."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.device, self.vocab_size = device, vocab_size
        self.temperature = np.ones(num_slots, dtype=np.float32)
        self.top_p = np.ones(num_slots, dtype=np.float32)
        self.top_k = np.full(num_slots, vocab_size, dtype=np.int64)
        self.min_p = np.zeros(num_slots, dtype=np.float32)
        self.seed = np.zeros(num_slots, dtype=np.int64)
        self.presence = np.zeros(num_slots, dtype=np.float32)
        self.frequency = np.zeros(num_slots, dtype=np.float32)
        self.has_bias = np.zeros(num_slots, dtype=bool)
        self.bias = torch.zeros(num_slots, vocab_size, device=device)
        self.counts = torch.zeros(num_slots, vocab_size, device=device)  # of generated tokens

    def load(self, slot: int, params: SamplingParams) -> None:
        """Set a slot to a sequence's rules and clear its earlier content."""
        self.temperature[slot] = params.temperature
        self.top_p[slot] = params.top_p
        self.top_k[slot] = params.top_k or self.vocab_size
        self.min_p[slot] = params.min_p
        self.seed[slot] = params.seed
        self.presence[slot], self.frequency[slot] = params.presence_penalty, params.frequency_penalty
        self.counts[slot] = 0
        if self.has_bias[slot]:
            self.bias[slot] = 0
        self.has_bias[slot] = bool(params.logit_bias)
        if params.logit_bias:
            ids, amounts = zip(*params.logit_bias, strict=True)
            where = to_device(np.array(ids), self.device)
            self.bias[slot, where] = to_device(np.array(amounts, dtype=np.float32), self.device)

    def sample(self, logits: Tensor, slots: NDArray[np.int64], steps: NDArray[np.int64]) -> Tensor:
        """Draw one token per row.

        Args:
            logits: `[rows, vocab_size]`, float32.
            slots: slot of each row.
            steps: number of tokens that each row's sequence has already drawn.

        Returns:
            Token ids `[rows]` on the device.
        """
        index = to_device(slots, self.device)
        if self.has_bias[slots].any():
            logits = logits + self.bias[index]
        penalised = (self.presence[slots] != 0) | (self.frequency[slots] != 0)
        if penalised.any():
            counts = self.counts[index]
            logits = (
                logits
                - self._column(self.presence[slots]) * (counts > 0)
                - self._column(self.frequency[slots]) * counts
            )
        token_ids = logits.argmax(-1)
        drawn = np.flatnonzero(self.temperature[slots] > 0)
        if len(drawn):
            rows = to_device(drawn, self.device)
            token_ids[rows] = self._draw(logits[rows], slots[drawn], steps[drawn])
        if penalised.any():
            self.counts.index_put_((index, token_ids), torch.ones(len(slots), device=self.device), accumulate=True)
        return token_ids

    def _draw(self, logits: Tensor, slots: NDArray[np.int64], steps: NDArray[np.int64]) -> Tensor:
        """Inverse transform sampling of rows with a temperature."""
        probs = torch.softmax(logits / self._column(self.temperature[slots]), -1)
        at = to_device(uniforms(self.seed[slots], steps), self.device)[:, None]
        is_cut = (self.top_p[slots] < 1) | (self.top_k[slots] < self.vocab_size) | (self.min_p[slots] > 0)
        token_ids = torch.empty(len(slots), dtype=torch.int64, device=self.device)
        for cut in (False, True):
            which = np.flatnonzero(is_cut == cut)
            if not len(which):
                continue
            rows = to_device(which, self.device)
            kept, order = self._cut(probs[rows], slots[which]) if cut else (probs[rows], None)
            mass = kept.double().cumsum(-1)
            # A uniform number below 1 times the total rounds to less than the total: the token found has a probability.
            place = torch.searchsorted(mass, at[rows] * mass[:, -1:], right=True)
            token_ids[rows] = (place if order is None else order.gather(1, place)).squeeze(1)
        return token_ids

    def _cut(self, probs: Tensor, slots: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Probabilities in descending order with those that top_k, top_p and min_p exclude at zero, and the order."""
        probs, order = probs.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(probs.shape[-1], device=self.device)
        keep = rank < self._column(self.top_k[slots])
        keep &= probs.double().cumsum(-1) - probs < self._column(self.top_p[slots])
        keep &= probs >= self._column(self.min_p[slots]) * probs[:, :1]
        keep[:, 0] = True
        return torch.where(keep, probs, 0.0), order

    def _column(self, values: NDArray[np.generic]) -> Tensor:
        return to_device(values, self.device)[:, None]


def top_logprobs(
    logits: Tensor, token_ids: Tensor, num_top: Sequence[int]
) -> list[tuple[float, list[tuple[int, float]]]]:
    """For each row, the log-probability of its token and those of its `num_top` most probable tokens.

    Args:
        logits: `[rows, vocab_size]`, float32, of the model itself.
        token_ids: `[rows]`.
    """
    logprobs = torch.log_softmax(logits, -1)
    chosen = logprobs.gather(1, token_ids[:, None]).squeeze(1).tolist()
    width = max(num_top)
    values, ids = logprobs.topk(width, -1) if width else (logprobs[:, :0], logprobs[:, :0].long())
    tops = [list(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    return [(c, top[:n]) for c, top, n in zip(chosen, tops, num_top, strict=True)]
