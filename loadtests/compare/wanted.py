"""What a comparison must show, checked against its report, and the ratios that it is read for. Arithmetic only."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from loadtests.compare.engines import OURS, ROWS, VLLM, VLLM_BF16
from loadtests.compare.services import ENGINE, IN_FLIGHT, NEW, OLD
from loadtests.compare.shapes import BY_NAME

STORAGES = ("float32", "bfloat16", "int8")
#: Bytes of a weight.
FLOAT32_BYTES = 4
#: Every row edited in every TopK layer and traced, against vLLM: times as many tokens per second, by rows.
SPEEDS = {"7M": (5.0, 5.0, 3.5), "30M": (3.5, 2.5, 2.0), "200M": (1.3, None, None)}
BEST_SPEEDS = {"30M": (4.0, 2.5, 1.3)}
#: Of the machine's rates.
MEMORY_SHARE, MEMORY_SHAPES = 0.6, ("30M", "200M")
PRODUCTS_SHARE, PRODUCTS_SHAPES = 0.5, ("30M",)
EDITS_COST = 0.05
WHOLE_SHARE, STREAM_SHARE, TRACES_SHARE = 0.85, 0.7, 0.8
TIMES_OLD, FIRST_TOKEN_OF_OLD = 3.0, 1 / 3


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that must be shown; `value` None: it was not measured."""

    what: str
    value: float | None
    bound: float
    is_most: bool = False  # the bound is the most, else the least

    @property
    def is_kept(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.bound if self.is_most else self.value >= self.bound

    def __str__(self) -> str:
        word = {True: "pass", False: "FAIL", None: "not measured"}[self.is_kept]
        shown = "" if self.value is None else f": {self.value:.3g}"
        return f"{word:>12}  {self.what}{shown} (at {'most' if self.is_most else 'least'} {self.bound:.3g})"

    def fields(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "value": self.value,
            "bound": self.bound,
            "is_most": self.is_most,
            "is_kept": self.is_kept,
        }


class Report:
    """The fields of a report, by name."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.machine: dict[str, Any] = fields["machine"]
        self._engines = {(s["shape"], s["side"], s["case"], s["num_rows"]): s for s in fields["engines"]}
        self._services = {(s["kind"], s["in_flight"], s["who"]): s for s in fields["services"]}
        self.shapes = list(dict.fromkeys(series["shape"] for series in fields["engines"]))

    def rate(self, shape: str, side: str, case: str, rows: int) -> float | None:
        """Tokens per second of an engine."""
        series = self._engines.get((shape, side, case, rows))
        return None if series is None else float(series["tokens_per_s"])

    def decoding(self, shape: str, case: str, rows: int) -> float | None:
        """Tokens per second of ours, prompts left out."""
        series = self._engines.get((shape, OURS, case, rows))
        return None if series is None else series["decode_tokens_per_s"]

    def served(self, kind: str, in_flight: int, who: str, figure: str = "tokens_per_s") -> float | None:
        series = self._services.get((kind, in_flight, who))
        return None if series is None else series[figure]

    def cost(self, shape: str, case: str, rows: int) -> float | None:
        """By how much a case is slower than the plain one: median over the rounds, in each of which both had a turn."""
        plain, other = (self._engines.get((shape, OURS, f"float32 {name}", rows)) for name in ("plain", case))
        if plain is None or other is None:
            return None
        return median(1 - b / a for a, b in zip(plain["rounds"], other["rounds"], strict=False))

    def memory_share(self, shape: str) -> float | None:
        """Share of the memory's rate at 1 row, in float32: the bytes of weights that a token needs, over the rate at
        which the same number of bytes can be read. Products over a sparse state count with the columns they need."""
        tokens, rate = self.decoding(shape, "float32 plain", 1), self.machine["read_bytes_per_s"].get(shape)
        if tokens is None or not rate:
            return None
        return tokens * BY_NAME[shape].num_fewest_weights * FLOAT32_BYTES / rate

    def products_share(self, shape: str, rows: int) -> float | None:
        """Share of the multiply-add peak within the MLPs' products, in float32: those of an engine with MLPs of twice
        the width, over the time that its steps take longer."""
        plain, wide = (self.decoding(shape, f"{case} plain", rows) for case in ("float32", "wide"))
        peak = self.machine["flops_per_s"]
        if not plain or not wide or not peak or wide >= plain:
            return None
        return 2 * BY_NAME[shape].num_widening_weights / (1 / wide - 1 / plain) / peak

    def step_share(self, shape: str, rows: int) -> float | None:
        """Share of that peak over whole steps: all products' operations, over all of the time."""
        tokens, peak = self.decoding(shape, "float32 plain", rows), self.machine["flops_per_s"]
        if tokens is None or not peak:
            return None
        return 2 * BY_NAME[shape].num_fewest_weights * tokens / peak


def of_rows(number: int) -> str:
    return f"{number} row{'s' * (number > 1)}"


def ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def best(*rates: float | None) -> float | None:
    return max((rate for rate in rates if rate is not None), default=None)


def checks(fields: dict[str, Any]) -> list[Check]:
    """All that a comparison must show."""
    report = Report(fields)
    return [*engine_checks(report), *machine_checks(report), *service_checks(report)]


def engine_checks(report: Report) -> Iterator[Check]:
    for shape, bounds in SPEEDS.items():
        for rows, bound in zip(ROWS, bounds, strict=True):
            if bound is not None:
                ours = report.rate(shape, OURS, "float32 traced", rows)
                times = ratio(ours, report.rate(shape, VLLM, "float32", rows))
                what = f"{shape}, {of_rows(rows)}: times vLLM, both float32, ours edited and traced"
                yield Check(what=what, value=times, bound=bound)
    for shape, least in BEST_SPEEDS.items():
        for rows, bound in zip(ROWS, least, strict=True):
            ours = best(*(report.rate(shape, OURS, f"{storage} traced", rows) for storage in STORAGES))
            theirs = best(report.rate(shape, VLLM, "float32", rows), report.rate(shape, VLLM_BF16, "bfloat16", rows))
            what = f"{shape}, {of_rows(rows)}: times vLLM, each with its best storage, ours edited and traced"
            yield Check(what=what, value=ratio(ours, theirs), bound=bound)


def machine_checks(report: Report) -> Iterator[Check]:
    for shape in MEMORY_SHAPES:
        what = f"{shape}, 1 row: share of the memory's rate, float32"
        yield Check(what=what, value=report.memory_share(shape), bound=MEMORY_SHARE)
    for shape in PRODUCTS_SHAPES:
        what = f"{shape}, {of_rows(ROWS[-1])}: share of the multiply-add peak within products, float32"
        yield Check(what=what, value=report.products_share(shape, ROWS[-1]), bound=PRODUCTS_SHARE)
    for shape in SPEEDS:
        for rows in ROWS:
            costs = [report.cost(shape, case, rows) for case in ("edited", "varied", "traced")]
            worst = max((cost for cost in costs if cost is not None), default=None)
            what = f"{shape}, {of_rows(rows)}: cost of edits in every TopK layer of every row, and of traces"
            yield Check(what=what, value=worst, bound=EDITS_COST, is_most=True)


def service_checks(report: Report) -> Iterator[Check]:
    most = IN_FLIGHT[-1]

    def of_engine(kind: str, in_flight: int) -> float | None:
        return ratio(report.served(kind, in_flight, NEW), report.served(kind, in_flight, ENGINE))

    def of_old(kind: str, figure: str = "tokens_per_s") -> float | None:
        return ratio(report.served(kind, most, NEW, figure), report.served(kind, most, OLD, figure))

    for in_flight in IN_FLIGHT:
        what = f"HTTP, {in_flight} in flight: share of the engine alone, whole replies"
        yield Check(what=what, value=of_engine("whole", in_flight), bound=WHOLE_SHARE)
    for in_flight in IN_FLIGHT[:-1]:
        what = f"HTTP, {in_flight} in flight: share of the engine alone, streams"
        yield Check(what=what, value=of_engine("stream", in_flight), bound=STREAM_SHARE)
    for kind, name in (("whole", "whole replies"), ("stream", "streams")):
        yield Check(what=f"HTTP, {most} in flight: times the old commit, {name}", value=of_old(kind), bound=TIMES_OLD)
    yield Check(
        what=f"HTTP, {most} streams: time to the first token over the old commit's",
        value=of_old("stream", "first_token_ms"),
        bound=FIRST_TOKEN_OF_OLD,
        is_most=True,
    )
    what = f"gRPC, {most} in flight: share of the engine alone, traces"
    yield Check(what=what, value=of_engine("traces", most), bound=TRACES_SHARE)
    yield Check(what=f"gRPC, {most} in flight: times the old commit, traces", value=of_old("traces"), bound=TIMES_OLD)
