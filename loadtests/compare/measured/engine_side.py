"""Our engine, scheduler and sampling rules included: `python -m … SHAPE NUM_THREADS STEP`.

Each storage of the weights is an engine of its own in this process; those whose turn it is not sleep.
"""

import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from loadtests.compare.measured.worker import Generate, Measure, repeat, serve
from loadtests.compare.shapes import BY_NAME, PROMPT_TOKENS, Shape, prompts
from service.engine.config import EngineConfig, Weights
from service.engine.engine import Engine
from service.engine.request import EngineRequest, Event, FinishEvent, PromptEvent, SamplingParams, TokenEvent
from topk_model.interventions import Condition, Intervention
from topk_model.modeling import TopKLMForCausalLM
from topk_model.traces import TraceSpec

MAX_ROWS = 32
#: At least a row's prompt and new tokens.
ROW_POSITIONS = 128
TIMEOUT_S = 120.0
GREEDY = SamplingParams(temperature=0.0)
STORAGES: tuple[Weights, ...] = ("float32", "bfloat16", "int8")
#: An engine in float32 whose MLPs are twice as wide: its additional time is that of its additional products.
WIDE = "wide"

#: What a row of each case asks besides tokens.
#: plain: nothing. edited: one edit of every TopK layer, the same in all rows. varied: another set of edits in each.
#: traced: as varied, and the states of all TopK layers and tokens. sampled: as plain, drawn by temperature and top_p.
CASES = ("plain", "edited", "varied", "traced", "sampled")


def edits(shape: Shape, case: str, row: int) -> tuple[Intervention, ...]:
    """What is edited in a row: each TopK layer, at every position."""
    layers = tuple(range(shape.num_layers - shape.n_nontopk))
    neuron = 7 * row % (shape.hidden_size - 1)
    if case == "edited":
        return (Intervention(layers=layers, neuron=5, op="add", value=0.5),)
    if case not in ("varied", "traced"):
        return ()
    if row % 4 == 0:
        return (Intervention(layers=layers, neuron=neuron, op="set", value=0.25 + row / 64),)
    if row % 4 == 1:
        # Met at most positions: any one neuron is seldom among the k.
        unless = Condition(layer=layers[0], neuron=0, test="inactive")
        add = Intervention(layers=layers, neuron=neuron, op="add", value=0.5, conditions=(unless,))
        return (add, Intervention(layers=layers, neuron=neuron + 1, op="add", value=0.1))
    if row % 4 == 2:
        return (Intervention(layers=layers, neuron=neuron, op="clamp", min=0.1, max=2.0),)
    return (Intervention(layers=layers, neuron=neuron, op="add", value=1.0, site="pre_topk"),)


@dataclass(kw_only=True)
class Run:
    """Requests under way, and what has come of them."""

    num_open: int
    is_done: threading.Event = field(default_factory=threading.Event)
    num_tokens: int = 0
    num_traced: int = 0  # states of a token in a layer
    first_s: float = 0.0  # when the last prompt had been read
    last_s: float = 0.0
    num_decoded: int = 0  # tokens drawn after the first
    finishes: list[FinishEvent] = field(default_factory=list)

    def take(self, events: list[tuple[str, Event]]) -> None:
        """Note a step's events; in the engine's thread."""
        now, is_prefill, num_drawn = time.perf_counter(), False, 0
        for _, event in events:
            if isinstance(event, TokenEvent):
                num_drawn += 1
                if event.trace is not None:
                    self.num_traced += len(event.trace.offsets) - 1
            elif isinstance(event, PromptEvent):
                is_prefill = True
                if event.trace is not None:
                    self.num_traced += len(event.trace.offsets) - 1
            else:
                self.finishes.append(event)
                self.num_open -= 1
        self.num_tokens += num_drawn
        if is_prefill:
            self.first_s, self.num_decoded = now, 0
        elif num_drawn:
            self.last_s, self.num_decoded = now, self.num_decoded + num_drawn
        if not self.num_open:
            self.is_done.set()


