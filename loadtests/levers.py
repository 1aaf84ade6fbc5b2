"""Levers of a running service: for how many of 20 concepts one is found, how long that takes, and what it costs those
who generate beside it: `python -m loadtests.levers --help`.

The concepts are none of the presets', and nothing was tuned on them.
"""

import argparse
import asyncio
import json
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from loadtests import RESULTS
from loadtests.local_service import exit_status, local_service

CONCEPTS = {
    "colours of metals": "golden silvery coppery bronze brass gilded iron rusty",
    "politeness": "please thank kindly pardon sir beg excuse grateful",
    "kitchen tools": "kettle pan knife spoon pot fork plate bowl",
    "past tense": "was had went did took came saw gave",
    "question marks": "?",
    "exclamations": "! oh ah alas hurrah",
    "the future": "will shall tomorrow soon",
    "negation": "not never no nothing nobody none",
    "contractions": "'t 'll 're 've 'd",
    "insects": "bee bees fly ant ants spider butterfly moth beetle wasp",
    "fruit": "apple apples pear plum cherry grapes orange lemon",
    "tools": "hammer nail nails axe shovel spade saw rope chisel",
    "jewels": "diamond diamonds pearl pearls ruby jewel jewels necklace",
    "trades": "carpenter baker tailor blacksmith merchant shoemaker miller mason",
    "instruments": "violin flute drum drums trumpet guitar harp organ",
    "tastes": "sweet bitter sour salt delicious flavor",
    "cities": "London Paris York Boston Rome Chicago",
    "days of the week": "Monday Tuesday Wednesday Thursday Friday Saturday",
    "ordinal numbers": "first second third fourth fifth sixth",
    "the second person": "you your yours yourself",
}
#: A lever steers where it raises its words by this much, in nats of log-odds.
MIN_LOG_ODDS = 1.0
PROMPT, STREAM_TOKENS = "Once upon a time,", 200
#: What comes sooner than this after the last piece of a stream came with it.
TOGETHER_S = 0.0005
#: Between two measurements beside generations.
SETTLE_S = 1.0


async def find_lever(
    client: httpx.AsyncClient, model: str, words: str, max_cost: float
) -> tuple[dict[str, Any], float]:
    """The reply and the seconds that it took.

    Raises:
        httpx.HTTPError: it was refused.
    """
    began = time.perf_counter()
    body = {"model": model, "words": words.split(), "max_cost": max_cost, "limit": 5, "max_tokens": 0}
    reply = (await client.post("/v1/levers", json=body)).raise_for_status()
    return reply.json(), time.perf_counter() - began


async def find_all(client: httpx.AsyncClient, model: str, max_cost: float) -> list[dict[str, Any]]:
    """A row for each concept; the search before them, which loads the model's weights once more, is the first row."""
    rows = []
    for name, words in [("(first of all)", "sea ship"), *CONCEPTS.items()]:
        told, seconds = await find_lever(client, model, words, max_cost)
        best = told["levers"][0] if told["levers"] else None
        rows.append(
            {"concept": name, "words": words, "seconds": round(seconds, 2), "best": best, "tried": told["tried"]}
        )
    return rows


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
    client: httpx.AsyncClient, model: str, seconds: float, num_streams: int, work: Callable[[], Awaitable[Any]] | None
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


async def measure(given: argparse.Namespace, url: str) -> dict[str, Any]:
    """All figures of a service that answers at `url`."""
    headers = {} if given.api_key is None else {"Authorization": f"Bearer {given.api_key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        found = await find_all(client, model, given.max_cost)
        several = cycle(CONCEPTS.values())

        async def search() -> None:
            await find_lever(client, model, next(several), given.max_cost)

        sides: dict[str, list[dict[str, float]]] = {"alone": [], "beside searches": []}
        # In turns, so that what else the machine does falls on both.
        for _ in range(given.rounds):
            for name, work in (("alone", None), ("beside searches", search)):
                await asyncio.sleep(SETTLE_S)
                sides[name].append(await beside(client, model, given.seconds, given.streams, work))
    return {
        "model": model,
        "max_cost": given.max_cost,
        "concepts": found,
        "streams": given.streams,
        "between_arrivals": sides,
    }


def table(record: dict[str, Any]) -> str:
    """What was measured, for a person at a terminal."""
    lines = [f"{'concept':20s}{'layer':>6s}{'neuron':>7s}{'value':>8s}{'log-odds':>10s}{'cost':>6s}{'seconds':>9s}"]
    first, *rows = record["concepts"]
    for row in (first, *rows):
        best, found = row["best"], f"{'-':>6s}{'-':>7s}{'-':>8s}{'-':>10s}{'-':>6s}"
        if best is not None:
            found = f"{best['layer']:6d}{best['neuron']:7d}{best['value']:8.2f}"
            found += f"{best['log_odds']:+10.2f}{best['cost']:6.2f}"
        lines.append(f"{row['concept']:20s}{found}{row['seconds']:9.2f}")
    steered = sum(row["best"] is not None and row["best"]["log_odds"] >= MIN_LOG_ODDS for row in rows)
    seconds = [row["seconds"] for row in rows]
    lines.append(
        f"\n{steered} of {len(rows)} rise by {MIN_LOG_ODDS:g} nat or more at {record['max_cost']:g} nats a token.\n"
        f"A search took {np.median(seconds):.2f} s (median), at most {max(seconds):.2f} s; the first of all "
        f"{first['seconds']:.2f} s.\n\nBetween two arrivals of {record['streams']} streams, medians of "
        f"{len(record['between_arrivals']['alone'])} rounds:"
    )
    for name, rounds in record["between_arrivals"].items():
        middle = {key: float(np.median([one[key] for one in rounds])) for key in rounds[0]}
        lines.append(
            f"  {name:16s} p50 {middle['p50_ms']:.2f} ms, p99 {middle['p99_ms']:.2f} ms, longest "
            f"{middle['max_ms']:.0f} ms ({middle['arrivals']:.0f} arrivals, {middle['jobs']:.0f} searches)"
        )
    return "\n".join(lines)


def run(given: argparse.Namespace) -> list[str]:
    """Raises RuntimeError or httpx.HTTPError if the service does not do what it should."""
    output = given.output or RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-levers.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.with_suffix(".log")
    if given.url:
        record = asyncio.run(measure(given, given.url))
    else:
        with local_service(shlex.split(given.service), log) as service:
            record = asyncio.run(measure(given, service.url))
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{table(record)}\nrecord: {output}")
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.levers", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--url", help="of a service that runs; by default one is started")
    add("--api-key", help="where that service asks for one")
    add("--service", default="", help="options of the service that is started, as '--num-threads 1'")
    add("--max-cost", type=float, default=0.3, help="nats per token that a lever may cost (%(default)s)")
    add("--seconds", type=float, default=20.0, help="how long streams run in a round, each way (%(default)s)")
    add("--rounds", type=int, default=3, help="rounds, each without and with searches (%(default)s)")
    add("--streams", type=int, default=4, help="streams that run at once (%(default)s)")
    add("--output", type=Path, help="file for the record (in loadtests/results/)")
    return exit_status("levers", lambda: run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
