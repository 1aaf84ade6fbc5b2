"""The OpenAPI document: each route's request, reply and errors.

Replies are built without their models, for speed; tests compare the two. Knows no model and no engine.
"""

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from service.errors import (
    AuthenticationError,
    BadRequestError,
    BodyTooLargeError,
    DeadlineError,
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    QueueFullError,
    ServiceError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from service.http_api.neuron_shapes import shape_of
from service.http_api.shapes import (
    Activations,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    Detokenization,
    ErrorResponse,
    ModelCard,
    ModelList,
    ResponseModel,
    Tokenization,
)
from service.requests.attribution_schema import AttributionRequest
from service.requests.levers import LeversRequest
from service.requests.neuron_schema import NeuronSearchRequest
from service.requests.schema import (
    ActivationsRequest,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from service.serving.attribution_reply import Attribution
from service.serving.lever_replies import LeverReply
from service.serving.neurons import NeuronHistoryReply, NeuronList, NeuronMatches, NeuronPage
from service.serving.side_jobs import Progress

TITLE = "TopK language models"
#: The errors that any route can return.
EVERYWHERE: tuple[type[ServiceError], ...] = (
    AuthenticationError,
    MethodNotAllowedError,
    QueueFullError,
    InternalError,
    UnavailableError,
)
REF = "#/components/schemas/{model}"


class Health(ResponseModel):
    """The service is healthy; otherwise the reply is an error."""

    status: Literal["ok"]


class Version(ResponseModel):
    """The software that answers."""

    version: str = Field(description="version of the package")
    grpc_port: int = Field(description="port of its gRPC API, on its own machine")


_REQUESTS: tuple[type[BaseModel], ...] = (
    CompletionRequest,
    ChatCompletionRequest,
    ActivationsRequest,
    TokenizeRequest,
    DetokenizeRequest,
    NeuronSearchRequest,
    AttributionRequest,
    LeversRequest,
)
_REPLIES: tuple[type[BaseModel], ...] = (
    Completion,
    ChatCompletion,
    ChatCompletionChunk,
    Activations,
    Tokenization,
    Detokenization,
    ModelCard,
    ModelList,
    *map(shape_of, (NeuronPage, NeuronList, NeuronMatches, NeuronHistoryReply, Attribution, LeverReply, Progress)),
    Health,
    Version,
    ErrorResponse,
)
_STREAMS = (
    "`data: {json}` events of #/components/schemas/%s, the last one `data: [DONE]`; an error is an event with the one "
    "error body"
)


def operation(
    request: type[BaseModel], reply: type[BaseModel], *, chunk: type[BaseModel] | None = None
) -> dict[str, Any]:
    """`openapi_extra` of a route with a JSON request and reply, which can also stream `chunk`s."""
    content: dict[str, Any] = {"application/json": {"schema": _ref(reply)}}
    if chunk is not None:
        # No type: some readers apply a schema to the complete body, others to each event.
        content["text/event-stream"] = {"schema": {"description": _STREAMS % chunk.__name__}}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}},
        "responses": {"200": {"description": "Success", "content": content}}
        | refusals(BadRequestError, NotFoundError, DeadlineError, BodyTooLargeError, UnsupportedMediaTypeError),
    }


def reading(reply: type[BaseModel] | None, *faults: type[ServiceError], media_type: str = "") -> dict[str, Any]:
    """`openapi_extra` of a route without a request; without `reply`, the reply is text of `media_type`."""
    content = {"application/json": {"schema": _ref(reply)}} if reply else {media_type: {"schema": {"type": "string"}}}
    return {"responses": {"200": {"description": "Success", "content": content}} | refusals(*faults)}


def query_parameters(request: type[BaseModel], *, in_path: Sequence[str] = ()) -> dict[str, Any]:
    """`openapi_extra` of a route whose request is in its query string, with the fields `in_path` in its path."""
    schema = request.model_json_schema()
    parameters = []
    for name, described in schema["properties"].items():
        value = {key: text for key, text in described.items() if key not in ("title", "default", "description")}
        if "anyOf" in value:  # null means that the parameter is left out
            [value] = [kind for kind in value["anyOf"] if kind != {"type": "null"}]
        parameters.append(
            {
                "name": name,
                "in": "path" if name in in_path else "query",
                "required": name in schema["required"],
                "description": described.get("description", ""),
                "schema": value,
            }
        )
    return {"parameters": parameters}


def path_parameters(names: Sequence[str]) -> list[dict[str, Any]]:
    """String parameters of a path."""
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "title": name.replace("_", " ").title()},
        }
        for name in names
    ]


def refusals(*faults: type[ServiceError]) -> dict[str, Any]:
    """The errors of a route, including those of any route."""
    content = {"application/json": {"schema": _ref(ErrorResponse)}}
    replies: dict[str, Any] = {
        str(fault.status): {"description": (fault.__doc__ or "").strip(), "content": content}
        for fault in (*faults, *EVERYWHERE)
    }
    replies["429"]["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}}
    return replies


def document(app: FastAPI, version: str) -> dict[str, Any]:
    """The complete document."""
    spec = get_openapi(title=TITLE, version=version, routes=app.routes)
    for route in spec["paths"].values():
        for described in route.values():
            described["responses"].pop("422", None)  # FastAPI's own; our validation answers 400
    schemas: dict[str, Any] = {}
    for models, mode in ((_REQUESTS, "validation"), (_REPLIES, "serialization")):
        _, definitions = models_json_schema([(model, mode) for model in models], ref_template=REF)  # type: ignore[misc]
        schemas |= definitions["$defs"]
    spec["components"] = {
        "schemas": schemas,
        "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer"}},
    }
    spec["security"] = [{}, {"apiKey": []}]
    return spec


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=model.__name__)}
