"""Runs the service on this machine: the process of `topk serve`.

Everything that belongs to Ray runs in its own session, under a light process that watches it. Knows no route.
"""

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from service.settings import Settings

#: Time that a stop may take beyond the time for ongoing requests.
STOP_TIMEOUT_S = 30.0
KILL_TIMEOUT_S = 5.0
POLL_S = 0.2
#: The state of a listening socket in /proc/net/tcp.
LISTENING = "0A"
FOLDER_PREFIX = "topk-"
#: Maximum length of the path of a temporary folder. HAProxy accepts 97 bytes for a socket's path, which includes our
#: folder's name, one of Serve's of 56 digits and the socket's; Ray accepts 107, and adds about 75 of its own.
MAX_BASE_BYTES = 97 - len(f"/{FOLDER_PREFIX}12345678/{'0' * 56}/metrics.sock")


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; a second signal ends the service without waiting for ongoing requests.

    Ray's processes must end in order, and those of its proxy do not end with it. So they have their own session:
    a signal to our process group, such as Ctrl-C, reaches only us, and at the end nothing of that session is left.

    Raises:
        OSError: a port is taken, or the model's folder is missing.
        SystemExit: the service could not start, or ended unexpectedly; it has reported why on standard error.
    """
    for name, folder in settings.served_models().items():
        if not folder.is_dir():
            raise FileNotFoundError(f"model {name} is {str(folder)!r}, which is not a folder")
    check_port(settings.host, settings.http_port, "http_port")
    check_port(settings.host, settings.grpc_port, "grpc_port")
    folder = socket_folder()
    command = [sys.executable, "-m", "service.rayserve.launcher", str(folder)]
    # In a folder without modules: Python and Ray would otherwise search our folder for everything that they import.
    service = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, cwd=folder)
    try:
        status = watch(service, settings)
    finally:
        end_session(service.pid)
        service.wait()
        shutil.rmtree(folder, ignore_errors=True)
    if status:
        raise SystemExit(status)


def socket_folder() -> Path:
    """A new folder whose path is short enough for sockets in it: in the temporary folder if possible, else in /tmp.

    Raises:
        OSError: neither can be used.
    """
    wanted = Path(tempfile.gettempdir()).resolve()
    reasons = []
    for base in dict.fromkeys((wanted, Path("/tmp"))):
        if (length := len(os.fsencode(base))) > MAX_BASE_BYTES:
            reasons.append(f"{base} has {length} bytes, but sockets allow at most {MAX_BASE_BYTES}")
            continue
        try:
            return Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=base))
        except OSError as error:
            reasons.append(f"{base}: {error.strerror}")
    raise OSError(f"no folder for sockets: {'; '.join(reasons)}; set TMPDIR to a short path that can be written to")


def watch(service: "subprocess.Popen[bytes]", settings: Settings) -> int:
    """Send the settings, wait for the service's end and return its status; a signal to us asks it to stop."""
    assert service.stdin is not None
    kill_at: float | None = None

    def ask_to_stop(*_: object) -> None:
        nonlocal kill_at
        kill_at = time.monotonic() + (settings.drain_timeout_s + STOP_TIMEOUT_S if kill_at is None else 0)
        service.stdin.close()  # type: ignore[union-attr]

    handed = pickle.dumps({name: absolute(value) for name, value in settings.model_dump().items()})
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    try:
        service.stdin.write(handed)
        service.stdin.flush()
    except (BrokenPipeError, ValueError):  # it has already ended, or been asked to
        pass
    while True:
        try:
            return service.wait(POLL_S)
        except subprocess.TimeoutExpired:
            if kill_at is not None and time.monotonic() > kill_at:
                print("topk serve: did not stop in time, killed", file=sys.stderr)
                return 1


def absolute(value: object) -> object:
    """A setting with its paths made absolute, because the service runs in another folder."""
    if isinstance(value, Path):
        return value.absolute()
    return {name: absolute(item) for name, item in value.items()} if isinstance(value, dict) else value


def end_session(session: int) -> None:
    """Kill every process of a session."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while (left := processes_of(session)) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # it has ended in the meantime
                continue
        time.sleep(POLL_S)


def processes_of(session: int) -> list[int]:
    """Live processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session_of_path = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended in the meantime
            continue
        if int(session_of_path) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def is_taken_by_others(host: str, port: int, session: int) -> bool:
    """Whether a port cannot be opened, and no process of a session is the one that has it.

    Processes come and go during a start and pass ports on, so a result counts only if it is seen three times.
    """
    for _ in range(3):
        try:
            check_port(host, port, "")
        except OSError:
            if any(listens_on(port, pid) for pid in processes_of(session)):
                return False
            time.sleep(POLL_S)
        else:
            return False
    return True


def listens_on(port: int, pid: int) -> bool:
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                listening.add(f"socket:[{fields[9]}]")
    try:
        opened = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # the process has ended in the meantime
        return False
    return any(link_of(entry) in listening for entry in opened)


def link_of(entry: Path) -> str:
    try:
        return os.readlink(entry)
    except OSError:  # closed in the meantime
        return ""


def check_port(host: str, port: int, name: str) -> None:
    """Raises OSError if the port cannot be opened."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"{name} {port} of {host} cannot be opened: {error.strerror}") from error
