"""Ray Serve and the service, on a new Ray or one that already runs; a process that `topk serve` watches.

Ray reads its environment when it is imported, so it is imported only after that is set. Knows no route.
"""

import logging
import os
import pickle
import random
import secrets
import shutil
import signal
import socket
import ssl
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from service.rayserve import confinement, fallback, haproxy
from service.rayserve.process import is_taken_by_others
from service.rayserve.servicers import SERVICER_FUNCTIONS
from service.requests.limits import (
    MAX_TIMEOUT_S,
)
from service.settings import Settings

logger = logging.getLogger(__name__)

APP_NAME = "topk"
LOOPBACK = haproxy.LOOPBACK
#: Only small control messages pass through Ray's object store; this is its minimum size.
OBJECT_STORE_BYTES = 80 * 1024 * 1024
POLL_S = 0.1
HAPROXY_BUFFER_BYTES = 64 * 1024
PROXY_HEALTH_CHECK_PERIOD_S = 1.0
#: Ports that replicas may use behind HAProxy, for each of HTTP and gRPC; below those that Linux gives to clients.
NUM_REPLICA_PORTS = 64
REPLICA_PORTS = range(20_000, 32_000)
#: How long the port of a drained replica is not reused, so that HAProxy learns of its end.
PORT_QUARANTINE_S = 30.0
REPLICA_PORT_VARIABLES = tuple(
    f"RAY_SERVE_DIRECT_INGRESS_{end}_{protocol}_PORT" for protocol in ("HTTP", "GRPC") for end in ("MIN", "MAX")
)


def ray_environment(settings: Settings, folder: Path) -> dict[str, str]:
    """Variables that the processes of our own Ray read when they start. Args: as for `serve_environment`."""
    return {
        "RAY_TMPDIR": str(folder.parent),  # leaves room for a socket's path
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        # Ray runs code for anyone who can connect to it: only this run's processes may.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Ray runs on this machine only: it uses the loopback address as its own, and most servers follow that.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # These variables set the others.
        confinement.INNER_HOST_VARIABLE: LOOPBACK,
        confinement.PUBLIC_GRPC_VARIABLE: (
            confinement.join(settings.host, settings.grpc_port) if settings.proxy == "python" else ""
        ),
        haproxy.HOST_VARIABLE: settings.host,
    }


def without_proxies(*hosts: str) -> dict[str, str]:
    """Variables that keep programs from using a proxy for `hosts`, in addition to the exceptions already set."""
    before = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    hosts = tuple(filter(None, (before, *hosts)))
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(hosts))


def serve_environment(settings: Settings, folder: Path) -> dict[str, str]:
    """Variables that Ray Serve's processes read when they start.

    Args:
        folder: for HAProxy's configuration and sockets; of this service alone, so that two can run on a machine.
    """
    variables = {
        "PYTHONUTF8": "1",  # Serve writes HAProxy's configuration, which is not ASCII, in the host's encoding
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(settings.grpc_max_message_bytes),
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if settings.proxy == "haproxy" else "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": fallback.IMPORT_PATH,
        # A replica that does not answer cannot drain either: it would keep its clients waiting for the complete time.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        # A dead proxy is replaced after three of these, 30 s by Serve's default.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": str(PROXY_HEALTH_CHECK_PERIOD_S),
        # It is also the period of the checks during its start; a busy machine needs more than three times 5 s for that.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(settings.start_timeout_s),
    }
    if settings.proxy == "python":
        # The one proxy would leave all other nodes' replicas idle until those of its own are full.
        variables["RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING"] = "0"
    if settings.log_format == "json":
        # The replicas' lines unchanged: without a prefix, and without dropping repeated lines.
        variables |= {"RAY_DISABLE_WORKER_LOG_PREFIX": "1", "RAY_COLOR_PREFIX": "0", "RAY_DEDUP_LOGS": "0"}
    if settings.proxy == "haproxy":
        ports = free_ports(4)
        first = free_stretch(2 * NUM_REPLICA_PORTS)
        middle, last = first + NUM_REPLICA_PORTS, first + 2 * NUM_REPLICA_PORTS
        variables |= {
            haproxy.PATH_VARIABLE: str(Path(sysconfig.get_path("scripts")) / "topk-haproxy"),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[0]),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(ports[1]),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports[2]),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports[3]),
            "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
            # A request's first line and headers must fit: a browser may send many cookies of this host's pages.
            "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(HAPROXY_BUFFER_BYTES),
            # Two services whose replicas used the same ports would get each other's calls.
            **dict(zip(REPLICA_PORT_VARIABLES, map(str, (first, middle, middle, last)), strict=True)),
            # A single machine has no other load balancer that must learn of a replica's end.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
            # When replicas change, a new HAProxy takes over, and the old one finishes its requests.
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(round(MAX_TIMEOUT_S)),
            # The default is longer than that, so that no other application's replica gets requests of the old HAProxy.
            "RAY_SERVE_PORT_QUARANTINE_S": str(settings.drain_timeout_s + PORT_QUARANTINE_S),
        }
    return variables


