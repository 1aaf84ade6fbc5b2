"""Nothing but the two public ports can be reached from elsewhere, and these only where `host` says so."""

import json
import re
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.client.client import Client
from service.errors import BadRequestError, BodyTooLargeError, DeadlineError, InternalError, UnavailableError
from service.rayserve import haproxy, process
from service.rayserve.confinement import confined
from service.rayserve.launcher import serve_environment
from service.rayserve.process import socket_folder
from service.settings import Settings
from tests.support.running import Running, descendants, listeners
from tests.support.served import MODEL_ID
from tests.support.service.rpc import KEY

LOOPBACK = {"127.0.0.1", "::1"}
ANOTHER_ADDRESS = "127.0.0.2"  # of this machine: what listens on every interface answers there, as on any other


def answers(address: str, port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(2)
        return client.connect_ex((address, port)) == 0


def check_confinement(service: Running, num_expected: int) -> None:
    found = listeners(descendants(service.process.pid))
    assert len(found) >= num_expected, found
    assert {("127.0.0.1", service.port)} < set(found)
    assert [where for where in found if where[0] not in LOOPBACK] == []
    assert [port for _, port in found if answers(ANOTHER_ADDRESS, port)] == []
    assert [port for _, port in found if not answers("127.0.0.1", port)] == []


def commands(service: Running) -> str:
    paths = [Path(f"/proc/{pid}/cmdline") for pid in descendants(service.process.pid)]
    return " ".join(path.read_bytes().replace(b"\0", b" ").decode() for path in paths if path.exists())


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_behind_haproxy_every_port_is_on_loopback(running: Running) -> None:
    check_confinement(running, num_expected=15)
    assert "dashboard.py" not in commands(running)  # it would ask for the cloud that it may be in


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_what_a_host_sets_for_others_does_not_keep_the_service_from_working(guarded: Running) -> None:
    service = guarded.openai.with_options(api_key=KEY)
    completion = service.completions.create(model=MODEL_ID, prompt="Once", max_tokens=2)
    assert completion.choices[0].finish_reason == "length"
    with Client(guarded.target, api_key=KEY, timeout_s=20) as client:
        assert [model.id for model in client.models()] == [MODEL_ID]


def test_the_folder_for_sockets_is_short_whatever_tmpdir_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("a" * 60)
    long.mkdir()
    for wanted, got in (("/var/tmp", "/var/tmp"), (str(long), "/tmp")):
        monkeypatch.setattr(tempfile, "tempdir", wanted)
        folder = socket_folder()
        folder.rmdir()
        assert str(folder.parent) == got
        assert len(f"{folder}/{'0' * 56}/metrics.sock") <= 97
    monkeypatch.setattr(process, "MAX_BASE_BYTES", 3)
    with pytest.raises(OSError, match=r"/tmp has 4 bytes, but sockets allow at most 3; set TMPDIR to a short path"):
        socket_folder()


def test_serve_writes_its_files_as_utf_8_whatever_the_hosts_encoding(tmp_path: Path) -> None:
    assert serve_environment(Settings(), tmp_path)["PYTHONUTF8"] == "1"


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_behind_the_python_proxy_every_port_is_on_loopback(guarded: Running) -> None:
    check_confinement(guarded, num_expected=10)


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_client_that_pings_often_keeps_its_calls(guarded: Running) -> None:
    options = [("grpc.keepalive_time_ms", 1000), ("grpc.keepalive_permit_without_calls", 1)]
    options += [("grpc.http2.max_pings_without_data", 0), ("grpc.http2.min_time_between_pings_ms", 1000)]
    with grpc.insecure_channel(guarded.target, options=options) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")

        def asking() -> Any:
            yield ask
            pause.wait(6)  # more than two pings, which gRPC's servers end a connection for by default
            yield ask

        pause = threading.Event()
        replies = list(stub.ServerReflectionInfo(asking()))
    assert len(replies) == 2
    assert "topk.v1.TopKService" in {service.name for service in replies[0].list_services_response.service}


UNREADABLE = {
    "no HTTP": b"GARBAGE\r\n\r\n",
    "bad header": b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\r\n\r\n",
    "space before the colon": b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "zero byte": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12",
    "long path": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


def replied(service: Running, sent: bytes) -> tuple[bytes, bytes]:
    """Head and body of the reply to some bytes, after which the connection is closed."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(sent)
        head, _, body = b"".join(iter(lambda: client.recv(4096), b"")).partition(b"\r\n\r\n")
    return head, body


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("proxy", ["running", "guarded"])
def test_what_is_not_http_is_refused(proxy: str, request: pytest.FixtureRequest) -> None:
    """With the one error body by the Python proxy; HAProxy has no setting for it."""
    service: Running = request.getfixturevalue(proxy)
    for name, sent in UNREADABLE.items():
        head, body = replied(service, sent)
        assert re.match(rb"HTTP/1\.[01] 400 Bad Request\r\n", head, re.I), name
        if proxy == "guarded":
            assert json.loads(body)["error"]["type"] == "invalid_request_error", name
    head, _ = replied(service, b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 204 ")
    assert b"allow: GET, HEAD, OPTIONS" in head


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_client_that_closes_its_end_gets_the_one_error_body(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        reply = b"".join(iter(lambda: client.recv(4096), b""))
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"text/html" not in head
    if head.startswith(b"HTTP/1.1 400 "):  # HAProxy takes it for gone unless the answer was there already
        assert json.loads(body)["error"]["code"] == "invalid_value"


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_proxies_of_the_host_are_not_asked_for_a_loopback_address(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
    with Client(running.target, timeout_s=20) as client:
        assert [model.id for model in client.models()] == [MODEL_ID]


CONFIG = """defaults
    mode http
    errorfile 502 /elsewhere/500.http
    errorfile 503 /elsewhere/500.http
    balance leastconn
frontend prometheus
    bind :31001
frontend http_frontend
    bind 127.0.0.1:8000
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found."
frontend grpc_frontend
    bind 127.0.0.1:9000 proto h2
listen stats
  bind *:31002
  stats enable
"""


@pytest.mark.parametrize(
    ("host", "http", "rpc"),
    [
        (None, "127.0.0.1:8000", "127.0.0.1:9000 proto h2"),
        ("0.0.0.0", "0.0.0.0:8000", "0.0.0.0:9000 proto h2"),
        ("localhost", "localhost:8000", "localhost:9000 proto h2"),
        ("::1", "[::1]:8000", "[::1]:9000 proto h2"),
        ("::", "[::]:8000 v4v6", "[::]:9000 proto h2 v4v6"),
    ],
)
def test_haproxy_listens_where_host_says_and_elsewhere_for_this_machine_alone(
    host: str | None, http: str, rpc: str, tmp_path: Path
) -> None:
    text = haproxy.rewritten(CONFIG, tmp_path, host)
    assert re.findall(r"bind (.*)", text) == ["127.0.0.1:31001", http, rpc, "127.0.0.1:31002"]
    assert "text/plain" not in text
    assert "/elsewhere" not in text
    assert f"errorfile 400 {tmp_path}/400.http" in text
    assert haproxy.rewritten(text, tmp_path, host) == text


def test_haproxys_own_errors_are_the_one_error_body() -> None:
    kinds = {400: BadRequestError, 408: DeadlineError, 413: BodyTooLargeError, 500: InternalError, 501: InternalError}
    for status, *rest in haproxy.ERRORS:
        head, _, body = haproxy.reply(status, *rest).partition("\r\n\r\n")
        error = kinds.get(status, UnavailableError)(json.loads(body)["error"]["message"])
        assert json.loads(body) == error.body()
        assert head.startswith(f"HTTP/1.1 {status if status == 501 else error.status} ")
        assert f"Content-Length: {len(body)}\r\n" in head
        assert ("Retry-After: 1" in head) == isinstance(error, UnavailableError)


@pytest.mark.parametrize(
    ("address", "instead"),
    [
        ("[::]:9000", "192.0.2.1:9000"),
        ("[::]:9001", "127.0.0.1:9001"),
        ("[::]:0", "127.0.0.1:0"),
        ("127.0.0.1:9000", "127.0.0.1:9000"),
    ],
)
def test_grpc_servers_listen_inside_but_for_the_public_one(address: str, instead: str) -> None:
    assert confined(address, "127.0.0.1", "192.0.2.1:9000") == instead
