"""The service of a load test: `topk serve` on free ports, with its processes, memory and end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.rayserve.launcher import free_ports
from service.rayserve.process import processes_of

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 90.0
POLL_S = 0.2
#: Exit status of a load test that was stopped by Ctrl-C.
INTERRUPTED = 130


def exit_status(name: str, work: Callable[[], list[str]], *also: type[Exception]) -> int:
    """Do a load test's work and print what is wrong; 0 if nothing is. Errors of `also` count too."""
    told: tuple[type[Exception], ...] = (RuntimeError, httpx.HTTPError, *also)
    try:
        found = work()
    except told as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    for problem in found:
        print(f"FAILED  {problem}")
    return 1 if found else 0


@dataclass(frozen=True, kw_only=True)
class LocalService:
    """A service that answers, with its own process session."""

    url: str
    target: str
    process: "subprocess.Popen[bytes]"
    session: int

    def processes(self) -> dict[int, str]:
        """Its live processes and their names, as `ps` shows them."""
        found = {}
        for pid in [self.process.pid, *processes_of(self.session)]:
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended in the meantime
                continue
            found[pid] = " ".join(word.decode(errors="replace") for word in words[:4]).strip()
        return found

    def replicas(self) -> list[int]:
        """Process ids of the replicas."""
        return [pid for pid, name in self.processes().items() if name.startswith("ray::ServeReplica:")]

    def memory_bytes(self) -> dict[str, int]:
        """Proportional set size by name of process: pages that several processes share count once in total."""
        sizes: dict[str, int] = {}
        for pid, name in self.processes().items():
            short = name.split()[0].split("/")[-1].partition(".")[0] if name else "?"
            sizes[short] = sizes.get(short, 0) + pss_bytes(pid)
        return sizes


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process of this machine (Linux); 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


@contextmanager
def local_service(
    options: Sequence[str],
    log: Path,
    *,
    python: Path = Path(sys.executable),
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[LocalService]:
    """Start `topk serve` with further options and wait until it answers; stop it at the end.

    Args:
        log: file for its output.
        python: whose packages and commands it uses.
        folder: where it starts; by default, where we are.
        environment: its variables; by default, ours.

    Raises:
        RuntimeError: it did not start, or not end by itself.
    """
    http_port, grpc_port = free_ports(2)
    ports = ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    command = [str(python), "-m", "service.cli", "serve", *ports, *options]
    with running(command, log, folder=folder, environment=environment) as process:
        url = f"http://127.0.0.1:{http_port}"
        wait_ready(process, url, log)
        yield LocalService(
            url=url, target=f"127.0.0.1:{grpc_port}", process=process, session=session_below(process.pid)
        )


@contextmanager
def running(
    command: Sequence[str], log: Path, *, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in its own group, so that Ctrl-C reaches only us; interrupted at the end.

    Raises:
        RuntimeError: it then did not end by itself.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError(f"the service did not stop within {STOP_TIMEOUT_S:g} s; see {log}") from None


def wait_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    """Raises RuntimeError if the service ends, or does not answer in time."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health/ready", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(POLL_S)
    raise RuntimeError(f"the service did not start: {log.read_text()[-500:].strip()}")


def session_below(pid: int) -> int:
    """The session that a process started; see `service.rayserve.process.run`."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(os.getsid(int(child)) for child in children if os.getsid(int(child)) != os.getsid(pid))
