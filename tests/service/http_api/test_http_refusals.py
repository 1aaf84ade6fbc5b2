"""What the HTTP application refuses, drops or cuts off, and that it serves on afterwards."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.requests.limits import MAX_BODY_BYTES
from service.requests.schema import CompletionRequest
from service.serving import dispatch
from tests.support.served import MODEL_ID, Served, serve_app, wait_until
from tests.support.service.bad_requests import BAD_REQUESTS, BadRequest
from tests.support.service.http_replies import BODY, GREEDY, LONG, assert_error, metric, parse_events

SHORT = BODY | {"max_tokens": 40}


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
def test_a_bad_request_is_refused_over_http(served: Served, bad: BadRequest) -> None:
    reply = served.client.request(bad.method, bad.path, content=bad.body, headers={"Content-Type": bad.content_type})
    error = assert_error(reply, bad.status)
    assert error["param"] == bad.param
    assert bad.says in error["message"]
    assert served.is_idle()


def test_the_service_serves_on_after_all_of_them(served: Served) -> None:
    assert served.complete(max_tokens=2, **GREEDY)["choices"][0]["finish_reason"] == "length"
    assert served.wait_idle()


def test_a_body_without_a_length_is_cut_off_at_the_limit(served: Served) -> None:
    num_sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal num_sent
        while num_sent < 50 * MAX_BODY_BYTES:
            num_sent += 65536
            yield b" " * 65536

    try:
        reply = httpx.post(
            f"{served.url}/v1/completions", content=endless(), headers={"Content-Type": "application/json"}, timeout=30
        )
    except httpx.WriteError:
        reply = None  # the reply came and the connection was closed while we still wrote
    assert reply is None or assert_error(reply, 413, "body_too_large")
    assert num_sent < 20 * MAX_BODY_BYTES


def test_a_wrong_method_names_the_right_one(served: Served) -> None:
    reply = served.client.delete("/v1/completions")
    assert_error(reply, 405)
    assert reply.headers["allow"] == "POST, OPTIONS"


@pytest.mark.usefixtures("slow_engine")
def test_a_deadline_ends_a_request_with_408_and_frees_it(served: Served) -> None:
    error = assert_error(served.post("/v1/completions", timeout_s=0.05, **LONG), 408, "deadline_exceeded")
    assert error["type"] == "timeout_error"
    assert served.wait_idle()


@pytest.mark.usefixtures("slow_engine")
def test_a_deadline_inside_a_stream_is_an_error_event(served: Served) -> None:
    reply = served.post("/v1/completions", stream=True, timeout_s=0.15, n=4, **LONG)
    if reply.status_code == 200:
        *chunks, last = parse_events(reply.text)
        assert chunks
        assert last["error"]["code"] == "deadline_exceeded"
    else:  # a machine too busy for a first token in that time
        assert_error(reply, 408)
    assert served.wait_idle()


@pytest.mark.usefixtures("slow_engine")
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_goes_frees_its_sequences(served: Served, is_stream: bool) -> None:
    num_aborted = metric(served, "topk_request_failure_total", 'reason="abort"')
    data = json.dumps({"model": MODEL_ID, "n": 16, "stream": is_stream} | LONG).encode()
    with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1]))) as client:
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        assert wait_until(lambda: served.model.stats().num_running == 16, 5)
    assert served.wait_idle(2.0)
    assert metric(served, "topk_request_failure_total", 'reason="abort"') - num_aborted == 16


@pytest.mark.usefixtures("slow_engine")
def test_a_sequence_whose_task_has_ended_is_reaped(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the close of an abandoned iterator had been lost."""
    monkeypatch.setattr(dispatch, "REAPER_PERIOD_S", 0.01)
    with serve_app(tiny_model_path) as careless:
        request = CompletionRequest(model=MODEL_ID, n=16, **LONG)
        model = careless.model
        kept: list[object] = []

        async def abandon() -> None:
            plan = model.planner.completion(request, "abandoned")
            kept.append(model._dispatcher.submit([row.request for row in plan.rows]))

        careless.run(abandon())
        assert kept
        assert careless.wait_idle()
        assert metric(careless, "topk_reaped_sequences_total") == 16
        assert metric(careless, "topk_request_failure_total", 'reason="abort"') == 16


def test_an_engine_that_hangs_or_dies_turns_health_red(tiny_model_path: Path) -> None:
    with serve_app(tiny_model_path, max_heartbeat_age_s=0.8) as service:
        engine = service.model._engine
        going_on = threading.Event()
        step = engine._core.step
        engine._core.step = lambda now: (going_on.wait(10), step(now))  # type: ignore[method-assign, func-returns-value]
        assert wait_until(lambda: service.client.get("/health/live").status_code == 503, 3)
        assert_error(service.client.get("/health/ready"), 503, "engine_hung")
        going_on.set()
        assert wait_until(lambda: service.client.get("/health/ready").status_code == 200, 3)
        engine.stop()
        assert_error(service.client.get("/health/live"), 503, "engine_dead")
        assert_error(service.post("/v1/completions", prompt="a"), 503, "engine_dead")


@pytest.mark.usefixtures("slow_engine")
@pytest.mark.long
def test_a_full_queue_gets_429_and_retry_after_at_once(tiny_model_path: Path) -> None:
    with serve_app(tiny_model_path, max_num_seqs=1, max_waiting=2, retry_after_s=3) as small:
        with ThreadPoolExecutor(8) as pool:
            replies = list(
                pool.map(lambda _: httpx.post(f"{small.url}/v1/completions", json=SHORT, timeout=60), range(8))
            )
        assert {reply.status_code for reply in replies} == {200, 429}
        for reply in replies:
            if reply.status_code == 429:
                assert_error(reply, 429, "queue_full")
                assert reply.headers["retry-after"] == "3"
        assert metric(small, "topk_request_rejections_total", 'reason="queue_full"') >= 1
        assert small.wait_idle()


@pytest.mark.usefixtures("slow_engine")
def test_too_many_requests_at_once_get_429(tiny_model_path: Path) -> None:
    with serve_app(tiny_model_path, max_ongoing_requests=2) as small, ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(httpx.post, f"{small.url}/v1/completions", json=SHORT, timeout=60) for _ in range(6)]
        assert small.client.get("/health/ready").status_code == 200
        replies = [future.result() for future in waiting]
        refused = [reply for reply in replies if reply.status_code != 200]
        assert refused
        for reply in refused:
            assert_error(reply, 429, "too_many_requests")


def test_with_keys_only_their_bearers_come_in(tiny_model_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst-key-1\n\nsecond-key-2\n")
    with serve_app(tiny_model_path, api_key_file=file) as guarded:
        get = guarded.client.get
        for header in (None, "Bearer", "Bearer wrong-key-0", "Basic first-key-1", "Bearer first-key-1x", "first-key-1"):
            reply = get("/v1/models", headers={} if header is None else {"Authorization": header})
            assert_error(reply, 401, "invalid_api_key")
            assert reply.headers["www-authenticate"] == "Bearer"
        for key in ("first-key-1", "second-key-2"):
            assert get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert get("/health/live").status_code == get("/health/ready").status_code == get("/").status_code == 200
        assert_error(get("/metrics"), 401)
        assert_error(get("/v1/nowhere"), 401)
