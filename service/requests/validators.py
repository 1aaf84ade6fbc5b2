"""Checks of request fields that may have several types, so that an error names the invalid item instead of the
types it could have had. Each returns its value unchanged or raises `fault`. Knows no limits: they are arguments.
"""

import re
from typing import Any

from service.errors import fault


def check_text(text: str, *at: str | int) -> str:
    """`text` itself, if it is not empty and can be written as UTF-8."""
    if not text:
        raise fault("must not be empty", text, *at)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise fault(f"must be valid Unicode (character {error.start} is half a surrogate pair)", text, *at) from None
    return text


def check_ids(ids: list[Any], *at: str | int) -> list[int]:
    """`ids` itself, if it is a list of at least one integer of at least 0."""
    if not ids:
        raise fault("must not be empty", ids, *at)
    for i, token in enumerate(ids):
        if type(token) is not int or token < 0:
            raise fault("must be a token id (an integer of at least 0)", token, *at, i)
    return ids


def parse_tokens(value: object, *, max_tokens: int) -> object:
    """Check a list of token ids, which may be empty."""
    if not isinstance(value, list):
        raise fault("must be a list of token ids", value)
    if len(value) > max_tokens:
        raise fault(f"must have at most {max_tokens} token ids", value)
    return check_ids(value) if value else value


def parse_prompt(value: object, *, max_prompts: int) -> object:
    """Check a text, several texts, a list of token ids or several such lists; all of one kind."""
    if isinstance(value, str):
        return check_text(value)
    if not isinstance(value, list):
        raise fault("must be a string, a list of strings, a list of token ids or a list of such lists", value)
    if not value:
        raise fault("must not be empty", value)
    if not isinstance(value[0], str | list):
        return check_ids(value)
    if len(value) > max_prompts:
        raise fault(f"must have at most {max_prompts} texts or token lists", value)
    for i, one in enumerate(value):
        if isinstance(value[0], str):
            if not isinstance(one, str):
                raise fault("must be a string like the first item", one, i)
            check_text(one, i)
        else:
            if not isinstance(one, list):
                raise fault("must be a list of token ids like the first item", one, i)
            check_ids(one, i)
    return value


def parse_stop(value: object, *, max_strings: int, max_chars: int) -> object:
    """Check one stop string, a list of them, or null."""
    if value is None or value == []:
        return value
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list):
        raise fault("must be a string or a list of strings", value)
    if len(strings) > max_strings:
        raise fault(f"must have at most {max_strings} strings", value)
    for i, string in enumerate(strings):
        at = () if isinstance(value, str) else (i,)
        if not isinstance(string, str):
            raise fault("must be a string", string, *at)
        if len(check_text(string, *at)) > max_chars:
            raise fault(f"must have at most {max_chars} characters", string, *at)
    return value


def parse_layers(value: object) -> object:
    """Check "all" or a list of distinct layers."""
    if value == "all":
        return value
    if not isinstance(value, list):
        raise fault('must be "all" or a list of layers', value)
    return check_distinct(value, "a layer (an integer of at least 0)")


def parse_layer(value: object) -> object:
    """Check one layer, a list of layers, or "all"."""
    if type(value) is int:
        if value < 0:
            raise fault("must be a layer (an integer of at least 0)", value)
        return value
    if value != "all" and not isinstance(value, list):
        raise fault('must be a layer (an integer), a list of layers or "all"', value)
    return parse_layers(value)


def parse_neurons(value: object) -> object:
    """Check a list of distinct neurons, or null."""
    if value is None:
        return value
    if not isinstance(value, list):
        raise fault("must be a list of neurons or null", value)
    return check_distinct(value, "a neuron (an integer of at least 0)")


def check_distinct(values: list[Any], what: str) -> list[int]:
    if not values:
        raise fault("must not be empty", values)
    seen: set[int] = set()
    for i, value in enumerate(values):
        if type(value) is not int or value < 0:
            raise fault(f"must be {what}", value, i)
        if value in seen:
            raise fault("must not occur twice", value, i)
        seen.add(value)
    return values


def parse_logit_bias(value: object, *, max_entries: int) -> object:
    """Check a map from token ids, as decimal strings, to biases."""
    if value is None:
        return value
    if not isinstance(value, dict):
        raise fault("must be an object that maps token ids to biases", value)
    if len(value) > max_entries:
        raise fault(f"must have at most {max_entries} token ids, has {len(value)}", value)
    for token, bias in value.items():
        if not isinstance(token, str) or not re.fullmatch(r"0|[1-9][0-9]{0,9}", token, re.ASCII):
            raise fault("must have token ids as keys, in decimal digits", token)
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise fault("must be a number between -100 and 100", bias, token)
    return value


def parse_content(value: object) -> str:
    """The text of a message: a string, or a list of text parts, which are joined as they are."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fault("must be a string or a list of text parts", value)
    if not value:
        raise fault("must not be empty", value)
    for i, part in enumerate(value):
        if not isinstance(part, dict):
            raise fault('must be {"type": "text", "text": "…"}', part, i)
        if part.get("type") != "text":
            raise fault('must be "text", the only type that is supported', part.get("type"), i, "type")
        if not isinstance(part.get("text"), str):
            raise fault("must be a string", part.get("text"), i, "text")
        for name in part.keys() - {"type", "text"}:
            if part[name] is not None:
                raise fault("is not a known field of a part", part[name], i, name)
    return "".join(part["text"] for part in value)
