"""The arithmetic of a load test: outcomes in, one record out, with the names of vLLM's `vllm bench serve`.

Times count from a request's *scheduled* arrival, so that a service that stalls the client cannot hide it:

- TTFT: until the first piece of a stream with a token. E2EL: until the end of the answer.
- TPOT, of a stream of n > 1 tokens: (E2EL - TTFT) / (n - 1). ITL: between two pieces of a stream.
- Good: answered completely, with TTFT and TPOT within the objective; an answer in one piece within the time that a
  stream at the objective's bounds would take. Requests that the client itself left count neither as good nor as bad.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from loadtests.asking import HUNG, Outcome

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The latencies promised to users, in seconds."""

    ttft_s: float = 1.0
    tpot_s: float = 0.2


def ttft_s(outcome: Outcome) -> float | None:
    """Time to first token; None if no piece came, or the answer is not a stream."""
    return outcome.items_s[0] - outcome.call.arrival_s if outcome.items_s else None


def e2el_s(outcome: Outcome) -> float:
    """End-to-end latency."""
    return outcome.ended_s - outcome.call.arrival_s


def tpot_s(outcome: Outcome) -> float | None:
    """Time per output token after the first; None if there is no second one, or the answer is not a stream."""
    first = ttft_s(outcome)
    if first is None or outcome.num_output_tokens < 2:
        return None
    return (e2el_s(outcome) - first) / (outcome.num_output_tokens - 1)


def is_good(outcome: Outcome, objective: Objective) -> bool:
    """Whether the objective was met."""
    if outcome.status != "ok":
        return False
    first, each = ttft_s(outcome), tpot_s(outcome)
    if first is None:
        return e2el_s(outcome) <= objective.ttft_s + objective.tpot_s * max(0, outcome.num_output_tokens - 1)
    return first <= objective.ttft_s and (each is None or each <= objective.tpot_s)


def figures(outcomes: Sequence[Outcome], duration_s: float, objective: Objective) -> dict[str, Any]:
    """Counts, rates and latencies of some outcomes; latencies are those of completely answered requests.

    Args:
        duration_s: from the start of the run to the end of its last answer.
    """
    answered = [outcome for outcome in outcomes if outcome.status == "ok"]
    statuses = Counter(outcome.status for outcome in outcomes)
    num_good = sum(is_good(outcome, objective) for outcome in outcomes)
    num_asked = len(outcomes) - statuses["cancelled"]
    num_input = sum(outcome.num_prompt_tokens for outcome in answered)
    num_output = sum(outcome.num_output_tokens for outcome in answered)
    latencies: dict[str, list[float]] = {
        "ttft": [t for outcome in answered if (t := ttft_s(outcome)) is not None],
        "tpot": [t for outcome in answered if (t := tpot_s(outcome)) is not None],
        "itl": [gap for outcome in answered for gap in np.diff(outcome.items_s)],
        "e2el": [e2el_s(outcome) for outcome in answered],
    }
    record: dict[str, Any] = {
        "num_prompts": len(outcomes),
        "completed": statuses["ok"],
        "failed": statuses["failed"],
        "refused": statuses["refused"],
        "cancelled": statuses["cancelled"],
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": statuses["ok"] / duration_s,
        "request_goodput": num_good / duration_s,
        "goodput_ratio": num_good / num_asked if num_asked else None,
        "output_throughput": num_output / duration_s,
        "total_token_throughput": (num_input + num_output) / duration_s,
    }
    for name, values in latencies.items():
        record |= in_ms(name, values)
    return record


def in_ms(name: str, values_s: Sequence[float]) -> dict[str, float | None]:
    """Mean, median, deviation and percentiles in milliseconds, under vLLM's names; None if there is no value."""
    if not values_s:
        names = ["mean", "median", "std", *(f"p{p}" for p in PERCENTILES)]
        return {f"{statistic}_{name}_ms": None for statistic in names}
    values = np.asarray(values_s) * 1000
    record = {"mean": values.mean(), "median": np.median(values), "std": values.std()}
    record |= {f"p{p}": np.percentile(values, p) for p in PERCENTILES}
    return {f"{statistic}_{name}_ms": float(value) for statistic, value in record.items()}


def summarize(outcomes: Sequence[Outcome], duration_s: float, objective: Objective) -> dict[str, Any]:
    """The record of a run: `figures` of all and of each kind, reasons of failures, refusals, drift."""
    refused = [outcome for outcome in outcomes if outcome.status == "refused"]
    kinds = sorted({outcome.call.kind.name for outcome in outcomes})
    lateness = [outcome.sent_s - outcome.call.arrival_s for outcome in outcomes]
    return {
        "duration": duration_s,
        **figures(outcomes, duration_s, objective),
        "errors": dict(Counter(outcome.code for outcome in outcomes if outcome.status == "failed")),
        "hung": sum(outcome.code == HUNG for outcome in outcomes),
        "refusals": {
            "codes": dict(Counter(outcome.code for outcome in refused)),
            "without_retry_after": sum(outcome.retry_after_s is None for outcome in refused),
            "retry_after_s": dict(
                Counter(f"{outcome.retry_after_s:g}" for outcome in refused if outcome.retry_after_s)
            ),
            **in_ms("latency", [e2el_s(outcome) for outcome in refused]),
        },
        "drift": drift(outcomes),
        "client": in_ms("lateness", lateness),
        "kinds": {
            kind: figures([o for o in outcomes if o.call.kind.name == kind], duration_s, objective) for kind in kinds
        },
    }


def drift(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """The last third of the run over the first, by arrival: 1 if nothing changed, None if there is no value."""
    answered = sorted((o for o in outcomes if o.status == "ok"), key=lambda o: o.call.arrival_s)
    third = len(answered) // 3
    first, last = answered[:third], answered[len(answered) - third :]
    ratios: dict[str, float | None] = {}
    for name, latency in (("ttft", ttft_s), ("tpot", tpot_s)):
        for statistic, percentile in (("median", 50), ("p90", 90)):
            before, after = ([t for o in part if (t := latency(o)) is not None] for part in (first, last))
            has_both = bool(before and after)
            ratios[f"{statistic}_{name}"] = (
                float(np.percentile(after, percentile) / np.percentile(before, percentile)) if has_both else None
            )
    return ratios


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A bound on one figure of a record, such as `p99_ttft_ms<=1000` or `drift.median_ttft<=1.5`."""

    name: str
    is_most: bool
    bound: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError if it is not a threshold."""
        for sign in ("<=", ">="):
            name, found, bound = text.partition(sign)
            if found:
                return cls(name=name.strip(), is_most=sign == "<=", bound=float(bound))
        raise ValueError(f"a threshold must be like 'p99_ttft_ms<=1000', got {text!r}")

    def __str__(self) -> str:
        return f"{self.name} {'<=' if self.is_most else '>='} {self.bound:g}"

    def problem(self, record: Mapping[str, Any]) -> str | None:
        """What is wrong with the record, if anything; a missing figure is an error."""
        value: Any = record
        for part in self.name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
            return f"{self}: there is no such figure"
        is_kept = value <= self.bound if self.is_most else value >= self.bound
        return None if is_kept else f"{self}: it is {value:.4g}"


def problems(record: Mapping[str, Any], thresholds: Iterable[str]) -> list[str]:
    """The thresholds that a record does not meet, and by how much."""
    return [problem for text in thresholds if (problem := Threshold.parse(text).problem(record)) is not None]
