"""Steering presets: named, versioned recipes of one edit each, that ship with a model in `presets.json`.

The file names the weights it was made for, since a neuron means something in these alone. Knows no torch.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PRESETS_FILE = "presets.json"
FORMAT_VERSION = 1
#: A preset steers where it raises its words by this much, in nats of log-odds, at no more than this, in nats a token.
MIN_LOG_ODDS, MAX_COST = 1.0, 0.3


class Measured(BaseModel):
    """What a preset does to texts it was not found on, see `topk_model.steering.bench` for the definitions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_odds: float = Field(description="change of the log-odds of the concept's words, nats")
    cost: float = Field(description="nats per token by which the next token is less likely under the plain model")


class Preset(BaseModel):
    """One neuron moved by one value, and what that is good for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    version: int = Field(ge=1)
    layer: int = Field(ge=0)
    neuron: int = Field(ge=0)
    value: float = Field(allow_inf_nan=False, description="what is added to the neuron's activation")
    strength: float = Field(
        description="the value in multiples of the largest magnitude that the neuron had in the texts it was found on"
    )
    words: tuple[str, ...] = Field(description="the words that it is to make more probable")
    found: Measured = Field(description="on the texts that it was found on")


class PresetFile(BaseModel):
    """What `presets.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    weights: str = Field(description="SHA-256 of the weights")
    max_cost: float = Field(description="the cost that a preset was allowed when it was found, nats per token")
    presets: tuple[Preset, ...]


def read_presets(folder: Path, digest: str) -> tuple[Preset, ...]:
    """The presets of the model in `folder`, whose weights have the SHA-256 `digest`; none if it has no file.

    Raises:
        ValueError: the file is damaged, of another format version, or of other weights.
    """
    path = folder / PRESETS_FILE
    if not path.exists():
        return ()
    try:
        file = PresetFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not a file of presets: {error.errors()[0]['msg']}") from None
    if file.format_version != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {file.format_version}, this program reads {FORMAT_VERSION}")
    if file.weights != digest:
        raise ValueError(f"{path} was made for other weights; make it again with: topk presets --model {folder}")
    return file.presets


def write_presets(folder: Path, digest: str, max_cost: float, presets: Sequence[Preset]) -> None:
    file = PresetFile(format_version=FORMAT_VERSION, weights=digest, max_cost=max_cost, presets=tuple(presets))
    text = json.dumps(file.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
    (folder / PRESETS_FILE).write_text(text, encoding="utf-8")
