"""Shared by the load tests: plain texts that are the same on every machine, and the check of the service's address."""

import ipaddress
import random
from collections.abc import Iterator

import httpx

WORDS = (
    "the a of and to in that was he she it his her with had as for on but not they at by all this were from or one "
    "said have which an no their there when been who so more out up into them if some could what time then other "
    "man old house day little long great way first three water hand night king sea wind road door boy girl morning "
    "came went made took found gave looked thought began stood turned heard told asked walked over under again"
)


def plain_texts(num_texts: int, num_words: int, seed: int) -> Iterator[str]:
    """Sentences of random English words, of about `num_words` words: between half and one and a half times that."""
    rng, known = random.Random(seed), WORDS.split()
    for _ in range(num_texts):
        words = rng.choices(known, k=max(1, rng.randint(num_words // 2, num_words + num_words // 2)))
        yield " ".join(words).capitalize() + "."


def check_local(host: str, allow_remote: bool) -> None:
    """Check the address: a load test of a machine that one does not own is an attack, so it must be requested.

    Args:
        host: with or without a port, such as "127.0.0.1:9000" or "[::1]:9000".

    Raises:
        ValueError: it is another machine's, which was not allowed.
    """
    name = host.rpartition(":")[0] if host.count(":") == 1 or "]:" in host else host
    try:
        is_local = ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        is_local = name == "localhost"
    if not is_local and not allow_remote:
        raise ValueError(f"{host!r} is not on this machine; use --allow-remote to measure it anyway")


def service_url(url: str, allow_remote: bool) -> str:
    """A service's HTTP address, without a trailing slash: paths are appended to it.

    Raises:
        ValueError: it is not an address, or as for `check_local`.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"--url is {url!r}: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"--url is {url!r}, must be http:// or https:// and a host, such as http://127.0.0.1:8000")
    check_local(parsed.host, allow_remote)
    return url.rstrip("/")
