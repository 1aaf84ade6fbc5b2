"""A run's folder: what training writes to disk, and how it is read. Knows no model.

It contains `run.json` (the configuration), `state.pt` (weights, optimiser, position, random state: a run continues from
it at exactly the step that it had reached), the tokenizer, `metrics.jsonl`, `loss.png`, `checkpoints/step-…`,
log-spaced, and `final` once the run is finished.
"""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from topk_model.files import replace_text
from topk_model.pictures import picture

FIRST_KEPT_STEP = 64


def is_kept(step: int, last: int) -> bool:
    """Whether a checkpoint is saved for tracing: powers of two from 64 on, and the last step."""
    return step == last or (step >= FIRST_KEPT_STEP and step & (step - 1) == 0)


def save_state(run: Path, state: dict[str, Any]) -> None:
    """Write `state.pt` so that a crash at any moment, even of the machine, leaves a complete one."""
    with (run / "state.pt.new").open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(run / "state.pt.new", run / "state.pt")


def load_state(run: Path, device: torch.device) -> dict[str, Any]:
    """The state that `save_state` wrote. Raises ValueError if it cannot be read."""
    path = run / "state.pt"
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged, so {run} cannot be continued: {str(error).splitlines()[0]}") from error
    return state


def read_metrics(run: Path, last: int | None = None) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, one per step, ascending, up to step `last`.

    A killed run continues from its last save and writes some steps again: the later row counts. A line that was cut off
    is ignored.
    """
    path = run / "metrics.jsonl"
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["step"]] = row
    return [rows[step] for step in sorted(rows) if last is None or step <= last]


def drop_metrics_after(run: Path, step: int) -> None:
    """Remove the rows of `metrics.jsonl` that a run continued from `step` will write again."""
    rows = read_metrics(run, step)
    replace_text(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def plot_losses(run: Path) -> None:
    """Draw `loss.png` from `metrics.jsonl`."""
    rows = read_metrics(run)
    held_out = [r for r in rows if "validation_loss" in r]
    with picture(run / "loss.png", xlabel="tokens", ylabel="loss (nats per token)", xscale="log") as axes:
        axes.plot([r["tokens"] for r in rows], [r["loss"] for r in rows], lw=0.6, alpha=0.6, label="training")
        axes.plot(
            [r["tokens"] for r in held_out], [r["validation_loss"] for r in held_out], "o-", ms=3, label="validation"
        )
        axes.legend()
