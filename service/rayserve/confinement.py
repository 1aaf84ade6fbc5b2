"""What Ray and Ray Serve have no setting for: where servers listen, how many pings they allow, what a start requests.

Ray Serve's gRPC servers listen on every interface: those of the replicas, one of which takes pickled messages, and
that of its Python proxy. They end the call of a client that pings more often than every five minutes. Ray looks for
the cloud in which it may be running, by requests to that cloud's metadata service, even if nothing needs to know it.
"""

import os
from functools import wraps
from typing import Any

from grpc.aio import _server

#: Address of all of Serve's gRPC servers except the public one; without it they listen on every interface.
INNER_HOST_VARIABLE = "SERVE_INNER_HOST"
#: host:port of the Python proxy's gRPC server, which is public.
PUBLIC_GRPC_VARIABLE = "SERVE_PUBLIC_GRPC"
#: A client may ping as often as it likes, during a call or between calls.
PING_OPTIONS = (("grpc.http2.max_ping_strikes", 0), ("grpc.keepalive_permit_without_calls", 1))
EVERY_INTERFACE = "[::]:"


def confine_ray() -> None:
    """Keep the Ray that this process is about to start from starting its dashboard's process.

    That process is started even without a dashboard, and then only looks for a cloud.
    """
    from ray._private import services

    services.start_api_server = lambda *_, **__: (None, None)


def confine_servers() -> None:
    """Make the gRPC servers that Ray Serve starts in this process from now on listen at the right addresses."""
    from ray.serve._private.constants import DEFAULT_GRPC_SERVER_OPTIONS

    DEFAULT_GRPC_SERVER_OPTIONS.extend(one for one in PING_OPTIONS if one not in DEFAULT_GRPC_SERVER_OPTIONS)
    inner, public = os.environ.get(INNER_HOST_VARIABLE, ""), os.environ.get(PUBLIC_GRPC_VARIABLE, "")
    plain = _server.Server.add_insecure_port
    if not inner or hasattr(plain, "__wrapped__"):
        return

    @wraps(plain)
    def add_insecure_port(server: Any, address: str) -> int:
        port = plain(server, confined(address, inner, public))
        assert isinstance(port, int)
        return port

    _server.Server.add_insecure_port = add_insecure_port


def confined(address: str, inner: str, public: str) -> str:
    """`address`, or the one to use instead."""
    if not address.startswith(EVERY_INTERFACE):
        return address
    port = address.removeprefix(EVERY_INTERFACE)
    return public if public.endswith(f":{port}") and port != "0" else join(inner, port)


def join(host: str, port: int | str) -> str:
    """host:port, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
