"""The HTTP application over one replica. Knows no Ray and no engine."""

from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from service.errors import ServiceError
from service.http_api import openapi
from service.http_api.addresses import Addresses
from service.http_api.callers import Callers, CrossOrigin
from service.http_api.edge import Edge, error_reply, from_http_exception
from service.http_api.playground import add_playground
from service.http_api.routes import CollectMetrics, Handlers, routes
from service.http_api.wire import JsonReply
from service.serving.replica import Replica
from service.version import package_version


def create_app(
    replica: Replica, *, collect_metrics: CollectMetrics | None = None, sends_request_id: bool = True
) -> FastAPI:
    """The application over one replica, which must have been started in the same event loop.

    Args:
        collect_metrics: returns the metric families of all replicas (default: of this one only).
        sends_request_id: whether to put `X-Request-Id` on responses; false if the server in front does so.
    """
    app = FastAPI(title=openapi.TITLE, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    callers = Callers.of(replica.settings)
    app.add_middleware(
        Edge,
        callers=callers,
        keys=replica.api_keys,
        admission=replica.admission,
        telemetry=replica.telemetry,
        sends_request_id=sends_request_id,
    )
    app.add_middleware(Addresses)  # outside the edge, which decides by the path
    app.add_middleware(CrossOrigin, callers=callers)
    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    for route in routes(Handlers(replica, collect_metrics)):
        app.add_api_route(
            route.path,
            route.handler,
            methods=[route.method],
            response_class=Response,
            openapi_extra=route.described,
            name=route.handler.__name__,
        )
    add_document(app)
    add_playground(app)
    return app


def add_document(app: FastAPI) -> None:
    """The OpenAPI document, generated on the first request for it."""
    document: dict[str, Any] = {}

    @app.get("/openapi.json", response_class=Response, include_in_schema=False)
    async def openapi_document() -> Response:
        if not document:
            document.update(openapi.document(app, package_version()))
        return JsonReply(document)


async def on_service_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_reply(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return from_http_exception(error, request)
