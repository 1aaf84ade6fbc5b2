"""The engine alone, in its own process: an upper bound for a service. Knows no transport and no text."""

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 30.0

Device = Literal["auto", "cpu", "cuda"]
TokenIds = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a measurement stops starting traces; those in progress are still finished and counted."""

    seconds: float
    num_traces: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The work done, and the time it took."""

    num_traces: int
    num_tokens: int
    num_entries: int  # kept neurons
    elapsed_s: float

    @property
    def traces_per_s(self) -> float:
        return self.num_traces / self.elapsed_s

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.elapsed_s


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The loaded model."""

    device: str
    dtype: str
    k: int
    hidden_size: int
    layers: tuple[int, ...]  # TopK layers, all of them traced
    torch_version: str


class EngineAlone:
    """A process with an engine that sleeps when it has no work; use it in a `with` statement."""

    def __init__(self, model: Path, num_threads: int, device: Device) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, model, num_threads, device), daemon=True)
        self._process.start()
        theirs.close()
        self.facts: Facts = self._answer(START_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()
        self._process.join(END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of texts, as in the service."""
        return self._ask("encode", 60.0, texts)

    def trace(self, prompt: TokenIds) -> tuple[bytes, ...]:
        """Offsets, indices and values of one trace as little-endian bytes, the values as float32."""
        return self._ask("trace", 60.0, prompt)

    def measure(self, prompts: Sequence[TokenIds], in_flight: int, limits: Limits) -> Measurement:
        """Trace prompts repeatedly, `in_flight` at a time."""
        return self._ask("measure", limits.seconds + 120.0, prompts, in_flight, limits)

    def _ask(self, name: str, timeout_s: float, *arguments: Any) -> Any:
        self._connection.send((name, arguments))
        return self._answer(timeout_s)

    def _answer(self, timeout_s: float) -> Any:
        """Raises RuntimeError if the process fails, TimeoutError if it is silent."""
        if not self._connection.poll(timeout_s):
            raise TimeoutError(f"the engine's process has not answered for {timeout_s:g} s")
        try:
            is_fine, result = self._connection.recv()
        except EOFError:
            raise RuntimeError("the engine's process has ended; see what it printed") from None
        if not is_fine:
            raise RuntimeError(f"the engine alone: {result}")
        return result


def serve(connection: Connection, model: Path, num_threads: int, device: Device) -> None:
    """Answer requests from `connection` until it is closed."""
    try:
        bench = Bench(model, num_threads, device)
    except (OSError, ValueError) as error:
        connection.send((False, str(error)))
        return
    connection.send((True, bench.facts))
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, getattr(bench, name)(*arguments)))
        except (ValueError, RuntimeError) as error:
            connection.send((False, str(error)))


class Bench:
    """An engine whose steps run here, one after the other."""

    def __init__(self, model: Path, num_threads: int, device: Device) -> None:
        # Only this process needs torch.
        import torch

        from service.engine.config import EngineConfig
        from service.engine.core import EngineCore
        from service.text import TextTokenizer
        from topk_model.checkpoints import load_model
        from topk_model.traces import TraceSpec

        loaded, tokenizer = load_model(model, device=device)
        self.tokenizer = TextTokenizer(tokenizer)
        self.core = EngineCore(loaded, EngineConfig(num_threads=num_threads))
        config = loaded.config
        self.spec = TraceSpec(layers=tuple(config.topk_layers))
        self.width = config.hidden_size
        self.facts = Facts(
            device=str(loaded.device),
            dtype=str(loaded.dtype).removeprefix("torch."),
            k=config.topk_k,
            hidden_size=config.hidden_size,
            layers=self.spec.layers,
            torch_version=torch.__version__,
        )

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        return [self.tokenizer.encode(text) for text in texts]

    def trace(self, prompt: TokenIds) -> tuple[bytes, ...]:
        import numpy as np

        from topk_model.traces import MAX_UINT16_WIDTH, concatenate, packed_types

        chunks: list[Any] = []
        self._run(cycle([prompt]), 1, Limits(seconds=60.0, num_traces=1), chunks)
        chunk = concatenate(chunks)
        types = packed_types(np.uint16 if self.width <= MAX_UINT16_WIDTH else np.uint32, np.float32)
        return tuple(getattr(chunk, name).astype(kind).tobytes() for name, kind in types.items())

    def measure(self, prompts: Sequence[TokenIds], in_flight: int, limits: Limits) -> Measurement:
        return self._run(cycle(prompts), in_flight, limits, [])

    def _run(self, prompts: "cycle[TokenIds]", in_flight: int, limits: Limits, chunks: list[Any]) -> Measurement:
        """Keep `in_flight` prompts in the engine; if it is a single trace, its parts are stored in `chunks`."""
        from service.engine.request import EngineRequest, FinishEvent, PromptEvent

        core = self.core
        num_begun = num_done = num_tokens = num_entries = 0
        began = time.perf_counter()
        while True:
            is_open = time.perf_counter() - began < limits.seconds
            while is_open and num_begun < limits.num_traces and num_begun - num_done < in_flight:
                request = EngineRequest(
                    request_id=str(num_begun), prompt_ids=next(prompts), max_tokens=0, trace=self.spec
                )
                core.check(request)
                core.add(request)
                num_begun += 1
            if num_done == num_begun:
                break
            core.step(time.monotonic())
            for _, event in core.take_events():
                if isinstance(event, PromptEvent):
                    assert event.trace is not None
                    num_tokens += event.num_tokens
                    num_entries += event.trace.num_entries
                    if limits.num_traces == 1:
                        chunks.append(event.trace)
                elif isinstance(event, FinishEvent):
                    if event.reason != "length":
                        raise RuntimeError(f"a trace ended by {event.reason}: {event.error}")
                    num_done += 1
        return Measurement(
            num_traces=num_done,
            num_tokens=num_tokens,
            num_entries=num_entries,
            elapsed_s=time.perf_counter() - began,
        )
