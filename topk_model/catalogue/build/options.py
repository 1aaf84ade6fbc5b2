"""The options of `topk catalogue`. Does not need torch, so that help is shown at once."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from topk_model.model_folder import DEFAULT_MODEL
from topk_model.options import Device


class CatalogueConfig(BaseModel):
    """Build the neuron catalogue of a model and of its checkpoints."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: Path = Field(DEFAULT_MODEL, description="folder of the model")
    steps: list[int] | None = Field(
        None, description="only the checkpoints of these steps (default: the model itself and all its checkpoints)"
    )
    checkpoints: bool = Field(True, description="--no-checkpoints: only the model itself")
    data: Path = Field(Path("data/books"), description="folder made by `topk data`, with the model's own texts")
    text: Path | None = Field(
        None,
        description="use this file instead: plain text, or JSON lines (.jsonl) with the field text, optionally title",
    )
    tokens: int = Field(500_000, ge=1000, description="tokens to read with each checkpoint")
    output: Path | None = Field(
        None, description="folder to write to (default: the model's, unless it is in the installed package)"
    )
    seed: int = Field(0, ge=0, description="decides which texts are chosen")
    device: Device = "cpu"
    threads: int = Field(0, ge=0, description="CPU threads; 0: one per core")
