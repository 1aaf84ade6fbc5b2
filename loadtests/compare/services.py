"""The second part of the comparison: the service beside its engine alone, and beside the service of an older commit.

They take turns, never at once: completions over HTTP, whole and streamed, and traces over gRPC.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from loadtests.asking import RefusedError, Served, find
from loadtests.compare.client import HttpError, load_http
from loadtests.compare.measured.worker import Turn
from loadtests.compare.older import Checkout, checkout, present
from loadtests.compare.sides import Plan, Side, SideError
from loadtests.engine_alone import EngineAlone, Limits
from loadtests.inputs import plain_texts
from loadtests.local_service import local_service
from loadtests.trace_throughput import measure_grpc
from service.client.client import CallError

IN_FLIGHT = (1, 8, 32)
NUM_TEXTS = 1024
NUM_WORDS = 26  # about 32 tokens
NUM_TOKENS = 64
MODEL_ID = "compared"
START_TIMEOUT_S = 120.0
TRACES_PER_TURN = 100_000
ENGINE, NEW, OLD = "engine alone", "service", "old service"
#: Kind of request and number in flight.
MEASURED = (*((kind, n) for kind in ("whole", "stream") for n in IN_FLIGHT), ("traces", 32))
FAILURES = (CallError, HttpError, RefusedError, EOFError, OSError, SideError, RuntimeError, httpx.HTTPError)


def texts(seed: int) -> list[str]:
    """Prompts of a turn: others in each, so that nothing of an earlier turn may be found in a prefix cache."""
    return list(plain_texts(NUM_TEXTS, NUM_WORDS, seed))


@dataclass(kw_only=True)
class Series:
    """The rounds of one kind of request and number in flight."""

    kind: str
    in_flight: int
    who: str
    tokens_per_s: list[float] = field(default_factory=list)  # generated; of traces, traced
    first_token_ms: list[float] = field(default_factory=list)  # medians over a round's streams

    def fields(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "in_flight": self.in_flight,
            "who": self.who,
            "tokens_per_s": median(self.tokens_per_s),
            "first_token_ms": median(self.first_token_ms) if self.first_token_ms else None,
            "rounds": [round(rate, 2) for rate in self.tokens_per_s],
        }


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long to measure."""

    num_rounds: int
    turn_s: float
    measured: tuple[tuple[str, int], ...] = MEASURED


class Bench:
    """All that takes turns, running."""

    def __init__(self, generating: Side, tracing: EngineAlone, served: dict[str, Served]) -> None:
        self._generating, self._tracing, self._served = generating, tracing, served

    @property
    def names(self) -> list[str]:
        return [ENGINE, *self._served]

    def measure(self, series: Series, seconds: float, seed: int) -> None:
        """A turn, added to its series."""
        inputs = texts(seed)
        if series.kind == "traces":
            limits = Limits(seconds=seconds, num_traces=TRACES_PER_TURN)
            if series.who == ENGINE:
                done = self._tracing.measure(self._tracing.encode(inputs), series.in_flight, limits)
            else:
                served = self._served[series.who]
                done = asyncio.run(
                    measure_grpc(served.target, served.api_key, served.model_id, inputs, series.in_flight, limits)
                )
            series.tokens_per_s.append(done.tokens_per_s)
        elif series.who == ENGINE:
            turn = Turn(case="", num_rows=series.in_flight, num_tokens=NUM_TOKENS, seed=seed, min_s=seconds)
            series.tokens_per_s.append(self._generating.measure(turn).tokens_per_s)
        else:
            is_stream = series.kind == "stream"
            served = self._served[series.who]
            http = asyncio.run(load_http(served, inputs, NUM_TOKENS, series.in_flight, seconds, is_stream=is_stream))
            series.tokens_per_s.append(http.tokens_per_s)
            if http.first_token_s:
                series.first_token_ms.append(1000 * median(http.first_token_s))


