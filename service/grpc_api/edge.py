"""What every RPC passes: the caller check, the admission limit, the limit on a reply's size, and the error mapping.

Knows no RPC, no request and no engine.
"""

import ipaddress
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import grpc

from service.admission import REQUEST_ID_HEADER, choose_request_id
from service.errors import (
    AuthenticationError,
    BodyTooLargeError,
    InternalError,
    PermissionDeniedError,
    ServiceError,
)
from service.observability.telemetry import RequestRecord
from service.pb import topk_pb2 as pb

if TYPE_CHECKING:
    from ray.serve.grpc_util import RayServegRPCContext

    from service.serving.replica import Replica

logger = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TopKService"].full_name

Reply = TypeVar("Reply", bound=Any)


class Calls:
    """How the RPCs of one replica are answered."""

    _replica: "Replica"

    @property
    def _max_bytes(self) -> int:
        return self._replica.settings.grpc_max_message_bytes

    async def _unary(
        self, context: "RayServegRPCContext", empty: type[Reply], work: Callable[[str], Awaitable[Reply]]
    ) -> Reply:
        """The reply of `work`, given the request's id. Serve sends metadata only if a method returns, so an error
        is set on the context and an empty reply, which gRPC then drops, is returned."""
        call = Call(self._replica, context, empty)
        with self._replica.telemetry.request(call.record):
            try:
                call.check()
                with self._replica.admission.entered():
                    reply = await work(call.request_id)
                    check_size(reply, self._max_bytes)
                    call.record.status = "OK"
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
        call = Call(self._replica, context, kind)
        with self._replica.telemetry.request(call.record):
            try:
                call.check()
                with self._replica.admission.entered():
                    async with aclosing(messages(call.request_id)) as replies:
                        async for reply in replies:
                            check_size(reply, self._max_bytes)
                            yield reply
                call.record.status = "OK"
            except Exception as error:
                yield kind(error=error_to_pb(call.fail(error)))


class Call:
    """One RPC's metadata: the caller's, and what is sent besides the replies.

    Args:
        kind: the message of the response, which is named after the RPC.
    """

    def __init__(self, replica: "Replica", context: "RayServegRPCContext", kind: type[Any]) -> None:
        self._replica = replica
        self._context = context
        self._metadata = dict(context.invocation_metadata())
        self.request_id = choose_request_id(self._metadata.get(REQUEST_ID_HEADER))
        self.record = RequestRecord(
            request_id=self.request_id,
            transport="grpc",
            carrier=self._metadata,
            route=kind.DESCRIPTOR.name.removesuffix("Response"),
        )
        context.set_trailing_metadata([(REQUEST_ID_HEADER, self.request_id)])

    def check(self) -> None:
        """Raises ServiceError if the caller is not allowed or the replica is full."""
        replica = self._replica
        # Serve's gRPC servers listen on every address, whatever `host` says.
        if replica.settings.is_loopback and not is_of_this_machine(self._context.peer()):
            raise PermissionDeniedError("this service accepts calls from its own machine only")
        if not replica.api_keys.accept(self._metadata.get("authorization")):
            raise AuthenticationError("an API key is required: send metadata 'authorization: Bearer <key>'")
        replica.admission.check()

    def fail(self, error: Exception) -> ServiceError:
        """End the call with `error`; one that is not a ServiceError is logged and reported as an internal error."""
        if not isinstance(error, ServiceError):
            logger.error("request %s failed", self.request_id, exc_info=error)
            error = InternalError("internal error; the log has it under the request's id")
        self.record.error = error
        self._context.set_code(grpc.StatusCode[error.grpc_code])
        self._context.set_details(error.message)
        self._context.set_trailing_metadata([(REQUEST_ID_HEADER, self.request_id), *error_metadata(error)])
        return error


def error_to_pb(error: ServiceError) -> pb.Error:
    return pb.Error(**error.body()["error"])


def error_metadata(error: ServiceError) -> list[tuple[str, str]]:
    """The trailing metadata of an error, besides the status and its details."""
    fields = error.body()["error"]
    metadata = [(name, ascii_of(text)) for name in ("param", "type", "code") if (text := fields[name]) is not None]
    if error.retry_after_s is not None:
        metadata.append(("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))))
    return metadata


def check_size(reply: Any, max_bytes: int) -> None:
    """Raises BodyTooLargeError for a reply that a client with the default limit could not read."""
    if (size := reply.ByteSize()) > max_bytes:
        raise BodyTooLargeError(
            f"the reply is {size} bytes, over the limit of {max_bytes}: request less at once, or use a stream",
            code="reply_too_large",
        )


def ascii_of(text: str) -> str:
    """Metadata must be printable ASCII."""
    return text.encode("ascii", "backslashreplace").decode()


@lru_cache(maxsize=256)
def is_of_this_machine_address(host: str) -> bool:
    """Whether an address belongs to this machine: only such an address can be bound."""
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
    """Whether gRPC's name of a peer, such as `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`, is a local one."""
    kind, _, address = unquote(peer).partition(":")
    if kind == "unix":
        return True
    host = address.rpartition(":")[0].strip("[]").removeprefix("::ffff:")
    return is_of_this_machine_address(host)
