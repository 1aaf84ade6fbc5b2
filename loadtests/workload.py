"""The requests of an open-loop load test and their times: drawn from a seed, so that every run has the same requests.

Knows no transport and no clock.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from loadtests.inputs import WORDS

#: More than one client can send and keep in memory.
MAX_RATE = 10_000.0
MAX_SECONDS = 24 * 3600.0
MAX_CALLS = 1_000_000

Transport = Literal["http", "grpc"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of request, and its share of all requests."""

    name: str
    share: float
    transport: Transport = "http"
    is_stream: bool = False
    is_steered: bool = False  # one edit of one neuron, different for each request
    is_traced: bool = False  # all neurons of all layers and tokens
    is_cancelled: bool = False  # the client leaves early


MIX = (
    Kind(name="http", share=0.12),
    Kind(name="http_stream", share=0.26, is_stream=True),
    Kind(name="http_steered", share=0.06, is_steered=True),
    Kind(name="http_stream_steered", share=0.12, is_stream=True, is_steered=True),
    Kind(name="http_stream_traced", share=0.10, is_stream=True, is_traced=True),
    Kind(name="http_cancelled", share=0.06, is_stream=True, is_cancelled=True),
    Kind(name="grpc", share=0.06, transport="grpc"),
    Kind(name="grpc_stream", share=0.08, transport="grpc", is_stream=True),
    Kind(name="grpc_stream_steered", share=0.06, transport="grpc", is_stream=True, is_steered=True),
    Kind(name="grpc_traced", share=0.04, transport="grpc", is_traced=True),
    Kind(name="grpc_cancelled", share=0.04, transport="grpc", is_stream=True, is_cancelled=True),
)


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A number added to one neuron of one TopK layer."""

    layer: int
    neuron: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request, drawn before the run."""

    kind: Kind
    arrival_s: float  # when it is to be sent, after the start of the run
    prompt: str
    max_tokens: int  # exactly this many are generated: an end-of-text token does not end the text
    seed: int
    edit: Edit | None = None
    cancel_after_s: float | None = None  # after its arrival


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Poisson arrivals at a rate, and the requests. Lengths are log-uniform between their bounds, both inclusive.

    Raises:
        ValueError: a number is out of range.
    """

    rate: float  # mean number of requests per second
    seconds: float  # arrivals stop then
    seed: int = 0
    prompt_words: tuple[int, int] = (4, 160)
    output_tokens: tuple[int, int] = (8, 128)
    cancel_after_s: tuple[float, float] = (0.02, 0.8)
    mix: tuple[Kind, ...] = MIX

    def __post_init__(self) -> None:
        in_bounds = 0 < self.rate <= MAX_RATE and 0 < self.seconds <= MAX_SECONDS
        if not in_bounds or self.rate * self.seconds > MAX_CALLS:
            raise ValueError(
                f"rate is {self.rate:g} and seconds {self.seconds:g}; both must be above 0, the rate at most "
                f"{MAX_RATE:g}, the seconds {MAX_SECONDS:g}, and the requests of both together {MAX_CALLS}"
            )
        for name in ("prompt_words", "output_tokens"):
            low, high = getattr(self, name)
            if not 1 <= low <= high <= 4096:
                raise ValueError(f"{name} is {low} to {high}, but must be 1 to 4096, the lower first")
        if not self.mix or any(kind.share <= 0 for kind in self.mix):
            raise ValueError("every kind of the mix needs a share above 0")

    def calls(self, topk_layers: Sequence[int], hidden_size: int) -> Iterator[Call]:
        """The requests in order of arrival. Their content does not depend on the rate.

        Args:
            topk_layers, hidden_size: those of the model, for the edits.
        """
        rng = random.Random(f"what {self.seed}")
        shares = [kind.share for kind in self.mix]
        for arrival_s in arrivals(self.rate, self.seconds, self.seed):
            kind = rng.choices(self.mix, shares)[0]
            prompt = sentence(rng, log_uniform(rng, *self.prompt_words))
            max_tokens = log_uniform(rng, *self.output_tokens)
            seed = rng.getrandbits(31)
            edit = Edit(layer=rng.choice(topk_layers), neuron=rng.randrange(hidden_size), value=rng.uniform(0.5, 2.0))
            cancel_after_s = rng.uniform(*self.cancel_after_s)
            yield Call(
                kind=kind,
                arrival_s=arrival_s,
                prompt=prompt,
                max_tokens=max_tokens,
                seed=seed,
                edit=edit if kind.is_steered else None,
                cancel_after_s=cancel_after_s if kind.is_cancelled else None,
            )


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Times of a Poisson process below `seconds`: the gaps are exponential with mean 1 / rate."""
    rng = random.Random(f"when {seed}")
    at = 0.0
    for _ in count():
        at += rng.expovariate(rate)
        if at >= seconds:
            return
        yield at


def log_uniform(rng: random.Random, low: int, high: int) -> int:
    """Short lengths as often as long ones, by order of magnitude."""
    return min(high, round(math.exp(rng.uniform(math.log(low - 0.499), math.log(high + 0.499)))))


def sentence(rng: random.Random, num_words: int) -> str:
    """Random English words."""
    return " ".join(rng.choices(_WORDS, k=num_words)).capitalize()


_WORDS = WORDS.split()
