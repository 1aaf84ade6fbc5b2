"""`topk evaluate`: the properties of a model, measured on held-out text, next to those of its dense twin.

The twin has the same shape, data and number of tokens, but no TopK: its coordinates are read as neurons, first as they
are, active everywhere, and then with only the k largest of each position, as TopK would leave them. Writes
`evaluation.json` next to the weights. Knows no server.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from topk_model.catalogue.build.words import entropy
from topk_model.catalogue.file import CATALOGUE_FILE
from topk_model.checkpoints import list_checkpoints, load_model, read_config
from topk_model.files import replace_text
from topk_model.model_folder import DENSE_TWIN, HELD_OUT, is_packaged, weights_digest
from topk_model.modeling import TopKLMForCausalLM, topk
from topk_model.release.card import EVALUATION, check_card, compared, write_card
from topk_model.release.emergence import emergence
from topk_model.release.options import EvaluateConfig
from topk_model.release.plots import plot_emergence, plot_steering
from topk_model.steering.bench import (
    Lever,
    SteeringBench,
    continuation_loss,
    continue_rows,
    moved,
    repetition,
)
from topk_model.steering.concepts import Concept
from topk_model.steering.held_out import held_out_texts, steered_layers
from topk_model.steering.presets import MAX_COST, MIN_LOG_ODDS, PRESETS_FILE, Preset, read_presets
from topk_model.training.data import TokenWindows
from topk_model.training.train import validation_loss

PROMPT_TOKENS, WRITTEN_TOKENS = 16, 64
#: Multiples of a neuron's largest magnitude at which its curve is drawn, besides the preset's own.
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


def evaluate(config: EvaluateConfig) -> None:
    """Measure, print, write.

    Raises:
        FileNotFoundError: the model, a named twin, the held-out texts, or a file that the card needs is missing.
        ValueError: as for `load_model`, `read_presets` and `emergence`.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    twin = config.twin or config.model / DENSE_TWIN
    folders = [config.model, *([twin] if config.twin or twin.exists() else [])]
    is_written = config.write and ("write" in config.model_fields_set or not is_packaged(config.model))
    # Files that may be missing are looked for before the long measurements.
    if is_written:
        check_card(config.model)
    presets = [presets_of(folder) for folder in folders]
    over_training = emergence(config.model) if (config.model / CATALOGUE_FILE).exists() else None
    layers = steered_layers(read_config(config.model))
    measured = [measure(folder, layers, found, config) for folder, found in zip(folders, presets, strict=True)]
    sparse, dense = measured[0], measured[1] if len(measured) > 1 else None
    record = {
        "val_loss": sparse["val_loss"],
        "median_token_entropy": sparse["median_token_entropy"],
        "dead_neuron_share": sparse["dead_neuron_share"],
        "num_concepts_steered": num_steered(sparse),
        **(of_twin(dense) if dense else {}),
        "num_checkpoints": len(list_checkpoints(config.model)),
        "topk": sparse,
        "dense": dense,
        "emergence": over_training,
    }
    print(table(record))
    if is_written:
        replace_text(config.model / EVALUATION, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        if sparse["steering"]:
            plot_steering(sparse["steering"], config.model / "steering.png")
        if over_training:
            plot_emergence(over_training["steps"], config.model / "emergence.png")
        write_card(config.model)
    elif config.write:
        print(f"nothing is written into {config.model}, which belongs to the installed package; use --write to do so")


def of_twin(dense: dict[str, Any]) -> dict[str, Any]:
    """The twin's figures that are shown next to the model's."""
    return {
        "dense_val_loss": dense["val_loss"],
        "dense_median_token_entropy": dense["median_token_entropy"],
        "dense_median_token_entropy_at_k": dense["of_the_k_largest"]["median_token_entropy"],
        "dense_dead_neuron_share": dense["dead_neuron_share"],
        "dense_num_concepts_steered": num_steered(dense),
    }


def num_steered(figures: dict[str, Any]) -> int | None:
    """Number of concepts that are steered; None if no presets were searched for."""
    rows = figures["steering"]
    return None if rows is None else sum(row["steers"] for row in rows)


def presets_of(folder: Path) -> tuple[Preset, ...] | None:
    """The presets; None if there is no file. Raises like `read_presets`."""
    return read_presets(folder, weights_digest(folder)) if (folder / PRESETS_FILE).exists() else None


def measure(
    folder: Path, layers: Sequence[int], presets: Sequence[Preset] | None, config: EvaluateConfig
) -> dict[str, Any]:
    """Every figure of one of the two models.

    Args:
        layers: those whose states are read as neurons: the TopK layers of the sparse model of the two.
        presets: None if none were searched for.
    """
    held_out = config.held_out or config.model / HELD_OUT
    model, tokenizer = load_model(folder, device=config.device, dtype=torch.float32)
    context = model.config.max_position_embeddings
    windows = TokenWindows.load(held_out, "validation", context, tokenizer.bos_token_id)
    loss = validation_loss(model, windows, len(windows), label=f"loss of {folder.name}")
    texts = torch.from_numpy(windows.rows(np.arange(len(windows))))[:, :-1]
    figures = neuron_figures(model, texts, layers)
    if not model.config.topk_layers:
        figures["of_the_k_largest"] = neuron_figures(model, texts, layers, model.config.topk_k)
    measuring = held_out_texts(held_out, tokenizer, context, half=1).to(model.device)
    return {
        "val_loss": round(loss, 4),
        "val_tokens": int(len(windows) * context),
        "layers": list(layers),
        **figures,
        "steering": None if presets is None else steering_rows(model, tokenizer, presets, measuring, config),
    }


@torch.inference_mode()
def neuron_figures(
    model: TopKLMForCausalLM, texts: Tensor, layers: Sequence[int], k: int | None = None
) -> dict[str, Any]:
    """Token entropy (median over live neurons, bits) and the fraction of dead ones, over `texts` `[texts, length]`.

    A neuron's token entropy is that of the tokens at which it is active, each weighted by its share of the neuron's
    summed magnitude. The first token of a text is not counted.

    Args:
        k: number of each position's coordinates that count as active (default: all that are not 0).
    """
    config = model.config
    weights = torch.zeros(len(layers), config.hidden_size, config.vocab_size)
    batch = texts[:0]

    def count(layer: int, hidden: Tensor) -> Tensor:
        hidden = model.model.sparsify(layer, hidden)
        if layer in layers:
            state = hidden if k is None else topk(hidden, k, config.topk_select)
            weights[layers.index(layer)].index_add_(1, batch[:, 1:].flatten(), state[:, 1:].flatten(0, 1).abs().T.cpu())
        return hidden

    for batch in tqdm(texts.split(4), desc="neurons", unit="batch"):
        model(input_ids=batch.to(model.device), sparsify=count, logits_to_keep=1)
    by_layer = []
    for weight in weights.numpy():
        live = weight.sum(-1) > 0
        by_layer.append((np.array([entropy(row) for row in weight[live]]), 1 - live.mean()))
    return {
        "median_token_entropy": round(float(np.median(np.concatenate([bits for bits, _ in by_layer]))), 3),
        "median_token_entropy_by_layer": [round(float(np.median(bits)), 3) for bits, _ in by_layer],
        "dead_neuron_share": round(float(np.mean([dead for _, dead in by_layer])), 4),
        "dead_neuron_share_by_layer": [round(float(dead), 4) for _, dead in by_layer],
    }


def steering_rows(
    model: TopKLMForCausalLM,
    tokenizer: Any,
    presets: Sequence[Preset],
    measuring: Tensor,
    config: EvaluateConfig,
) -> list[dict[str, Any]]:
    """The effect of each preset on texts that it was not found on, and on continuations of their openings.

    Args:
        measuring: the texts `[texts, length]`.
    """
    if not presets:
        return []
    layers = sorted({preset.layer for preset in presets})
    bench = SteeringBench(model, measuring[spread(len(measuring), config.texts)], layers)
    prompts = measuring[spread(len(measuring), config.prompts), :PROMPT_TOKENS]
    plain = continue_rows(model, prompts, WRITTEN_TOKENS, seed=0)
    plain_loss = continuation_loss(model, prompts, plain)
    rows = []
    for preset in tqdm(presets, desc="steering", unit="preset"):
        token_ids = Concept(name=preset.name, words=preset.words).token_ids(tokenizer)
        lever = Lever(layer=preset.layer, neuron=preset.neuron, value=preset.value)
        effect = bench.effect(lever, token_ids)
        written = continue_rows(model, prompts, WRITTEN_TOKENS, seed=0, sparsify=moved(model, lever))
        cost = continuation_loss(model, prompts, written) - plain_loss
        rows.append(
            {
                "name": preset.name,
                "layer": preset.layer,
                "neuron": preset.neuron,
                "value": preset.value,
                "strength": preset.strength,
                "log_odds": round(effect.log_odds, 3),
                "expected_cost": round(effect.cost, 3),
                "cost": round(cost, 3),
                "words_per_100_tokens": [round(100 * share(ids, token_ids), 2) for ids in (plain, written)],
                "repetition": [round(repetition(ids), 4) for ids in (plain, written)],
                "steers": effect.log_odds >= MIN_LOG_ODDS and cost <= MAX_COST,
                "curve": curve(bench, preset, token_ids),
            }
        )
    return rows


def spread(count: int, wanted: int) -> np.ndarray:
    """Indices of `wanted` of `count` texts, evenly spread, or of all."""
    return np.linspace(0, count - 1, min(wanted, count)).round().astype(int)


def share(ids: Tensor, token_ids: Sequence[int]) -> float:
    return float(torch.isin(ids, torch.tensor(token_ids, device=ids.device)).float().mean())


def curve(bench: SteeringBench, preset: Preset, token_ids: Sequence[int]) -> list[dict[str, float]]:
    """Effect and cost by strength, in multiples of the neuron's largest magnitude; below 0 the neuron is lowered."""
    sign, scale = math.copysign(1, preset.strength), preset.value / preset.strength
    points = []
    for strength in sorted({*(sign * strength for strength in STRENGTHS), preset.strength}, key=abs):
        lever = Lever(layer=preset.layer, neuron=preset.neuron, value=strength * scale)
        effect = bench.effect(lever, token_ids)
        points.append({"strength": strength, "log_odds": round(effect.log_odds, 3), "cost": round(effect.cost, 3)})
    return points


def table(record: dict[str, Any]) -> str:
    """The figures, for a person at a terminal."""
    lines = [f"{name:52s}" + "".join(f"{value:>12s}" for value in values) for name, *values in compared(record)]
    steering = sorted(record["topk"]["steering"] or [], key=lambda row: -row["log_odds"])
    head = f"\n{'concept':12s}{'layer':>6s}{'neuron':>7s}{'x max':>6s}{'log-odds':>10s}{'cost':>7s}  words/100"
    lines += [head] if steering else []
    for row in steering:
        before, after = row["words_per_100_tokens"]
        lines.append(
            f"{row['name']:12s}{row['layer']:>6d}{row['neuron']:>7d}{row['strength']:>6.2f}{row['log_odds']:>+10.2f}"
            f"{row['cost']:>+7.2f}  {before:.1f} -> {after:.1f}{'' if row['steers'] else '  (does not steer)'}"
        )
    return "\n".join(lines)
