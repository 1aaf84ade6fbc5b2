"""`topk presets`: for each everyday concept the neuron that steers towards it, found on half of the held-out texts.

A concept that no neuron steers is no preset, and no neuron is two. A preset's value is the weakest at which its words
come often enough for most short texts to hold one, within the cost allowed. The other half is left for `topk
evaluate`. Knows no server.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from topk_model.checkpoints import load_model
from topk_model.model_folder import HELD_OUT, output_beside, weights_digest
from topk_model.steering.bench import Effect, Lever, SteeringBench
from topk_model.steering.concepts import CONCEPTS, MIN_WORDS, Concept
from topk_model.steering.held_out import find_scales, held_out_texts, steered_layers
from topk_model.steering.options import PresetsConfig
from topk_model.steering.presets import MIN_LOG_ODDS, Measured, Preset, write_presets

#: Tokens of each text that effects are measured on: of many short texts more is learned than of a few long ones.
FINDING_TOKENS = 96
#: A preset's words come often enough if this share of all tokens are theirs; what that may cost, in nats a token.
ENOUGH_SHARE, CLICK_COST = 0.08, 0.45


def known_concepts(tokenizer: PreTrainedTokenizerBase) -> Iterator[Concept]:
    """Those of which the tokenizer knows enough words."""
    return (concept for concept in CONCEPTS if len(concept.token_ids(tokenizer)) >= MIN_WORDS)


def find_presets(config: PresetsConfig) -> None:
    """Write `presets.json` into `output` or the model's folder.

    Raises:
        FileNotFoundError: the model or the held-out texts are missing.
        ValueError: as `load_model` and `output_beside`.
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
    bench = SteeringBench(model, texts[places, :FINDING_TOKENS], layers)
    found: dict[Concept, list[tuple[Lever, Effect]]] = {}
    for concept in tqdm(list(known_concepts(tokenizer)), desc="finding", unit="concept"):
        levers = bench.levers(concept.token_ids(tokenizer), scales, config.max_cost)
        found[concept] = [lever for lever in levers if lever[1].log_odds >= MIN_LOG_ODDS]
    presets = []
    for concept, unit in tqdm(assigned(found), desc="strengths", unit="preset"):
        token_ids = concept.token_ids(tokenizer)
        lever, effect = bench.weakest_that_shows(unit, token_ids, ENOUGH_SHARE, CLICK_COST)
        scale = scales[layers.index(lever.layer), lever.neuron].item()
        presets.append(
            Preset(
                name=concept.name,
                version=config.version,
                layer=lever.layer,
                neuron=lever.neuron,
                value=round(lever.value, 4),
                strength=round(lever.value / scale, 3),
                words=tuple(tokenizer.decode([i]).strip() for i in token_ids),
                found=Measured(log_odds=round(effect.log_odds, 4), cost=round(effect.cost, 4)),
            )
        )
    output.mkdir(parents=True, exist_ok=True)
    write_presets(output, weights_digest(config.model), config.max_cost, presets)
    num_steered = sum(map(bool, found.values()))
    print(f"{len(presets)} presets, each of another neuron, in {output}; {num_steered} of {len(found)} concepts steer")


def assigned(found: Mapping[Concept, Sequence[tuple[Lever, Effect]]]) -> list[tuple[Concept, Lever]]:
    """A lever for as many concepts as can have one without two of them moving the neuron of one index.

    An index is one neuron in all layers. Of the ways to give it to as many concepts, the one whose levers raise their
    concepts most in all. The concepts keep their order.
    """
    concepts = [concept for concept, levers in found.items() if levers]
    neurons = sorted({lever.neuron for concept in concepts for lever, _ in found[concept]})
    best: dict[tuple[int, int], tuple[Lever, Effect]] = {}
    for row, concept in enumerate(concepts):
        for lever, effect in found[concept]:
            place = row, neurons.index(lever.neuron)
            if place not in best or effect.log_odds > best[place][1].log_odds:
                best[place] = lever, effect
    gain = np.zeros((len(concepts), len(neurons)))
    for place, (_, effect) in best.items():
        gain[place] = 1000 + effect.log_odds  # one more concept counts more than any rise
    pairs = zip(*linear_sum_assignment(gain, maximize=True), strict=True)
    return [(concepts[row], best[row, column][0]) for row, column in pairs if (row, column) in best]
