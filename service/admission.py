"""What HTTP and gRPC requests pass alike before they are read: a request id, and room for one more."""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import QueueFullError

REQUEST_ID_HEADER = "x-request-id"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)


def choose_request_id(offered: str | None) -> str:
    """The client's own id, where it is a short plain word; else a new one."""
    return offered if offered is not None and _REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex


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
