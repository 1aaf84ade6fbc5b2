"""Answers about neurons, from the models' catalogues and engines; HTTP and gRPC are built on it.

The replies are dataclasses, from which the documents of both interfaces are generated.

Knows no transport and no Ray.
"""

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from service.answers.fields import Usage
from service.engine.request import PromptEvent
from service.errors import BadRequestError, NotFoundError
from service.requests.neuron_schema import NeuronListRequest, NeuronRequest, NeuronSearchRequest
from service.requests.planning import Plan
from service.requests.resolving import check_layer, given, resolve_layers
from service.serving.catalogues import Catalogues
from service.serving.model import ServedModel
from service.serving.registry import ModelRegistry
from service.settings import Settings
from topk_model.catalogue.history import NeuronHistory
from topk_model.catalogue.neuron import Neuron, NeuronSummary
from topk_model.catalogue.reader import Catalogue, NeuronQuery
from topk_model.catalogue.search import TextFirings, hits, score_contrast, score_text
from topk_model.model_folder import step_name


@dataclass(frozen=True, kw_only=True)
class NeuronPage(Neuron):
    """Everything in the catalogue about one neuron."""

    object: Literal["neuron"] = "neuron"
    model: str
    checkpoint: Annotated[str | None, "step-… of the training checkpoint; null for the final model"]


@dataclass(frozen=True, kw_only=True)
class NeuronList:
    """One page of the neurons that match."""

    object: Literal["list"] = "list"
    model: str
    data: tuple[NeuronSummary, ...]
    total: Annotated[int, "neurons on all pages"]
    limit: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class NeuronMatch:
    """A neuron that stands for the text."""

    layer: int
    neuron: int
    score: Annotated[float, "z-score of its log-odds of firing, compared with its base rate or with the negative texts"]
    label: str | None
    density: Annotated[float, "fraction of all positions in the catalogue's texts at which it is active"]
    active: Annotated[int, "tokens of the text, or of the positive texts, at which it is active"]
    active_negative: Annotated[int | None, "tokens of the negative texts at which it is; null without them"]
    also_in: Annotated[tuple[int, ...], "other layers in which it is the same neuron; those are no hits of their own"]


@dataclass(frozen=True, kw_only=True)
class NeuronMatches:
    """The neurons that stand for the text, highest score first; only scores above 0."""

    object: Literal["list"] = "list"
    model: str
    data: tuple[NeuronMatch, ...]
    num_tokens: Annotated[int, "tokens of the text, or of the positive texts, without special tokens"]
    num_tokens_negative: int | None
    usage: Usage


@dataclass(frozen=True, kw_only=True)
class NeuronHistoryReply(NeuronHistory):
    """One neuron over the checkpoints of a model's training, and over its layers."""

    object: Literal["neuron.history"] = "neuron.history"
    model: str


