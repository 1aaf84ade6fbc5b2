"""What becomes of requests when a part of the service dies or hangs: none hangs, only its own fail, it comes back."""

import datetime
import math
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.errors import UnavailableError
from service.http_api.shapes import ErrorResponse
from service.pb import topk_pb2 as pb
from service.pb import topk_pb2_grpc
from tests.support.operations.traffic import Traffic
from tests.support.running import Running, command_of, descendants, is_alive, topk_serve
from tests.support.served import MODEL_ID, free_port, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

#: A replica's start, most of it imports, on a machine that does much else.
REPLACED_S = 60.0
LONG = {"model": MODEL_ID, "prompt": "Once", "max_tokens": 240, "n": 16, "ignore_eos": True, "stream": True}
LONG_CALL = pb.GenerateRequest(model=MODEL_ID, prompt=pb.Prompt(text="a"), max_tokens=240, n=16, ignore_eos=True)


class Stream:
    """A streamed completion, read in a thread to its end, whatever that is."""

    def __init__(self, url: str, client: httpx.Client) -> None:
        self.data = b""
        self.status = 0
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._read, args=(url, client))
        self._thread.start()
        assert wait_until(lambda: b"choices" in self.data, 30), "no first event"

    def _read(self, url: str, client: httpx.Client) -> None:
        try:
            with client.stream("POST", f"{url}/v1/completions", json=LONG) as reply:
                self.status = reply.status_code
                for chunk in reply.iter_raw():
                    self.data += chunk
        except httpx.HTTPError as error:
            self.error = error

    def end(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the stream hangs"

    def failed_with(self) -> str | None:
        """The code of the error event that ended the stream, or nothing where it was cut off, which HAProxy alone does.

        For a while after a replica has come up HAProxy still sends to Serve's own proxy, which tells of a death.
        """
        if isinstance(self.error, httpx.RemoteProtocolError):  # the last chunk is missing
            assert b"[DONE]" not in self.data
            return None
        *_, error, done, rest = self.data.split(b"\n\n")
        assert (self.status, self.error, done, rest) == (200, None, b"data: [DONE]", b"")
        return ErrorResponse.model_validate_json(error.removeprefix(b"data: ")).error.code


def replaced(service: Running, gone: set[int]) -> bool:
    return service.is_ready() and bool(service.replicas() - gone)


@pytest.fixture(scope="module")
def behind_haproxy(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    options = ("--health-check-timeout-s", "2", "--max-heartbeat-age-s", "4", "--drain-timeout-s", "10")
    folder = tmp_path_factory.mktemp("behind_haproxy")
    with topk_serve(tiny_model_path, folder, *options, slowable=True) as service:
        yield service


def test_a_killed_replica_fails_its_own_requests_alone_and_is_replaced(behind_haproxy: Running) -> None:
    service = behind_haproxy
    (replica,) = service.replicas()
    service.slow_down(0.1)  # so that no answer ends before its replica does
    with (
        httpx.Client(timeout=60) as client,
        Traffic(service.url, rate=5) as traffic,
        grpc.insecure_channel(service.target) as channel,
    ):
        stub = topk_pb2_grpc.TopKServiceStub(channel)
        stub.Tokenize(pb.TokenizeRequest(model=MODEL_ID, prompt="a"))  # connecting may take longer than an answer
        call = stub.GenerateStream(pb.GenerateStreamRequest(request=LONG_CALL))
        next(call)
        stream = Stream(service.url, client)
        os.kill(replica, signal.SIGKILL)
        killed_at = time.monotonic()
        stream.end(5)
        with pytest.raises(grpc.RpcError) as broken:
            list(call)
        assert wait_until(lambda: replaced(service, {replica}), REPLACED_S)
        replaced_at = time.monotonic()
    assert stream.failed_with() in (None, "replica_died")
    assert broken.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert "Traceback" not in broken.value.details()
    for outcome in traffic.failed():
        assert outcome.status in (503, 429, None), outcome
        assert outcome.began_at < killed_at + 5, "one that came after the fall has failed"
        if outcome.status is not None:
            ErrorResponse.model_validate_json(outcome.text)
    assert traffic.counts()[200] > 5
    assert max(outcome.ended_at for outcome in traffic.outcomes) < replaced_at + 10
    assert wait_until(service.is_idle, 10)


def test_an_engine_that_hangs_turns_health_red_fails_its_requests_and_is_replaced(behind_haproxy: Running) -> None:
    service = behind_haproxy
    (replica,) = service.replicas()
    service.slow_down(0.1)
    with httpx.Client(timeout=60) as client:
        stream = Stream(service.url, client)
        service.slow_down(math.inf)
        assert wait_until(lambda: not service.is_ready(), 20)
        stream.end(20)
    assert stream.failed_with() in (None, "engine_hung", "replica_died")
    assert wait_until(lambda: replaced(service, {replica}), REPLACED_S)
    assert wait_until(lambda: not is_alive(replica), 30)
    assert wait_until(service.is_idle, 10)


def test_a_frozen_replica_is_replaced_and_its_clients_let_go(behind_haproxy: Running) -> None:
    service = behind_haproxy
    (replica,) = service.replicas()
    service.slow_down(0.1)
    with httpx.Client(timeout=120) as client:
        stream = Stream(service.url, client)
        os.kill(replica, signal.SIGSTOP)
        assert not service.is_ready()
        assert wait_until(lambda: replaced(service, {replica}), REPLACED_S)
        stream.end(30)
    assert stream.failed_with() in (None, "replica_died")
    assert wait_until(lambda: not is_alive(replica), 30)


def test_a_killed_haproxy_is_started_again(behind_haproxy: Running) -> None:
    service = behind_haproxy
    replicas = service.replicas()
    (proxy,) = (p for p in descendants(service.process.pid) if command_of(p).split(b"\0")[0].endswith(b"/haproxy"))
    os.kill(proxy, signal.SIGKILL)
    assert wait_until(lambda: not service.is_ready(), 5)
    assert wait_until(service.is_ready, REPLACED_S)
    assert service.replicas() == replicas


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate for 127.0.0.1, `cert.pem`, and its key, `key.pem`."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*plain))
    return folder


@pytest.mark.slow
def test_behind_the_python_proxy_over_tls_streams_end_in_the_error_and_the_proxy_comes_back(
    tiny_model_path: Path, tmp_path: Path, certificate: Path
) -> None:
    files = ("--tls-certificate", str(certificate / "cert.pem"), "--tls-key", str(certificate / "key.pem"))
    trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    with (
        topk_serve(tiny_model_path, tmp_path, "--proxy", "python", *files, slowable=True) as service,
        httpx.Client(timeout=60, verify=trusting, limits=httpx.Limits(max_keepalive_connections=0)) as client,
        grpc.insecure_channel(service.target) as channel,
    ):
        url = service.url.replace("http:", "https:")
        assert url in service.text
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"{url}/version")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{service.url}/version")

        (replica,) = service.replicas()
        service.slow_down(0.1)
        with Traffic(url, rate=5, client=client) as traffic:
            call = topk_pb2_grpc.TopKServiceStub(channel).GenerateStream(pb.GenerateStreamRequest(request=LONG_CALL))
            next(call)
            stream = Stream(url, client)
            os.kill(replica, signal.SIGKILL)
            killed_at = time.monotonic()
            stream.end(10)
            with pytest.raises(grpc.RpcError) as broken:
                list(call)
            assert wait_until(lambda: bool(service.replicas() - {replica}), REPLACED_S)
            assert client.post(f"{url}/v1/completions", json=LONG | {"stream": False}).status_code == 200
        assert stream.failed_with() == "replica_died"
        assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
        assert broken.value.details() == "the replica that had the request has died"
        told = dict(broken.value.trailing_metadata())
        assert (told["code"], told["type"], told["grpc-retry-pushback-ms"]) == (
            "replica_died",
            UnavailableError.type,
            "1000",
        )
        assert told["x-request-id"]
        for outcome in traffic.failed():
            assert outcome.status == 503, outcome
            assert ErrorResponse.model_validate_json(outcome.text).error.code == "replica_died"
            assert outcome.began_at < killed_at + 5

        replicas = service.replicas()
        (proxy,) = (p for p in descendants(service.process.pid) if b"ProxyActor" in command_of(p))
        os.kill(proxy, signal.SIGKILL)
        assert wait_until(lambda: answers(client, url), REPLACED_S)
        assert service.replicas() == replicas


def answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/health/ready", timeout=3).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
def test_a_damaged_checkpoint_ends_the_start_with_the_reason(tiny_model_path: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model_path, tmp_path / "model")
    os.truncate(model / "model.safetensors", 3000)
    command = [sys.executable, "-m", "service.cli", "serve", "--model", str(model)]
    ports = ["--http-port", str(free_port()), "--grpc-port", str(free_port())]
    done = subprocess.run([*command, *ports], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"topk serve: error: the service did not start: ValueError: {model}/model.safetensors is not"
    )
    assert "Ready" not in done.stdout


@pytest.mark.slow
def test_a_port_that_is_lost_during_the_start_is_named(tiny_model_path: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--model", str(tiny_model_path)]
    command += ["--http-port", str(port), "--grpc-port", str(free_port())]
    with (tmp_path / "err.txt").open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    assert wait_until(lambda: "Starting" in (tmp_path / "err.txt").read_text(), 60)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert process.wait(200) == 1
    last = (tmp_path / "err.txt").read_text().strip().splitlines()[-1]
    assert last == f"topk serve: error: http_port {port} of 127.0.0.1 was taken by another program during the start"


@pytest.mark.slow
def test_a_start_that_is_too_slow_says_what_it_waited_for(tiny_model_path: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "serve", "--model", str(tiny_model_path), "--start-timeout-s", "1"]
    command += ["--http-port", str(free_port()), "--grpc-port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("topk serve: error: not ready after 1 s (start_timeout_s): ")
