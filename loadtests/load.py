"""The complete load test of a service on this machine: `python -m loadtests.load --help`, or `make load`.

Starts the service, finds its capacity, loads it with 70 % of that and then with three times as much, and ends with
status 1 if a threshold is not met.
"""

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtests import RESULTS
from loadtests.asking import Served, find
from loadtests.capacity import FIRST_RATE, find_capacity
from loadtests.local_service import exit_status, local_service
from loadtests.open_loop import (
    SOUND_CLIENT,
    Run,
    add_workload_options,
    objective_of,
    run_open_loop,
    save,
    table,
    workload_of,
)
from loadtests.results import Objective, problems

SHARE = 0.7
EXCESS = 3.0
#: Maximum ratio of a figure under overload to the same figure at 70 %.
MAX_SLOWDOWN = 2.0

AT_REST = (
    "server_after.num_running<=0",
    "server_after.num_waiting<=0",
    "server_after.kv_cache_usage<=0",
)
BELOW_CAPACITY = (
    "failed<=0",
    "refused<=0",
    "goodput_ratio>=0.99",
    "drift.median_ttft<=1.25",
    "drift.median_tpot<=1.25",
    "drift.p90_ttft<=1.5",
    "drift.p90_tpot<=1.5",
    *AT_REST,
    SOUND_CLIENT,
)
#: "failed" includes hung calls: a call that has not ended after its timeout has failed.
OVER_CAPACITY = (
    "failed<=0",
    "refused>=1",
    "refusals.without_retry_after<=0",
    "refusals.p50_latency_ms<=100",
    "refusals.p99_latency_ms<=500",
    "p99_ttft_ms<=1000",
    *AT_REST,
    SOUND_CLIENT,
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The runs, and their length."""

    options: argparse.Namespace
    objective: Objective
    folder: Path

    def measure(self, served: Served, name: str, rate: float, seconds: float) -> Run:
        """One run, reported on standard error."""
        print(f"\n{name}: {rate:.2f} requests/s for {seconds:g} s", file=sys.stderr)
        workload = workload_of(self.options, rate, seconds)
        run = asyncio.run(run_open_loop(served, workload, self.objective))
        print(table(run.record), file=sys.stderr)
        return run

    def keep(self, run: Run, name: str, found: Sequence[str]) -> list[str]:
        """Save a run and what is wrong with it; returns the latter, under the run's name."""
        save(replace(run, record=run.record | {"problems": list(found)}), self.folder / f"{name}.json", name)
        return [f"{name}: {problem}" for problem in found]


def over_capacity(record: dict[str, Any]) -> list[str]:
    """Thresholds of the overload, from the record at 70 %."""
    figures = ("p99_e2el_ms", "p99_tpot_ms")
    relative = [f"{name}<={MAX_SLOWDOWN * record[name]}" for name in figures if record[name] is not None]
    return [*OVER_CAPACITY, *relative]


def run(job: Job, served: Served) -> list[str]:
    """Run everything; returns what is wrong, and writes the records to the job's folder.

    Raises:
        RuntimeError: as for `find_capacity`.
        ValueError: at the measured capacity there are more requests than a workload may have.
        httpx.HTTPError: the service does not answer.
    """
    given = job.options
    summary: dict[str, Any] = {"capacity": given.capacity}
    if given.capacity is None:
        print("capacity: searching for the highest rate with 99 % of answers good", file=sys.stderr)
        at = lambda rate, seconds: workload_of(given, rate, seconds)  # noqa: E731
        summary["capacity"], summary["stages"] = find_capacity(served, at, job.objective, given.stage_seconds)
    capacity: float = summary["capacity"]
    below = job.measure(served, "below", SHARE * capacity, given.seconds)
    found = job.keep(below, "below", problems(below.record, BELOW_CAPACITY))
    over = job.measure(served, "over", EXCESS * capacity, given.overload_seconds)
    found += job.keep(over, "over", problems(over.record, over_capacity(below.record)))
    names = ("p99_ttft_ms", "p99_tpot_ms", "p99_e2el_ms")
    summary["over_to_below"] = {
        name: over.record[name] / below.record[name] for name in names if over.record[name] and below.record[name]
    }
    (job.folder / "summary.json").write_text(json.dumps(summary | {"problems": found}, indent=2) + "\n")
    ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in summary["over_to_below"].items())
    print(f"\ncapacity {capacity:.2f} requests/s; three times that over 70 % of it: {ratios}\nrecords: {job.folder}")
    return found


def parse(arguments: Sequence[str] | None) -> Job:
    parser = argparse.ArgumentParser(prog="python -m loadtests.load", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--seconds", type=float, default=600.0, help="length of the run at 70 %% (%(default)s)")
    add("--overload-seconds", type=float, default=90.0, help="length of the run above capacity (%(default)s)")
    add("--stage-seconds", type=float, default=30.0, help="time for which the search tries a rate (%(default)s)")
    add("--capacity", type=float, help="requests per second, if known (default: search for it)")
    add("--service", default="", help="further options of topk serve, such as '--num-threads 1 --proxy python'")
    add("--output", type=Path, help="folder for the records (default: loadtests/results/ and the time)")
    add_workload_options(parser)
    given = parser.parse_args(arguments)
    capacity = FIRST_RATE if given.capacity is None else given.capacity  # the lowest rate of the search
    try:
        workload_of(given, FIRST_RATE, given.stage_seconds)
        workload_of(given, SHARE * capacity, given.seconds)
        workload_of(given, EXCESS * capacity, given.overload_seconds)
    except ValueError as error:
        parser.error(str(error) if given.capacity is None else f"with --capacity {given.capacity:g}, {error}")
    folder = given.output or RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-load"
    folder.mkdir(parents=True, exist_ok=True)
    return Job(options=given, objective=objective_of(given), folder=folder)


def main(arguments: Sequence[str] | None = None) -> int:
    job = parse(arguments)
    options = shlex.split(job.options.service)

    def work() -> list[str]:
        with local_service(options, job.folder / "service.log") as service:
            return run(job, find(service.url, service.target))

    return exit_status("load", work, ValueError)


if __name__ == "__main__":
    sys.exit(main())
