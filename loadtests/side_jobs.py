"""What computations beside generations cost those: the time between two arrivals of streams, in turns without and with
them. `python -m loadtests.side_jobs --help` measures attributions, `loadtests.levers` searches for levers.
"""

import argparse
import asyncio
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx
import numpy as np

from loadtests import RESULTS
from loadtests.local_service import exit_status, local_service

PROMPT, STREAM_TOKENS = "Once upon a time,", 200
#: Repeated until it has the tokens that are asked for.
ATTRIBUTED = "Once upon a time there was a little girl who lived in a village near the forest. "
#: What comes sooner than this after the last piece of a stream came with it.
TOGETHER_S = 0.0005
#: Between two measurements beside generations.
SETTLE_S = 1.0
ALONE, BESIDE = "alone", "beside them"

Work = Callable[[], Awaitable[Any]]
Sides = dict[str, list[dict[str, float]]]


async def stream_on(client: httpx.AsyncClient, model: str, until: float, gaps: list[float], seed: int) -> None:
    """Generate one text after the other, noting the seconds between two arrivals of each. Several tokens may come
    together, which counts as one."""
    while time.perf_counter() < until:
        body = {"model": model, "prompt": PROMPT, "max_tokens": STREAM_TOKENS, "ignore_eos": True, "stream": True}
        last: float | None = None
        async with client.stream("POST", "/v1/completions", json=body | {"seed": seed}) as reply:
            reply.raise_for_status()
            async for _ in reply.aiter_raw():
                now = time.perf_counter()
                if last is not None and now - last < TOGETHER_S:
                    continue
                if last is not None:
                    gaps.append(now - last)
                last = now
        seed += 1


async def beside(
    client: httpx.AsyncClient, model: str, seconds: float, num_streams: int, work: Work | None
) -> dict[str, float]:
    """Time between two arrivals of a stream, in milliseconds, while `work` is done again and again."""
    gaps: list[float] = []
    num_done, until = 0, time.perf_counter() + seconds
    streams = [asyncio.create_task(stream_on(client, model, until, gaps, 1000 * i)) for i in range(num_streams)]
    while work is not None and time.perf_counter() < until:
        await work()
        num_done += 1
    await asyncio.gather(*streams)
    p50, p99 = np.percentile(gaps, (50, 99))
    figures = {"p50": p50, "p99": p99, "max": max(gaps)}
    milliseconds = {f"{name}_ms": round(1000 * value, 2) for name, value in figures.items()}
    return milliseconds | {"arrivals": len(gaps), "jobs": num_done}


async def in_turns(client: httpx.AsyncClient, model: str, given: argparse.Namespace, work: Work) -> Sides:
    """Rounds of `beside` without and with the work: what else the machine does falls on both."""
    sides: Sides = {ALONE: [], BESIDE: []}
    for _ in range(given.rounds):
        for name, done in ((ALONE, None), (BESIDE, work)):
            await asyncio.sleep(SETTLE_S)
            sides[name].append(await beside(client, model, given.seconds, given.streams, done))
    return sides


def lines_of(sides: Mapping[str, Sequence[Mapping[str, float]]], num_streams: int) -> Iterator[str]:
    """What `in_turns` measured, for a person at a terminal."""
    yield f"Between two arrivals of {num_streams} streams, medians of {len(sides[ALONE])} rounds:"
    for name, rounds in sides.items():
        middle = {key: float(np.median([one[key] for one in rounds])) for key in rounds[0]}
        yield (
            f"  {name:12s} p50 {middle['p50_ms']:.2f} ms, p99 {middle['p99_ms']:.2f} ms, longest "
            f"{middle['max_ms']:.0f} ms ({middle['arrivals']:.0f} arrivals, {middle['jobs']:.0f} jobs)"
        )


def add_turns(parser: argparse.ArgumentParser) -> None:
    """The options of `in_turns`."""
    add = parser.add_argument
    add("--seconds", type=float, default=20.0, help="how long streams run in a round, each way (%(default)s)")
    add("--rounds", type=int, default=3, help="rounds, each without and with the computations (%(default)s)")
    add("--streams", type=int, default=4, help="streams that run at once (%(default)s)")


async def measure(given: argparse.Namespace, url: str) -> list[str]:
    """What attributions of a service that answers at `url` take and cost."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        text = {"model": model, "prompt": ATTRIBUTED * given.length}
        ids = (await client.post("/v1/tokenize", json=text)).raise_for_status().json()["tokens"][: given.length]
        seconds: list[float] = []

        async def attribute() -> None:
            began = time.perf_counter()
            (await client.post("/v1/attributions", json={"model": model, "prompt": ids})).raise_for_status()
            seconds.append(time.perf_counter() - began)

        for _ in range(given.alone + 1):
            await attribute()
        alone = seconds[1:]
        sides = await in_turns(client, model, given, attribute)
    times = f"{np.median(alone):.2f} s (median of {len(alone)}; {min(alone):.2f} to {max(alone):.2f})"
    beside_streams = f"{np.median(seconds[given.alone + 1 :]):.2f} s beside {given.streams} streams"
    return [f"An attribution of {len(ids)} tokens took {times}, {beside_streams}.", *lines_of(sides, given.streams)]


def run(given: argparse.Namespace) -> list[str]:
    """Raises RuntimeError or httpx.HTTPError if the service does not do what it should."""
    if given.url:
        lines = asyncio.run(measure(given, given.url))
    else:
        RESULTS.mkdir(parents=True, exist_ok=True)
        with local_service(shlex.split(given.service), RESULTS / "side-jobs.log") as service:
            lines = asyncio.run(measure(given, service.url))
    print("\n".join(lines))
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    description = (
        "What attributions cost the streams beside them: time between two arrivals, in turns without and with them."
    )
    parser = argparse.ArgumentParser(prog="python -m loadtests.side_jobs", description=description)
    parser.add_argument("--url", help="of a service that runs; by default one is started")
    parser.add_argument("--service", default="", help="options of the service that is started, as '--num-threads 1'")
    parser.add_argument("--length", type=int, default=64, help="tokens of the attributed prompt (%(default)s)")
    parser.add_argument("--alone", type=int, default=9, help="attributions without streams, timed (%(default)s)")
    add_turns(parser)
    return exit_status("side_jobs", lambda: run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
