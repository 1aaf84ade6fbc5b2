"""What clients are told where the application cannot speak, in front of the real one and of small ones that fail."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http_api.shapes import ErrorResponse
from service.rayserve import fallback
from tests.support.served import free_port, wait_until


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    port = free_port()
    config = uvicorn.Config(fallback.Fallback(app), host="127.0.0.1", port=port, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert wait_until(lambda: server.started, 10)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def saying(status: int, text: str, headers: dict[str, str]) -> ASGIApp:
    """An application that answers as Ray Serve does when it refuses."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raw = [[name.encode(), value.encode()] for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": text.encode()})

    return app


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        (404, 503, "unavailable"),
        (408, 408, "deadline_exceeded"),
        (429, 429, "queue_full"),
        (500, 503, "replica_died"),
        (503, 503, "unavailable"),
    ],
)
def test_serves_own_refusals_get_the_one_error_body(status: int, told: int, code: str) -> None:
    headers = {"content-type": "text/plain; charset=utf-8", "retry-after": "7"}
    with serving(saying(status, "Traceback (most recent call last)", headers)) as url:
        reply = httpx.get(url)
    assert reply.status_code == told
    error = ErrorResponse.model_validate_json(reply.content).error
    assert error.code == code
    assert "Traceback" not in error.message
    if told in (429, 503):
        assert reply.headers["retry-after"] == "7"


def test_what_the_application_says_is_passed_on() -> None:
    for app, path, status in (
        (saying(200, "topk_x 1", {"content-type": "text/plain"}), "/metrics", 200),
        (saying(503, "starting", {"content-type": "text/plain"}), "/-/healthz", 503),
        (saying(400, "{}", {"content-type": "application/json"}), "/v1/completions", 400),
    ):
        with serving(app) as url:
            reply = httpx.get(f"{url}{path}")
        assert (reply.status_code, "error" in reply.text) == (status, False)


def test_a_request_whose_replica_says_nothing_is_told_so() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        return

    with serving(app) as url:
        reply = httpx.get(url)
    assert reply.status_code == 503
    assert ErrorResponse.model_validate_json(reply.content).error.code == "replica_died"


@pytest.mark.parametrize("raises", [False, True])
def test_a_stream_that_is_cut_ends_with_the_error(raises: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        if raises:
            raise RuntimeError

    with serving(app) as url:
        events = httpx.get(url).text.split("\n\n")
    assert events[0] == "data: {}"
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == "replica_died"
    assert events[2:] == ["data: [DONE]", ""]


def test_a_client_that_reads_nothing_is_let_go_and_holds_no_one_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application is told that the client has gone, having been able to send no more than buffers hold."""
    monkeypatch.setattr(fallback, "SEND_TIMEOUT_S", 0.5)
    num_sent = 0
    told: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal num_sent
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"] == "/short":
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
            return

        async def watch() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                continue
            told.append(message["type"])

        watching = asyncio.create_task(watch())
        while not told:
            await send({"type": "http.response.body", "body": b" " * 2**16, "more_body": True})
            num_sent += 2**16
            await asyncio.sleep(0)
        await watching

    with serving(app) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as stalled:
            stalled.sendall(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
            assert wait_until(lambda: num_sent > 0, 5)
            assert httpx.get(f"{url}/short", timeout=2).text == "data: [DONE]\n\n"
            assert wait_until(lambda: bool(told), 10)
            assert num_sent < 2**25
        assert httpx.get(f"{url}/short", timeout=2).status_code == 200
