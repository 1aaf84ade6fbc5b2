"""What Ray Serve's gRPC servers register: the services, with streams that can be cancelled at any moment.

Behind Serve's Python proxy a client that leaves while a message is being written to it is not noticed: gRPC drops the
handler's generator there, which Serve answers with a status instead of cancelling the request, and the replica would
generate to the end for nobody. Serve loads this by name, in its proxy and, behind HAProxy, in every replica.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from service.pb.topk_pb2_grpc import add_TopKServiceServicer_to_server

#: Import paths, for Serve.
SERVICER_FUNCTIONS = ("service.grpc_server.add_servicers",)


def add_servicers(servicer: Any, server: Any) -> None:
    """Register both services with one of Serve's servers, which puts handlers of its own in the servicer's place."""
    of_serve = server.service_handler_factory

    def handler_factory(service_method: str, streaming_type: Any) -> Callable[..., Any]:
        handler: Callable[..., Any] = of_serve(service_method=service_method, streaming_type=streaming_type)
        return _cancellable(handler) if streaming_type.value == "unary_stream" else handler

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
            # Where writing failed, since the client has gone: Serve cancels a request whose next message is waited for.
            rest = asyncio.create_task(_exhaust(messages))
            asyncio.get_running_loop().call_soon(rest.cancel)
            # gRPC cancels the handler once more, but its end would free the call that Serve still looks at.
            while not rest.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((rest,))

    return write_messages


async def _exhaust(messages: AsyncGenerator[bytes, None]) -> None:
    async for _ in messages:
        pass
