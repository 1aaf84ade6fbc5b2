"""`topk presets`: for each everyday concept the neuron that steers towards it, found on half of the held-out texts.

The other half is left for `topk evaluate`. Knows no server.
"""

from collections.abc import Iterator

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from topk_model.checkpoints import load_model
from topk_model.model_folder import HELD_OUT, output_beside, weights_digest
from topk_model.steering.bench import SteeringBench
from topk_model.steering.concepts import CONCEPTS, MIN_WORDS, Concept
from topk_model.steering.held_out import find_scales, held_out_texts, steered_layers
from topk_model.steering.options import PresetsConfig
from topk_model.steering.presets import Measured, Preset, write_presets


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
    bench = SteeringBench(model, texts[places], layers)
    presets = []
    for concept in tqdm(list(known_concepts(tokenizer)), desc="finding", unit="concept"):
        token_ids = concept.token_ids(tokenizer)
        found = bench.best_lever(token_ids, scales, config.max_cost)
        if found is None:
            continue
        lever, effect = found
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
    print(f"{len(presets)} presets, in {output}")
