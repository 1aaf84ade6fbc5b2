"""The gRPC API: methods named like the RPCs of `topk.v1.TopKService` and `grpc.health.v1.Health`, for Serve to call.

An RPC converts and validates, calls the replica and converts the answer; all errors are reported in one place. Knows no
engine. Serve serves reflection itself, from the same registered services.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2

from service.errors import NotFoundError, ServiceError
from service.grpc_api import conversion, lever_conversion
from service.grpc_api.edge import SERVICE_NAME, Call, Calls, error_to_pb
from service.pb import topk_pb2 as pb

if TYPE_CHECKING:
    from ray.serve.grpc_util import RayServegRPCContext

    from service.serving.replica import Replica

#: How often a watched health is checked, and how long a watch lasts before the client must renew it: a draining
#: replica waits for its calls.
WATCH_PERIOD_S = 0.5
WATCH_S = 15.0

#: (replica, message, the request's id) -> the reply.
Work = Callable[["Replica", Any, str], Awaitable[Any]]
#: (replica, message, the request's id, maximum bytes of a message) -> the stream's replies.
StreamWork = Callable[["Replica", Any, str, int], AsyncGenerator[Any, None]]


async def generate(replica: "Replica", message: pb.GenerateRequest, request_id: str) -> pb.GenerateResponse:
    return conversion.generation_to_pb(await replica.answer(conversion.generation_from_pb(message), request_id))


async def activations(replica: "Replica", message: pb.ActivationsRequest, request_id: str) -> pb.ActivationsResponse:
    return conversion.activations_to_pb(await replica.answer(conversion.activations_from_pb(message), request_id))


async def tokenize(replica: "Replica", message: pb.TokenizeRequest, _: str) -> pb.TokenizeResponse:
    return pb.TokenizeResponse(**await replica.tokenize(conversion.tokenize_from_pb(message)))


async def detokenize(replica: "Replica", message: pb.DetokenizeRequest, _: str) -> pb.DetokenizeResponse:
    return pb.DetokenizeResponse(**replica.detokenize(conversion.detokenize_from_pb(message)))


async def list_models(replica: "Replica", message: pb.ListModelsRequest, _: str) -> pb.ListModelsResponse:
    conversion.check_known(message, "")
    return pb.ListModelsResponse(data=map(conversion.model_to_pb, replica.model_entries()))


async def get_neuron(replica: "Replica", message: pb.GetNeuronRequest, _: str) -> pb.GetNeuronResponse:
    return conversion.neuron_to_pb(await replica.neurons.page(conversion.neuron_from_pb(message)))


async def list_neurons(replica: "Replica", message: pb.ListNeuronsRequest, _: str) -> pb.ListNeuronsResponse:
    reply = await replica.neurons.listing(conversion.neuron_list_from_pb(message))
    return pb.ListNeuronsResponse(**conversion.fields_to_pb(reply))


async def search_neurons(replica: "Replica", message: pb.SearchNeuronsRequest, _: str) -> pb.SearchNeuronsResponse:
    reply = await replica.neurons.search(conversion.neuron_search_from_pb(message))
    return pb.SearchNeuronsResponse(**conversion.fields_to_pb(reply))


async def get_neuron_history(
    replica: "Replica", message: pb.GetNeuronHistoryRequest, _: str
) -> pb.GetNeuronHistoryResponse:
    reply = await replica.neurons.history(conversion.neuron_from_pb(message))
    return pb.GetNeuronHistoryResponse(**conversion.fields_to_pb(reply))


async def generate_stream(
    replica: "Replica", message: pb.GenerateStreamRequest, request_id: str, max_bytes: int
) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
    answer = None
    async with aclosing(replica.stream(conversion.stream_from_pb(message), request_id)) as answers:
        async for answer in answers:
            for reply in conversion.stream_to_pb(answer, max_bytes):
                yield reply
    assert answer is not None
    differences = conversion.plain(answer.differences or ())
    yield pb.GenerateStreamResponse(**answer.head, usage=pb.Usage(**vars(answer.usage)), differences=differences)


async def activations_stream(
    replica: "Replica", message: pb.ActivationsStreamRequest, request_id: str, max_bytes: int
) -> AsyncGenerator[pb.ActivationsStreamResponse, None]:
    body = conversion.activations_stream_from_pb(message)
    async with aclosing(replica.answer_each(body, request_id)) as answers:
        async for index, answer in answers:
            if isinstance(answer, ServiceError):
                yield pb.ActivationsStreamResponse(index=index, is_last=True, error=error_to_pb(answer))
                continue
            for reply in conversion.activation_parts_to_pb(index, answer, max_bytes):
                yield reply


async def attribute(
    replica: "Replica", message: pb.AttributeRequest, _: str, __: int
) -> AsyncGenerator[pb.AttributeResponse, None]:
    async with aclosing(replica.attribute(conversion.attribution_from_pb(message))) as events:
        async for event in events:
            yield conversion.attribution_to_pb(event)


async def find_levers(
    replica: "Replica", message: pb.FindLeversRequest, _: str, __: int
) -> AsyncGenerator[pb.FindLeversResponse, None]:
    async with aclosing(replica.levers.find(lever_conversion.levers_from_pb(message))) as events:
        async for event in events:
            yield lever_conversion.lever_event_to_pb(event)


#: Unary RPCs: the reply's message and the function that makes it.
UNARY: dict[str, tuple[type[Any], Work]] = {
    "Generate": (pb.GenerateResponse, generate),
    "Activations": (pb.ActivationsResponse, activations),
    "Tokenize": (pb.TokenizeResponse, tokenize),
    "Detokenize": (pb.DetokenizeResponse, detokenize),
    "ListModels": (pb.ListModelsResponse, list_models),
    "GetNeuron": (pb.GetNeuronResponse, get_neuron),
    "ListNeurons": (pb.ListNeuronsResponse, list_neurons),
    "SearchNeurons": (pb.SearchNeuronsResponse, search_neurons),
    "GetNeuronHistory": (pb.GetNeuronHistoryResponse, get_neuron_history),
}
#: RPCs whose reply is a stream.
STREAMS: dict[str, tuple[type[Any], StreamWork]] = {
    "GenerateStream": (pb.GenerateStreamResponse, generate_stream),
    "Attribute": (pb.AttributeResponse, attribute),
    "ActivationsStream": (pb.ActivationsStreamResponse, activations_stream),
    "FindLevers": (pb.FindLeversResponse, find_levers),
}


def unary_method(reply: type[Any], work: Work) -> Callable[..., Awaitable[Any]]:
    async def method(self: Calls, request: Any, grpc_context: "RayServegRPCContext") -> Any:
        return await self._unary(grpc_context, reply, lambda request_id: work(self._replica, request, request_id))

    return method


def stream_method(reply: type[Any], work: StreamWork) -> Callable[..., AsyncGenerator[Any, None]]:
    async def method(self: Calls, request: Any, grpc_context: "RayServegRPCContext") -> AsyncGenerator[Any, None]:
        def messages(request_id: str) -> AsyncGenerator[Any, None]:
            return work(self._replica, request, request_id, self._max_bytes)

        async with aclosing(self._stream(grpc_context, reply, messages)) as replies:
            async for one in replies:
                yield one

    return method


class RpcMethods(Calls):
    """The RPCs of one replica. Serve calls them by name, with the call's context as `grpc_context`."""

    async def Check(
        self, request: health_pb2.HealthCheckRequest, grpc_context: "RayServegRPCContext"
    ) -> health_pb2.HealthCheckResponse:
        """Of grpc.health.v1.Health; needs no key and is answered even by a full replica."""
        status = self._health_of(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            error = NotFoundError(f"there is no service {request.service[:100]!r}", code="unknown_service")
            Call(self._replica, grpc_context, health_pb2.HealthCheckResponse).fail(error)
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, grpc_context: "RayServegRPCContext"
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """Of grpc.health.v1.Health: the current status and every change, for at most `WATCH_S`."""
        clock = asyncio.get_running_loop().time
        end, told = clock() + WATCH_S, None
        while clock() < end:
            status = self._health_of(request.service)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(WATCH_PERIOD_S)

    def _health_of(self, service: str) -> int:
        if service not in ("", SERVICE_NAME):
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        try:
            self._replica.check_ready()
        except ServiceError:
            return int(health_pb2.HealthCheckResponse.NOT_SERVING)
        return int(health_pb2.HealthCheckResponse.SERVING)


for _name, (_reply, _work) in UNARY.items():
    setattr(RpcMethods, _name, unary_method(_reply, _work))
for _name, (_reply, _stream_work) in STREAMS.items():
    setattr(RpcMethods, _name, stream_method(_reply, _stream_work))
