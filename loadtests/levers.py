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
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from loadtests import RESULTS
from loadtests.local_service import exit_status, local_service
from loadtests.side_jobs import add_turns, in_turns, lines_of

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


async def measure(given: argparse.Namespace, url: str) -> dict[str, Any]:
    """All figures of a service that answers at `url`."""
    headers = {} if given.api_key is None else {"Authorization": f"Bearer {given.api_key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        found = await find_all(client, model, given.max_cost)
        several = cycle(CONCEPTS.values())

        async def search() -> None:
            await find_lever(client, model, next(several), given.max_cost)

        sides = await in_turns(client, model, given, search)
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
        f"{first['seconds']:.2f} s.\n"
    )
    return "\n".join([*lines, *lines_of(record["between_arrivals"], record["streams"])])


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
    add_turns(parser)
    add("--output", type=Path, help="file for the record (in loadtests/results/)")
    return exit_status("levers", lambda: run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
