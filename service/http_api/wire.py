"""The encoding of answers and errors over HTTP: JSON, and server-sent events as OpenAI sends them.

Light enough for Ray Serve's proxy to import. Knows no route and no Ray.
"""

from typing import Any

import orjson
from starlette.responses import Response

from service.errors import AuthenticationError, BodyTooLargeError, ServiceError

EVENT_STREAM = "text/event-stream"
#: The last event of a stream.
DONE = b"data: [DONE]\n\n"
_LINE_ENDS = [(end.encode(), f"\\u{ord(end):04x}".encode()) for end in "\x85\u2028\u2029"]


class JsonReply(Response):
    """JSON by orjson: NumPy arrays are allowed; a float32 is written as the shortest text that reads back as it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


def to_json(content: Any) -> bytes:
    """JSON on one line, whatever its reader regards as the end of a line.

    JSON and server-sent events end lines only with CR and LF, but `str.splitlines`, which httpx and requests use to
    read streams, also splits at NEL and the line and paragraph separators: those are escaped.
    """
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    for raw, escaped in _LINE_ENDS:
        if raw in data:
            data = data.replace(raw, escaped)
    return data


def event(body: Any) -> bytes:
    """One server-sent event: an object of JSON, or a dataclass."""
    return b"data: " + to_json(body) + b"\n\n"


def error_reply(error: ServiceError, headers: dict[str, str] | None = None) -> Response:
    """The reply that reports `error` to a client."""
    headers = dict(headers or {})
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if isinstance(error, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooLargeError):
        headers["Connection"] = "close"
    return JsonReply(error.body(), status_code=error.status, headers=headers)
