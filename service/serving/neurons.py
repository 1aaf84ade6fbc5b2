"""Answers about neurons, from the models' catalogues and engines: HTTP and gRPC stand on this.

Knows no transport and no Ray.
"""

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.request import PromptEvent
from service.errors import BadRequestError, NotFoundError
from service.http_api.shapes import usage_fields
from service.requests.neuron_schema import NeuronListRequest, NeuronRequest, NeuronSearchRequest
from service.requests.planning import Plan, plan_search
from service.requests.resolving import check_layer, given, resolve_layers
from service.serving.catalogues import Catalogues
from service.serving.model import ModelHost
from service.serving.registry import Hosts
from service.settings import Settings
from topk_model.catalogue.reader import Catalogue, NeuronQuery
from topk_model.catalogue.search import TextFirings, score_contrast, score_text

Fields = dict[str, Any]


class Neurons:
    """The neurons of a replica's models.

    Replies hold the catalogue's dataclasses as they are, since the JSON writer takes them. SQLite is asked in a thread:
    a page takes it 2 ms, a long list or a history 10 to 20, for which no stream is to wait.
    """

    def __init__(self, hosts: Hosts, settings: Settings) -> None:
        self._hosts = hosts
        self._timeout_s = settings.request_timeout_s
        self._catalogues = Catalogues(hosts)

    async def page(self, request: NeuronRequest) -> Fields:
        """All about one neuron.

        Raises:
            ServiceError: there is no such model, catalogue or neuron.
        """
        catalogue = await self._catalogues.of(request.model)
        check_known(request, catalogue)
        neuron = await asyncio.to_thread(catalogue.neuron, request.layer, request.neuron)
        host, step = self._hosts.find(request.model)
        checkpoint = host.facts.checkpoint if step is None else f"step-{step}"
        return {"object": "neuron", "model": request.model, "checkpoint": checkpoint, **vars(neuron)}

    async def listing(self, request: NeuronListRequest) -> Fields:
        """One page of the neurons that were asked for.

        Raises:
            ServiceError: there is no such model, catalogue or layer.
        """
        catalogue = await self._catalogues.of(request.model)
        if request.layer is not None:
            check_layer(request.layer, "layer", self._hosts.find(request.model)[0].facts)
        query = NeuronQuery(**request.model_dump(exclude={"model"}))
        found, total = await asyncio.to_thread(catalogue.neurons, query)
        page = {"total": total, "limit": request.limit, "offset": request.offset}
        return {"object": "list", "model": request.model, "data": found, **page}

    async def history(self, request: NeuronRequest) -> Fields:
        """One neuron over the checkpoints and the layers of a model.

        Raises:
            ServiceError: there is no such model, catalogue or neuron.
        """
        run = await self._catalogues.of_run(request.model)
        check_known(request, run.final)
        found = await asyncio.to_thread(run.history, request.layer, request.neuron)
        return {"object": "neuron.history", "model": request.model, **vars(found)}

    async def search(self, request: NeuronSearchRequest) -> Fields:
        """The neurons that stand for a text, or for what sets one group of texts apart from another.

        Raises:
            ServiceError: there is no such model or catalogue, or the model cannot read the texts.
        """
        catalogue = await self._catalogues.of(request.model)
        async with self._hosts.use(request.model, given(request.timeout_s, self._timeout_s)) as host:
            layers = resolve_layers(request.layers, "layers", host.facts)
            plan = plan_search(
                request, host.facts, host.tokenizer, request_id=uuid.uuid4().hex, timeout_s=self._timeout_s
            )
            firings = await count_firings(host, plan, catalogue)
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
        return {
            "object": "list",
            "model": request.model,
            "data": matches(scores, ours, theirs, catalogue, layers, request.limit),
            "num_tokens": ours.num_tokens,
            "num_tokens_negative": None if theirs is None else theirs.num_tokens,
            "usage": usage_fields(plan.num_prompt_tokens, 0),
        }


async def count_firings(host: ModelHost, plan: Plan, catalogue: Catalogue) -> list[TextFirings]:
    """What each row of a plan fires, counted stretch by stretch as the engine reads it.

    Raises:
        ServiceError: as `ModelHost.generate`.
    """
    found = [TextFirings.none(catalogue) for _ in plan.rows]
    async with aclosing(host.generate(plan)) as batches:
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
) -> list[Fields]:
    """The neurons of `layers` with the highest scores above 0, at most `limit`; equal ones by layer and neuron."""
    places = [place for place, layer in enumerate(catalogue.facts.layers) if layer in layers]
    order = np.argsort(-scores[places], axis=None, kind="stable")[:limit]
    rows, neurons = np.unravel_index(order, (len(places), scores.shape[1]))
    best = [(places[row], int(neuron)) for row, neuron in zip(rows, neurons, strict=True)]
    best = [place for place in best if scores[place] > 0]
    pairs = [(catalogue.facts.layers[place], neuron) for place, neuron in best]
    return [
        {
            "layer": layer,
            "neuron": neuron,
            "score": float(scores[at]),
            "label": label,
            "density": float(catalogue.densities[at]),
            "active": int(ours.counts[at]),
            "active_negative": None if theirs is None else int(theirs.counts[at]),
        }
        for at, (layer, neuron), label in zip(best, pairs, catalogue.labels(pairs), strict=True)
    ]


def check_counted(firings: TextFirings, path: str) -> None:
    """Raises BadRequestError where there is nothing to count."""
    if not firings.num_tokens:
        raise BadRequestError(f"{path} holds no token but special ones, which are not counted", param=path)


def check_known(request: NeuronRequest, catalogue: Catalogue) -> None:
    """Raises NotFoundError where the model has no such TopK layer or neuron."""
    try:
        catalogue.number(request.layer, request.neuron)
    except IndexError as error:
        param = "neuron" if request.layer in catalogue.facts.layers else "layer"
        raise NotFoundError(str(error), param=param, code="neuron_not_found") from None
