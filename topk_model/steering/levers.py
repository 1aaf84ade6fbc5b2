"""Searching for levers: neurons that make given words, or texts, likelier at little cost, within seconds.

As in `topk presets`, candidates come from the gradient and strengths from measured effect and cost. What differs is
what makes it quick: the cost of moving each neuron is predicted to second order, once for a model, so that the search
ranks neurons by what they promise at the cost allowed and begins at the right strength. Knows no words and no server.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor
from tqdm import tqdm

from topk_model.steering.bench import Effect, Lever, frozen
from topk_model.steering.readings import Reading
from topk_model.steering.targets import Target

#: Neurons that are tried once each; how many of them have their value adjusted beyond the levers asked for; and how
#: often it is.
NUM_CANDIDATES, NUM_SPARE, ADJUSTMENTS = 12, 2, 3
#: A value is good enough where it costs this share of what it may; the next one aims between that and all of it.
ENOUGH, AIM = 0.85, 0.93
#: Most that a neuron is moved: in multiples of the largest magnitude in its layer, and by itself, since an intervention
#: may add no more than twice as much.
MAX_MOVE, MAX_VALUE = 0.5, 5000.0
#: Multiples of a lever's value at which its effect and cost are told.
CURVE = (0.25, 0.5, 0.75, 1.0, 1.4)
#: Words are not moved if they are still less probable than this at a position: once in 100,000 tokens, a short book.
MIN_RATE = 1e-5
#: Continuations that are drawn at each position to predict what moving a neuron costs.
COST_SAMPLES = 2


class Watch(Protocol):
    """Who waits for a search."""

    def report(self, stage: str, done: int, total: int) -> None:
        """So many steps of a stage are done."""
        ...

    def checkpoint(self) -> None:
        """Called several times a pass; what it raises ends the search."""
        ...


class Bar:
    """A progress bar of a search, stage by stage."""

    def __init__(self) -> None:
        self._bar = tqdm(unit="step", leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def report(self, stage: str, done: int, total: int) -> None:
        """See `Watch`."""
        if self._bar.desc != f"{stage}: ":
            self._bar.reset(total)
            self._bar.set_description(stage)
        self._bar.update(done - self._bar.n)

    def checkpoint(self) -> None:
        """See `Watch`."""


@dataclass(frozen=True, kw_only=True)
class CostMap:
    """What a small move of each neuron costs: slope * v + curvature / 2 * v² nats a token, for a move by v."""

    slope: Tensor  #: `[layers, hidden_size]`
    curvature: Tensor  #: the same; not below 0
    limit: Tensor  #: `[layers, 1]`, most that a neuron is moved

    @classmethod
    def of(cls, reading: Reading, watch: Watch) -> "CostMap":
        """Predict from a reading of ordinary texts.

        The curvature is the diagonal of the Fisher information for one offset at all positions of a text: the mean
        squared gradient of the log-probability of continuations that are drawn from the model itself. As they are drawn
        independently, a text's squared sum is, in expectation, the sum of squares over its positions. The slope is that
        of the mean entropy, since what steering draws is judged by the plain model.
        """
        generator = torch.Generator(reading.layout.ids.device).manual_seed(0)
        slope: Tensor | float = 0.0
        curvature: Tensor | float = 0.0
        num_rows = len(reading) * len(reading.rows)
        with frozen(reading.model):
            for text in range(len(reading)):
                watch.report("predicting costs", text, len(reading))
                watch.checkpoint()
                offsets, log_probs = reading.differentiable(text)
                drawn = torch.multinomial(log_probs.detach().exp(), COST_SAMPLES, True, generator=generator)
                for column in drawn.T:
                    watch.checkpoint()
                    score = log_probs.gather(-1, column[:, None]).sum()
                    [gradient] = torch.autograd.grad(score, offsets, retain_graph=True)
                    curvature += gradient.square() / (COST_SAMPLES * num_rows)
                entropy = -(log_probs.exp() * log_probs.detach()).sum()
                [gradient] = torch.autograd.grad(entropy, offsets)
                slope += gradient / num_rows
        assert isinstance(slope, Tensor)
        assert isinstance(curvature, Tensor)
        return cls(
            slope=slope,
            curvature=curvature,
            limit=(MAX_MOVE * reading.scales().amax(1, keepdim=True)).clamp(max=MAX_VALUE),
        )

    def moves(self, direction: Tensor, max_cost: float) -> Tensor:
        """Moves of each neuron that are predicted to cost `max_cost`, `[layers, hidden_size]`.

        Args:
            direction: 1 or -1 for each neuron: whether it is to be raised or lowered.
        """
        slope, curvature = self.slope * direction, self.curvature.clamp(min=1e-12)
        size = ((slope.square() + 2 * curvature * max_cost).sqrt() - slope) / curvature
        return direction * torch.minimum(size, self.limit)

    def slope_of(self, lever: Lever, layers: Sequence[int]) -> float:
        """Nats a token for each unit of the lever's value, if it is small."""
        return self.slope[layers.index(lever.layer), lever.neuron].item()


