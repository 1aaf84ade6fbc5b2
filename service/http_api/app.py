"""The HTTP application: routes of the OpenAI API, of traces, and of the service itself.

A route validates, asks the replica and says the answer as JSON or as server-sent events. Knows no Ray and no engine.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from service.answers.answer import Answer
from service.errors import InternalError, NotFoundError, ServiceError, UnavailableError
from service.http_api import openapi
from service.http_api.edge import Edge, error_reply, from_http_exception, read_body, request_id_of, unless_gone
from service.http_api.neuron_routes import add_neuron_routes
from service.http_api.openapi import operation, reading
from service.http_api.playground import add_playground
from service.http_api.shapes import (
    Activations,
    ChatCompletion,
    Completion,
    Detokenization,
    ModelCard,
    ModelList,
    Tokenization,
)
from service.http_api.wire import DONE, EVENT_STREAM, JsonReply, event
from service.observability.metrics_page import CONTENT_TYPE, Collected, render
from service.observability.telemetry import note_error
from service.requests.parsing import parse_body
from service.requests.schema import (
    ActivationsRequest,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from service.serving.replica import Replica
from service.version import package_version

logger = logging.getLogger(__name__)

CollectMetrics = Callable[[], Awaitable[Collected]]


def create_app(
    replica: Replica, *, collect_metrics: CollectMetrics | None = None, sends_request_id: bool = True
) -> FastAPI:
    """The application over one replica, which must have been started in the same event loop.

    Args:
        collect_metrics: families of all replicas; by default of this one.
        sends_request_id: whether to put `X-Request-Id` on responses; false where the server in front does so.
    """
    app = FastAPI(title=openapi.TITLE, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(
        Edge,
        keys=replica.api_keys,
        admission=replica.admission,
        telemetry=replica.telemetry,
        sends_request_id=sends_request_id,
    )
    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    add_model_routes(app, replica)
    add_generation_routes(app, replica)
    add_neuron_routes(app, replica.neurons)
    add_service_routes(app, replica, collect_metrics)
    add_playground(app)
    return app


def add_generation_routes(app: FastAPI, replica: Replica) -> None:
    """Completions, chat completions and activations."""

    async def generate(request: Request, body: CompletionRequest | ChatCompletionRequest) -> Response:
        request_id = request_id_of(request.scope)
        if body.stream:
            events = server_sent_events(replica.stream(body, request_id))
            first = await unless_gone(request, anext(events))
            return EventStream(request, first, events)
        answer = await unless_gone(request, replica.answer(body, request_id))
        return JsonReply(answer.whole())

    @app.post(
        "/v1/completions",
        response_class=Response,
        openapi_extra=operation(CompletionRequest, Completion, streams=True),
    )
    async def completions(request: Request) -> Response:
        return await generate(request, parse_body(CompletionRequest, await read_body(request)))

    @app.post(
        "/v1/chat/completions",
        response_class=Response,
        openapi_extra=operation(ChatCompletionRequest, ChatCompletion, streams=True),
    )
    async def chat_completions(request: Request) -> Response:
        return await generate(request, parse_body(ChatCompletionRequest, await read_body(request)))

    @app.post(
        "/v1/activations",
        response_class=Response,
        openapi_extra=operation(ActivationsRequest, Activations),
    )
    async def activations(request: Request) -> Response:
        body = parse_body(ActivationsRequest, await read_body(request))
        answer = await unless_gone(request, replica.answer(body, request_id_of(request.scope)))
        reply = {"object": "list", "model": answer.facts.id, "data": answer.traces(), "usage": answer.usage}
        return JsonReply({**reply, "warnings": answer.warnings})


def add_model_routes(app: FastAPI, replica: Replica) -> None:
    """Models, tokenize and detokenize."""

    @app.get("/v1/models", response_class=Response, openapi_extra=reading(ModelList))
    async def models() -> Response:
        return JsonReply({"object": "list", "data": replica.model_cards()})

    # A model's id may hold slashes.
    @app.get("/v1/models/{model_id:path}", response_class=Response, openapi_extra=reading(ModelCard, NotFoundError))
    async def model_by_id(model_id: str) -> Response:
        return JsonReply(replica.model_card(model_id))

    @app.post("/v1/tokenize", response_class=Response, openapi_extra=operation(TokenizeRequest, Tokenization))
    async def tokenize(request: Request) -> Response:
        return JsonReply(await replica.tokenize(parse_body(TokenizeRequest, await read_body(request))))

    @app.post("/v1/detokenize", response_class=Response, openapi_extra=operation(DetokenizeRequest, Detokenization))
    async def detokenize(request: Request) -> Response:
        return JsonReply(replica.detokenize(parse_body(DetokenizeRequest, await read_body(request))))


def add_service_routes(app: FastAPI, replica: Replica, collect_metrics: CollectMetrics | None) -> None:
    """Health, version, metrics and the OpenAPI document."""
    document: dict[str, Any] = {}

    @app.get("/health/live", response_class=Response, openapi_extra=reading(openapi.Health, UnavailableError))
    async def live() -> Response:
        replica.check_health()
        return JsonReply({"status": "ok"})

    @app.get("/health/ready", response_class=Response, openapi_extra=reading(openapi.Health, UnavailableError))
    async def ready() -> Response:
        replica.check_ready()
        return JsonReply({"status": "ok"})

    @app.get("/version", response_class=Response, openapi_extra=reading(openapi.Version))
    async def version_of_package() -> Response:
        return JsonReply({"version": package_version(), "grpc_port": replica.settings.grpc_port})

    @app.get("/metrics", response_class=Response, openapi_extra=reading(None, media_type="text/plain"))
    async def metrics() -> Response:
        if collect_metrics is not None:
            collected = await collect_metrics()
        else:
            collected = Collected(replicas=[replica.collect_metrics()], num_asked=1)
        return Response(render(collected), media_type=CONTENT_TYPE)

    @app.get("/openapi.json", response_class=Response, include_in_schema=False)
    async def openapi_document() -> Response:
        if not document:
            document.update(openapi.document(app, package_version()))
        return JsonReply(document)


class EventStream(Response):
    """Server-sent events, a piece at a time, until they end or the client goes; the source is closed either way."""

    media_type = EVENT_STREAM

    def __init__(self, request: Request, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        # Proxies between us and the client are to pass events on at once.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._request = request
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(self._request, self._send(send))

    async def _send(self, send: Send) -> None:
        async with aclosing(self._rest) as rest:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for data in rest:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def server_sent_events(answers: AsyncGenerator[Answer, None]) -> AsyncGenerator[bytes, None]:
    """Each growth of the answer as one piece of one or more events.

    Raises:
        ServiceError: nothing could be sent; a fault after the first event becomes an event itself.
    """
    is_begun = False
    answer = None
    try:
        async with aclosing(answers):
            async for answer in answers:
                if data := b"".join(event(chunk) for chunk in answer.chunks()):
                    is_begun = True
                    yield data
        assert answer is not None
        last = answer.last_chunk()
        yield (event(last) if last is not None else b"") + DONE
    except ServiceError as error:
        if not is_begun:
            raise
        note_error(error)
        yield event(error.body()) + DONE
    except Exception:
        if not is_begun:
            raise
        logger.exception("a stream failed")
        fault = InternalError("internal error; the log has it under the request's id")
        note_error(fault)
        yield event(fault.body()) + DONE


async def on_service_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_reply(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return from_http_exception(error, request)
