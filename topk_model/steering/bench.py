"""Steering by one neuron: which neuron makes a concept's words more probable, how far to move it, and at what cost.

A neuron is chosen by the effect of raising or lowering it, not by what it fires on. All figures compare a pass in which
a value is added to one neuron with the plain pass over the same texts. This also works on the plain states of a dense
model, whose coordinates are read as neurons. Knows no server and no catalogue.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from topk_model.modeling import CACHE_FIELD, Sparsify, TopKLMForCausalLM, cached_attention

#: Neurons that are tried for a concept, the strongest by gradient.
NUM_CANDIDATES = 8
#: Multiples of a neuron's largest magnitude: where the search for a value begins, how far it goes, how often it tries.
FIRST_STRENGTH, MAX_STRENGTH, TRIES = 0.5, 5.0, 6
#: A value is good enough where it costs this share of what it may, and aimed at the middle between that and all of it.
ENOUGH = 0.9
#: A neuron is given up where a try promises less than this share of what another has reached at the cost allowed.
PROMISING = 0.5
#: Probabilities beyond this have no log-odds in float32.
MAX_PROBABILITY = 1 - 1e-6
#: Number of texts whose logits are in memory at once when a loss is measured.
LOSS_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The effect of moving one neuron by one value on the predictions over some texts."""

    log_odds: float  #: mean change of the log-odds of the concept's words, in nats
    cost: float  #: nats per token that the next token is less likely under the plain model, drawn under steering


@dataclass(frozen=True, kw_only=True)
class WordEffect(Effect):
    """The same of a concept's words, with how often they then come."""

    share: float  #: of the next token's probability that the words have


@dataclass(frozen=True, kw_only=True)
class Lever:
    """A neuron, and how far it is moved."""

    layer: int
    neuron: int
    value: float  #: added to its activation after TopK, at every position but the first; below 0: it is lowered


