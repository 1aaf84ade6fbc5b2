"""`topk presets`: for each everyday concept the neuron that steers towards it, found on half of the held-out texts.

A concept that no neuron steers is no preset, and no neuron is two. A preset's value is the weakest at which most texts
that are written hold one of its words, within the cost allowed; those whose words come most often stand first. The
other half is left for `topk evaluate`. Knows no server.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from topk_model.checkpoints import load_model
from topk_model.model_folder import HELD_OUT, output_beside, weights_digest
from topk_model.modeling import TopKLMForCausalLM
from topk_model.steering.bench import Lever, SteeringBench, WordEffect, continuation_loss, continue_rows, moved
from topk_model.steering.concepts import CONCEPTS, MIN_WORDS, Concept
from topk_model.steering.held_out import find_scales, held_out_texts, steered_layers
from topk_model.steering.levers import Bar, CostMap
from topk_model.steering.options import PresetsConfig
from topk_model.steering.presets import MIN_LOG_ODDS, Measured, Preset, write_presets
from topk_model.steering.readings import Layout, Reading, packed

#: Tokens of each text that effects are measured on: of many short texts more is learned than of a few long ones.
FINDING_TOKENS = 64
#: A neuron that promises this share of what is wanted is tried again: what a try promises is not exact.
NEARLY = 0.9
#: What a click gives is measured on texts that are written after openings of so many tokens, so long, at a temperature.
OPENING_TOKENS, WRITTEN_TOKENS, TEMPERATURE = 8, 48, 0.7
#: A preset's words show if this share of those texts hold one; what that may cost, in nats a token.
ENOUGH_TEXTS, CLICK_COST = 0.85, 0.4
#: Multiples of a lever, found at the cost allowed, among which the one is looked for that a click uses.
MULTIPLES = (0.5, 0.75, 1.0, 1.2, 1.4, 1.7)


def known_concepts(tokenizer: PreTrainedTokenizerBase) -> Iterator[Concept]:
    """The concepts of which the tokenizer has enough words."""
    return (concept for concept in CONCEPTS if len(concept.token_ids(tokenizer)) >= MIN_WORDS)


def find_presets(config: PresetsConfig) -> None:
    """Write `presets.json` into `output` or the model's folder.

    Raises:
        FileNotFoundError: the model or the held-out texts are missing.
        ValueError: as for `load_model` and `output_beside`.
    """
    output = output_beside(config.model, config.output)
    if config.threads:
        torch.set_num_threads(config.threads)
    model, tokenizer = load_model(config.model, device=config.device, dtype=torch.float32)
    held_out, context = config.held_out or config.model / HELD_OUT, model.config.max_position_embeddings
    texts = held_out_texts(held_out, tokenizer, context, half=0).to(model.device)
    layers = steered_layers(model.config, config.layers)
    scales = find_scales(model, texts, layers)
    places = np.linspace(0, len(texts) - 1, min(config.texts, len(texts))).round().astype(int)
    chosen = texts[places, :FINDING_TOKENS]
    bench = SteeringBench(model, chosen, layers, fast=packed(model))
    moves = affordable_moves(model, chosen, layers, config.max_cost)
    found: dict[Concept, list[tuple[Lever, WordEffect]]] = {}
    for concept in tqdm(list(known_concepts(tokenizer)), desc="finding", unit="concept"):
        levers = bench.levers(
            concept.token_ids(tokenizer), moves, config.max_cost, first=1.0, least=NEARLY * MIN_LOG_ODDS
        )
        found[concept] = [lever for lever in levers if lever[1].log_odds >= MIN_LOG_ODDS]
    clicks = Clicks(model, texts[places, :OPENING_TOKENS])
    presets: list[tuple[int, Preset]] = []
    for concept, unit in tqdm(assigned(found), desc="strengths", unit="preset"):
        token_ids = concept.token_ids(tokenizer)
        lever, num_texts = clicks.weakest_that_shows(unit, token_ids)
        effect = bench.effect(lever, token_ids)
        scale = scales[layers.index(lever.layer), lever.neuron].item()
        preset = Preset(
            name=concept.name,
            version=config.version,
            layer=lever.layer,
            neuron=lever.neuron,
            value=round(lever.value, 4),
            strength=round(lever.value / scale, 3),
            words=tuple(tokenizer.decode([i]).strip() for i in token_ids),
            found=Measured(log_odds=round(effect.log_odds, 4), cost=round(effect.cost, 4)),
        )
        presets.append((num_texts, preset))
    ranked = [preset for _, preset in sorted(presets, key=lambda pair: -pair[0])]
    output.mkdir(parents=True, exist_ok=True)
    write_presets(output, weights_digest(config.model), config.max_cost, ranked)
    num_steered = sum(map(bool, found.values()))
    print(f"{len(ranked)} presets, each of another neuron, in {output}; {num_steered} of {len(found)} concepts steer")


class Clicks:
    """Texts that a model writes after openings, plain and with a lever moved as a click does.

    Args:
        openings: what texts are written after `[texts, length]`.
    """

    def __init__(self, model: TopKLMForCausalLM, openings: Tensor) -> None:
        self.model, self.openings = model, openings
        self.plain_loss = continuation_loss(model, openings, self.write(None))

    def write(self, lever: Lever | None) -> Tensor:
        """Token ids `[texts, WRITTEN_TOKENS]`."""
        sparsify = None if lever is None else moved(self.model, lever, only_continuation=True)
        return continue_rows(self.model, self.openings, WRITTEN_TOKENS, 0, sparsify, TEMPERATURE)

    def weakest_that_shows(self, unit: Lever, token_ids: Sequence[int]) -> tuple[Lever, int]:
        """Of a lever's multiples the weakest that shows, or else the one under which most texts hold a word, of those
        that do not cost too much, or else the lever itself; and how many texts do."""
        wanted = torch.tensor(token_ids, device=self.openings.device)
        best, most = unit, 0
        for multiple in MULTIPLES:
            lever = replace(unit, value=multiple * unit.value)
            written = self.write(lever)
            num_texts = int(torch.isin(written, wanted).any(1).sum())
            cost = continuation_loss(self.model, self.openings, written) - self.plain_loss
            if cost > 2 * CLICK_COST:
                break
            if cost <= CLICK_COST and num_texts > most:
                best, most = lever, num_texts
            if most >= ENOUGH_TEXTS * len(self.openings):
                break
        return best, most


def affordable_moves(model: TopKLMForCausalLM, texts: Tensor, layers: Sequence[int], max_cost: float) -> Tensor:
    """How far each neuron may be moved for the cost, as it is predicted, `[layers, hidden_size]`."""
    reading = Reading(model, Layout.of_texts(texts), layers)
    with Bar() as bar:
        costs = CostMap.of(reading, bar)
    up, down = (costs.moves(torch.full_like(costs.slope, sign), max_cost).abs() for sign in (1.0, -1.0))
    return (up + down) / 2


def assigned(found: Mapping[Concept, Sequence[tuple[Lever, WordEffect]]]) -> list[tuple[Concept, Lever]]:
    """A lever for as many concepts as can have one without two of them moving the neuron of one index.

    An index is one neuron in all layers. Of the ways to give it to as many concepts, the one whose levers bring most of
    their concepts' words.
    """
    concepts = [concept for concept, levers in found.items() if levers]
    neurons = sorted({lever.neuron for concept in concepts for lever, _ in found[concept]})
    best: dict[tuple[int, int], tuple[Lever, WordEffect]] = {}
    for row, concept in enumerate(concepts):
        for lever, effect in found[concept]:
            place = row, neurons.index(lever.neuron)
            if place not in best or effect.share > best[place][1].share:
                best[place] = lever, effect
    gain = np.zeros((len(concepts), len(neurons)))
    for place, (_, effect) in best.items():
        gain[place] = 1000 + math.log(effect.share)  # one more concept counts more than any share
    pairs = zip(*linear_sum_assignment(gain, maximize=True), strict=True)
    return [(concepts[row], best[row, column][0]) for row, column in pairs if (row, column) in best]
