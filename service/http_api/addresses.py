"""Variations of requests: extra slashes, HEAD for GET, OPTIONS, and the route that a wrong path probably means.

Knows no route's content.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Other services' names for routes that we have, or nearly have.
OTHER_NAMES = {
    "/api": "/v1/models",
    "/api/chat": "/v1/chat/completions",
    "/api/generate": "/v1/completions",
    "/api/tags": "/v1/models",
    "/docs": "/openapi.json",
    "/generate": "/v1/completions",
    "/generate_stream": "/v1/completions",
    "/get_model_info": "/v1/models",
    "/health_generate": "/health",
    "/healthcheck": "/health",
    "/healthz": "/health/live",
    "/index.html": "/",
    "/info": "/v1/models",
    "/livez": "/health/live",
    "/ping": "/health",
    "/playground": "/",
    "/props": "/v1/models",
    "/readyz": "/health/ready",
    "/redoc": "/openapi.json",
    "/server_info": "/v1/models",
    "/status": "/health",
    "/swagger": "/openapi.json",
    "/v1": "/v1/models",
    "/v1/chat": "/v1/chat/completions",
    "/v1/health": "/health",
    "/v1/messages": "/v1/chat/completions",
    "/v1/responses": "/v1/chat/completions",
}
#: Minimum similarity, 0 to 1, between a path and the route that is suggested for it.
MIN_LIKENESS = 0.75


def plain_path(path: str) -> str:
    """The path without doubled slashes and without a trailing one."""
    return re.sub("/{2,}", "/", path).rstrip("/") or "/"


def nearest(path: str, known: Iterable[str]) -> str | None:
    """The known path that a client may have meant; None if none is similar."""
    routes = sorted(known, key=len, reverse=True)
    wanted = path.lower()
    if wanted in OTHER_NAMES:
        return OTHER_NAMES[wanted]
    plain = [route for route in routes if route != "/" and "{" not in route]
    for is_meant in (
        lambda route: wanted.endswith(route) or route == f"/v1{wanted}",  # a /v1 or another prefix too many, or too few
        lambda route: route.endswith(wanted),
    ):
        if found := next(filter(is_meant, plain), None):
            return found
    alike = {filled(route, wanted): route for route in routes}
    return next((alike[near] for near in get_close_matches(wanted, alike, n=1, cutoff=MIN_LIKENESS)), None)


def filled(route: str, path: str) -> str:
    """The route with the path's parts in place of its parameters, if it has the same number of parts."""
    parts, own = route.split("/"), path.split("/")
    if len(parts) != len(own):
        return route
    return "/".join(mine if "{" in part else part for part, mine in zip(parts, own, strict=True))


def allowed(methods: str) -> str:
    """The Allow header for a route's own methods."""
    named = {method.strip() for method in methods.split(",")}
    return ", ".join([*sorted(named | ({"HEAD"} if "GET" in named else set())), "OPTIONS"])


class Addresses:
    """Normalizes requests for the routes. HEAD is routed as GET, and the body of the reply is dropped."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # A copy, because the server still reads the original.
        state = {**scope.get("state", {}), "method": scope["method"]}
        plain = {**scope, "path": plain_path(scope["path"]), "state": state}
        if scope["method"] != "HEAD":
            await self.app(plain, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                if message.get("more_body", False):
                    return
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app({**plain, "method": "GET"}, receive, send_head)
