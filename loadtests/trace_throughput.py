"""Traces per second over gRPC against the engine alone, in one run: `python -m loadtests.trace_throughput --help`.

The two alternate, never at the same time, on the same texts with the same number in flight, over several rounds; the
median counts. The service gets texts and the engine token ids, so the ratio includes everything that the service does.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import httpx

from loadtests import RESULTS
from loadtests.engine_alone import Device, EngineAlone, Facts, Limits, Measurement, TokenIds
from loadtests.inputs import check_local, plain_texts, service_url
from loadtests.trace_sizes import MAX_TEXTS, TraceSize, measure_sizes
from service.client.client import DEFAULT_MAX_MESSAGE_BYTES, CallError, Client, texts
from service.client.export import choose_model
from service.pb import topk_pb2 as pb
from service.pb.topk_pb2_grpc import TopKServiceStub
from topk_model.model_folder import DEFAULT_MODEL

IN_FLIGHT = (1, 8, 32)
CALL_TIMEOUT_S = 120.0
#: Texts whose traces are compared, service against engine, before anything is measured.
NUM_COMPARED = 4
MAX_RUN_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is measured, and its maximum time.

    Raises:
        ValueError: a number is out of range, or the total would take longer than an hour.
    """

    target: str
    url: str
    model: Path
    model_id: str | None
    api_key: str | None = field(repr=False)
    device: Device
    num_threads: int
    in_flight: tuple[int, ...]
    num_rounds: int
    seconds: float
    max_traces: int
    num_texts: int
    num_words: int
    seed: int

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_threads", 1, 1024), ("num_rounds", 1, 50), ("seconds", 0.1, 120), ("max_traces", 1, 10**6),
            ("num_texts", 1, 4096), ("num_words", 1, 2048),
        ):  # fmt: skip
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"{name} is {value}, but must be {low} to {high}")
        if not self.in_flight or not all(1 <= number <= 256 for number in self.in_flight):
            raise ValueError(f"in_flight is {self.in_flight}, but each must be 1 to 256")
        if self.expected_s > MAX_RUN_S:
            raise ValueError(f"this would take {self.expected_s:.0f} s, but at most {MAX_RUN_S:.0f} s are allowed")

    @property
    def expected_s(self) -> float:
        return 2 * len(self.in_flight) * (self.num_rounds + 1) * self.seconds


