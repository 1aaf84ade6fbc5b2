"""The gRPC API: methods named as the RPCs of `topk.v1.TopKService` and `grpc.health.v1.Health`, for Serve to call.

A method converts and validates, asks the replica and converts the answer; every error is told in one place. Knows
no engine. Serve serves reflection itself, from the same registered services.
"""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import grpc
from grpc_health.v1 import health_pb2

from service.admission import REQUEST_ID_HEADER, choose_request_id
from service.auth import is_accepted
from service.errors import (
    AuthenticationError,
    BadRequestError,
    BodyTooLargeError,
    DeadlineError,
    InternalError,
    NotFoundError,
    PermissionDeniedError,
    QueueFullError,
    ServiceError,
)
from service.pb import topk_pb2 as pb

if TYPE_CHECKING:
    from ray.serve.grpc_util import RayServegRPCContext

    from service.replica import Replica
    from service.replies import Answer
    from service.schema import ActivationsStreamRequest

logger = logging.getLogger(__name__)

Reply = TypeVar("Reply", bound=Any)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TopKService"].full_name
#: What Serve's gRPC servers register, by import path.
SERVICER_FUNCTIONS = (
    "service.pb.topk_pb2_grpc.add_TopKServiceServicer_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
)
#: How often a watched health is looked at, and after how long a watch ends, to be asked for anew: a replica that
#: drains waits for its calls.
WATCH_PERIOD_S = 0.5
WATCH_S = 15.0
#: How long an input of a stream waits where the engine's queue is full of others' work.
QUEUE_RETRY_S = 0.05


