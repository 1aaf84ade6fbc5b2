"""The HTTP API on one screen: `routes` is a table of every path with its request, reply and errors.

A handler validates, calls the replica and returns the answer as JSON or as server-sent events. Knows no Ray and no
engine.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel

from service.errors import BadRequestError, InternalError, NotFoundError, ServiceError, UnavailableError
from service.http_api import openapi, rendering, shapes
from service.http_api.bodies import read_body
from service.http_api.edge import request_id_of, unless_gone
from service.http_api.neuron_shapes import shape_of
from service.http_api.streaming import EventStream, answer_events, job_events, server_sent_events
from service.http_api.wire import JsonReply
from service.observability.metrics_page import CONTENT_TYPE, Collected, render
from service.requests.attribution_schema import AttributionRequest
from service.requests.levers import LeversRequest
from service.requests.neuron_schema import NeuronListRequest, NeuronRequest, NeuronSearchRequest, from_query
from service.requests.parsing import parse_body
from service.requests.schema import (
    ActivationsRequest,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from service.serving.attribution_reply import Attribution
from service.serving.lever_replies import LeverReply
from service.serving.neurons import NeuronHistoryReply, NeuronList, NeuronMatches, NeuronPage
from service.serving.replica import Replica
from service.serving.side_jobs import result_of
from service.version import package_version

CollectMetrics = Callable[[], Awaitable[Collected]]
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One path: its handler and its entry in the OpenAPI document."""

    method: str
    path: str
    handler: Handler
    described: dict[str, Any]


def routes(api: "Handlers") -> list[Route]:
    """Every route of the API."""
    neuron = openapi.query_parameters(NeuronRequest, in_path=("layer", "neuron"))
    neurons = openapi.query_parameters(NeuronListRequest)
    catalogued = (BadRequestError, NotFoundError, InternalError)
    matches, page, page_list = shape_of(NeuronMatches), shape_of(NeuronPage), shape_of(NeuronList)
    history = shape_of(NeuronHistoryReply)
    levers = shape_of(LeverReply)
    chat, chat_chunk = shapes.ChatCompletion, shapes.ChatCompletionChunk
    return [
        get("/v1/models", api.models, shapes.ModelList),
        # A model's id may contain slashes.
        get("/v1/models/{model_id:path}", api.model_by_id, shapes.ModelCard, NotFoundError, named=("model_id",)),
        post("/v1/tokenize", api.tokenize, TokenizeRequest, shapes.Tokenization),
        post("/v1/detokenize", api.detokenize, DetokenizeRequest, shapes.Detokenization),
        post("/v1/completions", api.completions, CompletionRequest, shapes.Completion, chunk=shapes.Completion),
        post("/v1/chat/completions", api.chat_completions, ChatCompletionRequest, chat, chunk=chat_chunk),
        post("/v1/activations", api.activations, ActivationsRequest, shapes.Activations),
        post(
            "/v1/attributions", api.attributions, AttributionRequest, shape_of(Attribution), chunk=shape_of(Attribution)
        ),
        get("/v1/neurons", api.neuron_list, page_list, *catalogued, extra=neurons),
        post("/v1/neurons/search", api.neuron_search, NeuronSearchRequest, matches),
        get("/v1/neurons/{layer}/{neuron}", api.neuron_page, page, *catalogued, extra=neuron),
        get("/v1/neurons/{layer}/{neuron}/history", api.neuron_history, history, *catalogued, extra=neuron),
        post("/v1/levers", api.levers, LeversRequest, levers, chunk=levers),
        get("/health", api.ready, openapi.Health, UnavailableError),
        get("/health/live", api.live, openapi.Health, UnavailableError),
        get("/health/ready", api.ready, openapi.Health, UnavailableError),
        get("/version", api.version_of_package, openapi.Version),
        get("/metrics", api.metrics, None, media_type="text/plain"),
    ]


def get(
    path: str,
    handler: Handler,
    gives: type[BaseModel] | None,
    *faults: type[ServiceError],
    named: tuple[str, ...] = (),
    extra: dict[str, Any] | None = None,
    media_type: str = "",
) -> Route:
    """A route without a request body; `named` are its path's parameters, if no request model describes them."""
    described = openapi.reading(gives, *faults, media_type=media_type) | (extra or {})
    if named:
        described["parameters"] = openapi.path_parameters(named)
    return Route(method="GET", path=path, handler=handler, described=described)


