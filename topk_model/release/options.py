"""What `topk ship` and `topk evaluate` are told. Needs no torch: help answers at once."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from topk_model.model_folder import DEFAULT_MODEL, DENSE_TWIN, HELD_OUT
from topk_model.options import Device


class ShipConfig(BaseModel):
    """Turn a finished run into a model folder: weights in float16, tokenizer, sources, loss plot and model card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Path = Field(Path("runs/default"), description="folder of the finished run")
    output: Path | None = Field(
        None, description="folder to write, a model shipped there before is replaced; not given: model in the run's"
    )
    data: Path | None = Field(None, description="the run's data folder, where it is not the one that run.json names")
    checkpoints: int = Field(0, ge=0, description="number of earlier states to ship, evenly spaced over the kept ones")
    twin: Path | None = Field(None, description="folder of the finished run of a dense twin, to ship beside the model")
    notes: Path | None = Field(None, description="Markdown file to include in the model card: how it was decided")
    max_mb: float = Field(40.0, gt=0, description="refuse to write a model of more megabytes, not counting checkpoints")
    max_checkpoints_mb: float = Field(100.0, gt=0, description="the same for all checkpoints together")
    device: Device = "auto"


class EvaluateConfig(BaseModel):
    """Measure a model, and its dense twin beside it, print the table, and write evaluation.json and the model card."""

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
    texts: int = Field(16, ge=1, description="texts of the measuring half that steering is measured on")
    prompts: int = Field(256, ge=1, description="openings of held-out texts that are continued under steering")
    device: Device = "auto"
    threads: int = Field(0, ge=0, description="CPU threads; 0: torch decides")
