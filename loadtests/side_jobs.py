"""What attributions beside generations cost those: the time between arrivals of some streams, with and without them.

    python -m loadtests.side_jobs --url http://127.0.0.1:8000

Prints percentiles of that time, in milliseconds, and how long an attribution takes alone and beside.
"""

import argparse
import asyncio
import json
import statistics
import time

import httpx

from loadtests.levers import PROMPT, beside


async def measure(options: argparse.Namespace) -> None:
    async with httpx.AsyncClient(base_url=options.url, timeout=300) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        tokenized = await client.post("/v1/tokenize", json={"model": model, "prompt": PROMPT * options.length})
        ids = tokenized.raise_for_status().json()["tokens"][: options.length]

        async def attribute() -> None:
            began = time.perf_counter()
            reply = await client.post("/v1/attributions", json={"model": model, "prompt": ids})
            reply.raise_for_status()
            took.append(round(time.perf_counter() - began, 2))

        took: list[float] = []
        for _ in range(4):
            await attribute()
        print(f"attribution of {len(ids)} tokens alone: {statistics.median(took[1:]):.2f} s")
        await beside(client, model, options.seconds, options.streams, None)  # so that both sides are warm
        took.clear()
        for name, work in (("without", None), ("with", attribute)):
            figures = await beside(client, model, options.seconds, options.streams, work)
            print(f"time between arrivals {name}: {json.dumps(figures)}")
        print(f"beside {options.streams} streams: {json.dumps(took)} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long streams run each way (%(default)s)")
    parser.add_argument("--length", type=int, default=64, help="tokens of the attributed prompt")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