class RpcMethods:
    """The RPCs of one replica. Serve calls them by name, with the call's context as `grpc_context`."""

    _replica: "Replica"

    async def Generate(self, request: pb.GenerateRequest, grpc_context: "RayServegRPCContext") -> pb.GenerateResponse:
        from service.conversion import generation_from_pb, generation_to_pb

        async def work(request_id: str) -> pb.GenerateResponse:
            answer = await self._replica.answer(generation_from_pb(request), request_id)
            return generation_to_pb(answer, self._replica.tokenizer)

        return await self._unary(grpc_context, pb.GenerateResponse, work)

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, grpc_context: "RayServegRPCContext"
    ) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
        from service.conversion import stream_from_pb, stream_to_pb

        async def messages(request_id: str) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
            answer = None
            async with aclosing(self._replica.stream(stream_from_pb(request), request_id)) as answers:
                async for answer in answers:
                    for message in stream_to_pb(answer, self._replica.tokenizer, self._max_bytes):
                        yield message
            assert answer is not None
            yield pb.GenerateStreamResponse(**answer.head, usage=pb.Usage(**answer.usage))

        async with aclosing(self._stream(grpc_context, pb.GenerateStreamResponse, messages)) as replies:
            async for reply in replies:
                yield reply

    async def Activations(
        self, request: pb.ActivationsRequest, grpc_context: "RayServegRPCContext"
    ) -> pb.ActivationsResponse:
        from service.conversion import activations_from_pb, activations_to_pb

        async def work(request_id: str) -> pb.ActivationsResponse:
            return activations_to_pb(await self._replica.answer(activations_from_pb(request), request_id))

        return await self._unary(grpc_context, pb.ActivationsResponse, work)

    async def ActivationsStream(
        self, request: pb.ActivationsStreamRequest, grpc_context: "RayServegRPCContext"
    ) -> AsyncGenerator[pb.ActivationsStreamResponse, None]:
        from service.conversion import activation_parts_to_pb, activations_stream_from_pb, error_to_pb

        async def messages(request_id: str) -> AsyncGenerator[pb.ActivationsStreamResponse, None]:
            body = activations_stream_from_pb(request)
            async with aclosing(answer_each(self._replica, body, request_id)) as answers:
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
        from service.conversion import tokenize_from_pb

        async def work(_: str) -> pb.TokenizeResponse:
            return pb.TokenizeResponse(**self._replica.tokenize(tokenize_from_pb(request)))

        return await self._unary(grpc_context, pb.TokenizeResponse, work)

    async def Detokenize(
        self, request: pb.DetokenizeRequest, grpc_context: "RayServegRPCContext"
    ) -> pb.DetokenizeResponse:
        from service.conversion import detokenize_from_pb

        async def work(_: str) -> pb.DetokenizeResponse:
            return pb.DetokenizeResponse(**self._replica.detokenize(detokenize_from_pb(request)))

        return await self._unary(grpc_context, pb.DetokenizeResponse, work)

    async def ListModels(
        self, request: pb.ListModelsRequest, grpc_context: "RayServegRPCContext"
    ) -> pb.ListModelsResponse:
        from service.conversion import check_known, model_to_pb

        async def work(_: str) -> pb.ListModelsResponse:
            check_known(request, "")
            return pb.ListModelsResponse(data=[model_to_pb(self._replica.model_card())])

        return await self._unary(grpc_context, pb.ListModelsResponse, work)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, grpc_context: "RayServegRPCContext"
    ) -> health_pb2.HealthCheckResponse:
        """Of grpc.health.v1.Health; needs no key and is answered however full the replica is."""
        status = self._health_of(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            error = NotFoundError(f"there is no service {request.service[:100]!r} here", code="unknown_service")
            Call(self._replica, grpc_context).fail(error)
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

    @property
    def _max_bytes(self) -> int:
        return self._replica.settings.grpc_max_message_bytes

    async def _unary(
        self, context: "RayServegRPCContext", empty: type[Reply], work: Callable[[str], Awaitable[Reply]]
    ) -> Reply:
        """The reply of `work`, given the request's id. Serve sends metadata only where a method returns, so an error
        is set on the context and an empty reply, which gRPC then drops, is returned."""
        call = Call(self._replica, context)
        try:
            call.check()
            with self._replica.admission.entered():
                reply = await work(call.request_id)
                check_size(reply, self._max_bytes)
                return reply
        except Exception as error:
            call.fail(error)
            return empty()

    async def _stream(
        self,
        context: "RayServegRPCContext",
        kind: type[Reply],
        messages: Callable[[str], AsyncGenerator[Reply, None]],
    ) -> AsyncGenerator[Reply, None]:
        """The replies of `messages`, given the request's id. An error is the last reply and the status: Serve's Python
        proxy takes a context only with a reply."""
        from service.conversion import error_to_pb

        call = Call(self._replica, context)
        try:
            call.check()
            with self._replica.admission.entered():
                async with aclosing(messages(call.request_id)) as replies:
                    async for reply in replies:
                        check_size(reply, self._max_bytes)
                        yield reply
        except Exception as error:
            yield kind(error=error_to_pb(call.fail(error)))


class Call:
    """One RPC's metadata: who calls, and what the call is told beside its replies."""

    def __init__(self, replica: "Replica", context: "RayServegRPCContext") -> None:
        self._replica = replica
        self._context = context
        self._metadata = dict(context.invocation_metadata())
        self.request_id = choose_request_id(self._metadata.get(REQUEST_ID_HEADER))
        context.set_trailing_metadata([(REQUEST_ID_HEADER, self.request_id)])

    def check(self) -> None:
        """Raises ServiceError where the caller may not call, or not now."""
        replica = self._replica
        try:
            # Serve's gRPC servers listen on every address, whatever `host` says.
            if replica.settings.is_loopback and not is_of_this_machine(self._context.peer()):
                raise PermissionDeniedError("this service answers calls from its own machine only")
            if not is_accepted(self._metadata.get("authorization"), replica.api_keys):
                raise AuthenticationError("an API key is needed: send metadata 'authorization: Bearer <key>'")
            replica.admission.check()
        except ServiceError as error:
            replica.metrics.request_rejections.labels(error.code).inc()
            raise

    def fail(self, error: Exception) -> ServiceError:
        """Make the call end with `error`; what is no ServiceError is logged and told as an internal one."""
        if not isinstance(error, ServiceError):
            logger.error("request %s failed", self.request_id, exc_info=error)
            error = InternalError("internal error; the log has it under the request's id")
        fields = error.body()["error"]
        metadata = [(REQUEST_ID_HEADER, self.request_id)]
        metadata += [(name, ascii_of(text)) for name in ("param", "type", "code") if (text := fields[name]) is not None]
        if error.retry_after_s is not None:
            metadata.append(("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))))
        self._context.set_code(grpc.StatusCode[error.grpc_code])
        self._context.set_details(error.message)
        self._context.set_trailing_metadata(metadata)
        return error


async def answer_each(
    replica: "Replica", body: "ActivationsStreamRequest", request_id: str
) -> AsyncGenerator[tuple[int, "Answer | ServiceError"], None]:
    """(input, answer) pairs as they are ready; a few inputs are in the engine at once, whatever their number.

    Where only an input is wrong, its answer is the error.

    Raises:
        ServiceError: the request cannot be served, or no longer.
    """
    from service.resolving import given, several

    replica.check_model(body.model)
    inputs: list[Any] = several(body.input) or [body.input]
    clock = asyncio.get_running_loop().time
    end = clock() + given(body.timeout_s, replica.settings.request_timeout_s)
    is_begun = False

    async def answer(one: Any) -> "Answer":
        while (left := end - clock()) > 0:
            try:
                return await replica.answer(body.model_copy(update={"input": one, "timeout_s": left}), request_id)
            except QueueFullError:
                if not is_begun:
                    raise
                await asyncio.sleep(QUEUE_RETRY_S)
        raise DeadlineError("the request's time was up before its answer was whole")

    running: dict[asyncio.Task[Answer], int] = {}
    todo = enumerate(inputs)
    try:
        while True:
            while len(running) < replica.settings.max_num_seqs and (item := next(todo, None)) is not None:
                running[asyncio.create_task(answer(item[1]))] = item[0]
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = running.pop(task)
                try:
                    result: Answer | ServiceError = task.result()
                except BadRequestError as error:
                    if not (error.param or "").startswith("input"):
                        raise
                    result = error
                is_begun = True
                yield index, result
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def check_size(reply: Any, max_bytes: int) -> None:
    """Raises BodyTooLargeError for a reply that a client with the usual limit could not read."""
    if (size := reply.ByteSize()) > max_bytes:
        raise BodyTooLargeError(
            f"the reply is {size} bytes, over the limit of {max_bytes}: ask for less at once, or as a stream",
            code="reply_too_large",
        )


def ascii_of(text: str) -> str:
    """Metadata holds printable ASCII."""
    return text.encode("ascii", "backslashreplace").decode()


@lru_cache(maxsize=256)
def is_of_this_machine_address(host: str) -> bool:
    """Whether an address is one of this machine's: only those can be bound to."""
    try:
        address = ipaddress.ip_address(host)
        if address.is_loopback:
            return True
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except (ValueError, OSError):
        return False
    return True


def is_of_this_machine(peer: str) -> bool:
    """Whether gRPC's name of a peer, as `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`, is a local one."""
    kind, _, address = unquote(peer).partition(":")
    if kind == "unix":
        return True
    host = address.rpartition(":")[0].strip("[]").removeprefix("::ffff:")
    return is_of_this_machine_address(host)
