"""The first part of the comparison: our engine beside other engines, tokens a second, over interleaved rounds."""

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from ctypes.util import find_library
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from loadtests.compare.measured.worker import Done, Turn
from loadtests.compare.shapes import NEW_TOKENS, Shape
from loadtests.compare.sides import ROOT, Plan, Sides

OURS, TORCH_STEP, VLLM, VLLM_BF16, TRANSFORMERS, LLAMA_CPP = (
    "ours", "torch's step", "vLLM", "vLLM bfloat16", "transformers", "llama.cpp"
)  # fmt: skip
ROWS = (1, 8, 32)
#: Of a turn that only warms up.
WARM_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Where others can be had: pythons of environments that have them; None if there is none."""

    vllm: Path | None
    llama_cpp: Path | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured with every number of rows: a case of a side."""

    side: str
    case: str
    is_for_few: bool = True  # with fewer than the most rows, too


#: In the order of the tables. A large shape has only those of `LARGE`.
CELLS = (
    *(Cell(side=OURS, case=f"float32 {case}") for case in ("plain", "edited", "varied", "traced", "sampled")),
    *(Cell(side=OURS, case=f"{storage} {case}") for storage in ("bfloat16", "int8") for case in ("plain", "traced")),
    Cell(side=OURS, case="wide plain", is_for_few=False),
    Cell(side=TORCH_STEP, case="float32 plain"),
    Cell(side=VLLM, case="float32"),
    Cell(side=VLLM_BF16, case="bfloat16"),
    *(Cell(side=TRANSFORMERS, case=storage) for storage in ("float32", "bfloat16")),
    *(Cell(side=LLAMA_CPP, case=storage) for storage in ("float32", "q8_0")),
)
LARGE = {
    (OURS, "float32 plain"), (OURS, "float32 traced"), (OURS, "bfloat16 traced"), (OURS, "int8 traced"),
    (VLLM, "float32"), (VLLM_BF16, "bfloat16"), (TRANSFORMERS, "float32"), (LLAMA_CPP, "q8_0"),
}  # fmt: skip


@dataclass(kw_only=True)
class Series:
    """The rounds of a cell with one number of rows."""

    shape: str
    side: str
    case: str
    num_rows: int
    rounds: list[Done] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        """For the report: medians over the rounds, and the rounds."""
        rates = [done.tokens_per_s for done in self.rounds]
        decoding = [done.decode_tokens_per_s for done in self.rounds if done.decode_tokens_per_s]
        return {
            "shape": self.shape,
            "side": self.side,
            "case": self.case,
            "num_rows": self.num_rows,
            "tokens_per_s": median(rates),
            "decode_tokens_per_s": median(decoding) if decoding else None,
            "rounds": [round(rate, 2) for rate in rates],
        }


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long to measure."""

    rows: tuple[int, ...]
    most_rounds: int
    turn_s: float  # least
    shape_s: float  # no round begins that would end later than this; there is at least one
    own_rounds: int  # of our engine, after the others
    num_tokens: int = NEW_TOKENS


def plans(shape: Shape, folder: Path, num_threads: int, peers: Peers) -> list[Plan]:
    """The sides for a shape whose models are in `folder`."""
    threads, plain = str(num_threads), str(folder / "llama")
    openmp = (("OMP_NUM_THREADS", threads),)
    found = [
        Plan(name=OURS, module="engine_side", arguments=(shape.name, threads, "compiled")),
        Plan(
            name=TRANSFORMERS,
            module="transformers_side",
            arguments=(shape.name, plain, threads),
            environment=openmp,
        ),
    ]
    if shape.is_widened:
        found.append(Plan(name=TORCH_STEP, module="engine_side", arguments=(shape.name, threads, "torch")))
    if peers.vllm is not None:
        wanted = (*openmp, *vllm_environment(peers.vllm))
        for name, dtype in ((VLLM, "float32"), (VLLM_BF16, "bfloat16")):
            arguments: tuple[str, ...] = (shape.name, plain, dtype, threads)
            found.append(
                Plan(name=name, module="vllm_side", arguments=arguments, python=peers.vllm, environment=wanted)
            )
    if peers.llama_cpp is not None:
        arguments, python = (shape.name, str(folder), threads), peers.llama_cpp
        found.append(
            Plan(name=LLAMA_CPP, module="llama_cpp_side", arguments=arguments, python=python, environment=openmp)
        )
    return found


def vllm_environment(python: Path) -> tuple[tuple[str, str], ...]:
    """What vLLM wants loaded before it: an OpenMP, without which it binds all its threads to one core, and tcmalloc, if
    this machine has it."""
    candidates = (
        found
        for pattern in ("lib/libiomp5.so", "lib/python*/site-packages/torch/lib/libgomp*", "lib/python*/**/libgomp*")
        for found in python.parents[1].glob(pattern)
    )
    loaded = [str(next(candidates, "")), find_library("tcmalloc_minimal") or ""]
    # Its threads would spin for 0.2 s after each turn, which is the time of another side.
    return ("LD_PRELOAD", ":".join(filter(None, loaded))), ("KMP_BLOCKTIME", "1")


def measure_shape(
    shape: Shape, pace: Pace, num_threads: int, peers: Peers
) -> tuple[list[Series], dict[str, dict[str, Any]], dict[str, str]]:
    """All cells of a shape, round after round: the series, and of the sides what they are and why some were left out.

    Raises:
        RuntimeError: the models cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="compare-") as name:
        folder = Path(name)
        command = [sys.executable, "-m", "loadtests.compare.shapes", shape.name, name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"no models of {shape.name}: {done.stderr.strip()[-500:]}")
        with Sides(plans(shape, folder, num_threads, peers)) as sides:
            series = run_rounds(sides, cells_of(shape), shape, pace)
            return series, dict(sides.facts), dict(sides.skipped)


