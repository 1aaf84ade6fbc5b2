"""A run that met a gradient that is not finite can go on, and schedules follow the number of steps."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_run import train_config
from topk_model.training.options import (
    TrainConfig,
    annealed_k,
    lr_share,
    num_anneal_steps,
    num_warmup_steps,
)
from topk_model.training.runs import read_metrics
from topk_model.training.settling import settle
from topk_model.training.train import Run, train


def diverge(data: Path, run: Path, **options: Any) -> str:
    """A run that meets a gradient that is not finite; what it says."""
    wild = {"learning_rate": 1e30, "muon_learning_rate": 1e30, "warmup_steps": 0, "save_seconds": 1e-9}
    with pytest.raises(FloatingPointError, match=r"the gradient's norm is (nan|inf) at step") as stopped:
        train(train_config(data, run, steps=50, **(wild | options)))
    return str(stopped.value)


def test_a_diverging_run_ends_and_keeps_no_broken_state(data_folder: Path, tmp_path: Path) -> None:
    diverge(data_folder, tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(math.isfinite(row["loss"]) for row in read_metrics(tmp_path, state["step"]))
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


@pytest.mark.parametrize("save_seconds", [1e-9, 1e9], ids=["saved", "never saved"])
def test_a_diverged_run_goes_on_as_it_says(data_folder: Path, tmp_path: Path, save_seconds: float) -> None:
    says = diverge(data_folder, tmp_path, save_seconds=save_seconds)
    assert f"topk train --run {tmp_path} --learning-rate 5e+29 --muon-learning-rate 5e+29; or" in says
    with pytest.raises(FloatingPointError):  # half of what is far too much
        train(TrainConfig(run=tmp_path, learning_rate=5e29, muon_learning_rate=5e29))
    train(TrainConfig(run=tmp_path, learning_rate=1e-3, muon_learning_rate=1e-3))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 51))
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert (tmp_path / "final" / "model.safetensors").exists()


def test_bad_steps_are_left_out_if_asked_and_only_so_many(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = Run.gradient

    def overflowing(self: Run, *args: Any) -> tuple[float, float, bool]:
        loss, norm, is_stopping = gradient(self, *args)
        return loss, math.inf if self.step in (20, 21, 22) else norm, is_stopping

    monkeypatch.setattr(Run, "gradient", overflowing)
    config = train_config(data_folder, tmp_path, steps=30, save_seconds=1e-9)
    with pytest.raises(FloatingPointError, match=f"topk train --run {tmp_path} --skip-bad-steps 3"):
        train(config)
    with pytest.raises(FloatingPointError, match=r"inf at step 22.*--skip-bad-steps 3"):
        train(TrainConfig(run=tmp_path, skip_bad_steps=1))
    train(TrainConfig(run=tmp_path, skip_bad_steps=3))
    assert [row["step"] for row in read_metrics(tmp_path)] == [*range(1, 21), *range(24, 31)]


def test_schedules_follow_the_number_of_steps() -> None:
    few, many = TrainConfig(steps=300, topk_k=8), TrainConfig(steps=60_000)
    assert (annealed_k(few, 0), annealed_k(few, 75), annealed_k(few, 300)) == (384, 8, 8)
    assert (lr_share(few, 29), lr_share(few, 28) < 1) == (1.0, True)
    assert annealed_k(many, 1400) > annealed_k(many, 1500) == 32
    assert (lr_share(many, 98) < 1, lr_share(many, 99)) == (True, 1.0)
    default = TrainConfig()
    assert (num_anneal_steps(default), num_warmup_steps(default)) == (1500, 100)


def test_a_run_that_would_end_before_its_k_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"anneal_steps is 1500, above steps \(300\): .* with k 249, not topk_k \(8\); set it to"
    ):
        settle(TrainConfig(run=tmp_path, steps=300, topk_k=8, anneal_steps=1500))
    assert settle(TrainConfig(run=tmp_path, steps=300, n_nontopk=6, anneal_steps=1500)).steps == 300  # no TopK layer


def test_a_run_that_goes_further_keeps_its_schedule(data_folder: Path, tmp_path: Path) -> None:
    train(train_config(data_folder, tmp_path, steps=40, anneal_steps=None, warmup_steps=None))
    longer = settle(TrainConfig(run=tmp_path, steps=4000))
    assert (longer.anneal_steps, longer.warmup_steps, annealed_k(longer, 40)) == (10, 4, 6)
