"""What every HTTP and gRPC request passes before it is read: a request id, the API key check, the admission limit."""

import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from service.errors import QueueFullError

logger = logging.getLogger(__name__)

_SCHEME = "bearer"
REQUEST_ID_HEADER = "x-request-id"
MIN_API_KEY_LENGTH = 8
#: Minimum time between two checks of the key file.
KEY_FILE_PERIOD_S = 2.0

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)


def choose_request_id(offered: str | None) -> str:
    """The client's own id if it is a short plain word; otherwise a new one."""
    return offered if offered is not None and _REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex


def read_keys(path: Path) -> list[str]:
    """The keys in a file, one per line; empty lines and lines that begin with # are skipped.

    Raises:
        ValueError: the file cannot be read, has no key, or has a key that no header could carry.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"api_key_file {path} cannot be read: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"api_key_file {path} contains no key")
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise ValueError(f"a key in api_key_file {path} is not printable ASCII")
    return keys


def is_accepted(authorization: str | None, keys: Sequence[str]) -> bool:
    """Whether an `Authorization` value carries one of `keys`; every value is accepted if there are no keys.

    The time taken does not reveal how close a wrong key was, nor to which key.
    """
    if not keys:
        return True
    if authorization is None:
        return False
    scheme, _, offered = authorization.partition(" ")
    offered_bytes = offered.strip().encode("utf-8", "surrogatepass")
    matches = [hmac.compare_digest(offered_bytes, key.encode()) for key in keys]
    return scheme.lower() == _SCHEME and any(matches)


def check_keys(keys: Sequence[str]) -> None:
    """Raises ValueError if one of `keys` is not ASCII or too short to be safe."""
    if not all(key.isascii() and len(key) >= MIN_API_KEY_LENGTH for key in keys):
        raise ValueError(f"an API key is not ASCII or shorter than {MIN_API_KEY_LENGTH} characters")


class ApiKeys:
    """The accepted keys. A key file is read again when it has changed, so that keys can change without a restart.

    A changed file that cannot be used is logged as an error, and the previous keys stay accepted.

    Args:
        fixed: keys that never change.
        file: more keys, in the format that `read_keys` expects.

    Raises:
        ValueError: as `read_keys` and `check_keys`.
    """

    def __init__(
        self, fixed: Sequence[str] = (), file: Path | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fixed = tuple(fixed)
        self._file = file
        self._clock = clock
        self._next_look_at = clock() + KEY_FILE_PERIOD_S
        self._seen = file_state(file)
        self._keys = self._read()
        self.loaded_at = time.time()
        self.is_stale = False  # the file in its present state cannot be used

    def accept(self, authorization: str | None) -> bool:
        """Whether an `Authorization` value carries an accepted key; see `is_accepted`."""
        self.refresh()
        return is_accepted(authorization, self._keys)

    def refresh(self) -> None:
        """Check the file, at most once per `KEY_FILE_PERIOD_S`, and read it if it has changed or was unusable."""
        if self._file is None or self._clock() < self._next_look_at:
            return
        self._next_look_at = self._clock() + KEY_FILE_PERIOD_S
        state = file_state(self._file)  # taken before reading, so that a write in between is seen by the next check
        is_changed = state != self._seen
        if not is_changed and not self.is_stale:
            return
        self._seen = state
        try:
            self._keys = self._read()
        except ValueError as error:
            self.is_stale = True
            if is_changed:
                logger.error("%s; the previous keys stay accepted", error)
        else:
            self.is_stale = False
            self.loaded_at = time.time()
            logger.warning("read %d keys from %s, which has changed", len(self._keys) - len(self._fixed), self._file)

    def _read(self) -> tuple[str, ...]:
        keys = (*self._fixed, *(read_keys(self._file) if self._file is not None else ()))
        check_keys(keys)
        return keys


def file_state(path: Path | None) -> tuple[int, ...] | None:
    """A value that changes whenever the file changes or is replaced; None if there is no such file."""
    try:
        stat = path.stat() if path is not None else None
    except OSError:
        return None
    return stat and (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)


class Admission:
    """Counts the requests that a replica is answering, over all transports."""

    def __init__(self, *, max_requests: int, retry_after_s: float) -> None:
        self.max_requests = max_requests
        self.retry_after_s = retry_after_s
        self.num_requests = 0

    def check(self) -> None:
        """Raises QueueFullError if the limit is reached."""
        if self.num_requests >= self.max_requests:
            raise QueueFullError(
                f"{self.num_requests} requests are being answered, which is the limit",
                code="too_many_requests",
                retry_after_s=self.retry_after_s,
            )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Count one more request while the context is open."""
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1