def cells_of(shape: Shape) -> list[Cell]:
    return [cell for cell in CELLS if shape.is_widened or (cell.side, cell.case) in LARGE]


def run_rounds(sides: Sides, cells: Sequence[Cell], shape: Shape, pace: Pace) -> list[Series]:
    """A short round that does not count; as many as there is time for; and some of our engine alone, whose own ratios
    want more of them. Each has an order of its own."""
    most = max(pace.rows)
    series = {
        (cell, rows): Series(shape=shape.name, side=cell.side, case=cell.case, num_rows=rows)
        for cell in cells
        for rows in pace.rows
        if cell.is_for_few or rows == most
    }
    seeds, rng = count(step=10_000), random.Random(0)  # a turn has fewer repetitions

    def run_round(name: str, num_tokens: int, turn_s: float, keep: Callable[[Cell], bool]) -> list[tuple[Series, Done]]:
        began, found = time.monotonic(), []
        pairs = [pair for pair in series if keep(pair[0])]
        rng.shuffle(pairs)
        for cell, rows in pairs:
            if sides.has(cell.side):
                turn = Turn(case=cell.case, num_rows=rows, num_tokens=num_tokens, seed=next(seeds), min_s=turn_s)
                if (done := sides.measure(cell.side, turn)) is not None:
                    found.append((series[cell, rows], done))
        print(f"{shape.name}, {name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        return found

    run_round("warming up", WARM_TOKENS, 0.0, lambda _: True)
    began, last_s = time.monotonic(), 0.0
    measured: list[tuple[Series, Done]] = []
    for number in range(1, pace.most_rounds + 1):
        if number > 1 and time.monotonic() - began + last_s > pace.shape_s:
            break
        last_s = -time.monotonic()
        measured += run_round(f"round {number}", pace.num_tokens, pace.turn_s, lambda _: True)
        last_s += time.monotonic()
    for number in range(1, pace.own_rounds + 1):
        measured += run_round(f"own round {number}", pace.num_tokens, pace.turn_s, lambda cell: cell.side == OURS)
    for one, done in measured:
        one.rounds.append(done)
    return [one for one in series.values() if one.rounds]
