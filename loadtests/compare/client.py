"""A client for completions over HTTP that costs little: requests one after the other on connections that stay open.

`loadtests.asking` can ask more, at several times the processor time a piece; on the service's own cores that time would
be missing there.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from urllib.parse import urlsplit

from loadtests.asking import EventReader, Outcome, Served, http_body
from loadtests.workload import Call, Kind

TIMEOUT_S = 120.0
WHOLE = Kind(name="whole", share=1.0)
STREAM = Kind(name="stream", share=1.0, is_stream=True)


@dataclass(kw_only=True)
class HttpTurn:
    """What came of a turn."""

    num_requests: int = 0
    num_tokens: int = 0  # generated
    elapsed_s: float = 0.0
    first_token_s: list[float] = field(default_factory=list)  # of each stream, from its sending on

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.elapsed_s


class HttpError(Exception):
    """The service did not answer as it should."""


class Connection:
    """One connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host

    async def complete(self, body: bytes, outcome: Outcome) -> None:
        """Ask for a completion and note what comes of it.

        Raises:
            HttpError: the answer is not one.
            RefusedError: a stream holds an error, or is cut off.
            EOFError: the connection was closed.
        """
        self._writer.write(
            f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        is_chunked, length = b"transfer-encoding: chunked" in head, 0
        if not is_chunked:
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        if not head.startswith(b"http/1.1 200"):
            status = head.partition(b"\r\n")[0].decode()
            said = b"" if is_chunked else await self._reader.readexactly(length)
            raise HttpError(f"{status}: {said.decode(errors='replace')[:300]}")
        if not is_chunked:
            usage = json.loads(await self._reader.readexactly(length))["usage"]
            outcome.num_output_tokens = usage["completion_tokens"]
            return
        events = EventReader(outcome)
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            piece = await self._reader.readexactly(size + 2)
            events.feed(piece[:-2], time.perf_counter())
        await self._reader.readuntil(b"\r\n")
        events.end()

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def load_http(
    served: Served, prompts: Sequence[str], num_tokens: int, in_flight: int, seconds: float, *, is_stream: bool
) -> HttpTurn:
    """Keep `in_flight` requests going until the time is over; those under way are finished, and counted.

    Raises:
        HttpError, RefusedError, EOFError, OSError, TimeoutError: a request failed.
    """
    address = urlsplit(served.url)
    kind = STREAM if is_stream else WHOLE
    calls = [
        Call(kind=kind, arrival_s=0.0, prompt=prompt, max_tokens=num_tokens, seed=seed)
        for seed, prompt in enumerate(prompts)
    ]
    bodies = cycle([(call, json.dumps(http_body(call, served.model_id)).encode()) for call in calls])
    turn = HttpTurn()

    async def ask_on(connection: Connection, began: float) -> None:
        while (now := time.perf_counter()) - began < seconds:
            call, body = next(bodies)
            outcome = Outcome(call=call, sent_s=now)
            await connection.complete(body, outcome)
            turn.num_requests += 1
            turn.num_tokens += outcome.num_output_tokens
            if outcome.items_s:
                turn.first_token_s.append(outcome.items_s[0] - now)

    host = f"{address.hostname}:{address.port}"
    connections = [
        Connection(*await asyncio.open_connection(address.hostname, address.port), host) for _ in range(in_flight)
    ]
    try:
        began = time.perf_counter()
        async with asyncio.timeout(seconds + TIMEOUT_S):
            await asyncio.gather(*(ask_on(one, began) for one in connections))
        turn.elapsed_s = time.perf_counter() - began
    finally:
        for one in connections:
            await one.close()
    return turn
