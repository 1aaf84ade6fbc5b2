"""Training, from a data folder to a model that can be shipped; reads top to bottom. Knows no server.

`runs.py` describes what it writes to disk. On several processes: `torchrun --nproc-per-node 2 -m -- service.cli train
…`; the `--` keeps torchrun from reading `--run` as its own option.
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
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from topk_model.checkpoints import (
    check_vocabulary,
    checkpoint_folder,
    load_tokenizer,
    load_weights,
    read_config,
    resolve_device,
)
from topk_model.configuration import make_config
from topk_model.files import replace_text
from topk_model.model_folder import step_folder
from topk_model.modeling import Sparsify, TopKLMForCausalLM, topk
from topk_model.training.data import Order, TokenWindows, load_data_tokenizer
from topk_model.training.optimizers import make_optimizers
from topk_model.training.options import TrainConfig, annealed_k, lr_share, token_gamma
from topk_model.training.runs import drop_metrics_after, is_kept, load_state, plot_losses, save_state
from topk_model.training.settling import SHAPE, settle


def sparsify_with(config: TrainConfig, k: int) -> Sparsify:
    num_topk_layers = config.num_layers - config.n_nontopk

    def sparsify(layer: int, hidden: Tensor) -> Tensor:
        return topk(hidden, k, config.topk_select) if layer < num_topk_layers else hidden

    return sparsify


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of this process in training: alone, or one of several started by torchrun."""

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

    def is_low_precision(self, config: TrainConfig) -> bool:
        """Whether the products are in bfloat16."""
        return config.precision == "bfloat16" or (config.precision == "auto" and self.device.type == "cuda")

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.world
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def build_model(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> TopKLMForCausalLM:
    """A model with random weights, or one started from `init_from`.

    Raises:
        ValueError: the shape is impossible, or `init_from` has another tokenizer than the data, or as for `load_model`.
    """
    sparsity = {"topk_k": config.topk_k, "n_nontopk": config.n_nontopk, "topk_select": config.topk_select}
    if config.init_from is not None:
        folder = checkpoint_folder(config.init_from)
        shape = read_config(folder, **sparsity)
        check_vocabulary(shape, tokenizer, config.data)
        if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"{config.data} has another tokenizer; make it with: topk data --tokenizer {config.init_from}"
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


def token_weights(losses: Tensor, gamma: float) -> Tensor:
    """TaiLr's weights p / (gamma + (1 - gamma) p) of tokens of probability p (Ji et al. 2023, arXiv 2302.13344).

    Args:
        losses: -log p, without gradient.
        gamma: 0 gives all the weight 1.
    """
    if not gamma:
        return torch.ones_like(losses)
    probabilities = torch.exp(-losses)
    return probabilities / (gamma + (1 - gamma) * probabilities)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """While the context is open, SIGTERM and SIGINT are collected in its list instead of ending the process."""
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Run:
    """A run in progress: the model, its optimiser, the data, and the current step."""

    def __init__(self, config: TrainConfig, place: Place) -> None:
        self.config, self.place = config, place
        self.tokenizer = load_data_tokenizer(config.data)
        self.data = TokenWindows.load(config.data, "train", config.context, self.tokenizer.bos_token_id)
        self.held_out = TokenWindows.load(config.data, "validation", config.context, self.tokenizer.bos_token_id)
        self.data_digest = self.data.digest()
        self.order = Order(len(self.data), config.batch_size * place.world * config.accumulate, config.seed)
        self.model = build_model(config, self.tokenizer).to(place.device).train()
        if not len(self.held_out):
            raise ValueError(
                f"the held-out text in {config.data} is shorter than one window of context={config.context}"
            )
        muon_lr = config.muon_learning_rate if config.optimizer == "muon" else None
        self.optimizers = make_optimizers(self.model, config.learning_rate, muon_lr, config.weight_decay)
        self.peak_lrs = [[group["lr"] for group in one.param_groups] for one in self.optimizers]
        self.step = 0
        self.num_bad = 0  # steps in a row whose gradient was not finite
        if (config.run / "state.pt").exists():
            self.restore()

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "windows_per_step": self.order.per_step,
            "data": self.data_digest,
            "model": self.model.state_dict(),
            "optimizers": [one.state_dict() for one in self.optimizers],
            "random": torch.get_rng_state(),
        }

    def restore(self) -> None:
        """Continue from `state.pt`.

        Raises:
            ValueError: the run is beyond its last step, its data has changed, a step would now read another number of
                windows, or the file is damaged.
        """
        state = load_state(self.config.run, self.place.device)
        if state.get("data", self.data_digest) != self.data_digest:
            raise ValueError(
                f"{self.config.data} has other tokens than when {self.config.run} was started: make it again as it "
                "was, or start another run"
            )
        if (windows := state.get("windows_per_step", self.order.per_step)) != self.order.per_step:
            raise ValueError(
                f"{self.config.run} was started with {windows} windows per step; batch_size * accumulate * processes "
                f"is now {self.order.per_step}"
            )
        if state["step"] > self.config.steps:
            raise ValueError(f"{self.config.run} has reached step {state['step']}, but steps is {self.config.steps}")
        self.model.load_state_dict(state["model"])
        for one, stored in zip(self.optimizers, state["optimizers"], strict=True):
            one.load_state_dict(stored)
        torch.set_rng_state(state["random"].cpu())
        self.step = state["step"]

    def gradient(self, sparsify: Sparsify, is_stopping: bool) -> tuple[float, float, bool]:
        """Compute the next step's gradient, together with the other processes, and clip it.

        Returns:
            The loss (with equal weights), the norm of the gradient, and whether any process received a signal to stop.
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
            with torch.autocast(place.device.type, torch.bfloat16, enabled=place.is_low_precision(config)):
                logits = self.model(input_ids=ids[:, :-1], sparsify=sparsify).logits
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
            )
            weighted = losses * token_weights(losses.detach(), token_gamma(config, self.step))
            (weighted.mean() / config.accumulate).backward()
            loss_sum += losses.detach().mean() / config.accumulate
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        place.average([*gradients, loss_sum, stop])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm).item()
        return loss_sum.item(), norm, stop.item() > 0

    def check(self, norm: float) -> bool:
        """Whether the gradient can be used.

        Raises:
            FloatingPointError: it is not finite, and neither were those of more preceding steps than allowed.
        """
        if math.isfinite(norm):
            self.num_bad = 0
            return True
        self.num_bad += 1
        config = self.config
        if self.num_bad <= config.skip_bad_steps:
            return False
        muon = f" --muon-learning-rate {config.muon_learning_rate / 2:g}" if config.optimizer == "muon" else ""
        again = f"topk train --run {config.run}"
        raise FloatingPointError(
            f"the gradient's norm is {norm} at step {self.step + 1}; continue from the last save at a lower rate: "
            f"{again} --learning-rate {config.learning_rate / 2:g}{muon}; or skip such steps: {again} --skip-bad-steps "
            f"{max(3, 2 * config.skip_bad_steps)}"
        )

    def run(self, stopping: list[int]) -> None:
        """Take the remaining steps, or stop early if any process receives a signal. Writes the run folder.

        A state is saved once the gradient of the next step is known to be finite, so that every saved state can be
        continued.
        """
        config, is_first = self.config, self.place.is_first
        tokens_per_step = self.order.per_step * config.context
        saved = time.monotonic()
        with (
            (config.run / "metrics.jsonl").open("a") if is_first else nullcontext() as metrics,
            tqdm(total=config.steps, initial=self.step, unit="step", disable=not is_first, mininterval=1.0) as bar,
        ):
            while self.step < config.steps:
                began = time.monotonic()
                k = annealed_k(config, self.step)
                sparsify = sparsify_with(config, k)
                loss, norm, is_stopping = self.gradient(sparsify, bool(stopping))
                is_good = self.check(norm)
                if is_first and is_good and (is_stopping or time.monotonic() - saved > config.save_seconds):
                    save_state(config.run, self.state())
                    saved = time.monotonic()
                if is_stopping:
                    return
                for one in self.optimizers:
                    if is_good:
                        one.step()
                    one.zero_grad(set_to_none=True)
                self.step += 1
                if metrics is None:
                    continue
                row: dict[str, Any] = {
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
                if is_good:
                    metrics.write(json.dumps(row) + "\n")
                    metrics.flush()
                else:
                    bar.write(f"step {self.step} is skipped: its gradient's norm is {norm}")
                if is_evaluated:
                    plot_losses(config.run)
                bar.set_postfix(loss=f"{loss:.3f}", tok_s=f"{row['tokens_per_s']:.0f}", k=k, refresh=False)
                bar.update()
                if is_kept(self.step, config.steps):
                    self.model.save_pretrained(step_folder(config.run, self.step))
        if is_first:
            save_state(config.run, self.state())


def train(config: TrainConfig) -> None:
    """Train, or continue, the run that `config` describes, and write the finished model to `run/final`.

    Raises:
        FileNotFoundError: the data folder or `init_from` is missing.
        ValueError: an option contradicts the run folder or `init_from`, or the data is too small.
        FloatingPointError: the gradient is no longer finite; the last saved state is from an earlier step.
    """
    config = settle(config)
    place = Place.find(config)
    run = Run(config, place)
    if place.is_first:
        config.run.mkdir(parents=True, exist_ok=True)
        replace_text(config.run / "run.json", config.model_dump_json(indent=1) + "\n")
        drop_metrics_after(config.run, run.step)
        run.tokenizer.save_pretrained(config.run)
        if run.step < config.steps:  # the final model of a finished run that is being extended: not that of this run
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
