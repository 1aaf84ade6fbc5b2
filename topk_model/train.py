"""Training, from a data folder to a model that can be shipped; reads top to bottom. Knows no server.

A run folder holds `run.json` (the configuration), `state.pt` (weights, optimiser, position, random state: from it
a run goes on at exactly the step it had reached), `metrics.jsonl`, `loss.png`, and `checkpoints/step-…`, log-spaced.
"""

import json
import math
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import AutoTokenizer

from topk_model.configuration import TopKLMConfig
from topk_model.data import TokenWindows
from topk_model.modeling import Sparsify, TopKLMForCausalLM, topk


class TrainConfig(BaseModel):
    """Train a TopK LM on a data folder; run it again with the same --run to continue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(Path("data/books"), description="folder made by `topk data`")
    run: Path = Field(Path("runs/default"), description="folder of the run; an unfinished run there is continued")
    init_from: Path | None = Field(None, description="a Llama or TopK checkpoint to start from instead of random weights")

    hidden_size: int = Field(384, ge=8, description="width of the residual stream: the number of neurons of a layer")
    num_layers: int = Field(6, ge=1)
    num_heads: int = Field(6, ge=1)
    num_kv_heads: int = Field(2, ge=1)
    intermediate_size: int = Field(512, ge=8, description="width of the MLP")
    context: int = Field(512, ge=8, description="tokens of a training window, and the model's context length")
    topk_k: int = Field(32, ge=1, description="entries of the residual stream kept after each TopK layer")
    n_nontopk: int = Field(2, ge=0, description="number of last layers kept dense; equal to num_layers: the dense twin")
    topk_select: Literal["signed", "abs"] = "signed"

    steps: int = Field(6500, ge=1, description="optimiser steps in all")
    batch_size: int = Field(2, ge=1, description="windows of a forward pass on each process")
    accumulate: int = Field(1, ge=1, description="forward passes of an optimiser step")
    learning_rate: float = Field(2e-3, gt=0)
    min_lr_share: float = Field(0.03, ge=0, le=1, description="share of the learning rate left at the last step")
    warmup_steps: int = Field(100, ge=0)
    decay_share: float = Field(0.4, ge=0, le=1, description="share of the steps over which the learning rate falls")
    anneal_steps: int = Field(1500, ge=0, description="steps over which k falls from dense to topk_k")
    weight_decay: float = Field(0.1, ge=0)
    clip_norm: float = Field(1.0, gt=0)

    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(0, ge=0, description="CPU threads; 0: one fewer than the cores")
    save_seconds: float = Field(300.0, gt=0, description="time between two saves of the state")
    evaluate_every: int = Field(250, ge=1, description="steps between two evaluations")
    validation_windows: int = Field(48, ge=1)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, flat, then linear to `min_lr_share` over the last `decay_share` of the steps."""
    decay_steps = config.decay_share * config.steps
    left = min(1.0, (config.steps - step) / decay_steps) if decay_steps else 1.0
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm * max(config.min_lr_share, left)


def annealed_k(config: TrainConfig, step: int) -> int:
    """k at `step`: from hidden_size down to topk_k, the excess shrinking as (1 - t)^2."""
    if step >= config.anneal_steps:
        return config.topk_k
    excess = (config.hidden_size - config.topk_k) * (1 - step / config.anneal_steps) ** 2
    return config.topk_k + round(excess)


def is_kept(step: int, last: int) -> bool:
    """Whether a checkpoint is kept for tracing: powers of two from 64 on, and the last step."""
    return step == last or (step >= 64 and step & (step - 1) == 0)


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
        cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
        device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu")
        if cuda:
            torch.cuda.set_device(device)
        else:
            torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 2) - 1))
        if world > 1:
            distributed.init_process_group("nccl" if cuda else "gloo")
        return cls(rank=rank, world=world, device=device)

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def build_model(config: TrainConfig) -> TopKLMForCausalLM:
    """A model of random weights, or one started from `init_from`, whose shape then wins over the options."""
    tokenizer = AutoTokenizer.from_pretrained(config.data)
    sparsity = {"topk_k": config.topk_k, "n_nontopk": config.n_nontopk, "topk_select": config.topk_select}
    if config.init_from is not None:
        return TopKLMForCausalLM.from_pretrained(config.init_from, dtype=torch.float32, **sparsity)
    torch.manual_seed(config.seed)
    shape = TopKLMConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sparsity,
    )
    return TopKLMForCausalLM(shape)


