"""The options of `topk presets`. Does not need torch, so that help is shown at once."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from topk_model.model_folder import DEFAULT_MODEL
from topk_model.options import Device


class PresetsConfig(BaseModel):
    """Find a neuron and a strength that steer towards each concept, and write them to presets.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(DEFAULT_MODEL, description="folder of the model")
    held_out: Path | None = Field(None, description="folder with validation.npy (default: held_out in the model's)")
    output: Path | None = Field(
        None, description="folder to write to (default: the model's, unless it is in the installed package)"
    )
    texts: int = Field(16, ge=1, description="texts of the finding half that effects are measured on")
    max_cost: float = Field(
        0.3, gt=0, description="most nats per token at which a neuron must steer to be a concept's on these texts"
    )
    version: int = Field(1, ge=1, description="version to give the presets")
    layers: int | None = Field(
        None, ge=1, description="for a model without TopK: number of layers to search, from the first (default: all)"
    )
    device: Device = "auto"
    threads: int = Field(0, ge=0, description="CPU threads; 0: torch decides")


#: What examples begin with, unless the command is given other prompts.
EXAMPLE_PROMPTS = (
    "Once upon a time,",
    "One day, a little girl",
    "The dog looked at",
    "It was a sunny day and",
    "In the evening the old man",
)


class ExamplesConfig(BaseModel):
    """Write with every preset, and keep the texts that show best what presets do in examples.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(DEFAULT_MODEL, description="folder of the model, with presets.json")
    output: Path | None = Field(
        None, description="folder to write to; not given: the model's own, but not into the installed package"
    )
    prompts: list[Annotated[str, Field(min_length=1)]] = Field(
        list(EXAMPLE_PROMPTS), min_length=1, max_length=16, description="beginnings of the texts"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field([1, 2], min_length=1, description="each prompt once with each")
    max_tokens: int = Field(48, ge=1, description="tokens of a continuation")
    temperature: float = Field(0.7, ge=0, description="of the sampling")
    max_cost: float = Field(
        0.6, ge=0, description="nats per token by which a steered text may be less likely under the plain model"
    )
    count: int = Field(6, ge=1, description="most examples to keep, each of another neuron")
    threads: int = Field(0, ge=0, description="CPU threads; 0: one fewer than the cores, at least 1")
