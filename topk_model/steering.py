"""Steering by one neuron: which neuron makes a concept's words more probable, how strongly to hold it, what that costs.

A neuron is chosen for what raising it does, not for what it fires on. All figures compare a pass in which one neuron
is held at a value with the plain pass over the same texts. Works on the plain states of a dense model as well, whose
coordinates are read as neurons. Knows no server and no catalogue.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from topk_model.modeling import Sparsify, TopKLMForCausalLM, cached_attention

#: Neurons that are tried for a concept, the strongest by gradient.
NUM_CANDIDATES = 12
#: Multiples of a neuron's maximum that are tried.
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What holding one neuron at one value does to the predictions over some texts."""

    log_odds: float  #: mean change of the log-odds of the concept's words, in nats
    cost: float  #: nats per token that the next token is less likely under the plain model, drawn under steering


@dataclass(frozen=True, kw_only=True)
class Lever:
    """A neuron, and how strongly it is held."""

    layer: int
    neuron: int
    strength: float  #: in multiples of the neuron's maximum


class SteeringBench:
    """Texts that were read once, from whose states passes with one neuron held go on.

    Args:
        model: the model.
        ids: token ids `[texts, length]`; the first of each is the beginning-of-text token, which is never edited.
        layers: layers whose outputs are edited.
        maxima: `[len(layers), hidden_size]`, largest activation of each neuron.
    """

    def __init__(self, model: TopKLMForCausalLM, ids: Tensor, layers: Sequence[int], maxima: Tensor) -> None:
        self.model, self.ids, self.layers, self.maxima = model, ids, tuple(layers), maxima
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
            self.plain = self._log_probs(hidden)  # [texts, length, vocab]

    def value(self, lever: Lever) -> float:
        """The raw activation at which the lever holds its neuron."""
        return lever.strength * self.maxima[self.layers.index(lever.layer), lever.neuron].item()

    def _log_probs(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(hidden).float().log_softmax(-1)

    def _concept(self, log_probs: Tensor, token_ids: Sequence[int]) -> Tensor:
        """Log-odds of any of the concept's tokens coming next `[texts, length - 1]`, the first position left out."""
        log_p = log_probs[:, 1:, list(token_ids)].logsumexp(-1)
        return log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))

    def candidates(self, token_ids: Sequence[int], count: int = NUM_CANDIDATES) -> list[tuple[int, int]]:
        """(layer, neuron) of the neurons whose rise by their maximum would raise the concept most, to first order."""
        offsets = torch.zeros(len(self.layers), self.model.config.hidden_size, requires_grad=True)

        def shifted(layer: int, hidden: Tensor) -> Tensor:
            hidden = self.model.model.sparsify(layer, hidden)
            if layer not in self.layers:
                return hidden
            return torch.cat((hidden[:, :1], hidden[:, 1:] + offsets[self.layers.index(layer)]), 1)

        with frozen(self.model):
            hidden = self.model.model.embed_tokens(self.ids)
            hidden = self.model.model.run_blocks(hidden, self.positions, self.attend, shifted)
            self._concept(self._log_probs(hidden), token_ids).mean().backward()
        assert offsets.grad is not None
        gain = offsets.grad * self.maxima
        best = gain.flatten().topk(min(count, gain.numel())).indices.tolist()
        return [(self.layers[i // gain.shape[1]], i % gain.shape[1]) for i in best]

    @torch.no_grad()
    def effect(self, lever: Lever, token_ids: Sequence[int]) -> Effect:
        """Hold the lever's neuron at every position but the first, and compare."""
        state = self.states[lever.layer].clone()
        state[:, 1:, lever.neuron] = self.value(lever)
        hidden = self.model.model.run_blocks(state, self.positions, self.attend, start=lever.layer + 1)
        steered = self._log_probs(hidden)
        rise = self._concept(steered, token_ids) - self._concept(self.plain, token_ids)
        plain = self.plain[:, 1:]
        cost = ((plain.exp() - steered[:, 1:].exp()) * plain).sum(-1)
        return Effect(log_odds=rise.mean().item(), cost=cost.mean().item())

    def best_lever(self, token_ids: Sequence[int], max_cost: float) -> tuple[Lever, Effect] | None:
        """The lever that raises the concept most at no more than `max_cost`; None where none raises it."""
        found: tuple[Lever, Effect] | None = None
        for layer, neuron in self.candidates(token_ids):
            for strength in STRENGTHS:
                lever = Lever(layer=layer, neuron=neuron, strength=strength)
                effect = self.effect(lever, token_ids)
                if effect.cost > max_cost:
                    break
                if effect.log_odds > (found[1].log_odds if found else 0.0):
                    found = lever, effect
        return found


@contextmanager
def frozen(model: TopKLMForCausalLM) -> Iterator[None]:
    """While it lasts, the weights take no gradient."""
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, is_wanted in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(is_wanted)


def held(model: TopKLMForCausalLM, lever: Lever, value: float) -> Sparsify:
    """The model's TopK with the lever's neuron held at `value`, for passes over `[rows, length, hidden_size]`.

    The first position of a pass over several is taken for the beginning-of-text token, which is never edited.
    """

    def sparsify(layer: int, hidden: Tensor) -> Tensor:
        hidden = model.model.sparsify(layer, hidden)
        if layer == lever.layer:
            hidden = hidden.clone()
            hidden[:, int(hidden.shape[1] > 1) :, lever.neuron] = value
        return hidden

    return sparsify


@torch.inference_mode()
def continue_rows(
    model: TopKLMForCausalLM, prompts: Tensor, num_tokens: int, seed: int, sparsify: Sparsify | None = None
) -> Tensor:
    """Token ids `[rows, num_tokens]` that the model writes after `prompts` `[rows, length]`, drawn at temperature 1."""
    generator = torch.Generator(prompts.device).manual_seed(seed)
    cache, step, written = None, prompts, []
    for _ in range(num_tokens):
        output = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1, sparsify=sparsify)
        cache = output.past_key_values
        step = torch.multinomial(output.logits[:, -1].float().softmax(-1), 1, generator=generator)
        written.append(step)
    return torch.cat(written, 1)


@torch.inference_mode()
def continuation_loss(model: TopKLMForCausalLM, prompts: Tensor, written: Tensor) -> float:
    """Nats per token of `written` after `prompts`, under the plain model."""
    ids = torch.cat((prompts, written), 1)
    logits = model(input_ids=ids[:, :-1], logits_to_keep=written.shape[1]).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), written.flatten()).item()


def repetition(written: Tensor, length: int = 4) -> float:
    """Share of runs of `length` tokens that stand earlier in the same row already."""
    repeated = total = 0
    for row in written.tolist():
        runs = [tuple(row[i : i + length]) for i in range(len(row) - length + 1)]
        total += len(runs)
        repeated += len(runs) - len(set(runs))
    return repeated / max(1, total)