class EngineBench:
    """An engine, and a way to run requests through it from the first to the last."""

    def __init__(self, shape: Shape, storage: Weights, num_threads: int, cpu_step: str) -> None:
        torch.manual_seed(0)
        model = TopKLMForCausalLM(shape.config()).eval()
        config = EngineConfig(
            num_threads=num_threads,
            max_num_seqs=MAX_ROWS,
            max_backlog=MAX_ROWS,
            num_blocks=MAX_ROWS * ROW_POSITIONS // 16,
            cpu_step="torch" if cpu_step == "torch" else "compiled",
            weights=storage,
        )
        self._shape, self._run = shape, Run(num_open=0)
        self._engine = Engine(model, config, lambda events: self._run.take(events))
        self._engine.start()

    def generate(self, case: str, num_rows: int, num_tokens: int, seed: int) -> tuple[int, int, float]:
        """Run `num_rows` requests together.

        Raises:
            RuntimeError: one did not end as it should, or its edits or traces were not done.
        """
        shape = self._shape
        layers = tuple(range(shape.num_layers - shape.n_nontopk))
        requests = [
            EngineRequest(
                request_id=str(row),
                prompt_ids=tuple(ids),
                max_tokens=num_tokens,
                sampling=SamplingParams(temperature=0.8, top_p=0.95, seed=row) if case == "sampled" else GREEDY,
                ignore_eos=True,
                interventions=edits(shape, case, row),
                trace=TraceSpec(layers=layers) if case == "traced" else None,
            )
            for row, ids in enumerate(prompts(shape, num_rows, seed))
        ]
        run = self._run = Run(num_open=num_rows)
        self._engine.submit(requests)
        if not run.is_done.wait(TIMEOUT_S):
            raise RuntimeError(f"{num_rows} rows have not ended within {TIMEOUT_S:g} s")
        check(run, requests, len(layers))
        return run.num_tokens, run.num_decoded, run.last_s - run.first_s

    def stop(self) -> None:
        """End the engine's thread."""
        self._engine.stop()


def check(run: Run, requests: list[EngineRequest], num_layers: int) -> None:
    """Raises RuntimeError if something was left out."""
    num_tokens = requests[0].max_tokens
    if any(finish.reason != "length" for finish in run.finishes) or run.num_tokens != len(requests) * num_tokens:
        reasons = sorted({f"{finish.reason} {finish.error or ''}".strip() for finish in run.finishes})
        raise RuntimeError(f"{run.num_tokens} tokens for {len(requests)} rows of {num_tokens}: {', '.join(reasons)}")
    if requests[0].interventions and not all(finish.receipts for finish in run.finishes):
        raise RuntimeError("a row has no receipt of its edits")
    if requests[0].trace is not None:
        expected = len(requests) * num_layers * (PROMPT_TOKENS + num_tokens)
        if run.num_traced != expected:
            raise RuntimeError(f"{run.num_traced} states were traced, must be {expected}")


def load() -> tuple[dict[str, Any], Measure]:
    name, num_threads, cpu_step = sys.argv[1:]
    if cpu_step != "torch":
        torch.set_num_threads(1)
    shape, storages = BY_NAME[name], STORAGES if cpu_step == "compiled" else STORAGES[:1]
    benches: dict[str, Generate] = {
        storage: EngineBench(shape, storage, int(num_threads), cpu_step).generate for storage in storages
    }
    if cpu_step == "compiled" and shape.is_widened:
        benches[WIDE] = EngineBench(shape.widened(), "float32", int(num_threads), cpu_step).generate

    def generate(case: str, num_rows: int, num_tokens: int, seed: int) -> tuple[int, int, float]:
        storage, _, asked = case.partition(" ")
        return benches[storage](asked, num_rows, num_tokens, seed)

    return {"torch": torch.__version__, "cpu_step": cpu_step, "storages": list(storages)}, partial(repeat, generate)


if __name__ == "__main__":
    serve(load)