def make_optimizer(config: TrainConfig, model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW, with weight decay on the matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


class Order:
    """Which windows each step reads: a fresh permutation an epoch, from the seed alone, so any step can be resumed."""

    def __init__(self, num_windows: int, per_step: int, seed: int) -> None:
        self.num_windows, self.per_step, self.seed = num_windows, per_step, seed
        self.steps_per_epoch = num_windows // per_step
        if not self.steps_per_epoch:
            raise ValueError(f"{num_windows} windows are fewer than the {per_step} of one step; use more data")
        self.epoch, self.permutation = -1, np.empty(0, dtype=np.int64)

    def windows(self, step: int) -> NDArray[np.int64]:
        """Window numbers `[per_step]` of `step`."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.epoch = epoch
            self.permutation = np.random.default_rng((self.seed, epoch)).permutation(self.num_windows)
        return self.permutation[at * self.per_step : (at + 1) * self.per_step]


@torch.no_grad()
def validation_loss(model: TopKLMForCausalLM, data: TokenWindows, count: int, sparsify: Sparsify | None = None) -> float:
    """Mean next-token loss over the first `count` windows, in nats per token."""
    model.eval()
    losses = []
    for i in range(min(count, len(data))):
        ids = torch.from_numpy(data.rows(np.array([i]))).to(model.device)
        logits = model(input_ids=ids[:, :-1], sparsify=sparsify).logits
        losses.append(torch.nn.functional.cross_entropy(logits[0].float(), ids[0, 1:]).item())
    model.train()
    return float(np.mean(losses))


def plot_losses(run: Path) -> None:
    """Draw `loss.png` from `metrics.jsonl`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.plot([r["tokens"] for r in rows], [r["loss"] for r in rows], lw=0.6, alpha=0.6, label="training")
    held_out = [r for r in rows if "validation_loss" in r]
    axes.plot([r["tokens"] for r in held_out], [r["validation_loss"] for r in held_out], "o-", ms=3, label="validation")
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(run / "loss.png", dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def save_state(run: Path, state: dict[str, Any]) -> None:
    """Write `state.pt` so that a crash at any moment leaves a whole one."""
    torch.save(state, run / "state.pt.new")
    os.replace(run / "state.pt.new", run / "state.pt")


def check_same_run(config: TrainConfig) -> None:
    """Refuse to continue a run as something else; what may differ is listed here.

    Raises:
        ValueError: a field that shapes the run differs from what the run was started with.
    """
    path = config.run / "run.json"
    now = json.loads(config.model_dump_json())
    if path.exists():
        started = json.loads(path.read_text())
        free = {"run", "steps", "decay_share", "device", "threads", "save_seconds", "evaluate_every", "validation_windows"}
        for name, value in now.items():
            if name not in free and started.get(name) != value:
                raise ValueError(f"{config.run} was started with {name}={started.get(name)!r}, not {value!r}")
    path.write_text(json.dumps(now, indent=1) + "\n")


def train(config: TrainConfig) -> None:
    """Train, or continue, the run that `config` describes, and write the finished model to `run/final`.

    Raises:
        FileNotFoundError: the data folder is missing.
        ValueError: the run folder holds a run of another configuration, or the data is too small.
    """
    place = Place.find(config)
    if place.is_first:
        config.run.mkdir(parents=True, exist_ok=True)
        check_same_run(config)
    tokenizer = AutoTokenizer.from_pretrained(config.data)
    data = TokenWindows.load(config.data, "train", config.context, tokenizer.bos_token_id)
    held_out = TokenWindows.load(config.data, "validation", config.context, tokenizer.bos_token_id)
    rows_per_pass = config.batch_size * place.world
    order = Order(len(data), rows_per_pass * config.accumulate, config.seed)
    tokens_per_step = order.per_step * config.context

    model = build_model(config).to(place.device).train()
    optimizer = make_optimizer(config, model)
    step = 0
    if (config.run / "state.pt").exists():
        state = torch.load(config.run / "state.pt", map_location=place.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"].cpu())
        step = state["step"]
    wrapped = DistributedDataParallel(model) if place.world > 1 else model
    autocast = torch.autocast(place.device.type, torch.bfloat16, enabled=place.device.type == "cuda")

    def state_now() -> dict[str, Any]:
        return {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}

    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: stopping.append(n))
    metrics = (config.run / "metrics.jsonl").open("a") if place.is_first else None
    bar = tqdm(total=config.steps, initial=step, unit="step", disable=not place.is_first, mininterval=1.0)
    saved = time.monotonic()
    while step < config.steps and not stopping:
        began = time.monotonic()
        k = annealed_k(config, step)
        sparsify = sparsify_with(config, k)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        chosen = order.windows(step).reshape(config.accumulate, place.world, config.batch_size)
        loss_sum = torch.zeros((), device=place.device)
        for i in range(config.accumulate):
            ids = torch.from_numpy(data.rows(chosen[i, place.rank])).to(place.device)
            with autocast:
                logits = wrapped(input_ids=ids[:, :-1], sparsify=sparsify).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
            (loss / config.accumulate).backward()
            loss_sum += loss.detach() / config.accumulate
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1

        if not math.isfinite(loss_sum.item()):
            raise FloatingPointError(f"the loss is {loss_sum.item()} at step {step}; lower learning_rate")
        if metrics is None:
            continue
        row = {
            "step": step,
            "tokens": step * tokens_per_step,
            "loss": round(loss_sum.item(), 5),
            "lr": learning_rate(config, step - 1),
            "k": k,
            "grad_norm": round(norm.item(), 4),
            "tokens_per_s": round(tokens_per_step / (time.monotonic() - began), 1),
        }
        if step % config.evaluate_every == 0 or step == config.steps:
            row["validation_loss"] = round(validation_loss(model, held_out, config.validation_windows, sparsify), 5)
            plot_losses_soon = True
        else:
            plot_losses_soon = False
        metrics.write(json.dumps(row) + "\n")
        metrics.flush()
        if plot_losses_soon:
            plot_losses(config.run)
        bar.set_postfix(loss=f"{row['loss']:.3f}", tok_s=f"{row['tokens_per_s']:.0f}", k=k, refresh=False)
        bar.update()
        if is_kept(step, config.steps):
            model.save_pretrained(config.run / "checkpoints" / f"step-{step}")
        if time.monotonic() - saved > config.save_seconds:
            save_state(config.run, state_now())
            saved = time.monotonic()

    bar.close()
    if place.is_first:
        save_state(config.run, state_now())
        if step >= config.steps:
            model.save_pretrained(config.run / "final")
            tokenizer.save_pretrained(config.run / "final")
    if place.world > 1:
        distributed.destroy_process_group()
