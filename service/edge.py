"""What every HTTP request passes before its route: an id, the API key, room, and the one error body for every fault.

Plain ASGI, so that streams and disconnects go through untouched. Knows no route's content and no Ray.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.admission import REQUEST_ID_HEADER, Admission, choose_request_id
from service.auth import is_accepted
from service.errors import (
    AuthenticationError,
    BadRequestError,
    BodyTooLargeError,
    DeadlineError,
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    QueueFullError,
    ServiceError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from service.metrics import Metrics
from service.schema import MAX_BODY_BYTES

logger = logging.getLogger(__name__)

#: Paths that need no key.
OPEN_PATHS = frozenset({"/", "/health/live", "/health/ready"})
#: Paths that are answered however full the replica is.
UNCOUNTED_PATHS = OPEN_PATHS | {"/metrics"}
#: Longest that a client may take to send its body.
BODY_TIMEOUT_S = 30.0
#: How much of a body over the limit is read and thrown away before the connection is closed: a client that is still
#: sending then would not see the reply.
MAX_DISCARDED_BYTES = 4 * MAX_BODY_BYTES

_HTTP_ERRORS: dict[int, type[ServiceError]] = {
    400: BadRequestError,
    404: NotFoundError,
    405: MethodNotAllowedError,
    413: BodyTooLargeError,
    415: UnsupportedMediaTypeError,
    503: UnavailableError,
}


class JsonReply(Response):
    """JSON by orjson: NumPy arrays allowed, float32 as the shortest text that reads back to it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


def to_json(content: Any) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def error_reply(error: ServiceError, headers: dict[str, str] | None = None) -> Response:
    """The reply that tells a client of `error`."""
    headers = dict(headers or {})
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if isinstance(error, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooLargeError):
        headers["Connection"] = "close"
    return JsonReply(error.body(), status_code=error.status, headers=headers)


def from_http_exception(error: HTTPException, request: Request) -> Response:
    """The one body for what the router refuses: unknown paths and methods."""
    path = request.url.path
    if error.status_code == 404:
        fault: ServiceError = NotFoundError(f"there is no {path[:100]!r} here", code="unknown_route")
    elif error.status_code == 405:
        fault = MethodNotAllowedError(f"{request.method} is not allowed on {path[:100]!r}")
    else:
        fault = _HTTP_ERRORS.get(error.status_code, InternalError)(str(error.detail))
    return error_reply(fault, dict(error.headers or {}))


def request_id_of(scope: Scope) -> str:
    """The request's id, given by the client or made by `Edge`."""
    request_id: str = scope["state"]["request_id"]
    return request_id


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """The JSON body, never more than `limit` bytes of it in memory.

    Raises:
        ServiceError: the content type is not JSON, the body is too large, or it took too long.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError(f"Content-Type must be application/json, got {media_type[:100]!r}")
    body, num_bytes = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes <= limit:
                    body += chunk
                elif num_bytes > limit + MAX_DISCARDED_BYTES:
                    break
    except TimeoutError:
        raise DeadlineError(f"the request body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    if num_bytes > limit:
        raise BodyTooLargeError(f"the request body is over the limit of {limit} bytes")
    return bytes(body)


class Edge:
    """The outermost layer of the application.

    Args:
        keys: accepted API keys; none: no key is asked for.
        admission: counts requests, those of other transports too; too many get 429.
        sends_request_id: whether to put the id on the response; not where the server in front does so.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[str],
        admission: Admission,
        metrics: Metrics,
        sends_request_id: bool,
    ) -> None:
        self.app = app
        self.keys = tuple(keys)
        self.admission = admission
        self.metrics = metrics
        self.sends_request_id = sends_request_id
        self.num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = choose_request_id(Headers(scope=scope).get(REQUEST_ID_HEADER))
        scope.setdefault("state", {})["request_id"] = request_id
        is_started = False

        async def send_noted(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                if self.sends_request_id:
                    MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        is_counted = scope["path"] not in UNCOUNTED_PATHS
        refusal = self._refuse(scope, is_counted)
        if refusal is not None:
            self.metrics.request_rejections.labels(refusal.code).inc()
            await error_reply(refusal)(scope, receive, send_noted)
            return
        self.num_requests += is_counted
        self.metrics.num_http_requests.set(self.num_requests)
        try:
            with self.admission.entered() if is_counted else nullcontext():
                await self.app(scope, receive, send_noted)
        except ClientDisconnect:
            logger.debug("the client of request %s has gone", request_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if not is_started:
                await error_reply(InternalError("internal error; the log has it under the request's id"))(
                    scope, receive, send_noted
                )
        finally:
            self.num_requests -= is_counted
            self.metrics.num_http_requests.set(self.num_requests)

    def _refuse(self, scope: Scope, is_counted: bool) -> ServiceError | None:
        """Why the request goes no further, if so."""
        if scope["path"] not in OPEN_PATHS and not is_accepted(Headers(scope=scope).get("authorization"), self.keys):
            return AuthenticationError("an API key is needed: send it as 'Authorization: Bearer <key>'")
        try:
            if is_counted:
                self.admission.check()
        except QueueFullError as error:
            return error
        return None
