"""The engine of a service by itself, asked for completions: `python -m … MODEL NUM_THREADS`.

Requests come as a service's would: another one as soon as one has ended.
"""

import sys
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import torch

from loadtests.compare.measured.worker import Done, Measure, Turn, serve
from loadtests.compare.services import texts
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.request import EngineRequest, Event, FinishEvent, SamplingParams, TokenEvent
from service.text import TextTokenizer
from topk_model.checkpoints import load_model

TIMEOUT_S = 120.0


class Loop:
    """Requests in flight until the time is over; what is under way then is finished, and counted."""

    def __init__(self, engine: Engine, requests: list[EngineRequest], in_flight: int, seconds: float) -> None:
        self.is_done = threading.Event()
        self.num_tokens, self.failures = 0, set[str]()
        self._engine, self._requests, self._numbers = engine, requests, count()
        self._num_open, self._seconds = in_flight, seconds
        self.began = self.ended = self._until = 0.0

    def begin(self) -> None:
        """Submit the first requests; from now on the engine's events must come here."""
        self.began = time.perf_counter()
        self._until = self.began + self._seconds
        self._engine.submit([self._next() for _ in range(self._num_open)])

    def take(self, events: list[tuple[str, Event]]) -> None:
        """Note a step's events; in the engine's thread."""
        for _, event in events:
            if isinstance(event, TokenEvent):
                self.num_tokens += 1
            elif isinstance(event, FinishEvent):
                if event.reason != "length":
                    self.failures.add(f"{event.reason} {event.error or ''}".strip())
                if time.perf_counter() < self._until:
                    self._engine.submit([self._next()])
                else:
                    self._num_open -= 1
        if not self._num_open:
            self.ended = time.perf_counter()
            self.is_done.set()

    def _next(self) -> EngineRequest:
        return self._requests[next(self._numbers) % len(self._requests)]


def load() -> tuple[dict[str, Any], Measure]:
    folder, num_threads = sys.argv[1:]
    torch.set_num_threads(int(num_threads))
    model, fast = load_model(Path(folder), device="cpu")
    tokenizer = TextTokenizer(fast)
    loop: Loop | None = None

    def on_events(events: list[tuple[str, Event]]) -> None:
        assert loop is not None
        loop.take(events)

    engine = Engine(model, EngineConfig(num_threads=int(num_threads)), on_events)
    engine.start()

    def measure(turn: Turn) -> Done:
        nonlocal loop
        requests = [
            EngineRequest(
                request_id=str(number),
                prompt_ids=tokenizer.encode(text),
                max_tokens=turn.num_tokens,
                sampling=SamplingParams(seed=number),
                ignore_eos=True,
            )
            for number, text in enumerate(texts(turn.seed))
        ]
        loop = Loop(engine, requests, turn.num_rows, turn.min_s)
        loop.begin()
        if not loop.is_done.wait(turn.min_s + TIMEOUT_S):
            raise RuntimeError(f"the requests have not ended after {TIMEOUT_S:g} s")
        if loop.failures:
            raise RuntimeError(f"a request ended by {', '.join(sorted(loop.failures))}")
        return Done(num_tokens=loop.num_tokens, elapsed_s=loop.ended - loop.began)

    return {"torch": torch.__version__, "model": folder}, measure


if __name__ == "__main__":
    serve(load)
