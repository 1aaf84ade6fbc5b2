"""Sends one request of a load test over HTTP or gRPC, and records what came back and when.

Reads as little of the answers as possible during the run: the client must not be what is measured.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import grpc
import httpx

from loadtests.workload import Call
from service.client.client import DEFAULT_MAX_MESSAGE_BYTES
from service.pb import topk_pb2 as pb
from service.pb.topk_pb2_grpc import TopKServiceStub

#: A call that has not ended by then counts as hung.
DEFAULT_TIMEOUT_S = 60.0
#: Connections are closed before the other side closes them, which would lose a request that is just being sent.
KEEPALIVE_S = 2.0
#: Each request checks every idle connection, which costs the client time.
MAX_IDLE_CONNECTIONS = 16
#: Calls are spread over this many connections: a proxy may accept no more than a hundred per connection.
NUM_CHANNELS = 8
CONNECT_TIMEOUT_S = 10.0
#: The code of a call that did not end.
HUNG = "timeout"

Status = Literal["ok", "refused", "failed", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Served:
    """The service, and the facts of its model that requests need."""

    url: str
    target: str
    model_id: str
    topk_layers: tuple[int, ...]
    hidden_size: int
    api_key: str | None = field(default=None, repr=False)


def find(url: str, target: str, api_key: str | None = None) -> Served:
    """Ask a service for its model.

    Raises:
        httpx.HTTPError: it does not answer, or answers with an error.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    model = httpx.get(f"{url}/v1/models", headers=headers, timeout=30).raise_for_status().json()["data"][0]
    return Served(
        url=url,
        target=target,
        model_id=model["id"],
        topk_layers=tuple(model["topk"]["topk_layers"]),
        hidden_size=model["topk"]["hidden_size"],
        api_key=api_key,
    )


@dataclass(kw_only=True)
class Outcome:
    """The outcome of a call. Times are seconds since the start of the run."""

    call: Call
    sent_s: float  # when it was actually sent: later than its arrival if the client was busy
    status: Status = "ok"
    code: str = ""  # why it was refused or failed: HTTP status, gRPC code, or the name of an exception
    retry_after_s: float | None = None  # from a refusal
    items_s: list[float] = field(default_factory=list)  # when the pieces of a stream arrived, from the first token on
    ended_s: float = 0.0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0


