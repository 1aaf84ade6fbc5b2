"""Half an hour of moderate load with many cancels, watching memory: `python -m loadtests.soak --help`, or `make soak`.

Ends with status 1 if memory grows after the warm-up, or if sequences or KV blocks remain at the end.
"""

import argparse
import asyncio
import shlex
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loadtests import RESULTS
from loadtests.asking import find
from loadtests.load import AT_REST
from loadtests.local_service import LocalService, exit_status, local_service
from loadtests.open_loop import add_workload_options, objective_of, run_open_loop, save, table, workload_of
from loadtests.results import problems
from loadtests.workload import MIX

MEMORY_PERIOD_S = 5.0
#: Left out of the slope: the first calls of every kind, and pools that fill up.
WARM_UP_S = 300.0
WARM_UP_SHARE = 1 / 3  # for shorter runs
MB = 1e6
THRESHOLDS = ("failed<=0", "memory.slope_mb_per_min<=1", *AT_REST)
#: How many times more often than in other load tests a client leaves.
CANCEL_WEIGHT = 4.0
CANCELLING_MIX = tuple(replace(k, share=k.share * CANCEL_WEIGHT) if k.is_cancelled else k for k in MIX)


@dataclass(frozen=True, kw_only=True)
class MemorySample:
    """Proportional set sizes by kind of process."""

    elapsed_s: float
    bytes_by_process: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes_by_process.values())


def slope_mb_per_min(times_s: Sequence[float], sizes_bytes: Sequence[float]) -> float:
    """The straight line through a series by least squares.

    Raises:
        ValueError: the series has fewer than three points.
    """
    if len(times_s) < 3:
        raise ValueError(f"a slope needs three samples, got {len(times_s)}")
    return float(np.polyfit(np.asarray(times_s) / 60, np.asarray(sizes_bytes) / MB, 1)[0])


def memory_record(samples: Sequence[MemorySample], seconds: float) -> dict[str, Any]:
    """Slopes after the warm-up, in total and for each kind of process.

    Raises:
        ValueError: as for `slope_mb_per_min`.
    """
    warm_up_s = min(WARM_UP_S, WARM_UP_SHARE * seconds)
    warm = [sample for sample in samples if warm_up_s <= sample.elapsed_s <= seconds]
    times = [sample.elapsed_s for sample in warm]
    names = sorted({name for sample in warm for name in sample.bytes_by_process})
    slopes = {name: slope_mb_per_min(times, [s.bytes_by_process.get(name, 0) for s in warm]) for name in names}
    return {
        "warm_up_s": warm_up_s,
        "slope_mb_per_min": slope_mb_per_min(times, [sample.total_bytes for sample in warm]),
        "slope_mb_per_min_by_process": slopes,
        "first_mb": warm[0].total_bytes / MB,
        "last_mb": warm[-1].total_bytes / MB,
        "samples": [asdict(sample) for sample in samples],
    }


def watch_memory(
    service: LocalService, samples: list[MemorySample]
) -> Callable[[Callable[[], float]], Awaitable[None]]:
    """Work for `run_open_loop`: append a sample each period."""

    async def watch(now: Callable[[], float]) -> None:
        while True:
            elapsed_s = now()
            sizes = await asyncio.to_thread(service.memory_bytes)
            samples.append(MemorySample(elapsed_s=elapsed_s, bytes_by_process=sizes))
            await asyncio.sleep(MEMORY_PERIOD_S)

    return watch


def plot_memory(samples: Sequence[MemorySample], path: Path) -> None:
    """Write a PNG of memory over time, by kind of process."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    times_min = [sample.elapsed_s / 60 for sample in samples]
    for name in sorted({name for sample in samples for name in sample.bytes_by_process}):
        axes.plot(times_min, [sample.bytes_by_process.get(name, 0) / MB for sample in samples], label=name)
    axes.plot(times_min, [sample.total_bytes / MB for sample in samples], color="black", label="all")
    axes.set(xlabel="minutes", ylabel="proportional set size, MB", ylim=(0, None))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def run(given: argparse.Namespace, folder: Path) -> list[str]:
    """Run the soak test; returns what is wrong, and writes the record to the folder.

    Raises:
        RuntimeError: the service did not start or end.
        ValueError: it was too short for a slope.
        httpx.HTTPError: the service does not answer.
    """
    samples: list[MemorySample] = []
    workload = replace(workload_of(given, given.rate, given.seconds), mix=CANCELLING_MIX)
    with local_service(shlex.split(given.service), folder / "service.log") as service:
        served = find(service.url, service.target)
        print(f"{given.rate:g} requests/s for {given.seconds:g} s", file=sys.stderr)
        watching = watch_memory(service, samples)
        done = asyncio.run(run_open_loop(served, workload, objective_of(given), alongside=watching))
    record = done.record | {"memory": memory_record(samples, given.seconds)}
    found = problems(record, THRESHOLDS)
    save(replace(done, record=record | {"problems": found}), folder / "soak.json", "soak")
    plot_memory(samples, folder / "memory.png")
    memory = record["memory"]
    print(table(record))
    slopes = ", ".join(f"{name} {slope:+.2f}" for name, slope in memory["slope_mb_per_min_by_process"].items())
    print(
        f"memory: {memory['first_mb']:.0f} MB after {memory['warm_up_s']:.0f} s, then {memory['last_mb']:.0f} MB; "
        f"{memory['slope_mb_per_min']:+.2f} MB per minute ({slopes})\nrecords: {folder}"
    )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.soak", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--rate", type=float, default=6.0, help="mean number of requests per second (%(default)s)")
    add("--seconds", type=float, default=1800.0, help="time during which requests arrive (%(default)s)")
    add("--service", default="", help="further options of topk serve, such as '--num-threads 1'")
    add("--output", type=Path, help="folder for the records (default: loadtests/results/ and the time)")
    add_workload_options(parser)
    given = parser.parse_args(arguments)
    try:
        workload_of(given, given.rate, given.seconds)
    except ValueError as error:
        parser.error(str(error))
    folder = given.output or RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-soak"
    folder.mkdir(parents=True, exist_ok=True)
    return exit_status("soak", lambda: run(given, folder), ValueError)


if __name__ == "__main__":
    sys.exit(main())
