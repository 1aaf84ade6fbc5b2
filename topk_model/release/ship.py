"""Turns a finished run into a model folder to share: half-precision weights, and a card of measured facts.

The folder is built next to its destination and moved there in one step, so that a failure leaves the old one.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from topk_model.checkpoints import list_checkpoints, load_model, load_weights, read_config
from topk_model.files import empty_staging, read_json, replace_folder
from topk_model.model_folder import DENSE_TWIN, HELD_OUT, step_folder
from topk_model.modeling import TopKLMForCausalLM
from topk_model.release.card import NOTES, SAMPLES, SOURCES, TRAINING, write_card
from topk_model.release.options import ShipConfig
from topk_model.release.portable import make_portable
from topk_model.release.samples import MAX_TOKENS, TEMPERATURES, write_samples
from topk_model.training.data import TokenWindows
from topk_model.training.options import TrainConfig, lr_share
from topk_model.training.runs import plot_losses, read_metrics
from topk_model.training.train import validation_loss

#: Options in which a twin's run may differ from the model's.
MAY_DIFFER = {
    "run", "n_nontopk", "anneal_steps", "batch_size", "accumulate", "device", "threads",
    "save_seconds", "evaluate_every", "validation_windows",
}  # fmt: skip


def ship(config: ShipConfig) -> None:
    """Write `output` from `run`.

    Raises:
        FileNotFoundError: the run is not finished, or its data folder is missing.
        ValueError: `output` contains something that is not a shipped model, there are fewer checkpoints than requested,
            or the result is larger than allowed.
    """
    run, shown = config.run, config.output or config.run / "model"
    output = shown.resolve()
    if not (run / "final" / "model.safetensors").exists():
        raise FileNotFoundError(f"{run} is not finished: it has no final; continue it with: topk train --run {run}")
    if output.exists() and any(output.iterdir()) and not (output / "training.json").exists():
        raise ValueError(f"{shown} contains something that is not a shipped model; move it away first")
    trained = read_json(run / "run.json")
    data = config.data or Path(trained["data"])
    steps = chosen_checkpoints(run, config.checkpoints)

    staging = empty_staging(output)
    try:
        write_half(run / "final", staging)
        copy_tokenizer(run / "final", staging)
        for step in steps:
            write_half(step_folder(run, step), step_folder(staging, step))
        shutil.copy(data / SOURCES, staging)
        plot_losses(run)
        shutil.copy(run / "loss.png", staging)
        (staging / HELD_OUT).mkdir()
        for name in ("validation.npy", "validation_starts.npy"):
            shutil.copy(data / name, staging / HELD_OUT)
        if config.notes is not None:
            shutil.copy(config.notes, staging / NOTES)
        if config.twin is not None:
            ship_twin(config.twin, trained, staging / DENSE_TWIN)

        model, tokenizer = load_model(staging, device=config.device, dtype=torch.float32)
        record = training_record(
            trained, run, held_out_figures(model, tokenizer, staging / HELD_OUT, trained["context"])
        )
        record["parameters"] = sum(parameter.numel() for parameter in model.parameters())  # tied ones count once
        write_json(staging / TRAINING, record)
        samples = [
            {"temperature": t, "texts": write_samples(model, tokenizer, t, config.samples)} for t in TEMPERATURES
        ]
        write_json(staging / SAMPLES, {"max_tokens": MAX_TOKENS, "samples": samples})
        write_card(staging)
        check_size(config, staging)
        replace_folder(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    loss, bits = record["validation_loss"], record["validation_bits_per_byte"]
    print(f"{shown}: {folder_mb(output):.1f} MB, validation loss {loss} nats per token, {bits} bits per byte")


def ship_twin(run: Path, trained: dict[str, Any], target: Path) -> None:
    """Write the twin's weights, tokenizer and `training.json`.

    Raises:
        FileNotFoundError: its run is not finished.
        ValueError: it is not dense, or was trained with other options than the model.
    """
    if not (run / "final" / "model.safetensors").exists():
        raise FileNotFoundError(f"{run} is not finished: it has no final; continue it with: topk train --run {run}")
    own = read_json(run / "run.json")
    if own["n_nontopk"] != own["num_layers"]:
        raise ValueError(f"{run} is not a dense twin: n_nontopk is {own['n_nontopk']}, not num_layers")
    for name in trained.keys() - MAY_DIFFER:
        if own[name] != trained[name]:
            raise ValueError(f"{run} is not a twin of the model: its {name} is {own[name]!r}, not {trained[name]!r}")
    write_half(run / "final", target)
    copy_tokenizer(run / "final", target)
    write_json(target / TRAINING, training_record(own, run, {}))


def chosen_checkpoints(run: Path, count: int) -> list[int]:
    """`count` of the steps with checkpoints, evenly spaced, including the first one.

    The last step is left out: its weights are the model itself.

    Raises:
        ValueError: there are fewer checkpoints.
    """
    kept = list_checkpoints(run)[:-1]
    if count > len(kept):
        raise ValueError(f"checkpoints is {count}, but {run} has {len(kept)} before its last step")
    return [kept[round(place)] for place in np.linspace(0, len(kept) - 1, count)]


def write_half(source: Path, target: Path) -> None:
    """Copy a checkpoint's configuration and weights, as float16: they load to float32 with exactly the same values."""
    model = load_weights(source, read_config(source), torch.float16)
    model.save_pretrained(target)
    make_portable(target)


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target)
    make_portable(target)


