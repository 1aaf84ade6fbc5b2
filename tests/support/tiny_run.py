"""Options of a training run of milliseconds."""

from pathlib import Path
from typing import Any

from topk_model.training.options import TrainConfig

OPTIONS: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 48,
    "context": 96,
    "topk_k": 6,
    "n_nontopk": 1,
    "steps": 12,
    "batch_size": 2,
    "warmup_steps": 4,
    "anneal_steps": 8,
    "threads": 1,
    "device": "cpu",
    "evaluate_every": 50,
    "validation_windows": 4,
}


def train_config(data: Path, run: Path, **options: Any) -> TrainConfig:
    steps = options.get("steps", OPTIONS["steps"])
    return TrainConfig(data=data, run=run, **(OPTIONS | {"anneal_steps": min(8, steps)} | options))


def as_arguments(data: Path, run: Path, **options: Any) -> list[str]:
    """The same as arguments of `topk train`."""
    fields = {"data": data, "run": run} | OPTIONS | options
    return [part for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", str(value))]
