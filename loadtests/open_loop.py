"""Open-loop load on a running service: `python -m loadtests.open_loop --help`.

Requests arrive at their times, whether or not earlier ones have been answered, and latencies count from then. The
client is a separate process; the record shows how busy and how late it was.
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from loadtests import RESULTS
from loadtests.asking import DEFAULT_TIMEOUT_S, Asker, Outcome, Served, find
from loadtests.inputs import check_local, service_url
from loadtests.plot import plot
from loadtests.results import Objective, Threshold, problems, summarize
from loadtests.server_metrics import NoReplicaError, ServerSample, sample, wait_idle, watch
from loadtests.workload import Workload
from service.admission import read_keys
from service.requests.limits import (
    MAX_TIMEOUT_S,
)

SAMPLE_PERIOD_S = 1.0
#: A client that sends this late, in ms, measures itself.
SOUND_CLIENT = "client.p99_lateness_ms<=100"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run: the outcome of every call, in order of arrival, and the record made from them."""

    outcomes: tuple[Outcome, ...]
    samples: tuple[ServerSample, ...]
    record: dict[str, Any]


async def run_open_loop(
    served: Served,
    workload: Workload,
    objective: Objective,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    sample_period_s: float = SAMPLE_PERIOD_S,
    alongside: Callable[[Callable[[], float]], Awaitable[None]] | None = None,
) -> Run:
    """Run a workload on a service, wait for its last answer, and then for the service to become idle.

    Args:
        timeout_s: a call that has not ended by then has failed.
        sample_period_s: how often the service's metrics are read.
        alongside: work to be done at the same time, given the run's clock; it is cancelled after the last answer.

    Raises:
        httpx.HTTPError: the service does not return its metrics at the beginning.
        NoReplicaError: no replica does, at the beginning or at the end.
    """
    calls = list(workload.calls(served.topk_layers, served.hidden_size))
    samples: list[ServerSample] = []
    headers = {} if served.api_key is None else {"Authorization": f"Bearer {served.api_key}"}
    async with (
        Asker(served, timeout_s) as asker,
        httpx.AsyncClient(base_url=served.url, headers=headers, timeout=10) as http,
    ):
        # Connections, the first read of the metrics and the calls' memory must not slow any request.
        await asker.connect()
        await sample(http, 0.0)
        gc.collect()
        gc.freeze()
        asker.begin()
        cpu_before = time.process_time()
        helpers = [asyncio.create_task(watch(http, asker.now, sample_period_s, samples))]
        if alongside is not None:
            helpers.append(asyncio.ensure_future(alongside(asker.now)))
        asked = []
        for call in calls:
            await asyncio.sleep(max(0.0, call.arrival_s - asker.now()))
            asked.append(asyncio.create_task(asker.ask(call)))
        outcomes = await asyncio.gather(*asked)
        duration_s, cpu_s = asker.now(), time.process_time() - cpu_before
        for helper in helpers:
            helper.cancel()
        for result in await asyncio.gather(*helpers, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
        after = await wait_idle(http, asker.now)
    record = summarize(outcomes, duration_s, objective)
    record["client"] |= {"cpu_share": cpu_s / duration_s}
    record["server_after"] = {
        "num_running": after.num_running,
        "num_waiting": after.num_waiting,
        "kv_cache_usage": after.kv_cache_usage,
        "is_idle_after_s": after.elapsed_s - duration_s,
    }
    record["max_waiting"] = max((one.num_waiting for one in samples), default=0.0)
    record["max_running"] = max((one.num_running for one in samples), default=0.0)
    return Run(outcomes=tuple(outcomes), samples=tuple(samples), record=record | settings(served, workload, objective))


def settings(served: Served, workload: Workload, objective: Objective) -> dict[str, Any]:
    """The requests, the service and the machine, for the record."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": "topk",
        "model_id": served.model_id,
        "request_rate": workload.rate,
        "workload": {**asdict(workload), "mix": {kind.name: kind.share for kind in workload.mix}},
        "objective": asdict(objective),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "num_cpus": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg()[0],
            "python": platform.python_version(),
        },
    }


def save(run: Run, path: Path, title: str) -> None:
    """Write the record as JSON, and the plot next to it as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run.record, indent=2) + "\n")
    plot(run.outcomes, run.samples, path.with_suffix(".png"), title)


