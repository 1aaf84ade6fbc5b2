"""What every HTTP request passes before its route: an id, the API key, room, and the one error body for every fault.

Plain ASGI, so that streams and disconnects go through untouched. Knows no route's content and no Ray.
"""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from contextlib import nullcontext
from typing import TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.admission import REQUEST_ID_HEADER, Admission, ApiKeys, choose_request_id
from service.errors import (
    AuthenticationError,
    BadRequestError,
    BodyTooLargeError,
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    QueueFullError,
    ServiceError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from service.http_api import wire
from service.http_api.addresses import allowed, nearest
from service.http_api.callers import Callers
from service.http_api.playground import FILES_PATH
from service.observability.telemetry import RequestRecord, Telemetry, note_error

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
#: Paths that need no key: health, and the playground, which asks its user for one.
OPEN_PATHS = HEALTH_PATHS | {"/"}

_HTTP_ERRORS: dict[int, type[ServiceError]] = {
    400: BadRequestError,
    404: NotFoundError,
    405: MethodNotAllowedError,
    413: BodyTooLargeError,
    415: UnsupportedMediaTypeError,
    503: UnavailableError,
}


def error_reply(error: ServiceError, headers: dict[str, str] | None = None) -> Response:
    """The reply that tells a client of `error`, which is noted for the request's record."""
    note_error(error)
    return wire.error_reply(error, headers)


def from_http_exception(error: HTTPException, request: Request) -> Response:
    """The one body for what the router refuses: unknown paths and methods. OPTIONS is told what is allowed."""
    path = request.url.path
    method, headers = request.scope["state"].get("method", request.method), dict(error.headers or {})
    if error.status_code == 404:
        near = nearest_route(path, request.app.routes)
        hint = f"did you mean {near}?" if near else "/openapi.json has all routes"
        fault: ServiceError = NotFoundError(f"there is no {path[:100]!r} here; {hint}", code="unknown_route")
    elif error.status_code == 405:
        headers["Allow"] = allowed(headers.get("Allow", "GET"))
        if method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        fault = MethodNotAllowedError(f"{method} is not allowed on {path[:100]!r}, which takes {headers['Allow']}")
    else:
        fault = _HTTP_ERRORS.get(error.status_code, InternalError)(str(error.detail))
    return error_reply(fault, headers)


def nearest_route(path: str, routes: Sequence[BaseRoute]) -> str | None:
    """The method and the path of the route that a client may have meant."""
    methods = {route.path: min(route.methods or {"GET"}) for route in routes if isinstance(route, Route)}
    near = nearest(path, methods)
    return None if near is None else f"{methods.get(near, 'GET')} {near}"


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN_PATHS or path.startswith(f"{FILES_PATH}/")


def is_uncounted(path: str) -> bool:
    """Whether a path is answered however full the replica is, and told to nobody."""
    return is_open(path) or path == "/metrics"


def request_id_of(scope: Scope) -> str:
    """The request's id, given by the client or made by `Edge`."""
    request_id: str = scope["state"]["request_id"]
    return request_id


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled if the client goes first. The body must have been read.

    Raises:
        ClientDisconnect: the client has gone.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


class Edge:
    """The outermost layer of the application.

    Args:
        callers: by which names and from which pages the service may be asked.
        keys: accepted API keys; if there are none, no key is asked for.
        admission: counts requests, those of other transports too; too many get 429.
        telemetry: is told of every request but those that `is_uncounted` names.
        sends_request_id: whether to put the id on the response; not where the server in front does so.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        callers: Callers,
        keys: ApiKeys,
        admission: Admission,
        telemetry: Telemetry,
        sends_request_id: bool,
    ) -> None:
        self.app = app
        self.callers = callers
        self.keys = keys
        self.admission = admission
        self.telemetry = telemetry
        self.sends_request_id = sends_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = choose_request_id(headers.get(REQUEST_ID_HEADER))
        scope.setdefault("state", {})["request_id"] = request_id
        record = RequestRecord(request_id=request_id, transport="http", carrier=headers)

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = str(message["status"])
                if self.sends_request_id:
                    MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        is_counted = not is_uncounted(scope["path"])
        with self.telemetry.request(record) if is_counted else nullcontext():
            if (refusal := self._refuse(scope, is_counted)) is not None:
                await error_reply(refusal)(scope, receive, send_noted)
                return
            try:
                with self.admission.entered() if is_counted else nullcontext():
                    await self.app(scope, receive, send_noted)
            except ClientDisconnect:
                record.status = ""
            except asyncio.CancelledError:
                record.status = ""
                raise
            except Exception:
                logger.exception("request %s failed", request_id)
                reply = error_reply(InternalError("internal error; the log has it under the request's id"))
                if not record.status:
                    await reply(scope, receive, send_noted)
            finally:
                # The router has left the route that it found.
                record.route = getattr(scope.get("route"), "path", record.route)

    def _refuse(self, scope: Scope, is_counted: bool) -> ServiceError | None:
        """Why the request goes no further, if so."""
        is_probe = scope["path"] in HEALTH_PATHS  # by whatever address; it is told nothing but that
        if not is_probe and (refusal := self.callers.refusal(Headers(scope=scope))) is not None:
            return refusal
        if not is_open(scope["path"]) and not self.keys.accept(Headers(scope=scope).get("authorization")):
            return AuthenticationError("an API key is needed: send it as 'Authorization: Bearer <key>'")
        try:
            if is_counted:
                self.admission.check()
        except QueueFullError as error:
            return error
        return None
