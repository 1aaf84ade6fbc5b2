"""Training, from a data folder to a model that can be shipped; reads top to bottom. Knows no server.

What it leaves on disk is in `runs.py`. On several processes: `torchrun --nproc-per-node 2 -m -- service.cli train …`;
the `--` keeps torchrun from taking `--run` for its own.
"""

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, distributed
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from topk_model.checkpoints import (
    Device,
    check_vocabulary,
    checkpoint_folder,
    load_tokenizer,
    load_weights,
    read_config,
    resolve_device,
)
from topk_model.configuration import make_config
from topk_model.data import Order, TokenWindows, load_data_tokenizer
from topk_model.modeling import Sparsify, TopKLMForCausalLM, topk
from topk_model.optimizers import make_optimizers
from topk_model.runs import drop_metrics_after, is_kept, plot_losses, replace_text, save_state


class TrainConfig(BaseModel):
    """Train a TopK LM on a data folder; run it again with the same --run to continue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(Path("data/books"), description="folder made by `topk data`")
    run: Path = Field(Path("runs/default"), description="folder of the run; an unfinished run there is continued")
    init_from: Path | None = Field(
        None,
        description="a Llama or TopK checkpoint that gives the shape and the first weights, instead of random ones",
    )

    hidden_size: int = Field(384, ge=8, description="width of the residual stream: the number of neurons of a layer")
    num_layers: int = Field(6, ge=1, description="blocks, the dense ones included")
    num_heads: int = Field(6, ge=1, description="query heads")
    num_kv_heads: int = Field(2, ge=1, description="key-value heads; num_heads must be a multiple")
    head_dim: int | None = Field(None, ge=2, description="width of an attention head; by default hidden_size/num_heads")
    intermediate_size: int = Field(512, ge=8, description="width of the MLP")
    context: int = Field(512, ge=8, description="tokens of a training window, and the model's context length")
    topk_k: int = Field(32, ge=1, description="entries of the residual stream kept after each TopK layer")
    n_nontopk: int = Field(2, ge=0, description="number of last layers kept dense; equal to num_layers: the dense twin")
    topk_select: Literal["signed", "abs"] = Field("signed", description="keep the largest values, or magnitudes")

    steps: int = Field(6500, ge=1, description="optimiser steps in all")
    batch_size: int = Field(2, ge=1, description="windows of a forward pass on each process")
    accumulate: int = Field(1, ge=1, description="forward passes of an optimiser step")
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="for the matrices of the blocks; AdamW for the rest"
    )
    learning_rate: float = Field(2e-3, gt=0, description="of AdamW")
    muon_learning_rate: float = Field(3e-3, gt=0, description="of Muon")
    min_lr_share: float = Field(0.03, ge=0, le=1, description="share of the learning rate left at the last step")
    warmup_steps: int = Field(100, ge=0, description="steps over which the learning rate rises")
    decay_share: float = Field(0.4, ge=0, le=1, description="share of the steps over which the learning rate falls")
    anneal_steps: int = Field(1500, ge=0, description="steps over which k falls from dense to topk_k")
    weight_decay: float = Field(0.1, ge=0, description="of matrices, in units of the learning rate")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of all gradients together")

    seed: int = Field(0, ge=0, description="of the first weights and of the order of the windows")
    device: Device = "auto"
    threads: int = Field(0, ge=0, description="CPU threads; 0: one fewer than the cores")
    save_seconds: float = Field(300.0, gt=0, description="time between two saves of the state")
    evaluate_every: int = Field(250, ge=1, description="steps between two evaluations")
    validation_windows: int = Field(48, ge=1, description="windows of an evaluation")


def lr_share(config: TrainConfig, step: int) -> float:
    """Of the learning rate: linear warm-up, flat, then linear to `min_lr_share` over the last `decay_share`."""
    decay_steps = config.decay_share * config.steps
    left = min(1.0, (config.steps - step) / decay_steps) if decay_steps else 1.0
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warm * max(config.min_lr_share, left)


def annealed_k(config: TrainConfig, step: int) -> int:
    """k at `step`: from hidden_size down to topk_k, the excess shrinking as (1 - t)^2; hidden_size in a dense twin."""
    if config.n_nontopk == config.num_layers:
        return config.hidden_size
    if step >= config.anneal_steps:
        return config.topk_k
    excess = (config.hidden_size - config.topk_k) * (1 - step / config.anneal_steps) ** 2
    return config.topk_k + round(excess)


def sparsify_with(config: TrainConfig, k: int) -> Sparsify:
    num_topk_layers = config.num_layers - config.n_nontopk

    def sparsify(layer: int, hidden: Tensor) -> Tensor:
        return topk(hidden, k, config.topk_select) if layer < num_topk_layers else hidden

    return sparsify


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this process trains: alone, or one of several started by torchrun."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def find(cls, config: TrainConfig) -> "Place":
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        device = resolve_device(config.device)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        else:
            torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 2) - 1))
        if world > 1:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(rank=rank, world=world, device=device)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.world
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


#: What a checkpoint decides about a run that starts from it: our name and the configuration's.
SHAPE = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
}
#: What may change when a run is continued; the number of windows of a step is checked by itself.
FREE = {
    "run", "steps", "decay_share", "topk_k", "anneal_steps", "batch_size", "accumulate", "device", "threads",
    "save_seconds", "evaluate_every", "validation_windows",
}  # fmt: skip


def settle(config: TrainConfig) -> TrainConfig:
    """`config`, and for what it leaves open the options its run was started with, or the shape of `init_from`.

    Raises:
        FileNotFoundError: `init_from` is no checkpoint.
        ValueError: an option contradicts the run that is continued, or the checkpoint that is started from.
    """
    given = {name: getattr(config, name) for name in config.model_fields_set}
    path = config.run / "run.json"
    if path.exists():
        started = TrainConfig.model_validate_json(path.read_text())
        for name in given.keys() - FREE:
            if (before := getattr(started, name)) != given[name]:
                raise ValueError(f"{config.run} was started with {name}={before!r}, not {given[name]!r}")
        return started.model_copy(update=given)
    if config.init_from is None:
        return config
    shape = read_config(checkpoint_folder(config.init_from))
    found = {name: getattr(shape, theirs) for name, theirs in SHAPE.items()}
    for name in given.keys() & found.keys():
        if given[name] != found[name]:
            raise ValueError(f"{name} is {given[name]}, but {config.init_from} has {found[name]}; leave it out")
    if config.context > shape.max_position_embeddings:
        raise ValueError(f"context is {config.context}, must be at most init_from's, {shape.max_position_embeddings}")
    return config.model_copy(update=found)


def build_model(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> TopKLMForCausalLM:
    """A model of random weights, or one started from `init_from`.

    Raises:
        ValueError: the shape is impossible, or `init_from` has another tokenizer than the data, or as `load_model`.
    """
    sparsity = {"topk_k": config.topk_k, "n_nontopk": config.n_nontopk, "topk_select": config.topk_select}
    if config.init_from is not None:
        folder = checkpoint_folder(config.init_from)
        shape = read_config(folder, **sparsity)
        check_vocabulary(shape, tokenizer, config.data)
        if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"{config.data} has another tokenizer; make it by: topk data --tokenizer {config.init_from}"
            )
        return load_weights(folder, shape, torch.float32)
    torch.manual_seed(config.seed)
    fields = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": config.context,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    fields |= sparsity | {theirs: getattr(config, name) for name, theirs in SHAPE.items()}
    return TopKLMForCausalLM(make_config(fields, "the model's shape"))


@torch.no_grad()
def validation_loss(
    model: TopKLMForCausalLM,
    data: TokenWindows,
    count: int,
    sparsify: Sparsify | None = None,
    label: str | None = None,
) -> float:
    """Mean next-token loss over the first `count` windows, in nats per token; with a `label`, under a progress bar."""
    was_training = model.training
    model.eval()
    losses = []
    for i in tqdm(range(min(count, len(data))), desc=label, unit="window", disable=label is None):
        ids = torch.from_numpy(data.rows(np.array([i]))).to(model.device)
        logits = model(input_ids=ids[:, :-1], sparsify=sparsify).logits
        losses.append(torch.nn.functional.cross_entropy(logits[0].float(), ids[0, 1:]).item())
    model.train(was_training)
    return float(np.mean(losses))


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """While it lasts, SIGTERM and SIGINT are collected in the list it gives instead of ending the process."""
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Run:
    """A run in progress: the model, its optimiser, the data, and the step they have reached."""

    def __init__(self, config: TrainConfig, place: Place) -> None:
        self.config, self.place = config, place
        self.tokenizer = load_data_tokenizer(config.data)
        self.data = TokenWindows.load(config.data, "train", config.context, self.tokenizer.bos_token_id)
        self.held_out = TokenWindows.load(config.data, "validation", config.context, self.tokenizer.bos_token_id)
        self.order = Order(len(self.data), config.batch_size * place.world * config.accumulate, config.seed)
        self.model = build_model(config, self.tokenizer).to(place.device).train()
        muon_lr = config.muon_learning_rate if config.optimizer == "muon" else None
        self.optimizers = make_optimizers(self.model, config.learning_rate, muon_lr, config.weight_decay)
        self.peak_lrs = [[group["lr"] for group in one.param_groups] for one in self.optimizers]
        self.step = 0
        if (config.run / "state.pt").exists():
            self.restore()

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "windows_per_step": self.order.per_step,
            "model": self.model.state_dict(),
            "optimizers": [one.state_dict() for one in self.optimizers],
            "random": torch.get_rng_state(),
        }

    def restore(self) -> None:
        """Go on from `state.pt`.

        Raises:
            ValueError: the run is beyond its last step, or a step would now read another number of windows.
        """
        state = torch.load(self.config.run / "state.pt", map_location=self.place.device, weights_only=True)
        if (windows := state.get("windows_per_step", self.order.per_step)) != self.order.per_step:
            raise ValueError(
                f"{self.config.run} was started with {windows} windows a step; batch_size * accumulate * processes is "
                f"now {self.order.per_step}"
            )
        if state["step"] > self.config.steps:
            raise ValueError(f"{self.config.run} has reached step {state['step']}; steps is {self.config.steps}")
        self.model.load_state_dict(state["model"])
        for one, stored in zip(self.optimizers, state["optimizers"], strict=True):
            one.load_state_dict(stored)
        torch.set_rng_state(state["random"].cpu())
        self.step = state["step"]

    def advance(self, sparsify: Sparsify, is_stopping: bool) -> tuple[float, float, bool]:
        """Take one optimiser step, together with the other processes.

        Returns:
            The loss and the norm of the gradient, and whether any process was told to stop.

        Raises:
            FloatingPointError: the gradient is not finite; the weights are left as they were.
        """
        config, place = self.config, self.place
        share = lr_share(config, self.step)
        for one, peaks in zip(self.optimizers, self.peak_lrs, strict=True):
            for group, peak in zip(one.param_groups, peaks, strict=True):
                group["lr"] = peak * share
        chosen = self.order.windows(self.step).reshape(config.accumulate, place.world, config.batch_size)
        loss_sum = torch.zeros((), device=place.device)
        stop = torch.full_like(loss_sum, float(is_stopping))
        for i in range(config.accumulate):
            ids = torch.from_numpy(self.data.rows(chosen[i, place.rank])).to(place.device)
            with torch.autocast(place.device.type, torch.bfloat16, enabled=place.device.type == "cuda"):
                logits = self.model(input_ids=ids[:, :-1], sparsify=sparsify).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
            (loss / config.accumulate).backward()
            loss_sum += loss.detach() / config.accumulate
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        place.average([*gradients, loss_sum, stop])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm).item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm} at step {self.step + 1}; lower learning_rate")
        for one in self.optimizers:
            one.step()
            one.zero_grad(set_to_none=True)
        self.step += 1
        return loss_sum.item(), norm, stop.item() > 0

    def run(self, stopping: list[int]) -> None:
        """Take the steps that are left, or those until any process is told to stop. Writes the run folder."""
        config, is_first = self.config, self.place.is_first
        tokens_per_step = self.order.per_step * config.context
        saved, is_stopping = time.monotonic(), False
        with (
            (config.run / "metrics.jsonl").open("a") if is_first else nullcontext() as metrics,
            tqdm(total=config.steps, initial=self.step, unit="step", disable=not is_first, mininterval=1.0) as bar,
        ):
            while self.step < config.steps and not is_stopping:
                began = time.monotonic()
                k = annealed_k(config, self.step)
                sparsify = sparsify_with(config, k)
                loss, norm, is_stopping = self.advance(sparsify, bool(stopping))
                if metrics is None:
                    continue
                row = {
                    "step": self.step,
                    "tokens": self.step * tokens_per_step,
                    "loss": round(loss, 5),
                    "lr": config.learning_rate * lr_share(config, self.step - 1),
                    "k": k,
                    "grad_norm": round(norm, 4),
                    "tokens_per_s": round(tokens_per_step / (time.monotonic() - began), 1),
                }
                if is_evaluated := self.step % config.evaluate_every == 0 or self.step == config.steps:
                    held_out = validation_loss(self.model, self.held_out, config.validation_windows, sparsify)
                    row["validation_loss"] = round(held_out, 5)
                metrics.write(json.dumps(row) + "\n")
                metrics.flush()
                if is_evaluated:
                    plot_losses(config.run)
                bar.set_postfix(loss=f"{loss:.3f}", tok_s=f"{row['tokens_per_s']:.0f}", k=k, refresh=False)
                bar.update()
                if is_kept(self.step, config.steps):
                    self.model.save_pretrained(config.run / "checkpoints" / f"step-{self.step}")
                if time.monotonic() - saved > config.save_seconds:
                    save_state(config.run, self.state())
                    saved = time.monotonic()
        if is_first:
            save_state(config.run, self.state())


def train(config: TrainConfig) -> None:
    """Train, or continue, the run that `config` describes, and write the finished model to `run/final`.

    Raises:
        FileNotFoundError: the data folder or `init_from` is missing.
        ValueError: an option contradicts the run folder or `init_from`, or the data is too small.
        FloatingPointError: the gradient is no longer finite; the last saved state is from before that.
    """
    config = settle(config)
    place = Place.find(config)
    run = Run(config, place)
    if place.is_first:
        config.run.mkdir(parents=True, exist_ok=True)
        replace_text(config.run / "run.json", config.model_dump_json(indent=1) + "\n")
        drop_metrics_after(config.run, run.step)
        run.tokenizer.save_pretrained(config.run)
        if run.step < config.steps:  # of a run that was finished and is to go on: not the end of this one
            shutil.rmtree(config.run / "final", ignore_errors=True)
    with stop_signals() as stopping:
        run.run(stopping)
    if place.is_first and run.step >= config.steps:
        run.model.save_pretrained(config.run / "final")
        run.tokenizer.save_pretrained(config.run / "final")
    elif place.is_first:
        print(f"stopped at step {run.step} of {config.steps}; to continue: topk train --run {config.run}")
    if place.world > 1:
        distributed.destroy_process_group()
