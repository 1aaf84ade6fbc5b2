"""What attributions beside generations cost those: the time between tokens of some streams, with and without them.

    python -m loadtests.side_jobs --url http://127.0.0.1:8000

Prints percentiles of the time between two tokens, in milliseconds, and how long an attribution takes alone and beside.
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence

import httpx

PROMPT = "Once upon a time there was a little girl who lived in a village near the forest."


def stream(url: str, model: str, num_tokens: int) -> Iterator[float]:
    """Seconds between the events of one stream."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": num_tokens, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=300) as reply:
        reply.raise_for_status()
        last = None
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                now = time.monotonic()
                if last is not None:
                    yield now - last
                last = now


def gaps(url: str, model: str, num_streams: int, num_tokens: int) -> list[float]:
    """The gaps of several streams at once."""
    found: list[list[float]] = [[] for _ in range(num_streams)]
    threads = [threading.Thread(target=lambda own=own: own.extend(stream(url, model, num_tokens))) for own in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [gap for own in found for gap in own]


def attribute(url: str, model: str, ids: Sequence[int]) -> float:
    """Seconds of one attribution."""
    began = time.monotonic()
    reply = httpx.post(f"{url}/v1/attributions", json={"model": model, "prompt": list(ids)}, timeout=300)
    reply.raise_for_status()
    return time.monotonic() - began


def percentiles(seconds: Sequence[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"p50 {1000 * cuts[49]:.1f} ms, p99 {1000 * cuts[98]:.1f} ms, {len(seconds)} gaps"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--length", type=int, default=64, help="tokens of the attributed prompt")
    options = parser.parse_args()
    model = httpx.get(f"{options.url}/v1/models").json()["data"][0]["id"]
    tokenized = httpx.post(f"{options.url}/v1/tokenize", json={"model": model, "prompt": PROMPT * 20}).json()
    ids = tokenized["tokens"][: options.length]
    attribute(options.url, model, ids)
    alone = [attribute(options.url, model, ids) for _ in range(3)]
    sizes = options.streams, options.tokens
    gaps(options.url, model, *sizes)
    without = gaps(options.url, model, *sizes)
    is_over, beside = threading.Event(), []

    def attribute_on() -> None:
        while not is_over.is_set():
            beside.append(attribute(options.url, model, ids))

    thread = threading.Thread(target=attribute_on)
    thread.start()
    with_them = gaps(options.url, model, *sizes)
    is_over.set()
    thread.join()
    print(f"attribution of {len(ids)} tokens alone: {statistics.median(alone):.2f} s")
    print(f"beside {options.streams} streams: {json.dumps([round(one, 2) for one in beside])} s")
    print(f"time between tokens without: {percentiles(without)}")
    print(f"time between tokens with:    {percentiles(with_them)}")


if __name__ == "__main__":
    main()