def write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def held_out_figures(
    model: TopKLMForCausalLM, tokenizer: PreTrainedTokenizerBase, data: Path, context: int
) -> dict[str, Any]:
    """Loss over every window of the held-out text, in nats per token and in bits per byte of UTF-8."""
    windows = TokenWindows.load(data, "validation", context, tokenizer.bos_token_id)
    loss = validation_loss(model, windows, len(windows), label="measuring")
    targets = windows.rows(np.arange(len(windows)))[:, 1:]
    num_bytes = sum(len(tokenizer.decode(row, skip_special_tokens=True).encode()) for row in targets)
    return {
        "validation_loss": round(loss, 4),
        "validation_bits_per_byte": round(loss * targets.size / num_bytes / math.log(2), 4),
        "validation_tokens": int(targets.size),
    }


def training_record(trained: dict[str, Any], run: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """The content of `training.json`: the options and the results."""
    metrics = read_metrics(run)
    tokens = np.diff([0, *(row["tokens"] for row in metrics)])
    seconds = float(sum(tokens / [row["tokens_per_s"] for row in metrics]))
    return {
        "config": {name: value for name, value in trained.items() if name not in ("data", "run", "init_from")},
        "started_from": Path(trained["init_from"]).name if trained["init_from"] else None,
        "steps": metrics[-1]["step"],
        "tokens": metrics[-1]["tokens"],
        "hours": round(seconds / 3600, 2),
        "final_training_loss": round(float(np.mean([row["loss"] for row in metrics[-100:]])), 4),
        "schedule_kept": schedule_kept(TrainConfig(**trained), metrics),
        **figures,
    }


def schedule_kept(config: TrainConfig, metrics: list[dict[str, Any]]) -> bool:
    """Whether every step used the learning rate that the options give: a run may have been continued with others."""
    return all(
        math.isclose(row["lr"], config.learning_rate * lr_share(config, row["step"] - 1), rel_tol=1e-3)
        for row in metrics
        if "lr" in row
    )


def folder_mb(folder: Path) -> float:
    """Size of all files in `folder`, in megabytes (1e6 bytes)."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def check_size(config: ShipConfig, folder: Path) -> None:
    """Raises ValueError if the model or its checkpoints are larger than allowed."""
    checkpoints = folder_mb(folder / "checkpoints")
    model = folder_mb(folder) - checkpoints
    if model > config.max_mb:
        raise ValueError(f"the model is {model:.1f} MB, max_mb is {config.max_mb}")
    if checkpoints > config.max_checkpoints_mb:
        raise ValueError(f"the checkpoints are {checkpoints:.1f} MB, max_checkpoints_mb is {config.max_checkpoints_mb}")
