"""The gRPC API: methods named as the RPCs of `topk.v1.TopKService` and `grpc.health.v1.Health`, for Serve to call.

A method converts and validates, asks the replica and converts the answer; every error is told in one place. Knows
no engine. Serve serves reflection itself, from the same registered services.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2

from service.errors import DeadlineError, NotFoundError, QueueFullError, ServiceError, UnfitTextError
from service.grpc_api.edge import Call, Calls
from service.pb import topk_pb2 as pb
from service.rayserve.servicers import SERVICE_NAME

if TYPE_CHECKING:
    from ray.serve.grpc_util import RayServegRPCContext

    from service.answers.answer import Answer
    from service.requests.schema import ActivationsStreamRequest
    from service.serving.model import ModelHost

#: How often a watched health is looked at, and after how long a watch ends, to be asked for anew: a replica that
#: drains waits for its calls.
WATCH_PERIOD_S = 0.5
WATCH_S = 15.0
#: How long an input of a stream waits where the engine's queue is full of others' work.
QUEUE_RETRY_S = 0.05


class RpcMethods(Calls):
    """The RPCs of one replica. Serve calls them by name, with the call's context as `grpc_context`."""

    async def Generate(self, request: pb.GenerateRequest, grpc_context: "RayServegRPCContext") -> pb.GenerateResponse:
        from service.grpc_api.conversion import generation_from_pb, generation_to_pb

        async def work(request_id: str) -> pb.GenerateResponse:
            answer = await self._replica.answer(generation_from_pb(request), request_id)
            return generation_to_pb(answer)

        return await self._unary(grpc_context, pb.GenerateResponse, work)

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, grpc_context: "RayServegRPCContext"
    ) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
        from service.grpc_api.conversion import stream_from_pb, stream_to_pb

        async def messages(request_id: str) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
            answer = None
            async with aclosing(self._replica.stream(stream_from_pb(request), request_id)) as answers:
                async for answer in answers:
                    for message in stream_to_pb(answer, self._max_bytes):
                        yield message
            assert answer is not None
            yield pb.GenerateStreamResponse(**answer.head, usage=pb.Usage(**answer.usage))

        async with aclosing(self._stream(grpc_context, pb.GenerateStreamResponse, messages)) as replies:
            async for reply in replies:
                yield reply

    async def Activations(
        self, request: pb.ActivationsRequest, grpc_context: "RayServegRPCContext"
    ) -> pb.ActivationsResponse:
        from service.grpc_api.conversion import activations_from_pb, activations_to_pb

        async def work(request_id: str) -> pb.ActivationsResponse:
            return activations_to_pb(await self._replica.answer(activations_from_pb(request), request_id))

        return await self._unary(grpc_context, pb.ActivationsResponse, work)

    async def ActivationsStream(
        self, request: pb.ActivationsStreamRequest, grpc_context: "RayServegRPCContext"
    ) -> AsyncGenerator[pb.ActivationsStreamResponse, None]:
        from service.grpc_api.conversion import activation_parts_to_pb, activations_stream_from_pb, error_to_pb

        async def messages(request_id: str) -> AsyncGenerator[pb.ActivationsStreamResponse, None]:
            body = activations_stream_from_pb(request)
            async with (
                self._replica.use(body.model, body.timeout_s) as host,
                aclosing(answer_each(host, body, request_id)) as answers,
            ):
                async for index, answer in answers:
                    if isinstance(answer, ServiceError):
                        yield pb.ActivationsStreamResponse(index=index, is_last=True, error=error_to_pb(answer))
                        continue
                    for message in activation_parts_to_pb(index, answer, self._max_bytes):
                        yield message

        async with aclosing(self._stream(grpc_context, pb.ActivationsStreamResponse, messages)) as replies:
            async for reply in replies:
                yield reply

    async def Tokenize(self, request: pb.TokenizeRequest, grpc_context: "RayServegRPCContext") -> pb.TokenizeResponse:
        from service.grpc_api.conversion import tokenize_from_pb

        async def work(_: str) -> pb.TokenizeResponse:
            return pb.TokenizeResponse(**await self._replica.tokenize(tokenize_from_pb(request)))

        return await self._unary(grpc_context, pb.TokenizeResponse, work)

    async def Detokenize(
        self, request: pb.DetokenizeRequest, grpc_context: "RayServegRPCContext"
    ) -> pb.DetokenizeResponse:
        from service.grpc_api.conversion import detokenize_from_pb

        async def work(_: str) -> pb.DetokenizeResponse:
            return pb.DetokenizeResponse(**self._replica.detokenize(detokenize_from_pb(request)))

        return await self._unary(grpc_context, pb.DetokenizeResponse, work)

    async def ListModels(
        self, request: pb.ListModelsRequest, grpc_context: "RayServegRPCContext"
    ) -> pb.ListModelsResponse:
        from service.grpc_api.conversion import check_known, model_to_pb

        async def work(_: str) -> pb.ListModelsResponse:
            check_known(request, "")
            return pb.ListModelsResponse(data=map(model_to_pb, self._replica.model_cards()))

        return await self._unary(grpc_context, pb.ListModelsResponse, work)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, grpc_context: "RayServegRPCContext"
    ) -> health_pb2.HealthCheckResponse:
        """Of grpc.health.v1.Health; needs no key and is answered however full the replica is."""
        status = self._health_of(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            error = NotFoundError(f"there is no service {request.service[:100]!r} here", code="unknown_service")
            Call(self._replica, grpc_context, health_pb2.HealthCheckResponse).fail(error)
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, grpc_context: "RayServegRPCContext"
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """Of grpc.health.v1.Health: the status now and whenever it changes, for `WATCH_S` at most."""
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


async def answer_each(
    host: "ModelHost", body: "ActivationsStreamRequest", request_id: str
) -> AsyncGenerator[tuple[int, "Answer | ServiceError"], None]:
    """(input, answer) pairs as they are ready; a few inputs are in the engine at once, whatever their number.

    Where only an input is wrong, its answer is the error.

    Raises:
        ServiceError: the request cannot be served, or no longer.
    """
    from service.requests.resolving import given, several

    inputs: list[Any] = several(body.input) or [body.input]
    clock = asyncio.get_running_loop().time
    end = clock() + given(body.timeout_s, host.settings.request_timeout_s)

    async def answer(index: int, one: Any) -> "Answer":
        while (left := end - clock()) > 0:
            try:
                return await host.answer(body.model_copy(update={"input": one, "timeout_s": left}), request_id)
            except QueueFullError:
                if index == 0:  # the first one's refusal is the request's
                    raise
                await asyncio.sleep(QUEUE_RETRY_S)
        raise DeadlineError("the request's time was up before its answer was whole")

    running: dict[asyncio.Task[Answer], int] = {}
    todo = enumerate(inputs)
    try:
        while True:
            while len(running) < host.settings.max_num_seqs and (item := next(todo, None)) is not None:
                running[asyncio.create_task(answer(*item))] = item[0]
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = running.pop(task)
                try:
                    result: Answer | ServiceError = task.result()
                except UnfitTextError as error:
                    result = error
                yield index, result
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
