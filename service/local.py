"""Ray and the service on this machine, in a process of their own that `topk serve` starts and watches.

Ray reads its environment when it is imported, so it is imported only once that is set. Knows no route.
"""

import logging
import os
import pickle
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from service.app import build
from service.rpc import SERVICER_FUNCTIONS
from service.settings import Settings

APP_NAME = "topk"
#: Nothing goes through Ray's object store but small control messages; this is the smallest it takes.
OBJECT_STORE_BYTES = 80 * 1024 * 1024
POLL_S = 0.1


def ray_environment(settings: Settings, folder: Path) -> dict[str, str]:
    """Variables that Ray's processes read when they start.

    Args:
        folder: for HAProxy's configuration and sockets; of this service alone, so that two can run on a machine.
    """
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        # Ray listens on every interface and runs code for whoever may talk to it: only this run's processes may.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(settings.grpc_max_message_bytes),
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if settings.proxy == "haproxy" else "0",
    }
    if settings.proxy == "haproxy":
        ports = free_ports(4)
        variables |= {
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
            # A machine of its own has no other load balancer that would have to learn of a replica's end.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(max(1, round(settings.drain_timeout_s))),
        }
    return variables


class LocalService:
    """The service on this machine, with a Ray of its own."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self._folder = folder

    @property
    def url(self) -> str:
        return f"http://{self._reachable_host}:{self.settings.http_port}"

    @property
    def target(self) -> str:
        """Where a gRPC channel finds the service."""
        return f"{self._reachable_host}:{self.settings.grpc_port}"

    @property
    def _reachable_host(self) -> str:
        host = "127.0.0.1" if self.settings.host in ("0.0.0.0", "localhost") else self.settings.host
        return f"[{host}]" if ":" in host else host

    def start(self, stopping: threading.Event) -> None:
        """Start everything and return once requests are answered, or once `stopping` is set.

        Raises:
            RuntimeError: a replica could not start; the message says why.
            TimeoutError: it took longer than `start_timeout_s`.
        """
        settings = self.settings
        if "ray" in sys.modules:
            raise RuntimeError("Ray was imported before its environment was set: start the service in a new process")
        os.environ.update(ray_environment(settings, self._folder))
        import ray
        from ray import serve

        logging.getLogger("ray.serve").setLevel(settings.log_level)
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.getLevelNamesMapping()[settings.log_level],
            log_to_driver=True,
        )
        logging_config = {"log_level": settings.log_level, "enable_access_log": False}
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.host, "port": settings.http_port},
            grpc_options={"port": settings.grpc_port, "grpc_servicer_functions": list(SERVICER_FUNCTIONS)},
            logging_config=logging_config,
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

        if ray.is_initialized():
            # Before the proxy goes, so that answers under way still arrive.
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
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ready after {self.settings.start_timeout_s:g} s (start_timeout_s)")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def reason(application: Any) -> str:
    """Why an application failed: the last line of what a replica raised."""
    messages = [d.message for d in application.deployments.values() if d.message] or [application.message]
    lines: list[str] = messages[0].strip().splitlines() or ["Ray Serve does not say why"]
    return lines[-1]


def ready_text(settings: Settings, url: str, target: str, start_s: float) -> str:
    """What a person sees once the service answers: where it is and a command that works as it stands."""
    key = "" if not settings.all_api_keys() else " -H 'Authorization: Bearer <your key>'"
    body = f'{{"model": "{settings.resolved_model_id}", "prompt": "Once upon a time,", "max_tokens": 32}}'
    return (
        f"Ready after {start_s:.1f} s: {settings.resolved_model_id} at {url}\n\n"
        f"Try:\n  curl {url}/v1/completions -H 'Content-Type: application/json'{key} -d '{body}'\n\n"
        f"Endpoints: {url}/   OpenAPI: {url}/openapi.json   Metrics: {url}/metrics   gRPC: {target}   Stop: Ctrl-C"
    )


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on just now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]


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
    try:
        print(f"Starting {settings.resolved_model_id} …", file=sys.stderr, flush=True)
        service.start(stopping)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())
        if not stopping.is_set():
            print(ready_text(settings, service.url, service.target, time.monotonic() - began), flush=True)
        stopping.wait()
        print("Stopping …", file=sys.stderr, flush=True)
    except (OSError, RuntimeError) as error:
        print(f"topk serve: error: {error}", file=sys.stderr)
        return 1
    finally:
        service.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