class LocalService:
    """The service on this machine, with its own Ray."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self._folder = folder
        self._is_ours = False  # whether we started the Ray Serve that runs

    @property
    def url(self) -> str:
        scheme = "http" if self.settings.tls_certificate is None else "https"
        return f"{scheme}://{self._reachable_host}:{self.settings.http_port}"

    @property
    def target(self) -> str:
        """The target for gRPC channels to the service."""
        return f"{self._reachable_host}:{self.settings.grpc_port}"

    @property
    def _reachable_host(self) -> str:
        host = LOOPBACK if self.settings.host in ("0.0.0.0", "localhost") else self.settings.host
        return f"[{host}]" if ":" in host else host

    def start(self, stopping: threading.Event) -> None:
        """Start everything and return once requests are answered, or once `stopping` is set.

        Raises:
            RuntimeError, ray.exceptions.RayError: something could not start; the last line of the message says why.
            TimeoutError: it took longer than `start_timeout_s`.
            OSError: another program has taken one of our ports in the meantime.
        """
        began = time.monotonic()
        try:
            self._start(stopping)
        except Exception as error:
            self._check_ports()
            if time.monotonic() - began > self.settings.start_timeout_s and not isinstance(error, TimeoutError):
                raise self._too_slow("Ray Serve's proxy was not ready") from error
            raise

    def _start(self, stopping: threading.Event) -> None:
        settings = self.settings
        if "ray" in sys.modules:
            raise RuntimeError("Ray was imported before its environment was set: start the service in a new process")
        variables = serve_environment(settings, self._folder)
        os.environ.update(variables | without_proxies(LOOPBACK, "localhost", "::1", settings.host))
        if not settings.ray_address:
            os.environ.update(ray_environment(settings, self._folder))
        import ray
        from ray import serve

        from service.rayserve.deployment import build, serve_log_level, serve_logging

        level = serve_log_level(settings)
        logging.getLogger("ray.serve").setLevel(level)
        common: dict[str, Any] = {"logging_level": logging.getLevelNamesMapping()[level], "log_to_driver": True}
        if settings.ray_address:
            ray.init(address=settings.ray_address, runtime_env={"env_vars": variables}, **common)
            if serve.status().proxies:
                raise RuntimeError(
                    f"Ray Serve already runs in the Ray at {settings.ray_address}: deploy "
                    "service.rayserve.deployment:build there, with a configuration file"
                )
        else:
            confinement.confine_ray()
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **common)
        self._is_ours = True
        # Behind HAProxy, whose addresses we set, Serve's servers have no other clients.
        is_inner = settings.proxy == "haproxy" and not settings.ray_address
        http_options: dict[str, Any] = {"host": LOOPBACK if is_inner else settings.host, "port": settings.http_port}
        if settings.tls_certificate is not None:
            http_options |= {"ssl_certfile": str(settings.tls_certificate), "ssl_keyfile": str(settings.tls_key)}
        serve.start(
            proxy_location="HeadOnly",
            http_options=http_options,
            grpc_options={"port": settings.grpc_port, "grpc_servicer_functions": list(SERVICER_FUNCTIONS)},
            logging_config=serve_logging(settings),
        )
        serve.run_many(
            [serve.RunTarget(build(settings), name=APP_NAME, route_prefix="/")], wait_for_applications_running=False
        )
        self._wait_until_ready(stopping)

    def stop(self) -> None:
        """Let requests finish, for at most `drain_timeout_s`, and end every process."""
        if "ray" not in sys.modules:
            return
        import ray
        from ray import serve

        if ray.is_initialized() and self._is_ours:
            # Before the proxy ends, so that answers in progress still arrive.
            serve.delete(APP_NAME)
            serve.shutdown()
        ray.shutdown()

    def _wait_until_ready(self, stopping: threading.Event) -> None:
        from ray import serve

        deadline = time.monotonic() + self.settings.start_timeout_s
        while not stopping.wait(POLL_S):
            application = serve.status().applications.get(APP_NAME)
            if application is not None and application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise RuntimeError(f"the service did not start: {reason(application)}")
            if application is not None and application.status == "RUNNING" and self._answers():
                return
            self._check_ports()
            if time.monotonic() > deadline:
                status = "not known yet" if application is None else application.status.value
                raise self._too_slow(f"the application is {status}")

    def _too_slow(self, what: str) -> TimeoutError:
        return TimeoutError(
            f"not ready after {self.settings.start_timeout_s:g} s (start_timeout_s): {what}; a busy machine or a large "
            "model needs longer"
        )

    def _check_ports(self) -> None:
        """Raises OSError if another program has opened one of our ports since the start began."""
        if self.settings.ray_address:  # processes of that Ray own it
            return
        for name in ("http_port", "grpc_port"):
            port = getattr(self.settings, name)
            if is_taken_by_others(self.settings.host, port, os.getsid(0)):
                raise OSError(f"{name} {port} of {self.settings.host} was taken by another program during the start")

    def _answers(self) -> bool:
        # The certificate need not name the address that we call; we started the server there ourselves.
        unchecked = urllib.request.HTTPSHandler(context=ssl._create_unverified_context())
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), unchecked)
        try:
            with direct.open(f"{self.url}/health/ready", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def reason(application: Any) -> str:
    """Why an application failed: the last line of a replica's error."""
    messages = [d.message for d in application.deployments.values() if d.message] or [application.message]
    return last_line(messages[0]) or "Ray Serve gives no reason"


