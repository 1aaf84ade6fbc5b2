"""Steering presets: named and versioned, one edit each, shipped with a model in `presets.json`.

The file names the weights that it was made for, because a neuron has its meaning only there. Knows no torch.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PRESETS_FILE = "presets.json"
FORMAT_VERSION = 1
#: A preset steers if it raises the log-odds of its words by this many nats at a cost of at most this, nats per token.
MIN_LOG_ODDS, MAX_COST = 1.0, 0.3


class Measured(BaseModel):
    """The effect of a preset on texts; see `topk_model.steering.bench` for the definitions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_odds: float = Field(description="change in the log-odds of the concept's words, nats")
    cost: float = Field(description="nats per token by which the next token is less probable under the plain model")


class Preset(BaseModel):
    """One neuron moved by one value, and its measured effect."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    version: int = Field(ge=1)
    layer: int = Field(ge=0)
    neuron: int = Field(ge=0)
    value: float = Field(allow_inf_nan=False, description="value that is added to the neuron's activation")
    strength: float = Field(
        description="the value in multiples of the neuron's largest magnitude in the texts on which it was found"
    )
    words: tuple[str, ...] = Field(description="the words that it makes more probable")
    found: Measured = Field(description="its effect on the texts on which it was found")


class PresetFile(BaseModel):
    """The content of `presets.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    weights: str = Field(description="SHA-256 of the weights")
    max_cost: float = Field(description="the maximum cost allowed when presets were searched for, nats per token")
    presets: tuple[Preset, ...]


def read_presets(folder: Path, digest: str) -> tuple[Preset, ...]:
    """The presets of the model in `folder`, whose weights have the SHA-256 `digest`; empty if it has no file.

    Raises:
        ValueError: the file is damaged, has another format version, or is for other weights.
    """
    path = folder / PRESETS_FILE
    if not path.exists():
        return ()
    try:
        file = PresetFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not a file of presets: {error.errors()[0]['msg']}") from None
    if file.format_version != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {file.format_version}, but this program reads {FORMAT_VERSION}")
    if file.weights != digest:
        raise ValueError(f"{path} was made for other weights; make it again with: topk presets --model {folder}")
    return file.presets


def write_presets(folder: Path, digest: str, max_cost: float, presets: Sequence[Preset]) -> None:
    file = PresetFile(format_version=FORMAT_VERSION, weights=digest, max_cost=max_cost, presets=tuple(presets))
    text = json.dumps(file.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
    (folder / PRESETS_FILE).write_text(text, encoding="utf-8")
