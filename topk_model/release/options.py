"""The options of `topk ship` and `topk evaluate`. Does not need torch, so that help is shown at once."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from topk_model.model_folder import DEFAULT_MODEL, DENSE_TWIN, HELD_OUT
from topk_model.options import Device


class ShipConfig(BaseModel):
    """Turn a finished run into a model folder: weights in float16, tokenizer, sources, loss plot and model card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Path = Field(Path("runs/default"), description="folder of the finished run")
    output: Path | None = Field(
        None, description="folder to write; replaces a model shipped there before (default: model in the run's folder)"
    )
    data: Path | None = Field(None, description="the run's data folder (default: the one that run.json names)")
    checkpoints: int = Field(0, ge=0, description="number of checkpoints to ship, evenly spaced over those of the run")
    twin: Path | None = Field(None, description="folder of the finished run of a dense twin, to ship with the model")
    samples: int = Field(
        3, ge=0, description="seeds with which each of 8 prompts is continued for the card, at two temperatures"
    )
    notes: Path | None = Field(None, description="Markdown file for the model card's section on how it was decided")
    max_mb: float = Field(40.0, gt=0, description="maximum size of the model in megabytes, without checkpoints")
    max_checkpoints_mb: float = Field(100.0, gt=0, description="the same for all checkpoints together")
    device: Device = "auto"


class EvaluateConfig(BaseModel):
    """Measure a model and its dense twin, print the table, and write evaluation.json and the model card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(DEFAULT_MODEL, description="folder of the model")
    twin: Path | None = Field(
        None, description=f"folder of its dense twin (default: {DENSE_TWIN} in the model's folder, if there is one)"
    )
    held_out: Path | None = Field(
        None, description=f"folder with validation.npy (default: {HELD_OUT} in the model's folder)"
    )
    write: bool = Field(
        True,
        description="write evaluation.json, the plots and the model card into the model's folder; into the installed "
        "package only if --write is given",
    )
    texts: int = Field(16, ge=1, description="number of texts of the measuring half on which steering is measured")
    prompts: int = Field(256, ge=1, description="number of openings of held-out texts to continue under steering")
    device: Device = "auto"
    threads: int = Field(0, ge=0, description="CPU threads; 0: torch decides")
