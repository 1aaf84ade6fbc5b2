"""Replies about neurons and levers as models for the OpenAPI document, made of the dataclasses of the replies."""

from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Field, create_model

from service.answers.fields import Usage
from service.http_api import shapes
from service.serving.attribution_reply import Attribution
from service.serving.lever_replies import LeverReply
from service.serving.neurons import NeuronHistoryReply, NeuronList, NeuronMatch, NeuronMatches, NeuronPage
from service.serving.side_jobs import Progress

#: Replies keep their names in the document; their parts get names that no request has.
REPLIES = (NeuronPage, NeuronList, NeuronMatch, NeuronMatches, NeuronHistoryReply, Attribution, LeverReply, Progress)


@cache
def shape_of(kind: type[Any]) -> type[BaseModel]:
    """The model of a dataclass's fields, described by the texts in their annotations."""
    if kind is Usage:
        return shapes.Usage
    hints = get_type_hints(kind, include_extras=True)
    described: dict[str, Any] = {field.name: described_type(hints[field.name]) for field in fields(kind)}
    name = kind.__name__ if kind in REPLIES else f"{kind.__name__}Fields"
    return create_model(name, __base__=shapes.ResponseModel, __doc__=kind.__doc__, **described)


def described_type(hint: Any) -> tuple[Any, Any]:
    """A field's type and its pydantic field."""
    if get_origin(hint) is Annotated:
        kind, text = get_args(hint)
        return shaped(kind), Field(description=text)
    return shaped(hint), Field()


def shaped(hint: Any) -> Any:
    """The type with every dataclass in it replaced by its shape."""
    if is_dataclass(hint):
        return shape_of(hint)  # type: ignore[arg-type]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        return list[shaped(inner[0])]  # type: ignore[misc]
    if origin in (UnionType, Union):
        return Union[tuple(NoneType if one is NoneType else shaped(one) for one in inner)]  # noqa: UP007
    return hint
