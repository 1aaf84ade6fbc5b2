"""Steering examples: texts that the service wrote without an edit and with one, kept with a model in `examples.json`.

The file names the weights it was made for, since other weights write other texts. Knows no torch.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

EXAMPLES_FILE = "examples.json"
FORMAT_VERSION = 1


class SteeringExample(BaseModel):
    """A prompt, one edit, and what the model wrote after the prompt without and with it.

    The request is: these fields, and one intervention that adds `value` to the neuron at the positions `continuation`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="what it steers towards: the name of the preset that it was made from")
    prompt: str = Field(min_length=1)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)
    seed: int
    layer: int = Field(ge=0)
    neuron: int = Field(ge=0)
    value: float = Field(allow_inf_nan=False, description='added to its activation, at the positions "continuation"')
    words: tuple[str, ...] = Field(min_length=1, description="the preset's words that stand in `steered` alone")
    default: str = Field(description="what the model writes after the prompt")
    steered: str = Field(description="what it writes after the prompt under the edit, with the same seed")
    cost: float = Field(
        description="nats per token by which the plain model finds `steered` less likely than `default`"
    )


class ExamplesFile(BaseModel):
    """What `examples.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    weights: str = Field(description="SHA-256 of the weights")
    examples: tuple[SteeringExample, ...]


def read_examples(folder: Path, digest: str) -> tuple[SteeringExample, ...]:
    """The examples of the model in `folder`, whose weights have the SHA-256 `digest`; none if it has no file.

    Raises:
        ValueError: the file is damaged, of another format version, or of other weights.
    """
    path = folder / EXAMPLES_FILE
    if not path.exists():
        return ()
    try:
        file = ExamplesFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not a file of examples: {error.errors()[0]['msg']}") from None
    if file.format_version != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {file.format_version}, this program reads {FORMAT_VERSION}")
    if file.weights != digest:
        raise ValueError(f"{path} was made for other weights; make it again with: topk examples --model {folder}")
    return file.examples


def write_examples(folder: Path, digest: str, examples: Sequence[SteeringExample]) -> None:
    file = ExamplesFile(format_version=FORMAT_VERSION, weights=digest, examples=tuple(examples))
    text = json.dumps(file.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
    (folder / EXAMPLES_FILE).write_text(text, encoding="utf-8")