def last_line(told: object) -> str:
    """The last line of an error's message, which Ray puts after another process's traceback."""
    lines = str(told).strip().splitlines() or [type(told).__name__ if isinstance(told, Exception) else ""]
    return lines[-1].strip()


def ready_text(settings: Settings, url: str, target: str, start_s: float) -> str:
    """The message when the service is ready: its address, and a command that works as it is."""
    key = "" if not settings.all_api_keys() else " -H 'Authorization: Bearer <your key>'"
    body = f'{{"model": "{settings.resolved_model_id}", "prompt": "Once upon a time,", "max_tokens": 32}}'
    return (
        f"Ready after {start_s:.1f} s: {', '.join(settings.served_models())} at {url}\n\n"
        f"Try:\n  curl {url}/v1/completions -H 'Content-Type: application/json'{key} -d '{body}'\n\n"
        f"Playground: {url}/   OpenAPI: {url}/openapi.json   Metrics: {url}/metrics   gRPC: {target}   Stop: Ctrl-C"
    )


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens at the moment."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]


def free_stretch(count: int) -> int:
    """The first of `count` consecutive ports on which nothing listens at the moment, at a random position.

    Raises:
        OSError: there are none.
    """
    for first in random.sample(REPLICA_PORTS[:-count], k=100):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("", port))
            except OSError:
                continue
            return first
    raise OSError(f"no {count} consecutive ports between {REPLICA_PORTS.start} and {REPLICA_PORTS.stop} are free")


def main(folder: Path) -> int:
    """Serve until standard input, which holds the settings, is closed at its other end; returns the exit status."""
    began = time.monotonic()
    settings = Settings(**pickle.load(sys.stdin.buffer))
    stopping = threading.Event()

    def wait_for_the_end() -> None:
        while os.read(sys.stdin.fileno(), 1):
            continue
        stopping.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    service = LocalService(settings, folder)
    problem: Exception | None = None
    try:
        print(f"Starting {', '.join(settings.served_models())} …", file=sys.stderr, flush=True)
        service.start(stopping)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())
        if not stopping.is_set():
            print(ready_text(settings, service.url, service.target, time.monotonic() - began), flush=True)
        stopping.wait()
        print("Stopping …", file=sys.stderr, flush=True)
    except Exception as error:  # including Ray's, of which there are many
        logger.debug("the start failed", exc_info=True)
        problem = error
    finally:
        service.stop()
        shutil.rmtree(folder, ignore_errors=True)
    if problem is not None:  # after all of Ray's own messages
        print(f"topk serve: error: {last_line(problem)}", file=sys.stderr)
    return 0 if problem is None else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