@dataclass(frozen=True, kw_only=True)
class Measurement(Effect):
    """An effect, and how sure it is."""

    error: float  #: standard error of `log_odds` over the texts, in nats; 0 for a single one
    rate: float | None  #: how probable the words are then at a position, on average; None if the target is no words

    @property
    def sure(self) -> float:
        """What the log-odds rise by at least, but for chance: by this neurons are compared."""
        return self.log_odds - self.error

    def is_rise(self, least: float) -> bool:
        """Whether the target is moved: by at least so many nats, beyond chance, and so that words come at all."""
        is_seen = self.rate is None or self.rate >= MIN_RATE
        return is_seen and self.log_odds >= max(least, 2 * self.error)


class LeverBench:
    """Measures what moving one neuron does to a target, and what it costs.

    Args:
        ordinary: a reading of ordinary texts, by which the cost is measured.
        text_rows: how many of its rows, from the first, stand for positions of the texts.
        target: what is to become likelier.
        read: the reading that the target makes its number of; may be the same.
        watch: who is asked at every text whether to go on.
    """

    def __init__(self, ordinary: Reading, text_rows: int, target: Target, read: Reading, watch: Watch) -> None:
        self.ordinary, self.target, self.read, self._watch = ordinary, target, read, watch
        self._text_rows = text_rows
        self._plain: list[Tensor] = []  # of each text [text rows, vocab]
        self._expected: list[float] = []  # log-probability of what the plain model draws itself
        self._scores: list[float] = []
        rates: list[float | None] = []
        for text, log_probs in enumerate(read.log_probs()):
            self._scores.append(target.score(text, log_probs).item())
            rates.append(target.rate(log_probs))
        self.rate = mean(rates)  #: as `Measurement.rate`, of the plain model
        for log_probs in ordinary.log_probs():
            plain = log_probs[:text_rows].clone()
            self._plain.append(plain)
            self._expected.append(torch.linalg.vecdot(plain.exp(), plain).mean().item())

    @property
    def log_odds(self) -> float:
        """Of the target, under the plain model."""
        return sum(self._scores)

    def effect(self, lever: Lever) -> Measurement:
        """Move the lever's neuron at every position but the first, and compare."""
        cost = 0.0
        rises: list[float] = []
        rates: list[float | None] = []

        def look(text: int, log_probs: Tensor) -> None:
            rises.append(self.target.score(text, log_probs).item() - self._scores[text])
            rates.append(self.target.rate(log_probs))

        for text, log_probs in enumerate(self.ordinary.log_probs(lever)):
            self._watch.checkpoint()
            if self.read is self.ordinary:
                look(text, log_probs)
            drawn = log_probs[: self._text_rows].exp_()
            cost += self._expected[text] - torch.linalg.vecdot(drawn, self._plain[text]).mean().item()
        if self.read is not self.ordinary:
            for text, log_probs in enumerate(self.read.log_probs(lever)):
                self._watch.checkpoint()
                look(text, log_probs)
        return Measurement(
            log_odds=sum(rises),
            cost=cost / len(self.ordinary),
            error=standard_error(rises, self.target.groups),
            rate=mean(rates),
        )

    def gradient(self) -> Tensor:
        """Of the target in an offset of each neuron at every position but the first, `[layers, hidden_size]`."""
        total: Tensor | float = 0.0
        with frozen(self.read.model):
            for text in range(len(self.read)):
                self._watch.report("ranking", text, len(self.read))
                self._watch.checkpoint()
                offsets, log_probs = self.read.differentiable(text)
                [gradient] = torch.autograd.grad(self.target.score(text, log_probs), offsets)
                total += gradient
        assert isinstance(total, Tensor)
        return total


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A lever that was tried on the texts for finding."""

    lever: Lever
    effect: Measurement


@dataclass(frozen=True, kw_only=True)
class FoundLever:
    """A lever, measured on texts that it was not found on."""

    lever: Lever
    effect: Measurement
    curve: tuple[Tried, ...]  #: the same neuron moved by multiples of the value, ascending in magnitude


@dataclass(frozen=True, kw_only=True)
class Search:
    """What came of a search."""

    levers: tuple[FoundLever, ...]  #: those that move the target, the strongest first
    tried: tuple[Tried, ...]  #: every neuron that was tried, at its best value, the strongest first


def find_levers(
    finding: LeverBench,
    measuring: LeverBench,
    costs: CostMap,
    *,
    max_cost: float,
    limit: int,
    watch: Watch,
) -> Search:
    """The neurons that raise a target most at no more than `max_cost`, found on one bench and measured on the other.

    A lever that costs more on the measuring bench than it may is weakened until it does not.
    """
    tried, layers = [], finding.ordinary.layers
    candidates = strongest_by_gradient(finding, costs, max_cost)
    for i, lever in enumerate(candidates):
        watch.report("trying", i, len(candidates))
        tried.append(Tried(lever=lever, effect=finding.effect(lever)))
    tried.sort(key=lambda one: -promise(one.effect, max_cost))
    num_adjusted = min(limit + NUM_SPARE, len(tried))
    for i in range(num_adjusted):
        watch.report("adjusting", i, num_adjusted)
        tried[i] = adjusted(finding, tried[i], costs.slope_of(tried[i].lever, layers), max_cost)
    tried.sort(key=lambda one: (one.effect.cost > max_cost, -one.effect.sure))
    chosen = [one for one in tried if one.effect.cost <= max_cost and one.effect.log_odds > 0][:limit]
    levers = []
    for i, one in enumerate(chosen):
        watch.report("measuring", i, len(chosen))
        levers.append(measured(measuring, one.lever, costs.slope_of(one.lever, layers), max_cost))
    least = measuring.target.min_rise
    levers = [lever for lever in levers if lever.effect.is_rise(least) and lever.effect.cost <= max_cost]
    levers.sort(key=lambda lever: -lever.effect.log_odds)
    return Search(levers=tuple(levers), tried=tuple(tried))


def strongest_by_gradient(
    bench: LeverBench, costs: CostMap, max_cost: float, count: int = NUM_CANDIDATES
) -> list[Lever]:
    """The neurons by which the target would rise most, to first order, if each were moved by what may be paid for."""
    gradient = bench.gradient()
    moves = costs.moves(torch.where(gradient < 0, -1.0, 1.0), max_cost)
    gain, layers = gradient * moves, bench.ordinary.layers
    best = gain.flatten().topk(min(count, gain.numel())).indices.tolist()
    places = [divmod(i, gain.shape[1]) for i in best]
    return [Lever(layer=layers[at], neuron=neuron, value=rounded(moves[at, neuron].item())) for at, neuron in places]


def promise(effect: Measurement, max_cost: float) -> float:
    """The rise that a neuron would reach at the cost allowed: it grows in proportion, the cost as the square."""
    return effect.sure * min(2.0, math.sqrt(max_cost / effect.cost)) if effect.cost > 0 else effect.sure


def adjusted(bench: LeverBench, first: Tried, slope: float, max_cost: float) -> Tried:
    """The multiple of a lever that raises the target most at no more than `max_cost`, of a few that are tried; the
    first if none is within the cost. See `multiples`."""
    best = first
    for one in multiples(bench, first, slope, max_cost):
        is_better = best.effect.cost > max_cost or one.effect.log_odds > best.effect.log_odds
        if one.effect.cost <= max_cost and is_better:
            best = one
        if ENOUGH * max_cost <= one.effect.cost <= max_cost:
            break
    return best


def measured(bench: LeverBench, lever: Lever, slope: float, max_cost: float) -> FoundLever:
    """The lever on the measuring bench, weakened if it costs too much there, and its curve. See `multiples`."""
    first = Tried(lever=lever, effect=bench.effect(lever))
    tries = multiples(bench, first, slope, max_cost)
    one = next((one for one in tries if one.effect.cost <= max_cost), first)
    points = (replace(one.lever, value=rounded(multiple * one.lever.value)) for multiple in CURVE)
    curve = (one if point == one.lever else Tried(lever=point, effect=bench.effect(point)) for point in points)
    return FoundLever(lever=one.lever, effect=one.effect, curve=tuple(curve))


def multiples(bench: LeverBench, first: Tried, slope: float, max_cost: float) -> Iterator[Tried]:
    """The first try, and then multiples of its lever, each to cost a little less than `max_cost`.

    Args:
        slope: of the cost, at 0, in the lever's value.
    """
    yield first
    known = [(1.0, first.effect.cost)]
    for _ in range(ADJUSTMENTS):
        factor = next_factor(known, slope * first.lever.value, AIM * max_cost)
        lever = replace(first.lever, value=rounded(factor * first.lever.value))
        one = Tried(lever=lever, effect=bench.effect(lever))
        known.append((factor, one.effect.cost))
        yield one


def next_factor(known: Sequence[tuple[float, float]], slope: float, wanted: float) -> float:
    """The multiple at which cost = a * multiple + b * multiple² is `wanted`.

    Args:
        known: (multiple, its cost) of those tried, in that order; a and b are those of the last two.
        slope: a, as long as only one was tried.
    """
    factor, cost = known[-1]
    if len(known) > 1 and known[-2][0] != factor:
        earlier, its_cost = known[-2]
        b = (cost / factor - its_cost / earlier) / (factor - earlier)
        slope = cost / factor - b * factor
    else:
        b = (cost - slope * factor) / factor**2
    if b <= 0:  # no parabola that rises: the move is still too small to cost anything
        return 2 * factor
    guess = ((slope * slope + 4 * b * wanted) ** 0.5 - slope) / (2 * b)
    return min(max(guess, factor / 8), 2 * factor)


def rounded(value: float) -> float:
    """To four digits: what is measured is what a client is told, and may send."""
    return float(f"{value:.4g}")


def mean(values: Sequence[float | None]) -> float | None:
    """None if any is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def standard_error(parts: Sequence[float], groups: Sequence[int]) -> float:
    """Of a sum of parts, those of a group differing by chance; a group of one tells nothing of it and adds 0."""
    several = ([part for part, one in zip(parts, groups, strict=True) if one == group] for group in set(groups))
    return math.sqrt(sum(len(one) * statistics.variance(one) for one in several if len(one) > 1))