def measure_services(
    model: Path, num_threads: int, against: str | None, pace: Pace
) -> tuple[list[Series], dict[str, Any], dict[str, str]]:
    """All rounds; then what ran, and why something was left out."""
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        try:
            bench, facts = start(stack, model, num_threads, against, skipped)
        except FAILURES as error:
            skip(skipped, "all of the services", error)
            return [], {}, skipped
        return run_rounds(bench, pace, skipped), facts, skipped


def skip(skipped: dict[str, str], name: str, error: Exception) -> None:
    skipped[name] = f"{type(error).__name__}: {error}"[:500]
    print(f"left out: {name}: {skipped[name]}", file=sys.stderr)


def start(
    stack: ExitStack, model: Path, num_threads: int, against: str | None, skipped: dict[str, str]
) -> tuple[Bench, dict[str, Any]]:
    """Start everything; if the older commit cannot be had, it is left out."""
    logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-")))
    versions = {NEW: present()}
    served = {NEW: stack.enter_context(serving(versions[NEW], model, num_threads, logs / "new.log"))}
    if against is not None:
        try:
            versions[OLD] = stack.enter_context(checkout(against))
            plain = without_code(model, logs / "model")
            served[OLD] = stack.enter_context(serving(versions[OLD], plain, num_threads, logs / "old.log"))
        except FAILURES as error:
            skip(skipped, OLD, error)
    generating = Side(Plan(name=ENGINE, module="alone_side", arguments=(str(model), str(num_threads))))
    stack.callback(generating.stop)
    generating.wait_started(time.monotonic() + START_TIMEOUT_S)
    tracing = stack.enter_context(EngineAlone(model, num_threads, "cpu"))
    commits = {name: versions[name].commit for name in served}
    return Bench(generating, tracing, served), {"commits": commits, "num_threads": num_threads, "model": model.name}


def without_code(model: Path, folder: Path) -> Path:
    """The model as links in a new folder, but for the entry that names code for transformers, which older commits
    refuse."""
    folder.mkdir()
    for path in model.resolve().iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    fields = json.loads((model / "config.json").read_text())
    fields.pop("auto_map", None)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@contextmanager
def serving(version: Checkout, model: Path, num_threads: int, log: Path) -> Iterator[Served]:
    """A commit's service with its own defaults but for model and threads.

    Raises:
        RuntimeError, httpx.HTTPError: it did not start, or not end by itself.
    """
    options = ["--model", str(model.resolve()), "--model-id", MODEL_ID, "--num-threads", str(num_threads)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOPK_")}
    environment["PYTHONPATH"] = str(version.folder)
    with local_service(options, log, python=version.python, folder=version.folder, environment=environment) as service:
        yield find(service.url, service.target)


def run_rounds(bench: Bench, pace: Pace, skipped: dict[str, str]) -> list[Series]:
    """For each kind of request a short turn of all that does not count, then the rounds, each begun by another."""
    found: list[Series] = []
    seeds = iter(range(1, 1_000_000))
    for kind, in_flight in pace.measured:
        series = [Series(kind=kind, in_flight=in_flight, who=who) for who in bench.names]
        for number in range(-1, pace.num_rounds):
            first = number % len(series)
            for one in (*series[first:], *series[:first]):
                try:
                    if number < 0:
                        warm = Series(kind=kind, in_flight=in_flight, who=one.who)
                        bench.measure(warm, pace.turn_s / 3, next(seeds))
                    else:
                        bench.measure(one, pace.turn_s, next(seeds))
                except FAILURES as error:
                    skip(skipped, f"{one.who}, {kind}, {in_flight} in flight, round {number + 1}", error)
        measured = [one for one in series if one.tokens_per_s]
        found += measured
        rates = ", ".join(f"{one.who} {median(one.tokens_per_s):.0f}" for one in measured)
        print(f"{kind}, {in_flight} in flight, tokens/s: {rates}", file=sys.stderr)
    return found