def post(
    path: str,
    handler: Handler,
    takes: type[BaseModel],
    gives: type[BaseModel],
    *,
    chunk: type[BaseModel] | None = None,
) -> Route:
    """A route with a JSON request and reply, which can also stream `chunk`s."""
    return Route(method="POST", path=path, handler=handler, described=openapi.operation(takes, gives, chunk=chunk))


class Handlers:
    """The handlers of one replica's API."""

    def __init__(self, replica: Replica, collect_metrics: CollectMetrics | None = None) -> None:
        self._replica = replica
        self._collect_metrics = collect_metrics

    async def models(self, _: Request) -> Response:
        return JsonReply({"object": "list", "data": self._replica.model_entries()})

    async def model_by_id(self, request: Request) -> Response:
        return JsonReply(self._replica.model_entry(request.path_params["model_id"]))

    async def tokenize(self, request: Request) -> Response:
        return JsonReply(await self._replica.tokenize(parse_body(TokenizeRequest, await read_body(request))))

    async def detokenize(self, request: Request) -> Response:
        return JsonReply(self._replica.detokenize(parse_body(DetokenizeRequest, await read_body(request))))

    async def completions(self, request: Request) -> Response:
        return await self._generate(request, parse_body(CompletionRequest, await read_body(request)))

    async def chat_completions(self, request: Request) -> Response:
        return await self._generate(request, parse_body(ChatCompletionRequest, await read_body(request)))

    async def activations(self, request: Request) -> Response:
        body = parse_body(ActivationsRequest, await read_body(request))
        answer = await unless_gone(request, self._replica.answer(body, request_id_of(request.scope)))
        return JsonReply(rendering.activations(answer))

    async def attributions(self, request: Request) -> Response:
        body = parse_body(AttributionRequest, await read_body(request))
        return await job_reply(request, self._replica.attribute(body), stream=body.stream)

    async def neuron_list(self, request: Request) -> Response:
        body = from_query(NeuronListRequest, request.query_params.multi_items())
        return JsonReply(await self._replica.neurons.listing(body))

    async def neuron_search(self, request: Request) -> Response:
        body = parse_body(NeuronSearchRequest, await read_body(request))
        return JsonReply(await unless_gone(request, self._replica.neurons.search(body)))

    async def neuron_page(self, request: Request) -> Response:
        return JsonReply(await self._replica.neurons.page(neuron_of(request)))

    async def neuron_history(self, request: Request) -> Response:
        return JsonReply(await self._replica.neurons.history(neuron_of(request)))

    async def levers(self, request: Request) -> Response:
        body = parse_body(LeversRequest, await read_body(request))
        return await job_reply(request, self._replica.levers.find(body), stream=body.stream)

    async def live(self, _: Request) -> Response:
        self._replica.check_health()
        return JsonReply({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        self._replica.check_ready()
        return JsonReply({"status": "ok"})

    async def version_of_package(self, _: Request) -> Response:
        return JsonReply({"version": package_version(), "grpc_port": self._replica.settings.grpc_port})

    async def metrics(self, _: Request) -> Response:
        if self._collect_metrics is not None:
            collected = await self._collect_metrics()
        else:
            collected = Collected(replicas=[self._replica.collect_metrics()], num_asked=1)
        return Response(render(collected), media_type=CONTENT_TYPE)

    async def _generate(self, request: Request, body: CompletionRequest | ChatCompletionRequest) -> Response:
        request_id = request_id_of(request.scope)
        if body.stream:
            return await streamed(request, answer_events(self._replica.stream(body, request_id)))
        answer = await unless_gone(request, self._replica.answer(body, request_id))
        return JsonReply(rendering.whole(answer))


async def streamed(request: Request, pieces: AsyncGenerator[bytes, None]) -> Response:
    """The reply that streams; what fails before its first piece is a reply of its own."""
    events = server_sent_events(pieces)
    first = await unless_gone(request, anext(events))
    return EventStream(request, first, events)


async def job_reply(request: Request, events: AsyncGenerator[Any, None], *, stream: bool) -> Response:
    """A side job's result, or a stream of its progress that ends with it."""
    if stream:
        return await streamed(request, job_events(events))
    return JsonReply(await unless_gone(request, result_of(events)))


def neuron_of(request: Request) -> NeuronRequest:
    """Which neuron a path and its query mean; raises BadRequestError."""
    path = [(name, str(value)) for name, value in request.path_params.items()]
    return from_query(NeuronRequest, [*path, *request.query_params.multi_items()])
