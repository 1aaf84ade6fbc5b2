"""The HTTP routes of neurons. A route validates, asks, and says the answer as JSON. Knows no catalogue, no engine."""

from fastapi import FastAPI, Request, Response

from service.errors import BadRequestError, InternalError, NotFoundError
from service.http_api.edge import read_body, unless_gone
from service.http_api.neuron_shapes import NeuronHistoryReply, NeuronList, NeuronMatches, NeuronPage
from service.http_api.openapi import operation, query_parameters, reading
from service.http_api.wire import JsonReply
from service.requests.neuron_schema import NeuronListRequest, NeuronRequest, NeuronSearchRequest, from_query
from service.requests.parsing import parse_body
from service.serving.neurons import Neurons

_FAULTS = (BadRequestError, NotFoundError, InternalError)
_OF_NEURON = query_parameters(NeuronRequest, in_path=("layer", "neuron"))


def add_neuron_routes(app: FastAPI, neurons: Neurons) -> None:
    """Lists and pages of neurons, their histories, and the search for those that stand for a text."""

    @app.get(
        "/v1/neurons",
        response_class=Response,
        openapi_extra=reading(NeuronList, *_FAULTS) | query_parameters(NeuronListRequest),
    )
    async def neuron_list(request: Request) -> Response:
        body = from_query(NeuronListRequest, request.query_params.multi_items())
        return JsonReply(await neurons.listing(body))

    @app.post(
        "/v1/neurons/search", response_class=Response, openapi_extra=operation(NeuronSearchRequest, NeuronMatches)
    )
    async def neuron_search(request: Request) -> Response:
        body = parse_body(NeuronSearchRequest, await read_body(request))
        return JsonReply(await unless_gone(request, neurons.search(body)))

    @app.get(
        "/v1/neurons/{layer}/{neuron}",
        response_class=Response,
        openapi_extra=reading(NeuronPage, *_FAULTS) | _OF_NEURON,
    )
    async def neuron_page(request: Request) -> Response:
        return JsonReply(await neurons.page(neuron_of(request)))

    @app.get(
        "/v1/neurons/{layer}/{neuron}/history",
        response_class=Response,
        openapi_extra=reading(NeuronHistoryReply, *_FAULTS) | _OF_NEURON,
    )
    async def neuron_history(request: Request) -> Response:
        return JsonReply(await neurons.history(neuron_of(request)))


def neuron_of(request: Request) -> NeuronRequest:
    """Which neuron a path and its query mean; raises BadRequestError."""
    path = [(name, str(value)) for name, value in request.path_params.items()]
    return from_query(NeuronRequest, [*path, *request.query_params.multi_items()])
