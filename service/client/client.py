"""A small gRPC client for notebooks and pipelines: messages in and out, errors as one exception, traces as arrays.

Needs no server code, no torch and no Ray.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from ipaddress import ip_address
from typing import Any, Self, cast

import grpc
from google.protobuf.descriptor import EnumDescriptor

from service.pb import topk_pb2 as pb
from service.pb.topk_pb2_grpc import TopKServiceStub
from topk_model.traces import Trace, join

DEFAULT_MAX_MESSAGE_BYTES = 4 * 2**20


class CallError(Exception):
    """A call failed. `code` is gRPC's; `param`, `kind` and `reason` are the error body's `param`, `type`, `code`."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        param: str | None = None,
        kind: str | None = None,
        reason: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind
        self.reason = reason
        self.request_id = request_id

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep all fields when pickled and copied, which `Exception` would not."""
        told = {name: value for name, value in vars(self).items() if name != "message"}
        return partial(type(self), **told), (self.message,)

    @classmethod
    def of(cls, error: Any) -> Self:
        """The error for a `grpc.RpcError` that is also a call, as are all that stubs raise."""
        told = dict(error.trailing_metadata() or ())
        return cls(
            error.details() or "",
            code=error.code(),
            param=told.get("param"),
            kind=told.get("type"),
            reason=told.get("code"),
            request_id=told.get("x-request-id"),
        )


class Client:
    """A connection to a service; close it or use it in a `with` statement. It may be used from several threads.

    Args:
        target: host and port, such as "127.0.0.1:9000".
        api_key: needed if the service requires one.
        timeout_s: deadline of each call (default: none).
        max_message_bytes: largest accepted reply; at least the service's `grpc_max_message_bytes`.

    Every call may raise CallError, as do calls after `close`.
    """

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None = None,
        timeout_s: float | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        options = [("grpc.max_receive_message_length", max_message_bytes)]
        if is_loopback(target):  # a proxy from http_proxy could not reach it
            options.append(("grpc.enable_http_proxy", 0))
        self.channel = grpc.insecure_channel(target, options=options)
        self._stub: Any = TopKServiceStub(self.channel)
        self._is_closed = False
        self._options = {
            "timeout": timeout_s,
            "metadata": [("authorization", f"Bearer {api_key}")] if api_key is not None else [],
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every ongoing call."""
        self._is_closed = True
        self.channel.close()

    def generate(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        return cast(pb.GenerateResponse, self._call(self._stub.Generate, request))

    def generate_stream(self, request: pb.GenerateRequest) -> Iterator[pb.GenerateStreamResponse]:
        """The messages of the stream; leaving the loop early and closing the iterator cancels the call."""
        return self._stream(self._stub.GenerateStream, pb.GenerateStreamRequest(request=request))

    def activations(self, request: pb.ActivationsRequest) -> pb.ActivationsResponse:
        return cast(pb.ActivationsResponse, self._call(self._stub.Activations, request))

    def activations_stream(self, request: pb.ActivationsStreamRequest) -> Iterator[pb.ActivationsStreamResponse]:
        """Traces, and parts of traces, as they become ready; see `traces` for complete ones."""
        return self._stream(self._stub.ActivationsStream, request)

    def traces(self, request: pb.ActivationsStreamRequest) -> Iterator[tuple[int, Trace | pb.Error]]:
        """(input, complete trace) pairs as they become ready; an error in place of the trace of an invalid input."""
        parts: dict[int, list[Trace]] = {}
        for message in self.activations_stream(request):
            if message.HasField("error"):
                yield message.index, message.error
                continue
            parts.setdefault(message.index, []).append(trace_from_pb(message.trace))
            if message.is_last:
                yield message.index, join(parts.pop(message.index))

    def attribute(
        self, request: pb.AttributeRequest, on_progress: Callable[[pb.Progress], object] | None = None
    ) -> pb.Attribution:
        """Which neurons a token rests on; `on_progress` is called whenever the service has come further."""
        found = pb.Attribution()
        for message in self._stream(self._stub.Attribute, request):
            if message.HasField("attribution"):
                found = message.attribution
            elif on_progress is not None:
                on_progress(message.progress)
        return found

    def tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        return cast(pb.TokenizeResponse, self._call(self._stub.Tokenize, request))

    def detokenize(self, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        return cast(pb.DetokenizeResponse, self._call(self._stub.Detokenize, request))

    def models(self) -> list[pb.Model]:
        return list(self._call(self._stub.ListModels, pb.ListModelsRequest()).data)

    def neuron(self, request: pb.GetNeuronRequest) -> pb.GetNeuronResponse:
        return cast(pb.GetNeuronResponse, self._call(self._stub.GetNeuron, request))

    def neurons(self, request: pb.ListNeuronsRequest) -> pb.ListNeuronsResponse:
        return cast(pb.ListNeuronsResponse, self._call(self._stub.ListNeurons, request))

    def search_neurons(self, request: pb.SearchNeuronsRequest) -> pb.SearchNeuronsResponse:
        return cast(pb.SearchNeuronsResponse, self._call(self._stub.SearchNeurons, request))

    def neuron_history(self, request: pb.GetNeuronHistoryRequest) -> pb.GetNeuronHistoryResponse:
        return cast(pb.GetNeuronHistoryResponse, self._call(self._stub.GetNeuronHistory, request))

    def levers(
        self, request: pb.FindLeversRequest, on_progress: Callable[[pb.Progress], object] | None = None
    ) -> pb.Levers:
        """Which neurons make some words or texts likelier; `on_progress` is called whenever the search has come
        further."""
        found = pb.Levers()
        for message in self._stream(self._stub.FindLevers, request):
            if message.HasField("levers"):
                found = message.levers
            elif on_progress is not None:
                on_progress(message.progress)
        return found

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return self._begin(method, request)
        except grpc.RpcError as error:
            raise CallError.of(error) from None

    def _begin(self, method: Any, request: Any) -> Any:
        try:
            return method(request, **self._options)
        except ValueError:  # which gRPC raises for a channel that is closed, and for other reasons
            if not self._is_closed:
                raise
            raise CallError("the client is closed", code=grpc.StatusCode.CANCELLED) from None

    def _stream(self, method: Any, request: Any) -> Iterator[Any]:
        call = self._begin(method, request)
        try:
            for message in call:
                # A message with only the error that ended the stream repeats what the status will say.
                if message.HasField("error") and not getattr(message, "is_last", False):
                    continue
                yield message
        except grpc.RpcError as error:
            raise CallError.of(error) from None
        finally:
            call.cancel()


def is_loopback(target: str) -> bool:
    """Whether a channel's target (host:port, [host]:port or scheme:…) is on this machine, judged by its name."""
    host = target.rpartition("/")[2].removeprefix("dns:").removeprefix("ipv4:").removeprefix("ipv6:")
    host = host.rpartition(":")[0].strip("[]") or host
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return target.startswith("unix:")


def texts(values: Iterable[str]) -> pb.Prompt:
    """Several texts as the input of a request."""
    return pb.Prompt(texts=pb.TextList(texts=values))


def trace_from_pb(message: pb.Trace) -> Trace:
    """A trace with its arrays; see `Trace.csr`, `Trace.torch_csr` and `Trace.dense`.

    Raises:
        ValueError: the trace has another version, or its arrays do not fit together.
    """
    header = {
        "trace_version": message.trace_version,
        "model": message.model,
        "checkpoint": message.checkpoint if message.HasField("checkpoint") else None,
        "k": message.k,
        "hidden_size": message.hidden_size,
        "layers": message.layers,
        "token_ids": message.token_ids,
        "tokens": message.tokens,
        "phases": [_name(pb.Phase.DESCRIPTOR, phase) for phase in message.phases],
        "is_special": message.is_special,
        "complete": message.complete,
    }
    arrays = {"offsets": message.offsets, "indices": message.indices, "values": message.values}
    types = {
        "index_dtype": _name(pb.IndexType.DESCRIPTOR, message.index_dtype),
        "dtype": _name(pb.ValueType.DESCRIPTOR, message.dtype),
    }
    return Trace.from_bytes(header, arrays, **types)


def _name(enum: EnumDescriptor, number: int) -> str:
    """VALUE_TYPE_FLOAT16 becomes "float16"."""
    value = enum.values_by_number.get(number)
    if value is None or number == 0:
        raise ValueError(f"the trace has {enum.name} {number}, which this client does not know")
    return cast(str, value.name.removeprefix(enum.values_by_number[0].name.removesuffix("UNSPECIFIED")).lower())
