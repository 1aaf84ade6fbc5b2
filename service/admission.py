"""What HTTP and gRPC requests pass alike before they are read: a request id, an API key, and room for one more."""

import hmac
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from service.errors import QueueFullError

_SCHEME = "bearer"
REQUEST_ID_HEADER = "x-request-id"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)


def choose_request_id(offered: str | None) -> str:
    """The client's own id, where it is a short plain word; else a new one."""
    return offered if offered is not None and _REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex


def read_keys(path: Path) -> list[str]:
    """The keys of a file, one a line; empty lines and lines with # are skipped.

    Raises:
        ValueError: it cannot be read, or holds no key, or one that no header could carry.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"api_key_file {path} cannot be read: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"api_key_file {path} holds no key")
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise ValueError(f"a key in api_key_file {path} is not printable ASCII")
    return keys


def is_accepted(authorization: str | None, keys: Sequence[str]) -> bool:
    """Whether an `Authorization` value carries one of `keys`; all pass where there are none.

    The time does not tell how close a wrong key came, nor to which.
    """
    if not keys:
        return True
    if authorization is None:
        return False
    scheme, _, offered = authorization.partition(" ")
    offered_bytes = offered.strip().encode("utf-8", "surrogatepass")
    matches = [hmac.compare_digest(offered_bytes, key.encode()) for key in keys]
    return scheme.lower() == _SCHEME and any(matches)


class Admission:
    """Counts the requests that a replica is answering, over whatever transport they came."""

    def __init__(self, *, max_requests: int, retry_after_s: float) -> None:
        self.max_requests = max_requests
        self.retry_after_s = retry_after_s
        self.num_requests = 0

    def check(self) -> None:
        """Raises QueueFullError where no more may come in."""
        if self.num_requests >= self.max_requests:
            raise QueueFullError(
                f"{self.num_requests} requests are being answered, the most that may",
                code="too_many_requests",
                retry_after_s=self.retry_after_s,
            )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Count one more for as long as it lasts."""
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1
