"""The service as it is run: `topk serve` in a process of its own, Ray Serve and a proxy in front."""

import ipaddress
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import openai

from tests.support.served import MODEL_ID, free_port, wait_until

START_TIMEOUT_S = 200
SLOWING = Path(__file__).parent / "slowing"


class Running:
    """A `topk serve` that has said that it is ready."""

    def __init__(self, process: subprocess.Popen[str], port: int, grpc_port: int, text: str, step_delay: Path) -> None:
        self.process = process
        self.port = port
        self.target = f"127.0.0.1:{grpc_port}"
        self.url = f"http://127.0.0.1:{port}"
        self.text = text
        self._step_delay = step_delay
        self.below: set[int] = set()  # every process that it had when it was asked to stop
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def slow_down(self, step_s: float) -> None:
        """Make each step of the one replica's engine take so much longer, infinity for one that hangs.

        For services that are `slowable`.
        """
        (replica,) = self.replicas()
        self._step_delay.write_text(f"{replica} {step_s}")

    def speed_up(self) -> None:
        self._step_delay.write_text("")

    @contextmanager
    def slowed(self, step_s: float = 0.02) -> Iterator[None]:
        """A while in which answers take so long that clients can leave before they end."""
        self.slow_down(step_s)
        try:
            yield
        finally:
            self.speed_up()

    def ask_to_stop(self) -> None:
        """Interrupt the whole process group, as Ctrl-C does; once."""
        if not self.below:
            self.below = descendants(self.process.pid)
            os.killpg(self.process.pid, signal.SIGINT)

    def metric(self, name: str, labels: str = "") -> float:
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.startswith(name + "{") and labels in series:
                return float(value)
        return 0.0

    def replicas(self) -> set[int]:
        """Processes of the replicas that serve or start."""
        return replicas_below(self.process.pid)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def is_idle(self) -> bool:
        names = ("topk_num_requests_running", "topk_num_requests_waiting", "topk_kv_cache_usage_ratio")
        return all(self.metric(name) == 0 for name in names)


def descendants(pid: int) -> set[int]:
    """All processes below `pid`."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def replicas_below(pid: int) -> set[int]:
    """Processes of Ray Serve's replicas among all below `pid`."""
    return {child for child in descendants(pid) if b"ServeReplica" in command_of(child)}


def command_of(pid: int) -> bytes:
    """A process's command line, its words parted by zero bytes; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def listeners(pids: Iterable[int]) -> dict[tuple[str, int], bytes]:
    """Addresses and ports that processes listen on, each with the command of one that does."""
    owners = {}
    for pid in pids:
        with suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    owners[os.readlink(entry)] = pid
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            owner = owners.get(f"socket:[{fields[9]}]")
            if fields[3] == "0A" and owner is not None:  # listening
                address, _, port = fields[1].partition(":")
                words = [int(address[i : i + 8], 16).to_bytes(4, "little") for i in range(0, len(address), 8)]
                ip = ipaddress.ip_address(b"".join(words))
                found[str(getattr(ip, "ipv4_mapped", None) or ip), int(port, 16)] = command_of(owner)
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _slowed_by(file: Path) -> dict[str, str]:
    """Variables for a service whose replicas look into `file`: once it holds f"{process} {seconds}", each step of that
    replica's engine takes so much longer."""
    path = os.pathsep.join(filter(None, (str(SLOWING), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "STEP_DELAY_FILE": str(file)}


@contextmanager
def topk_serve(
    model: Path,
    folder: Path,
    *options: str,
    variables: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    slowable: bool = False,
) -> Iterator[Running]:
    """A service of `model`, with its output in `folder`.

    Args:
        slowable: its replicas can be slowed down, with `Running.slow_down`.
    """
    port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-P", "-m", "service.cli", "serve", "--model", str(model), "--model-id", MODEL_ID]
    # One thread: the tests share their cores with much else, and threads that wait for each other crawl then.
    command += ["--num-threads", "1"]
    command += ["--http-port", str(port), "--grpc-port", str(grpc_port), "--num-blocks", "1024"]
    # Room for a crowd to wait in, so that tests can see what becomes of a crowd.
    command += ["--max-backlog", "256", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOPK_", "RAY_"))}
    environment |= variables or {}
    step_delay = folder / "step_delay"
    if slowable:
        environment |= _slowed_by(step_delay)
    out, err = folder / "out.txt", folder / "err.txt"
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, text=True, env=environment, cwd=cwd, start_new_session=True
        )
    try:
        wait_until(lambda: "Ready" in out.read_text() or process.poll() is not None, START_TIMEOUT_S)
        assert "Ready" in out.read_text(), err.read_text()[-3000:]
        service = Running(process, port, grpc_port, out.read_text(), step_delay)
        yield service
        service.ask_to_stop()
        assert service.below
        assert process.wait(45) == 0, err.read_text()[-3000:]
        assert wait_until(lambda: not any(map(is_alive, service.below)), 10), "processes were left behind"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)
