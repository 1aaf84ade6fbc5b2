"""Steering examples: texts that the service wrote without an edit and with one, kept with a model in `examples.json`.

The file names the weights it was made for, since other weights write other texts. Knows no torch.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from topk_model.steering.for_weights import FileForWeights


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


class ExamplesFile(FileForWeights):
    """The content of `examples.json`."""

    NAME, FORMAT, CONTENT = "examples.json", 1, "examples"

    examples: tuple[SteeringExample, ...]


def read_examples(folder: Path, digest: str) -> tuple[SteeringExample, ...]:
    """The examples of the model in `folder`; empty if it has no file. Raises ValueError like `FileForWeights.read`."""
    file = ExamplesFile.read(folder, digest)
    return () if file is None else file.examples


def write_examples(folder: Path, digest: str, examples: Sequence[SteeringExample]) -> None:
    ExamplesFile(format_version=ExamplesFile.FORMAT, weights=digest, examples=tuple(examples)).write(folder)
