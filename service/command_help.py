"""The help of a command: its options by group and a working example, generated from the class of its options."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

NAME_WIDTH = 28
MAX_WIDTH = 110
_METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


def command_help(prog: str, summary: str, options: type[BaseModel], *, example: str, groups: Mapping[str, str]) -> str:
    """The output of `prog --help`.

    Args:
        groups: heading of each group -> the option that it begins with, in the options' order.
    """
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
    headings = {first: heading for heading, first in groups.items()}
    assert headings.keys() <= options.model_fields.keys(), "each group begins with one of the options"
    lines = [f"usage: {prog} [options]", "", *textwrap.wrap(summary, width), "", "example:", f"  {example}"]
    for name, field in options.model_fields.items():
        if name in headings:
            lines += ["", f"{headings[name]}:"]
        lines += option_help(name, field, width)
    return "\n".join([*lines, "", "  -h, --help                  show this help and exit"])


def option_help(name: str, field: FieldInfo, width: int) -> Iterator[str]:
    option = "--" + name.replace("_", "-")
    head = f"  {option}, --no-{option[2:]}" if takes(field, bool) else f"  {option} {metavar(field)}"
    text = f"{field.description or ''} {default(field)}".strip()
    told = textwrap.wrap(text, max(30, width - NAME_WIDTH - 2))
    if len(head) > NAME_WIDTH:
        yield head
    else:
        yield f"{head:<{NAME_WIDTH + 2}}{told.pop(0)}"
    yield from (" " * (NAME_WIDTH + 2) + line for line in told)


def types_of(field: FieldInfo) -> list[Any]:
    """The types that a field accepts, without None."""
    annotation = field.annotation
    union = get_args(annotation) if NoneType in get_args(annotation) else (annotation,)
    return [one for one in union if one is not NoneType]


def takes(field: FieldInfo, kind: type) -> bool:
    return types_of(field) == [kind]


def metavar(field: FieldInfo) -> str:
    (kind, *_) = types_of(field)
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) is list:
        return f"{_METAVARS.get(get_args(kind)[0], 'TEXT')},…"
    return _METAVARS.get(kind, "TEXT")


def default(field: FieldInfo) -> str:
    """The default, in parentheses; empty for None and empty values, which the description explains."""
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ("", (), {}):
        return ""
    return f"(default: {value})"
