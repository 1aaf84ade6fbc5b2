"""Answers as server-sent events while they are generated, and side jobs as they progress. Knows no route."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from service.answers.answer import Answer
from service.errors import InternalError, ServiceError
from service.http_api import rendering
from service.http_api.edge import unless_gone
from service.http_api.wire import DONE, EVENT_STREAM, event
from service.observability.telemetry import note_error
from service.serving.side_jobs import Progress

logger = logging.getLogger(__name__)


class EventStream(Response):
    """Server-sent events, sent until they end or the client disconnects; the source is closed either way."""

    media_type = EVENT_STREAM

    def __init__(self, request: Request, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        # Proxies between us and the client must pass events on at once.
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


async def answer_events(answers: AsyncGenerator[Answer, None]) -> AsyncGenerator[bytes, None]:
    """Each growth of the answer as one piece of one or more events."""
    answer = None
    async with aclosing(answers):
        async for answer in answers:
            if data := b"".join(event(chunk) for chunk in rendering.chunks(answer)):
                yield data
    assert answer is not None
    last = rendering.last_chunk(answer)
    yield (event(last) if last is not None else b"") + DONE


async def job_events(events: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
    """A side job's progress as it comes, then its result."""
    async with aclosing(events):
        async for one in events:
            yield event(one) + (b"" if isinstance(one, Progress) else DONE)


async def server_sent_events(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The pieces of a stream, whatever becomes of it.

    Raises:
        ServiceError: an error before the first event; a later error is sent as an event.
    """
    is_begun = False
    try:
        async with aclosing(pieces):
            async for data in pieces:
                is_begun = True
                yield data
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