@dataclass(frozen=True, kw_only=True)
class Round:
    """One turn of each, immediately after each other."""

    in_flight: int
    engine: Measurement
    grpc: Measurement


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Medians over the rounds."""

    in_flight: int
    engine_traces_per_s: float
    grpc_traces_per_s: float
    engine_tokens_per_s: float
    grpc_tokens_per_s: float
    ratio: float  # of the medians, in tokens/s
    lowest_ratio: float  # of a round
    highest_ratio: float


def summarize(in_flight: int, rounds: Sequence[Round]) -> Summary:
    of_rounds = [r.grpc.tokens_per_s / r.engine.tokens_per_s for r in rounds]
    engine = median(r.engine.tokens_per_s for r in rounds)
    over_grpc = median(r.grpc.tokens_per_s for r in rounds)
    return Summary(
        in_flight=in_flight,
        engine_traces_per_s=median(r.engine.traces_per_s for r in rounds),
        grpc_traces_per_s=median(r.grpc.traces_per_s for r in rounds),
        engine_tokens_per_s=engine,
        grpc_tokens_per_s=over_grpc,
        ratio=over_grpc / engine,
        lowest_ratio=min(of_rounds),
        highest_ratio=max(of_rounds),
    )


async def measure_grpc(
    target: str, api_key: str | None, model_id: str, inputs: Sequence[str], in_flight: int, limits: Limits
) -> Measurement:
    """Request one trace after the other, `in_flight` at a time; replies are parsed, but their bytes are not read.

    Raises:
        CallError: a call failed.
    """
    metadata = [] if api_key is None else [("authorization", f"Bearer {api_key}")]
    requests = cycle([pb.ActivationsRequest(model=model_id, input=pb.Prompt(text=text)) for text in inputs])
    num_begun = num_done = num_tokens = num_bytes = 0
    async with grpc.aio.insecure_channel(
        target, options=[("grpc.max_receive_message_length", DEFAULT_MAX_MESSAGE_BYTES)]
    ) as channel:
        # The connection is made before the clock starts.
        await asyncio.wait_for(channel.channel_ready(), CALL_TIMEOUT_S)
        call: Any = TopKServiceStub(channel).Activations
        began = time.perf_counter()

        async def ask_on() -> None:
            nonlocal num_begun, num_done, num_tokens, num_bytes
            while num_begun < limits.num_traces and time.perf_counter() - began < limits.seconds:
                num_begun += 1
                reply = await call(next(requests), timeout=CALL_TIMEOUT_S, metadata=metadata)
                num_done += 1
                num_tokens += len(reply.data[0].trace.token_ids)
                num_bytes += len(reply.data[0].trace.values)

        try:
            await asyncio.gather(*(ask_on() for _ in range(in_flight)))
        except grpc.aio.AioRpcError as error:
            raise CallError.of(error) from None
        elapsed_s = time.perf_counter() - began
    return Measurement(num_traces=num_done, num_tokens=num_tokens, num_entries=num_bytes // 4, elapsed_s=elapsed_s)


def check_same(job: Benchmark, engine: EngineAlone, model_id: str, inputs: Sequence[str]) -> None:
    """Check that the service and the engine alone do the same work before they are compared.

    Raises:
        ValueError: their tokens or their neurons differ.
    """
    prompts = engine.encode(inputs)
    with Client(job.target, api_key=job.api_key, timeout_s=CALL_TIMEOUT_S) as client:
        reply = client.activations(pb.ActivationsRequest(model=model_id, input=texts(inputs)))
    for text, prompt, item in zip(inputs, prompts, reply.data, strict=True):
        if tuple(item.trace.token_ids) != prompt or tuple(item.trace.layers) != engine.facts.layers:
            raise ValueError(f"{job.model} is not the served model: it reads {text[:50]!r} differently")
        mine, theirs = engine.trace(prompt), (item.trace.offsets, item.trace.indices, item.trace.values)
        # Only the CPU gives the same bits in every batch.
        same = mine == theirs if engine.facts.device == "cpu" else mine[0] == theirs[0]
        if not same:
            raise ValueError(f"{job.model} is not the served model: other neurons are active in {text[:50]!r}")


def run(job: Benchmark) -> dict[str, Any]:
    """Measure everything; returns the report as plain fields.

    Raises:
        ValueError, RuntimeError, TimeoutError, OSError: the engine or the service cannot be measured.
        CallError: a call failed.
    """
    inputs = list(plain_texts(job.num_texts, job.num_words, job.seed))
    load = os.getloadavg()[0]
    with Client(job.target, api_key=job.api_key, timeout_s=CALL_TIMEOUT_S) as client:
        model_id = choose_model(client, job.model_id).id
    limits = Limits(seconds=job.seconds, num_traces=job.max_traces)
    rounds: list[Round] = []
    with EngineAlone(job.model, job.num_threads, job.device) as engine:
        check_same(job, engine, model_id, inputs[:NUM_COMPARED])
        prompts = engine.encode(inputs)
        for in_flight in job.in_flight:
            rounds += measure_rounds(job, engine, model_id, inputs, prompts, in_flight, limits)
        facts = engine.facts
    sizes = measure_sizes(job.target, job.url, model_id, inputs[:MAX_TEXTS], job.api_key)
    return report(job, facts, rounds, sizes, load)


def measure_rounds(
    job: Benchmark,
    engine: EngineAlone,
    model_id: str,
    inputs: Sequence[str],
    prompts: Sequence[TokenIds],
    in_flight: int,
    limits: Limits,
) -> list[Round]:
    """The rounds with `in_flight`, after one that does not count."""
    rounds = []
    for number in range(-1, job.num_rounds):
        measured: dict[str, Measurement] = {}
        # They alternate, so that neither always finds the machine warm.
        for who in ("engine", "grpc") if number % 2 else ("grpc", "engine"):
            if who == "engine":
                measured[who] = engine.measure(prompts, in_flight, limits)
            else:
                measured[who] = asyncio.run(measure_grpc(job.target, job.api_key, model_id, inputs, in_flight, limits))
        turn = Round(in_flight=in_flight, **measured)
        note = f"{turn.engine.tokens_per_s:.0f} and {turn.grpc.tokens_per_s:.0f} tokens/s, engine alone and gRPC"
        name = f"round {number + 1} of {job.num_rounds}" if number >= 0 else "warming up"
        print(f"{in_flight} in flight, {name}: {note}", file=sys.stderr)
        if number >= 0:
            rounds.append(turn)
    return rounds


def report(
    job: Benchmark, facts: Facts, rounds: Sequence[Round], sizes: Sequence[TraceSize], load: float
) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(job).items() if name != "api_key"}
    summaries = [summarize(number, [r for r in rounds if r.in_flight == number]) for number in job.in_flight]
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "num_cpus": len(os.sched_getaffinity(0)),
            "load_before": load,
            "python": platform.python_version(),
        },
        "model": asdict(facts),
        "settings": settings | {"model": str(job.model)},
        "summary": [asdict(summary) for summary in summaries],
        "rounds": [asdict(turn) for turn in rounds],
        "sizes": [asdict(size) | {"bytes_per_entry": size.bytes_per_entry} for size in sizes],
    }


def tables(fields: dict[str, Any]) -> str:
    """The report as Markdown."""
    facts, machine, settings = fields["model"], fields["machine"], fields["settings"]
    lines = [
        f"{facts['device']} {facts['dtype']}, {settings['num_threads']} threads of {machine['num_cpus']} CPUs; "
        f"k {facts['k']}, {len(facts['layers'])} TopK layers; texts of about {settings['num_words']} words; "
        f"medians of {settings['num_rounds']} rounds",
        "",
        "| in flight | engine, traces/s | gRPC, traces/s | engine, tokens/s | gRPC, tokens/s | ratio | of the rounds |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in fields["summary"]:
        lines.append(
            f"| {row['in_flight']} | {row['engine_traces_per_s']:.1f} | {row['grpc_traces_per_s']:.1f} "
            f"| {row['engine_tokens_per_s']:.0f} | {row['grpc_tokens_per_s']:.0f} | {row['ratio']:.2f} "
            f"| {row['lowest_ratio']:.2f} to {row['highest_ratio']:.2f} |"
        )
    lines += ["", "| reply | bytes | kept neurons | bytes per kept neuron |", "|---|---:|---:|---:|"]
    for row in fields["sizes"]:
        numbers = f"{row['num_bytes']} | {row['num_entries']} | {row['bytes_per_entry']:.2f}"
        lines.append(f"| {row['form']} | {numbers} |")
    if machine["load_before"] > 0.2 * machine["num_cpus"]:
        lines += ["", f"Other work was running: a load of {machine['load_before']:.1f} before the first measurement."]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> tuple[Benchmark, Path]:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.trace_throughput", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--target", default="127.0.0.1:9000", help="the service's gRPC address (%(default)s)")
    add("--url", default="http://127.0.0.1:8000", help="its HTTP address, for the sizes (%(default)s)")
    add("--model", type=Path, default=DEFAULT_MODEL, help="folder of the served model")
    add("--model-id", help="name of that model in requests (default: the service's only model)")
    add("--api-key-file", type=Path, help="file with the service's API key")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="that of the service")
    add("--num-threads", type=int, default=0, help="that of the service; 0: all that this process may use")
    add("--in-flight", type=int, nargs="+", default=IN_FLIGHT, help="requests at once (1 8 32)")
    add("--rounds", type=int, default=5, help="number of turns that count (%(default)s)")
    add("--seconds", type=float, default=5.0, help="length of a turn (%(default)s)")
    add("--max-traces", type=int, default=20_000, help="maximum number of traces per turn (%(default)s)")
    add("--texts", type=int, default=256, help="number of different texts (%(default)s)")
    add("--words", type=int, default=48, help="approximate words per text (%(default)s)")
    add("--seed", type=int, default=0, help="seed of the texts (%(default)s)")
    add("--output", type=Path, default=RESULTS / "trace_throughput.json", help="JSON file to write (%(default)s)")
    add("--allow-remote", action="store_true", help="measure a service on another machine, which must be yours")
    given = parser.parse_args(arguments)
    try:
        check_local(given.target, given.allow_remote)
        job = Benchmark(
            target=given.target,
            url=service_url(given.url, given.allow_remote),
            model=given.model,
            model_id=given.model_id,
            api_key=None if given.api_key_file is None else given.api_key_file.read_text().strip(),
            device=given.device,
            num_threads=given.num_threads or len(os.sched_getaffinity(0)),
            in_flight=tuple(given.in_flight),
            num_rounds=given.rounds,
            seconds=given.seconds,
            max_traces=given.max_traces,
            num_texts=given.texts,
            num_words=given.words,
            seed=given.seed,
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return job, given.output


def main(arguments: Sequence[str] | None = None) -> int:
    job, output = parse(arguments)
    print(f"This takes about {job.expected_s / 60:.1f} minutes.", file=sys.stderr)
    try:
        fields = run(job)
    except (OSError, RuntimeError, TimeoutError, ValueError, CallError, httpx.HTTPError) as error:
        print(f"trace_throughput: error: {error}", file=sys.stderr)
        return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(fields, indent=2) + "\n")
    print(tables(fields))
    return 0


if __name__ == "__main__":
    sys.exit(main())
