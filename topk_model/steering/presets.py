"""Steering presets: named and versioned, one edit each, shipped with a model in `presets.json`.

The file names the weights that it was made for, because a neuron has its meaning only there. Knows no torch.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from topk_model.steering.for_weights import FileForWeights

PRESETS_FILE = "presets.json"
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


class PresetFile(FileForWeights):
    """The content of `presets.json`."""

    NAME, FORMAT, CONTENT = PRESETS_FILE, 1, "presets"

    max_cost: float = Field(description="the maximum cost allowed when presets were searched for, nats per token")
    presets: tuple[Preset, ...]


def read_presets(folder: Path, digest: str) -> tuple[Preset, ...]:
    """The presets of the model in `folder`; empty if it has no file. Raises ValueError like `FileForWeights.read`."""
    file = PresetFile.read(folder, digest)
    return () if file is None else file.presets


def write_presets(folder: Path, digest: str, max_cost: float, presets: Sequence[Preset]) -> None:
    PresetFile(format_version=PresetFile.FORMAT, weights=digest, max_cost=max_cost, presets=tuple(presets)).write(
        folder
    )


def words_in(text: str, words: Sequence[str]) -> tuple[str, ...]:
    """Those of `words` that a text contains as whole words, in capitals or not: in lower case, each once, in the order
    in which they come."""
    either = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    found = re.findall(rf"(?<!\w)(?:{either})(?!\w)", text, re.IGNORECASE) if words else []
    return tuple(dict.fromkeys(word.lower() for word in found))
