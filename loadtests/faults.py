"""Faults under open-loop load: `python -m loadtests.faults kill|update --help`.

kill: a replica gets SIGKILL. update: the application is redeployed with one setting changed. Both report how many
requests failed and how, and the time until as many replicas as before answered again.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from loadtests import RESULTS
from loadtests.asking import Outcome, find
from loadtests.load import AT_REST
from loadtests.local_service import LocalService, exit_status, local_service, running, wait_ready
from loadtests.open_loop import add_workload_options, objective_of, run_open_loop, save, table, workload_of
from loadtests.results import problems
from loadtests.server_metrics import ServerSample
from service.rayserve.launcher import free_ports
from service.rayserve.process import end_session

SAMPLE_PERIOD_S = 0.25
#: A request that arrives this long after a replica's end is not one that it was answering.
AFTERMATH_S = 1.0

Alongside = Callable[[Callable[[], float]], Awaitable[None]]

#: For each fault, with either proxy. A killed replica loses the requests that it was answering. An update must not lose
#: anything at any time: replicas drain, and an old HAProxy finishes its requests.
THRESHOLDS = {
    "kill": ("hung<=0", "fault.full_service_after_s<=10", "fault.failed_later<=0", *AT_REST),
    "update": ("hung<=0", "failed<=0", "refused<=0", "fault.full_service_after_s<=120", *AT_REST),
}


@contextmanager
def updatable_service(fields: dict[str, Any], log: Path) -> Iterator[LocalService]:
    """Start `loadtests.updatable` with these settings; stop it at the end.

    Raises:
        RuntimeError: it did not start, or did not end by itself.
    """
    http_port, grpc_port = free_ports(2)
    settings = {**fields, "http_port": http_port, "grpc_port": grpc_port}
    with tempfile.TemporaryDirectory(prefix="topk-faults-") as folder:
        command = [sys.executable, "-m", "loadtests.updatable", folder, orjson.dumps(settings).decode()]
        with running(command, log) as process:
            url = f"http://127.0.0.1:{http_port}"
            wait_ready(process, url, log)
            yield LocalService(url=url, target=f"127.0.0.1:{grpc_port}", process=process, session=process.pid)
        end_session(process.pid)


def kill_at(service: LocalService, at_s: float, happened: list[float]) -> Alongside:
    """Work for `run_open_loop`: kill a replica at a given time, and record the actual time."""

    async def kill(now: Callable[[], float]) -> None:
        await asyncio.sleep(at_s - now())
        os.kill(service.replicas()[0], signal.SIGKILL)
        happened.append(now())

    return kill


def update_at(service: LocalService, at_s: float, happened: list[float]) -> Alongside:
    """Work for `run_open_loop`: request an update at a given time, and record the actual time."""

    async def update(now: Callable[[], float]) -> None:
        await asyncio.sleep(at_s - now())
        assert service.process.stdin is not None
        service.process.stdin.write(b"update\n")
        service.process.stdin.flush()
        happened.append(now())

    return update


def fault_record(
    kind: str, at_s: float, outcomes: Sequence[Outcome], samples: Sequence[ServerSample], num_replicas: int
) -> dict[str, Any]:
    """When the fault came, what failed when, and when the service was complete again.

    Complete: as many replicas as before answer, one (kill) or all (update) of them new, and nothing fails any more.
    """
    wholes = [sample for sample in samples if len(sample.replicas) == num_replicas]
    before = next((sample.replicas for sample in reversed(wholes) if sample.elapsed_s < at_s), None)
    needed = num_replicas if kind == "update" else 1
    whole = (
        sample.elapsed_s
        for sample in wholes
        if before is not None and sample.elapsed_s >= at_s and len(sample.replicas - before) >= needed
    )
    failed = sorted(o.call.arrival_s for o in outcomes if o.status == "failed" and o.ended_s >= at_s)
    replaced_s = next(whole, None)
    full_s = None if replaced_s is None else max(replaced_s, failed[-1] if failed else 0.0) - at_s
    return {
        "at_s": at_s,
        "full_service_after_s": full_s,
        "replaced_after_s": None if replaced_s is None else replaced_s - at_s,
        "failed_in_flight": sum(arrival <= at_s for arrival in failed),
        "failed_just_after": sum(at_s < arrival <= at_s + AFTERMATH_S for arrival in failed),
        "failed_later": sum(arrival > at_s + AFTERMATH_S for arrival in failed),
    }


def run(given: argparse.Namespace, folder: Path) -> list[str]:
    """Run the load with its fault; returns what is wrong, and writes the record to the folder.

    Raises:
        RuntimeError: the service did not start or end.
        httpx.HTTPError: it does not answer.
    """
    happened: list[float] = []
    fields = {"proxy": given.proxy, "num_replicas": given.replicas, "num_threads": given.num_threads}
    log = folder / "service.log"
    if given.fault == "kill":
        options = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]
        started, act = local_service(options, log), kill_at
    else:
        started, act = updatable_service(fields, log), update_at
    with started as service:
        served = find(service.url, service.target)
        workload = workload_of(given, given.rate, given.seconds)
        done = asyncio.run(
            run_open_loop(
                served,
                workload,
                objective_of(given),
                sample_period_s=SAMPLE_PERIOD_S,
                alongside=act(service, given.at_s, happened),
            )
        )
    fault = fault_record(given.fault, happened[0], done.outcomes, done.samples, given.replicas)
    record = done.record | {"fault": {"kind": given.fault, "proxy": given.proxy, "replicas": given.replicas, **fault}}
    found = problems(record, THRESHOLDS[given.fault])
    save(replace(done, record=record | {"problems": found}), folder / "faults.json", f"{given.fault}, {given.proxy}")
    print(table(record))
    print(f"{given.fault}, {given.proxy}, {given.replicas} replicas: {fault}\nrecords: {folder}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.faults", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("fault", choices=("kill", "update"))
    add("--proxy", choices=("haproxy", "python"), default="haproxy", help="proxy of the service (%(default)s)")
    add("--replicas", type=int, default=2, help="replicas of the service (%(default)s)")
    add("--num-threads", type=int, default=1, help="CPU threads per replica (%(default)s)")
    add("--rate", type=float, default=6.0, help="mean number of requests per second (%(default)s)")
    add("--seconds", type=float, default=90.0, help="time during which requests arrive (%(default)s)")
    add("--at-s", type=float, default=15.0, help="time of the fault (%(default)s)")
    add("--output", type=Path, help="folder for the records (default: loadtests/results/ and the time)")
    add_workload_options(parser)
    given = parser.parse_args(arguments)
    try:
        workload_of(given, given.rate, given.seconds)
        if not 0 < given.at_s < given.seconds:
            raise ValueError(f"--at-s is {given.at_s:g}, but must be within the {given.seconds:g} s of the run")
    except ValueError as error:
        parser.error(str(error))
    folder = given.output or RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{given.fault}-{given.proxy}"
    folder.mkdir(parents=True, exist_ok=True)
    return exit_status("faults", lambda: run(given, folder))


if __name__ == "__main__":
    sys.exit(main())
