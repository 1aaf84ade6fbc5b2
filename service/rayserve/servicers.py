"""What Ray Serve's gRPC servers register: the services, with what Serve's method handlers leave out.

Behind Serve's Python proxy a client that leaves while a message is being written to it is not noticed: gRPC drops the
handler's generator there, which Serve answers with a status instead of cancelling the request, and the replica would
generate to the end for nobody. And Serve reports refusals and a replica's death in its own words. Serve
loads this by name, in its proxy and, behind HAProxy, in every replica.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from starlette.datastructures import Headers

from service.grpc_api.edge import SERVICE_NAME, error_metadata
from service.pb.topk_pb2_grpc import add_TopKServiceServicer_to_server
from service.rayserve.fallback import serve_error

#: Import paths, for Serve.
SERVICER_FUNCTIONS = ("service.rayserve.servicers.add_servicers",)
#: The errors behind Serve's own statuses: the same as over HTTP.
ERRORS = {
    code: serve_error(status, Headers())
    for code, status in (
        (grpc.StatusCode.NOT_FOUND, 404),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 408),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.INTERNAL, 500),
    )
}


def add_servicers(servicer: Any, server: Any) -> None:
    """Register both services with one of Serve's servers, which replaces the servicer by its own handlers."""
    of_serve = server.service_handler_factory

    def handler_factory(service_method: str, streaming_type: Any) -> Callable[..., Any]:
        handler: Callable[..., Any] = of_serve(service_method=service_method, streaming_type=streaming_type)
        if streaming_type.value == "unary_stream":
            handler = _cancellable(handler)
        elif streaming_type.value != "unary_unary":  # not one of our methods
            return handler
        return _telling(handler) if service_method.startswith(f"/{SERVICE_NAME}/") else handler

    server.service_handler_factory = handler_factory
    try:
        add_TopKServiceServicer_to_server(servicer, server)
        add_HealthServicer_to_server(servicer, server)
    finally:
        server.service_handler_factory = of_serve


def _cancellable(handler: Callable[..., AsyncGenerator[bytes, None]]) -> Callable[..., Awaitable[None]]:
    async def write_messages(request: Any, context: Any) -> None:
        messages = handler(request, context)
        try:
            async for message in messages:
                await context.write(message)
        finally:
            # Writing failed because the client has gone: Serve cancels a request if its next message is awaited.
            rest = asyncio.create_task(_exhaust(messages))
            asyncio.get_running_loop().call_soon(rest.cancel)
            # gRPC cancels the handler once more, but its end would free the call that Serve still uses.
            while not rest.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((rest,))

    return write_messages


async def _exhaust(messages: AsyncGenerator[bytes, None]) -> None:
    async for _ in messages:
        pass


def _telling(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        reply = await handler(request, context)
        metadata = list(context.trailing_metadata() or ())
        if context.code() in ERRORS and "type" not in dict(metadata):  # not reported by the application
            error = ERRORS[context.code()]
            context.set_code(grpc.StatusCode[error.grpc_code])
            context.set_details(error.message)
            context.set_trailing_metadata([*metadata, *error_metadata(error)])
        return reply

    return call
