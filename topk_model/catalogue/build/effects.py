"""The effect of a neuron on the next token: read from the unembedding, and measured by ablating it. Knows no file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topk_model.ablating.window import AblatedWindow
from topk_model.catalogue.build.texts import Texts
from topk_model.modeling import TopKLMForCausalLM

#: Number of its strongest firings at which each neuron is ablated.
ABLATED_POSITIONS = 8
#: The effect of ablating on very improbable tokens is mostly noise.
MIN_PROBABILITY = 0.001

DEFINITIONS = {
    "logit_effect": "approximate: the neuron's column of the unembedding times the final norm's weight, less its mean "
    "over the tokens. It leaves out what later blocks make of the neuron and the scale of the final norm, and is the "
    "same in every layer. Special tokens are left out.",
    "ablation_effect": "Measured: the neuron is set to 0 at one position at which it fires, in its layer and nowhere "
    f"else; value(t) = mean of log p(t | ablated) - log p(t | not ablated) of the next token, in nats, over up to "
    f"{ABLATED_POSITIONS} of its strongest firings in the first part of the texts. positive: tokens that it held "
    "down; negative: tokens that it held up. loss_change: the same of -log p of the token that follows in the text; "
    "above 0, the neuron helped. Tokens are named whose probability, the larger of the two, is on average "
    f"{MIN_PROBABILITY} or more.",
}


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One neuron, ablated at one position of the texts."""

    layer: int
    neuron: int
    number: int  # of the neuron among all
    position: int


def logit_effects(model: TopKLMForCausalLM, is_shown: Tensor, count: int) -> list[list[list[tuple[int, float]]]]:
    """For each neuron, (token id, value) of the `count` tokens it raises most and of those it lowers most.

    Args:
        is_shown: which tokens may be named `[vocab]`.
    """
    written = (model.lm_head.weight.detach() * model.model.norm.weight.detach()).float().cpu()  # [vocab, hidden]
    written -= written[is_shown].mean(0)
    return extremes(written.T, is_shown.expand(written.shape[1], -1), count)


def extremes(values: Tensor, is_shown: Tensor, count: int) -> list[list[list[tuple[int, float]]]]:
    """(token id, value) of up to `count` largest values above 0 of each row, and of as many smallest below 0.

    Args:
        values: `[rows, vocab]`.
        is_shown: which of them may be named, `[rows, vocab]`.
    """
    out: list[list[list[tuple[int, float]]]] = [[] for _ in values]
    for sign in (1, -1):
        ranked = torch.where(is_shown, sign * values, -torch.inf).topk(min(count, values.shape[1]), dim=-1)
        for row, best, ids in zip(out, ranked.values.tolist(), ranked.indices.tolist(), strict=True):
            row.append([(i, sign * value) for i, value in zip(ids, best, strict=True) if value > 0])
    return out


@torch.inference_mode()
def ablate_in_window(
    model: TopKLMForCausalLM, ids: Tensor, at: Tensor, layers: Tensor, neurons: Tensor
) -> tuple[Tensor, Tensor]:
    """The next token's log-probabilities with a neuron set to 0 at one position and layer, and without.

    Args:
        ids: a window's tokens `[length]`.
        at: the position of each ablation `[rows]`.
        layers: its layer `[rows]`.
        neurons: its neuron `[rows]`.

    Returns:
        Two of `[rows, vocab]`, nats.
    """
    window = AblatedWindow(model, ids)
    ablated = torch.empty(len(at), model.config.vocab_size, device=ids.device)
    plain = torch.empty_like(ablated)
    for layer in layers.unique().tolist():
        here = (layers == layer).nonzero()[:, 0]
        # Plain rows of the same positions are computed together with the ablated ones, so that rounding is not taken
        # for an effect.
        unique, plain_of = at[here].unique(return_inverse=True)
        every = torch.cat((at[here], unique))
        runs = torch.arange(len(every), device=ids.device)
        hidden = window.states[layer][every]
        hidden[runs[: len(here)], neurons[here]] = 0
        last = window.run(hidden, every, runs, every, layer + 1)
        log_probs = model.lm_head(last).float().log_softmax(-1)
        ablated[here], plain[here] = log_probs[: len(here)], log_probs[len(here) :][plain_of]
    return ablated, plain


def ablation_effects(
    model: TopKLMForCausalLM,
    texts: Texts,
    bos_id: int | None,
    ablations: Sequence[Ablation],
    num_neurons: int,
    advance: Callable[[int], object] = lambda _: None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean effect of ablating each neuron, over all its `ablations`; those must have a token after them.

    Returns:
        Change of the next token's log-probabilities `[num_neurons, vocab]`, in nats; which tokens are likely enough
        to be named `[num_neurons, vocab]`; change of the loss `[num_neurons]`, in nats; and the number of positions
        that each mean covers `[num_neurons]`.
    """
    changes = torch.zeros(num_neurons, model.config.vocab_size)
    likely = torch.zeros_like(changes)
    losses, counts = torch.zeros(num_neurons), torch.zeros(num_neurons)
    windows = texts.window_of
    by_window: dict[int, list[Ablation]] = {}
    for ablation in ablations:
        by_window.setdefault(int(windows[ablation.position]), []).append(ablation)
    before = int(bos_id is not None)
    for which, rows in texts.batches(bos_id, 1):
        advance(1)
        here = by_window.get(which.start)
        if not here:
            continue
        ids = torch.from_numpy(rows[0]).to(model.device)
        first = int(texts.starts[which.start]) - before
        at = torch.tensor([ablation.position - first for ablation in here], device=ids.device)
        layers = torch.tensor([ablation.layer for ablation in here], device=ids.device)
        neurons = torch.tensor([ablation.neuron for ablation in here], device=ids.device)
        ablated, plain = (x.cpu() for x in ablate_in_window(model, ids, at, layers, neurons))
        change = ablated - plain
        numbers = torch.tensor([ablation.number for ablation in here])
        following = ids[at + 1].cpu()
        changes.index_add_(0, numbers, change)
        likely.index_add_(0, numbers, torch.maximum(ablated, plain).exp())
        losses.index_add_(0, numbers, -change.gather(1, following[:, None])[:, 0])
        counts.index_add_(0, numbers, torch.ones(len(here)))
    shared = counts.clamp_min(1)
    is_likely = likely / shared[:, None] >= MIN_PROBABILITY
    return changes / shared[:, None], is_likely, losses / shared, counts.long()
