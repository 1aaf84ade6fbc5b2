"""Turns what a client sent into a valid request or the one error that says what is wrong. Knows no transport."""

import codecs
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from service.errors import BadRequestError, from_validation
from service.requests.edit_schema import (
    Request,
)

RequestT = TypeVar("RequestT", bound=Request)


def validate(kind: type[RequestT], data: object) -> RequestT:
    """The request described by `data`, in JSON's types.

    Raises:
        BadRequestError: it breaks the schema.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise from_validation(error) from None


def parse_body(kind: type[RequestT], body: bytes) -> RequestT:
    """The request in a JSON body, which may begin with a byte order mark; see `validate`."""
    try:
        text = body.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise BadRequestError(
            f"the request body is not valid UTF-8 (byte {error.start})", code="invalid_json"
        ) from None
    try:
        data = from_json(text)
    except ValueError as error:
        raise BadRequestError(f"the request body is not valid JSON: {error}", code="invalid_json") from None
    return validate(kind, data)
