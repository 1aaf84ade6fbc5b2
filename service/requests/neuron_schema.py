"""Requests to neuron catalogues: the request models shared by HTTP and gRPC.

Knows no model and no transport.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Self, get_args

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import from_json

from service.errors import BadRequestError, fault
from service.requests.edit_schema import (
    LayerIndex,
    Layers,
    Request,
)
from service.requests.limits import (
    DEFAULT_NEURONS,
    MAX_CONTRAST_TEXTS,
    MAX_NAME_CHARS,
    MAX_NEURONS,
    MAX_OFFSET,
    MAX_TIMEOUT_S,
)
from service.requests.parsing import RequestT, validate
from service.requests.validators import check_text
from topk_model.catalogue.reader import ORDERS

MODEL = "a model, or a checkpoint of it: model@step-N"


def check_order(value: str) -> str:
    if value.removeprefix("-") not in ORDERS:
        raise fault(f"must be one of {', '.join(ORDERS)}, or one of them with a minus before it", value)
    return value


Order = Annotated[
    str,
    AfterValidator(check_order),
    Field(json_schema_extra={"enum": [*ORDERS, *(f"-{name}" for name in ORDERS)]}),
]
Text = Annotated[str, AfterValidator(check_text), Field(json_schema_extra={"minLength": 1})]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_CONTRAST_TEXTS)]
Share = Annotated[float, Field(ge=0, le=1)]
Bits = Annotated[float, Field(ge=0)]


class NeuronRequest(Request):
    """GET /v1/neurons/{layer}/{neuron}, and its history."""

    model: str = Field(min_length=1, max_length=MAX_NAME_CHARS, description=MODEL)
    layer: int = Field(ge=0, description="TopK layer")
    neuron: int = Field(ge=0, description="index in the residual stream, below the model's hidden_size")


class NeuronListRequest(Request):
    """GET /v1/neurons: all conditions must hold; a dead neuron has no entropy and meets no bound on it."""

    model: str = Field(min_length=1, max_length=MAX_NAME_CHARS, description=MODEL)
    layer: LayerIndex | None = Field(None, description="only neurons of this TopK layer")
    min_density: Share | None = Field(None, description="fraction of positions at which it is active")
    max_density: Share | None = None
    min_token_entropy: Bits | None = Field(None, description="bits")
    max_token_entropy: Bits | None = Field(None, description="bits")
    is_dead: bool | None = Field(None, description="whether it was never active in the catalogue's texts")
    label: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_NAME_CHARS,
        description="words that must all occur, compared by their stems, in its label or among its top tokens",
    )
    order: Order | None = Field(
        None,
        description="what to order by; with a minus before it, largest first (default: the best matches of `label` "
        "first; without `label`, by layer and neuron)",
    )
    limit: int = Field(DEFAULT_NEURONS, ge=1, le=MAX_NEURONS, description="neurons per page")
    offset: int = Field(0, ge=0, le=MAX_OFFSET, description="number of neurons to skip")


class Contrast(Request):
    """Two sets of texts."""

    positive: Texts
    negative: Texts


class NeuronSearchRequest(Request):
    """POST /v1/neurons/search: the neurons that stand for a text, or for what sets some texts apart from others."""

    model: str = Field(min_length=1, max_length=MAX_NAME_CHARS, description=MODEL)
    text: Text | None = Field(None, description="the text; either this or contrast is required")
    contrast: Contrast | None = None
    layers: Layers = Field("all", description='only neurons of these TopK layers, or of "all"')
    limit: int = Field(20, ge=1, le=MAX_NEURONS, description="maximum number of neurons to return")
    timeout_s: float | None = Field(None, gt=0, le=MAX_TIMEOUT_S)

    @model_validator(mode="after")
    def check_task(self) -> Self:
        if self.text is None and self.contrast is None:
            raise fault("or contrast is required", None, "text")
        if self.text is not None and self.contrast is not None:
            raise fault("must be left out if text is given", {}, "contrast")
        return self


def from_query(kind: type[RequestT], parameters: Iterable[tuple[str, str]]) -> RequestT:
    """The request that a query string, and the parameters of a path, describe.

    Raises:
        BadRequestError: it breaks the schema or gives a parameter twice.
    """
    fields: dict[str, Any] = {}
    for name, value in parameters:
        if name in fields:
            raise BadRequestError(f"{name[:MAX_NAME_CHARS]} must not be given twice", param=name[:MAX_NAME_CHARS])
        fields[name] = value if is_text(kind, name) else scalar(value)
    return validate(kind, fields)


def is_text(kind: type[Request], name: str) -> bool:
    field = kind.model_fields.get(name)
    return field is None or str in (field.annotation, *get_args(field.annotation))


def scalar(text: str) -> object:
    """A number or boolean as JSON writes it; anything else stays text, for the schema to reject."""
    try:
        value = from_json(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text
