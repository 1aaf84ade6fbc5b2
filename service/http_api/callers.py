"""The host names under which the service may be called, and the origins whose pages may call it, so that no web page

can use the service without permission.

A page can reach any service on its reader's machine. It uses a host name of its own that it has moved to 127.0.0.1
(DNS rebinding), which shows in `Host`, or sends cross-origin requests, which shows in `Origin`. Plain ASGI. Knows no
route.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import PermissionDeniedError
from service.settings import Settings

ANY = "*"
#: Response headers that a page may read.
EXPOSED_HEADERS = "X-Request-Id, Retry-After"
PREFLIGHT_MAX_AGE_S = 600


@dataclass(frozen=True, kw_only=True)
class Callers:
    """Which hosts and origins are allowed.

    Args:
        hosts: names, `*.` and a name for all its subdomains, or `*` for any; those of loopback are always allowed.
        origins: origins of pages, or `*` for any; the service's own pages need none.
        is_open: no key is required, so a page's request is refused if its origin is not allowed.
    """

    hosts: Sequence[str]
    origins: Sequence[str]
    is_open: bool

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Without `allowed_hosts`, only loopback's names if the service needs no key and listens on loopback."""
        is_open = not settings.asks_for_key
        hosts = settings.allowed_hosts or (() if is_open and settings.is_loopback else (ANY,))
        return cls(hosts=(*hosts, settings.host), origins=settings.allowed_origins, is_open=is_open)

    def refusal(self, headers: Headers) -> PermissionDeniedError | None:
        """The error if the request is refused, otherwise None."""
        for host in headers.getlist("host"):
            if not self.is_host(host):
                return PermissionDeniedError(
                    f"Host is {host[:100]!r}, which is not a name of this service: use localhost, 127.0.0.1 or a name "
                    "that its setting allowed_hosts lists",
                    code="host_not_allowed",
                )
        origin = headers.get("origin")
        if self.is_open and origin is not None and not self.is_own(origin, headers) and not self.is_allowed(origin):
            return PermissionDeniedError(
                f"Origin is {origin[:100]!r}: pages of other origins may use this service only if its setting "
                "allowed_origins lists them",
                code="origin_not_allowed",
            )
        return None

    def is_host(self, host: str) -> bool:
        """Whether a `Host` header's value, with or without a port, is an allowed name."""
        name = name_of(host)
        if is_loopback(name):
            return True
        return any(
            allowed in (ANY, name) or (allowed.startswith("*.") and name.endswith(allowed[1:]))
            for allowed in map(str.lower, self.hosts)
        )

    def is_allowed(self, origin: str) -> bool:
        return ANY in self.origins or origin.lower() in map(str.lower, self.origins)

    @staticmethod
    def is_own(origin: str, headers: Headers) -> bool:
        """Whether a page has the origin that it calls. The scheme is ignored: a proxy in front may terminate TLS."""
        return origin.lower().partition("://")[2] == headers.get("host", "").lower() != ""


def name_of(host: str) -> str:
    """The name in `Host`, without port, brackets and final dot."""
    host = host.strip().lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.removesuffix(".")


def is_loopback(name: str) -> bool:
    """Whether a name can only mean this machine; browsers resolve subdomains of localhost themselves."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class CrossOrigin:
    """CORS: declares what pages of the allowed origins may do. Preflights need no key and are answered here."""

    def __init__(self, app: ASGIApp, *, callers: Callers) -> None:
        self.app = app
        self.callers = callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin")
        if origin is None or not self.callers.is_allowed(origin) or self.callers.refusal(headers) is not None:
            await self.app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await Response(status_code=204, headers=preflight(origin, headers))(scope, receive, send)
            return

        async def send_readable(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer["Access-Control-Allow-Origin"] = origin
                answer["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
                answer.add_vary_header("Origin")
            await send(message)

        await self.app(scope, receive, send_readable)


def preflight(origin: str, headers: Headers) -> dict[str, str]:
    """The headers of the reply to a browser's preflight."""
    allowed = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, HEAD, POST",
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "Authorization, Content-Type"),
        "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_S),
        "Vary": "Origin",
    }
    if headers.get("access-control-request-private-network") == "true":
        allowed["Access-Control-Allow-Private-Network"] = "true"
    return allowed