class RefusedError(Exception):
    """The service answered with an error. `code` is its status or gRPC code."""

    def __init__(self, code: str, *, is_overload: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.is_overload = is_overload
        self.retry_after_s = retry_after_s


class Asker:
    """Connections to a service, and the run's clock; use it in an `async with` statement."""

    def __init__(self, served: Served, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._served = served
        self._began = time.perf_counter()
        self._timeout_s = timeout_s
        self._metadata: list[tuple[str, str]] = []
        headers = {}
        if served.api_key is not None:
            headers["Authorization"] = f"Bearer {served.api_key}"
            self._metadata.append(("authorization", f"Bearer {served.api_key}"))
        self._http = httpx.AsyncClient(
            base_url=served.url,
            headers=headers,
            timeout=None,  # of a call as a whole, below
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=MAX_IDLE_CONNECTIONS, keepalive_expiry=KEEPALIVE_S
            ),
        )
        options = [
            ("grpc.max_receive_message_length", DEFAULT_MAX_MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channels = [grpc.aio.insecure_channel(served.target, options=options) for _ in range(NUM_CHANNELS)]
        self._stubs: list[Any] = [TopKServiceStub(channel) for channel in self._channels]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._http.aclose()
        for channel in self._channels:
            await channel.close(None)

    async def connect(self) -> None:
        """Open the gRPC connections.

        Raises:
            TimeoutError: the service does not accept them.
        """
        ready = (channel.channel_ready() for channel in self._channels)
        await asyncio.wait_for(asyncio.gather(*ready), CONNECT_TIMEOUT_S)

    def begin(self) -> None:
        """Restart the clock."""
        self._began = time.perf_counter()

    def now(self) -> float:
        """Seconds since the start of the run."""
        return time.perf_counter() - self._began

    async def ask(self, call: Call) -> Outcome:
        """Send a call and wait for its end, whatever that is."""
        outcome = Outcome(call=call, sent_s=self.now())
        send: Callable[[Call, Outcome], Any] = self._ask_http if call.kind.transport == "http" else self._ask_grpc
        leave_after_s = self._timeout_s if call.cancel_after_s is None else call.cancel_after_s
        try:
            async with asyncio.timeout(max(0.0, call.arrival_s + leave_after_s - self.now())):
                await send(call, outcome)
        except TimeoutError:
            outcome.status, outcome.code = ("cancelled", "") if call.kind.is_cancelled else ("failed", HUNG)
        except RefusedError as error:
            outcome.status = "refused" if error.is_overload else "failed"
            outcome.code, outcome.retry_after_s = error.code, error.retry_after_s
        except httpx.HTTPError as error:
            outcome.status, outcome.code = "failed", type(error).__name__
        outcome.ended_s = self.now()
        return outcome

    async def _ask_http(self, call: Call, outcome: Outcome) -> None:
        body = http_body(call, self._served.model_id)
        async with self._http.stream("POST", "/v1/completions", json=body) as reply:
            if reply.status_code != 200:
                await reply.aread()
                told = reply.headers.get("retry-after")
                raise RefusedError(
                    str(reply.status_code),
                    is_overload=reply.status_code == 429,
                    retry_after_s=None if told is None else float(told),
                )
            if not call.kind.is_stream:
                note_usage(outcome, json.loads(await reply.aread())["usage"])
                return
            reader = EventReader(outcome)
            async for chunk in reply.aiter_raw():
                reader.feed(chunk, self.now())
            reader.end()

    async def _ask_grpc(self, call: Call, outcome: Outcome) -> None:
        stub = self._stubs[call.seed % NUM_CHANNELS]
        request = grpc_request(call, self._served.model_id)
        try:
            if not call.kind.is_stream:
                reply = await stub.Generate(request, metadata=self._metadata)
                note_usage(outcome, reply.usage)
                return
            stream = stub.GenerateStream(pb.GenerateStreamRequest(request=request), metadata=self._metadata)
            try:
                async for message in stream:
                    if outcome.items_s or any(choice.text for choice in message.choices):
                        outcome.items_s += [self.now()] * bool(message.choices)
                    if message.HasField("usage"):
                        note_usage(outcome, message.usage)
            finally:
                stream.cancel()
        except grpc.aio.AioRpcError as error:
            pushback = dict(error.trailing_metadata() or ()).get("grpc-retry-pushback-ms")
            raise RefusedError(
                error.code().name,
                is_overload=error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED,
                retry_after_s=None if pushback is None else float(pushback) / 1000,
            ) from None


class EventReader:
    """Server-sent events of a completion: only the first ones, up to a token, and the last one are parsed."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._rest = b""
        self._last = b""  # the last event before "[DONE]"
        self._is_done = False

    def feed(self, chunk: bytes, now: float) -> None:
        """Add what arrived at the time `now`.

        Raises:
            RefusedError: an event is an error.
        """
        *events, self._rest = (self._rest + chunk).split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data: ")
            if data == b"[DONE]":
                self._is_done = True
                continue
            if data.startswith(b'{"error"'):
                raise RefusedError(f"event {json.loads(data)['error']['code']}")
            self._last = data
            if self._outcome.items_s or any(choice["text"] for choice in json.loads(data)["choices"]):
                self._outcome.items_s.append(now)

    def end(self) -> None:
        """The connection has ended.

        Raises:
            RefusedError: it ended before the stream did.
        """
        if not self._is_done:
            raise RefusedError("stream cut off")
        if self._outcome.items_s:
            self._outcome.items_s.pop()  # the event with the usage has no token
        note_usage(self._outcome, json.loads(self._last)["usage"])


def note_usage(outcome: Outcome, usage: Any) -> None:
    """Read the usage of JSON or protobuf."""
    read = usage.__getitem__ if isinstance(usage, dict) else lambda name: getattr(usage, name)
    outcome.num_prompt_tokens, outcome.num_output_tokens = read("prompt_tokens"), read("completion_tokens")


def http_body(call: Call, model_id: str) -> dict[str, Any]:
    """The call as a body of `/v1/completions`."""
    body: dict[str, Any] = {"model": model_id, "prompt": call.prompt, "max_tokens": call.max_tokens}
    body |= {"seed": call.seed, "ignore_eos": True}
    if call.kind.is_stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if (edit := call.edit) is not None:
        body["interventions"] = [{"layer": edit.layer, "neuron": edit.neuron, "op": "add", "value": edit.value}]
    if call.kind.is_traced:
        body["trace"] = {"encoding": "packed", "dtype": "float16"}
    return body


def grpc_request(call: Call, model_id: str) -> pb.GenerateRequest:
    """The call as a request of `Generate`."""
    request = pb.GenerateRequest(
        model=model_id,
        prompt=pb.Prompt(text=call.prompt),
        max_tokens=call.max_tokens,
        seed=call.seed,
        ignore_eos=True,
    )
    if (edit := call.edit) is not None:
        request.interventions.add(layer=[edit.layer], neuron=edit.neuron, op=pb.OP_ADD, value=edit.value)
    if call.kind.is_traced:
        request.trace.dtype = pb.VALUE_TYPE_FLOAT16
    return request