class SteeringBench:
    """Texts that are read once; passes with one neuron moved continue from their states.

    Args:
        model: the model.
        ids: token ids `[texts, length]`; the first of each is the beginning-of-text token, which is never edited.
        layers: layers whose outputs are edited.
        fast: the same model for passes without a gradient; by default the model itself.
    """

    def __init__(
        self,
        model: TopKLMForCausalLM,
        ids: Tensor,
        layers: Sequence[int],
        *,
        fast: TopKLMForCausalLM | None = None,
    ) -> None:
        self.model, self.ids, self.layers = model, ids, tuple(layers)
        self._fast = fast or model
        self.positions = torch.arange(ids.shape[1], device=ids.device)[None]
        self.attend = cached_attention(model.config, None, None)
        self.states: dict[int, Tensor] = {}

        def keep(layer: int, hidden: Tensor) -> Tensor:
            hidden = model.model.sparsify(layer, hidden)
            if layer in self.layers:
                self.states[layer] = hidden
            return hidden

        with torch.no_grad():
            hidden = model.model.run_blocks(model.model.embed_tokens(ids), self.positions, self.attend, keep)
            self.plain = self._log_probs(hidden)  # [texts, length - 1, vocab]
            self.expected = torch.linalg.vecdot(self.plain.exp(), self.plain)  # of what the plain model draws itself

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """Of the next token `[..., length - 1, vocab]`, after all positions of `[..., length, hidden_size]` but the
        first."""
        return self.model.lm_head(hidden[..., 1:, :]).float().log_softmax(-1)

    def _concept(self, log_probs: Tensor, token_ids: Sequence[int]) -> Tensor:
        """Log-odds of any of the concept's tokens coming next `[..., length - 1]`."""
        return log_odds(log_probs[..., list(token_ids)].logsumexp(-1))

    def candidates(self, token_ids: Sequence[int], scales: Tensor, count: int = NUM_CANDIDATES) -> list[Lever]:
        """The neurons by which the concept would rise most, to first order, if each were moved by its scale.

        Half of them are those that raise the share of its words most, half those that raise their mean log-odds.

        Args:
            scales: `[len(layers), hidden_size]`, how far each may be moved.

        Returns:
            Levers of the scales' magnitudes; below 0 if lowering the neuron raises the concept.
        """
        size = len(self.layers), self.model.config.hidden_size
        offsets = torch.zeros(size, device=self.ids.device, requires_grad=True)

        def shifted(layer: int, hidden: Tensor) -> Tensor:
            hidden = self.model.model.sparsify(layer, hidden)
            if layer not in self.layers:
                return hidden
            return torch.cat((hidden[:, :1], hidden[:, 1:] + offsets[self.layers.index(layer)]), 1)

        with frozen(self.model):
            hidden = self.model.model.embed_tokens(self.ids)
            hidden = self.model.model.run_blocks(hidden, self.positions, self.attend, shifted)
            log_probs = self._log_probs(hidden)
            share = log_probs[..., list(token_ids)].flatten().logsumexp(0)
            [of_share] = torch.autograd.grad(share, offsets, retain_graph=True)
            [of_odds] = torch.autograd.grad(self._concept(log_probs, token_ids).mean(), offsets)
        best: dict[int, Tensor] = {}  # the gradient by which each was found, by its place
        for gradient in (of_share, of_odds):
            gain = (gradient.abs() * scales).flatten()
            ranked = gain.topk(min(count, gain.numel())).indices.tolist()
            wanted = count - count // 2 if gradient is of_share else count - len(best)
            best |= dict.fromkeys([i for i in ranked if i not in best][:wanted], gradient)
        levers = []
        for number, gradient in best.items():
            at, neuron = divmod(number, size[1])
            value = (gradient[at, neuron].sign() * scales[at, neuron]).item()
            levers.append(Lever(layer=self.layers[at], neuron=neuron, value=value))
        return levers

    @torch.no_grad()
    def effect(self, lever: Lever, token_ids: Sequence[int]) -> WordEffect:
        """Move the lever's neuron at every position but the first, and compare."""
        state = self.states[lever.layer].clone()
        state[:, 1:, lever.neuron] += lever.value
        hidden = self._fast.model.run_blocks(state, self.positions, self.attend, start=lever.layer + 1)
        rise = cost = share = 0.0
        # One text at a time: what belongs to a vocabulary then stays in the processor's cache.
        for text, plain, expected in zip(hidden, self.plain, self.expected, strict=True):
            steered = self._fast.lm_head(text[1:]).float().log_softmax(-1)
            share += steered[..., list(token_ids)].exp().sum(-1).mean().item()
            rise += (self._concept(steered, token_ids) - self._concept(plain, token_ids)).mean().item()
            cost += (expected - torch.linalg.vecdot(steered.exp_(), plain)).mean().item()
        return WordEffect(log_odds=rise / len(hidden), cost=cost / len(hidden), share=share / len(hidden))

    def strongest(
        self,
        unit: Lever,
        token_ids: Sequence[int],
        max_cost: float,
        best_so_far: float = 0.0,
        first: float = FIRST_STRENGTH,
    ) -> tuple[Lever, WordEffect] | None:
        """Of a lever's multiples that are tried, that which raises the concept most at no more than `max_cost`.

        None if none raises it.

        A small edit costs about the square of its value and raises the log-odds in proportion to it: so a try leads to
        the next, and tells whether there is hope.

        Args:
            best_so_far: log-odds that another neuron has reached; one that promises far less is given up.
            first: the multiple that is tried first.
        """
        found: tuple[Lever, WordEffect] | None = None
        strength, low, high = first, 0.0, MAX_STRENGTH
        for _ in range(TRIES):
            lever = replace(unit, value=strength * unit.value)
            effect = self.effect(lever, token_ids)
            if effect.cost <= max_cost:
                low = strength
                if effect.log_odds > (found[1].log_odds if found else 0.0):
                    found = lever, effect
                if effect.cost >= ENOUGH * max_cost:
                    break
            else:
                high = strength
            if effect.cost > 0 and effect.log_odds * math.sqrt(max_cost / effect.cost) < PROMISING * best_so_far:
                break
            # A small value may even make what is drawn likelier.
            guess = strength * (math.sqrt((1 + ENOUGH) / 2 * max_cost / effect.cost) if effect.cost > 0 else 2.0)
            strength = guess if low < guess < high else (low + high) / 2
        return found

    def levers(
        self,
        token_ids: Sequence[int],
        scales: Tensor,
        max_cost: float,
        *,
        first: float = FIRST_STRENGTH,
        least: float = 0.0,
    ) -> list[tuple[Lever, WordEffect]]:
        """The levers that raise the concept at no more than `max_cost`, the one that brings most of its words first.

        It is the words' share that counts, not their log-odds, of which most is at positions where they hardly come.

        Args:
            scales: `[len(layers), hidden_size]`, the unit of each neuron's strength: what it reaches, or may be moved.
            first: the multiple of it that is tried first.
            least: log-odds that are wanted; a neuron that promises less after a try is not tried again.
        """
        tried = [
            self.strongest(unit, token_ids, max_cost, least / PROMISING, first)
            for unit in self.candidates(token_ids, scales)
        ]
        return sorted((one for one in tried if one is not None), key=lambda one: -one[1].share)