class Neurons:
    """The neurons of a replica's models.

    SQLite is queried in a thread:
    a page takes 2 ms, a long list or a history 10 to 20 ms, and no stream should wait that long.
    """

    def __init__(self, registry: ModelRegistry, settings: Settings) -> None:
        self._registry = registry
        self._timeout_s = settings.request_timeout_s
        self.catalogues = Catalogues(registry)

    async def page(self, request: NeuronRequest) -> NeuronPage:
        """Everything about one neuron.

        Raises:
            ServiceError: there is no such model, catalogue or neuron.
        """
        catalogue = await self.catalogues.of(request.model)
        check_known(request, catalogue)
        neuron = await asyncio.to_thread(catalogue.neuron, request.layer, request.neuron)
        served, step = self._registry.find(request.model)
        checkpoint = served.facts.checkpoint if step is None else step_name(step)
        return NeuronPage(model=request.model, checkpoint=checkpoint, **vars(neuron))

    async def listing(self, request: NeuronListRequest) -> NeuronList:
        """One page of the neurons that match.

        Raises:
            ServiceError: there is no such model, catalogue or layer.
        """
        catalogue = await self.catalogues.of(request.model)
        if request.layer is not None:
            check_layer(request.layer, "layer", self._registry.find(request.model)[0].facts)
        query = NeuronQuery(**request.model_dump(exclude={"model"}))
        found, total = await asyncio.to_thread(catalogue.neurons, query)
        return NeuronList(
            model=request.model, data=tuple(found), total=total, limit=request.limit, offset=request.offset
        )

    async def history(self, request: NeuronRequest) -> NeuronHistoryReply:
        """One neuron over the checkpoints and the layers of a model.

        Raises:
            ServiceError: there is no such model, catalogue or neuron.
        """
        run = await self.catalogues.of_run(request.model)
        check_known(request, run.final)
        found = await asyncio.to_thread(run.history, request.layer, request.neuron)
        return NeuronHistoryReply(model=request.model, **vars(found))

    async def search(self, request: NeuronSearchRequest) -> NeuronMatches:
        """The neurons that stand for a text, or for what distinguishes one group of texts from another.

        Raises:
            ServiceError: there is no such model or catalogue, or the model cannot read the texts.
        """
        catalogue = await self.catalogues.of(request.model)
        async with self._registry.use(request.model, given(request.timeout_s, self._timeout_s)) as served:
            layers = resolve_layers(request.layers, "layers", served.facts)
            plan = served.planner.search(request, uuid.uuid4().hex)
            firings = await count_firings(served, plan, catalogue)
        if request.contrast is None:
            [ours], theirs = firings, None
            check_counted(ours, "text")
            scores = score_text(ours)
        else:
            num_positive = len(request.contrast.positive)
            nothing = TextFirings.none(catalogue)
            ours, theirs = sum(firings[:num_positive], nothing), sum(firings[num_positive:], nothing)
            check_counted(ours, "contrast.positive")
            check_counted(theirs, "contrast.negative")
            scores = score_contrast(ours, theirs)
        return NeuronMatches(
            model=request.model,
            data=matches(scores, ours, theirs, catalogue, layers, request.limit),
            num_tokens=ours.num_tokens,
            num_tokens_negative=None if theirs is None else theirs.num_tokens,
            usage=Usage.of(plan.num_prompt_tokens, 0),
        )


async def count_firings(served: ServedModel, plan: Plan, catalogue: Catalogue) -> list[TextFirings]:
    """The active neurons of each row of a plan, counted in parts as the engine reads them.

    Raises:
        ServiceError: as for `ServedModel.generate`.
    """
    found = [TextFirings.none(catalogue) for _ in plan.rows]
    async with aclosing(served.generate(plan)) as batches:
        async for events in batches:
            for row, event in events:
                if not isinstance(event, PromptEvent) or event.trace is None:
                    continue
                first = event.trace.first_position
                ids = plan.rows[row].request.prompt_ids[first : first + event.trace.num_tokens]
                found[row] += TextFirings.of(event.trace, ids, catalogue)
    return found


def matches(
    scores: NDArray[np.float64],
    ours: TextFirings,
    theirs: TextFirings | None,
    catalogue: Catalogue,
    layers: Sequence[int],
    limit: int,
) -> tuple[NeuronMatch, ...]:
    """The neurons that `hits` finds, with what is to be said of them."""
    best = hits(scores, catalogue, layers, limit)
    pairs = [(catalogue.facts.layers[place], neuron) for place, neuron in best]
    return tuple(
        NeuronMatch(
            layer=layer,
            neuron=neuron,
            score=float(scores[at]),
            label=label,
            density=float(catalogue.densities[at]),
            active=int(ours.counts[at]),
            active_negative=None if theirs is None else int(theirs.counts[at]),
            also_in=catalogue.also_in[catalogue.number(layer, neuron)],
        )
        for at, (layer, neuron), label in zip(best, pairs, catalogue.labels(pairs), strict=True)
    )


def check_counted(firings: TextFirings, path: str) -> None:
    """Raises BadRequestError if there is nothing to count."""
    if not firings.num_tokens:
        raise BadRequestError(f"{path} has only special tokens, which are not counted", param=path)


def check_known(request: NeuronRequest, catalogue: Catalogue) -> None:
    """Raises NotFoundError if the model has no such TopK layer or neuron."""
    try:
        catalogue.number(request.layer, request.neuron)
    except IndexError as error:
        param = "neuron" if request.layer in catalogue.facts.layers else "layer"
        raise NotFoundError(str(error), param=param, code="neuron_not_found") from None
