"""The options of `topk presets`. Does not need torch, so that help is shown at once."""

from pathlib import Path

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
