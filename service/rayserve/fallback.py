"""Middleware in front of the application in each of Ray Serve's HTTP servers, to answer when the application cannot.

Serve refuses some requests itself and reports a replica's death, both as plain text; a stream that has lost its
replica just ends; and nothing handles a client that no longer reads. Serve loads this by name, in its proxy and,
behind HAProxy, in every replica. Behind HAProxy it cannot answer for its own dead replica: HAProxy then does, with the
file from `service.rayserve.haproxy`, and a stream that had begun is cut off without its last chunk.
"""

import asyncio
import logging
from contextlib import suppress
from importlib import import_module
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BadRequestError, DeadlineError, QueueFullError, ServiceError, UnavailableError
from service.http_api.wire import DONE, EVENT_STREAM, error_reply, event
from service.rayserve.confinement import confine_servers

logger = logging.getLogger(__name__)

#: Import path of `middlewares`, for Serve.
IMPORT_PATH = "service.rayserve.fallback:middlewares"
RETRY_AFTER_S = 1.0
#: Maximum time that a client may stop reading its answer; the server buffers about 64 KB until then.
SEND_TIMEOUT_S = 30.0
#: Serve's own pages.
SERVE_PREFIX = "/-/"


def middlewares() -> list[Middleware]:
    """Called by Serve, in every process that serves HTTP, before it serves gRPC."""
    confine_servers()
    speak_for_uvicorn()
    return [Middleware(Fallback)]


def speak_for_uvicorn() -> None:
    """Make uvicorn, on which Serve's servers are built, refuse what it cannot parse with the one error body."""
    for protocol in ("httptools_impl.HttpToolsProtocol", "h11_impl.H11Protocol"):
        module, name = protocol.split(".")
        with suppress(ImportError):  # httptools is optional
            implementation = getattr(import_module(f"uvicorn.protocols.http.{module}"), name)
            implementation.send_400_response = send_unreadable


def send_unreadable(protocol: Any, _: str) -> None:
    body = orjson.dumps(
        BadRequestError("the request is not HTTP, or its first line, headers or body are malformed").body()
    )
    protocol.transport.write(
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
    )
    protocol.transport.close()


class Fallback:
    """Turns Serve's errors into the one error body, ends cut streams with it, and disconnects clients that stall."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(SERVE_PREFIX):
            await self.app(scope, receive, send)
            return
        if scope["path"] == "*":  # of "OPTIONS *", which is about the whole service
            scope = {**scope, "path": "/", "raw_path": b"/"}
        reply = _Reply(scope, receive, send)
        try:
            await self.app(scope, reply.receive, reply.send)
        finally:
            await reply.end()


class _Reply:
    """The response to one request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._gone = asyncio.Event()
        self._is_body_read = False
        self._is_started = False
        self._is_replaced = False
        self._is_stream = False  # of events, begun and not ended

    async def receive(self) -> Message:
        """The server's next message, or a disconnect if the client is considered gone."""
        if not self._is_body_read:  # nothing is being sent yet
            message = await self._receive()
            self._is_body_read = not message.get("more_body", False)
            return message
        receiving = asyncio.ensure_future(self._receive())
        leaving = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait((receiving, leaving), return_when=asyncio.FIRST_COMPLETED)
            return receiving.result() if receiving.done() else {"type": "http.disconnect"}
        finally:
            receiving.cancel()
            leaving.cancel()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_started = True
            headers = Headers(raw=[(bytes(name), bytes(value)) for name, value in message.get("headers", [])])
            media_type = headers.get("content-type", "").partition(";")[0]
            # The application's own errors are JSON.
            if message["status"] >= 400 and media_type == "text/plain":
                self._is_replaced = True
                await error_reply(serve_error(message["status"], headers))(self._scope, self._receive, self._pass_on)
                return
            self._is_stream = media_type == EVENT_STREAM
        elif not message.get("more_body", False):
            self._is_stream = False
        if not self._is_replaced:
            await self._pass_on(message)

    async def end(self) -> None:
        """Send the error if nothing has been sent, or if a stream of events has not been ended."""
        error = replica_died(RETRY_AFTER_S)
        if not self._is_started:
            await error_reply(error)(self._scope, self._receive, self._pass_on)
        elif self._is_stream:
            await self._pass_on({"type": "http.response.body", "body": event(error.body()) + DONE})

    async def _pass_on(self, message: Message) -> None:
        if self._gone.is_set():
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._send(message)
        except TimeoutError:
            logger.warning("a client has not read its answer for %g s and is disconnected", SEND_TIMEOUT_S)
            self._gone.set()


def serve_error(status: int, headers: Headers) -> ServiceError:
    """The error behind one of Serve's own statuses."""
    retry_after = headers.get("retry-after", "")
    retry_after_s = float(retry_after) if retry_after.isdecimal() else RETRY_AFTER_S
    if status == 404:  # the application is at /, so it does not exist yet or no longer exists
        return UnavailableError("no model is served here at the moment", retry_after_s=retry_after_s)
    if status == 408:
        return DeadlineError()
    if status == 429:
        return QueueFullError("too many requests are waiting", retry_after_s=retry_after_s)
    if status == 503:
        return UnavailableError("no replica can take the request", retry_after_s=retry_after_s)
    return replica_died(retry_after_s)


def replica_died(retry_after_s: float) -> ServiceError:
    return UnavailableError(
        "the replica that had the request has died", code="replica_died", retry_after_s=retry_after_s
    )
