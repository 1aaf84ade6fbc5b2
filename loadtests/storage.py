"""What the storage of the weights changes in what a model says: loss, neuron sets and greedy text, on held-out text.

python -m loadtests.storage [--model FOLDER] [--tokens 40000] [--json FILE]
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from service.engine.config import EngineConfig, Weights
from service.engine.core import EngineCore
from service.engine.request import EngineRequest, FinishEvent, PromptEvent, SamplingParams, TokenEvent
from topk_model.checkpoints import load_model
from topk_model.model_folder import DEFAULT_MODEL, HELD_OUT
from topk_model.traces import TraceChunk, TraceSpec, concatenate

WINDOW = 256  # tokens read together
GREEDY_PROMPT, GREEDY_TOKENS = 32, 64
REFERENCE: Weights = "float32"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a model with one storage says of the windows."""

    losses: list[float]  # of each token but the first of a window, nats
    traces: list[TraceChunk]  # of each window, all TopK layers
    texts: list[list[int]]  # greedy continuations


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One storage beside float32."""

    weights: Weights
    loss: float
    changed_states: float  # share of (token, layer) whose neuron set is another
    changed_neurons: float  # share of kept neurons that float32 does not keep
    changed_texts: float  # share of greedy continuations that differ
    first_difference: float | None  # their first other token, median, counted from 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.storage", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder of the model, with held-out tokens")
    parser.add_argument("--tokens", type=int, default=40_000, help="tokens of held-out text (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    given = parser.parse_args()
    if given.tokens < WINDOW:
        parser.error(f"--tokens is {given.tokens}, but must be at least {WINDOW}")
    effects = measure(given.model, given.tokens)
    print("| weights | loss, nats | changed neuron sets | changed neurons | changed greedy texts | first change |")
    print("|---|---:|---:|---:|---:|---:|")
    for one in effects:
        first = "" if one.first_difference is None else f"{one.first_difference:.0f}"
        shares = " | ".join(f"{share:.3%}" for share in (one.changed_states, one.changed_neurons, one.changed_texts))
        print(f"| {one.weights} | {one.loss:.4f} | {shares} | {first} |")
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(one) for one in effects], indent=2) + "\n")


def measure(model: Path, num_tokens: int) -> list[Effect]:
    """The effect of each storage on a model with held-out tokens.

    Raises:
        FileNotFoundError, ValueError: as `topk_model.checkpoints.load_model`.
        BuildError: there is no compiled step.
    """
    tokens = np.load(model / HELD_OUT / "validation.npy", mmap_mode="r")[:num_tokens]
    windows = [tokens[at : at + WINDOW].tolist() for at in range(0, len(tokens) - WINDOW + 1, WINDOW)]
    readings = {weights: read(model, weights, windows) for weights in get_args(Weights)}
    return [effect(weights, reading, readings[REFERENCE]) for weights, reading in readings.items()]


def read(folder: Path, weights: Weights, windows: Sequence[Sequence[int]]) -> Reading:
    """Read the windows, and continue the beginning of each."""
    model, _ = load_model(folder, device="cpu")
    config = EngineConfig(cpu_step="compiled", weights=weights, prefix_cache=False)
    core = EngineCore(model, config)
    spec = TraceSpec(layers=tuple(model.config.topk_layers))
    greedy = SamplingParams(temperature=0.0)
    for number, window in enumerate(windows):
        core.add(
            EngineRequest(
                request_id=f"{number}",
                prompt_ids=tuple(window),
                max_tokens=0,
                prompt_logprobs=0,
                trace=spec,
            )
        )
        core.add(
            EngineRequest(
                request_id=f"{number} greedy",
                prompt_ids=tuple(window[:GREEDY_PROMPT]),
                max_tokens=GREEDY_TOKENS,
                sampling=greedy,
                ignore_eos=True,
            )
        )
    losses: list[float] = []
    chunks: dict[str, list[TraceChunk]] = {}
    texts: dict[str, list[int]] = {}
    while not core.is_idle:
        core.step(time.monotonic())
        for request_id, event in core.take_events():
            if isinstance(event, FinishEvent):
                assert event.error is None, event.error
            elif isinstance(event, TokenEvent):
                texts.setdefault(request_id, []).append(event.token_id)
            elif isinstance(event, PromptEvent) and event.trace is not None:
                losses += [-entry.logprob for entry in event.logprobs if entry is not None]
                chunks.setdefault(request_id, []).append(event.trace)
    numbers = range(len(windows))
    return Reading(
        losses=losses,
        traces=[concatenate(chunks[f"{number}"]) for number in numbers],
        texts=[texts[f"{number} greedy"] for number in numbers],
    )


def effect(weights: Weights, reading: Reading, reference: Reading) -> Effect:
    """How a reading differs from the reference."""
    num_states = num_changed = num_neurons = num_other = 0
    for ours, theirs in zip(reading.traces, reference.traces, strict=True):
        for row in range(len(ours.offsets) - 1):
            own, kept = (neurons(chunk, row) for chunk in (ours, theirs))
            num_states += 1
            num_changed += own != kept
            num_neurons += len(own)
            num_other += len(own - kept)
    firsts = [
        next(place for place, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
        for ours, theirs in zip(reading.texts, reference.texts, strict=True)
        if ours != theirs
    ]
    return Effect(
        weights=weights,
        loss=float(np.mean(reading.losses)),
        changed_states=num_changed / num_states,
        changed_neurons=num_other / num_neurons,
        changed_texts=len(firsts) / len(reading.texts),
        first_difference=float(np.median(firsts)) if firsts else None,
    )


def neurons(chunk: TraceChunk, row: int) -> frozenset[int]:
    return frozenset(chunk.indices[chunk.offsets[row] : chunk.offsets[row + 1]].tolist())


if __name__ == "__main__":
    main()