def log_odds(log_p: Tensor) -> Tensor:
    """Log-odds of log-probabilities, elementwise; finite where a probability is rounded to 1."""
    return log_p - torch.log1p(-log_p.exp().clamp(max=MAX_PROBABILITY))


@contextmanager
def frozen(model: TopKLMForCausalLM) -> Iterator[None]:
    """While the context is open, the weights get no gradient."""
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, is_wanted in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(is_wanted)


def moved(model: TopKLMForCausalLM, lever: Lever, *, only_continuation: bool = False) -> Sparsify:
    """The model's TopK with the lever's neuron moved, for passes over `[rows, length, hidden_size]`.

    The first position of a pass over several is taken for the beginning-of-text token, which is never edited.

    Args:
        only_continuation: of a pass over several positions, a prompt, only the last is edited.
    """

    def sparsify(layer: int, hidden: Tensor) -> Tensor:
        hidden = model.model.sparsify(layer, hidden)
        if layer == lever.layer:
            hidden = hidden.clone()
            first = -1 if only_continuation else int(hidden.shape[1] > 1)
            hidden[:, first:, lever.neuron] += lever.value
        return hidden

    return sparsify


@torch.inference_mode()
def continue_rows(
    model: TopKLMForCausalLM,
    prompts: Tensor,
    num_tokens: int,
    seed: int,
    sparsify: Sparsify | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Token ids `[rows, num_tokens]` that the model writes after `prompts` `[rows, length]`."""
    generator = torch.Generator(prompts.device).manual_seed(seed)
    cache, step, written = None, prompts, []
    for _ in range(num_tokens):
        output = model(input_ids=step, cache=cache, use_cache=True, logits_to_keep=1, sparsify=sparsify)
        cache = output[CACHE_FIELD]
        step = torch.multinomial((output.logits[:, -1].float() / temperature).softmax(-1), 1, generator=generator)
        written.append(step)
    return torch.cat(written, 1)


@torch.inference_mode()
def continuation_loss(model: TopKLMForCausalLM, prompts: Tensor, written: Tensor) -> float:
    """Nats per token of `written` after `prompts`, under the plain model."""
    ids, total = torch.cat((prompts, written), 1), 0.0
    for rows, ending in zip(ids.split(LOSS_ROWS), written.split(LOSS_ROWS), strict=True):
        logits = model(input_ids=rows[:, :-1], logits_to_keep=ending.shape[1]).logits.float()
        total += F.cross_entropy(logits.flatten(0, 1), ending.flatten(), reduction="sum").item()
    return total / written.numel()


def repetition(written: Tensor, length: int = 4) -> float:
    """Fraction of runs of `length` tokens that already occur earlier in the same row."""
    repeated = total = 0
    for row in written.tolist():
        runs = [tuple(row[i : i + length]) for i in range(len(row) - length + 1)]
        total += len(runs)
        repeated += len(runs) - len(set(runs))
    return repeated / max(1, total)