def table(record: dict[str, Any]) -> str:
    """The most important figures, as text."""
    lines = [
        f"{record['num_prompts']} requests in {record['duration']:.0f} s at {record['request_rate']:.2f}/s: "
        f"{record['completed']} answered, {record['refused']} refused, {record['failed']} failed, "
        f"{record['cancelled']} left by the client; good {shown(record['goodput_ratio'], '.2%')}, "
        f"{record['output_throughput']:.0f} tokens/s",
        f"{'ms':>8}  {'mean':>8} {'p50':>8} {'p90':>8} {'p99':>8}",
    ]
    for name in ("ttft", "tpot", "itl", "e2el"):
        values = (record[f"{statistic}_{name}_ms"] for statistic in ("mean", "p50", "p90", "p99"))
        lines.append(f"{name:>8}  " + " ".join(f"{shown(value, '.1f'):>8}" for value in values))
    if record["refused"]:
        refusals = record["refusals"]
        lines.append(
            f"refusals: p50 {refusals['p50_latency_ms']:.0f}, p99 {refusals['p99_latency_ms']:.0f} ms; "
            f"Retry-After {refusals['retry_after_s']}, {refusals['without_retry_after']} without"
        )
    if record["errors"]:
        lines.append(f"errors: {record['errors']}")
    changes = ", ".join(f"{name} {shown(ratio, '.2f')}" for name, ratio in record["drift"].items())
    lines.append(f"last third over first: {changes}")
    client, after = record["client"], record["server_after"]
    lines.append(
        f"client: {client['cpu_share']:.0%} of a core, p99 {client['p99_lateness_ms']:.1f} ms late; service: at most "
        f"{record['max_waiting']:.0f} waiting, {record['max_running']:.0f} running; afterwards "
        f"{after['num_running']:.0f} running, {after['num_waiting']:.0f} waiting, {after['kv_cache_usage']:.1%} of the "
        f"KV cache, {after['is_idle_after_s']:.1f} s after the last answer"
    )
    return "\n".join(lines)


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """The options that define the requests."""
    defaults = Workload(rate=1, seconds=1)
    add = parser.add_argument
    add("--prompt-words", type=int, nargs=2, default=defaults.prompt_words, help="shortest and longest (4 160)")
    add("--output-tokens", type=int, nargs=2, default=defaults.output_tokens, help="fewest and most (8 128)")
    add("--seed", type=int, default=0, help="seed of the arrivals and the requests (%(default)s)")
    add("--ttft-s", type=float, default=Objective.ttft_s, help="good: first token within (%(default)s)")
    add("--tpot-s", type=float, default=Objective.tpot_s, help="good: each further token within (%(default)s)")


def workload_of(given: argparse.Namespace, rate: float, seconds: float) -> Workload:
    """Raises ValueError like `Workload`."""
    return Workload(
        rate=rate,
        seconds=seconds,
        seed=given.seed,
        prompt_words=tuple(given.prompt_words),
        output_tokens=tuple(given.output_tokens),
    )


def objective_of(given: argparse.Namespace) -> Objective:
    return Objective(ttft_s=given.ttft_s, tpot_s=given.tpot_s)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.open_loop", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="the service's HTTP address (%(default)s)")
    add("--target", default="127.0.0.1:9000", help="its gRPC address (%(default)s)")
    add("--api-key-file", type=Path, help="file with the service's API key")
    add("--rate", type=float, required=True, help="mean number of requests per second, a Poisson process")
    add("--seconds", type=float, default=60.0, help="time during which requests arrive (%(default)s)")
    add("--timeout-s", type=float, default=DEFAULT_TIMEOUT_S, help="maximum time of a request (%(default)s)")
    add("--threshold", action="append", default=[], help="a bound such as p99_ttft_ms<=1000; may be given repeatedly")
    add("--output", type=Path, default=RESULTS / "open_loop.json", help="record to write, and a .png (%(default)s)")
    add("--allow-remote", action="store_true", help="load a service on another machine, which must be yours")
    add_workload_options(parser)
    given = parser.parse_args(arguments)
    try:
        check_local(given.target, given.allow_remote)
        given.url = service_url(given.url, given.allow_remote)
        if not 0 < given.timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(f"--timeout-s is {given.timeout_s:g}, must be above 0 and at most {MAX_TIMEOUT_S:g}")
        for text in given.threshold:
            Threshold.parse(text)
        workload = workload_of(given, given.rate, given.seconds)
        key = None if given.api_key_file is None else read_keys(given.api_key_file)[0]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        served = find(given.url, given.target, key)
        run = asyncio.run(run_open_loop(served, workload, objective_of(given), timeout_s=given.timeout_s))
    except (httpx.HTTPError, TimeoutError, NoReplicaError) as error:
        print(f"open_loop: error: {given.url} or {given.target} does not answer: {error}", file=sys.stderr)
        return 1
    found = problems(run.record, [*given.threshold, SOUND_CLIENT])
    run = replace(run, record=run.record | {"problems": found})
    save(run, given.output, f"{given.rate:g} requests/s")
    print(table(run.record))
    for problem in found:
        print(f"FAILED  {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
