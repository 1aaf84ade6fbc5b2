"""The capacity of a service: the highest rate of an open-loop load at which nearly all answers are good."""

import asyncio
import sys
from collections.abc import Callable

from loadtests.asking import Served
from loadtests.open_loop import run_open_loop
from loadtests.results import Objective
from loadtests.workload import Workload

MIN_GOODPUT = 0.99
#: The search ends once the bounds are this close.
PRECISION = 1.1
FIRST_RATE = 2.0
MAX_RATE = 2000.0


def search(is_kept: Callable[[float], bool]) -> float:
    """The highest rate for which `is_kept`, within a factor of `PRECISION`: doubled until it fails, then bisected.

    Raises:
        RuntimeError: the first rate is already too high, or no rate is.
    """
    low, high = 0.0, FIRST_RATE
    while is_kept(high):
        low, high = high, 2 * high
        if high > MAX_RATE:
            raise RuntimeError(f"no rate up to {MAX_RATE:g}/s was too high")
    if low == 0.0:
        raise RuntimeError(f"{FIRST_RATE:g} requests/s are already too many")
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if is_kept(middle) else (low, middle)
    return low


def find_capacity(
    served: Served, workload_at: Callable[[float, float], Workload], objective: Objective, stage_s: float
) -> tuple[float, list[dict[str, float]]]:
    """Requests per second, and the stages of the search.

    Args:
        workload_at: makes a workload from a rate and seconds.
        stage_s: how long each rate is tried.

    Raises:
        RuntimeError: as for `search`.
        httpx.HTTPError: as for `run_open_loop`.
    """
    stages: list[dict[str, float]] = []

    def is_kept(rate: float) -> bool:
        record = asyncio.run(run_open_loop(served, workload_at(rate, stage_s), objective)).record
        goodput = record["goodput_ratio"] or 0.0
        names = ("output_throughput", "refused", "failed", "p99_ttft_ms", "p99_tpot_ms", "p99_e2el_ms")
        stages.append({"rate": rate, "goodput_ratio": goodput, **{name: record[name] for name in names}})
        print(f"{rate:7.2f} requests/s: good {goodput:.1%}, {record['refused']} refused", file=sys.stderr)
        return bool(goodput >= MIN_GOODPUT)

    return search(is_kept), stages
