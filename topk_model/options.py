"""The options of `topk generate`, `topk trace` and several other commands. Does not need torch, so help is quick."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from topk_model.model_folder import DEFAULT_MODEL

Device = Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: a GPU if there is one")]


class LocalConfig(BaseModel):
    """Which model reads the text, and on which device."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: Path = Field(DEFAULT_MODEL, description="folder of the model")
    step: int | None = Field(None, ge=0, description="use the model's checkpoint of this training step")
    device: Device = "auto"


class GenerateConfig(LocalConfig):
    """Continue a text."""

    # With a bound, pydantic rejects an argument whose bytes are not UTF-8.
    prompt: str = Field(min_length=0, description="the text to continue; may be empty")
    max_tokens: int = Field(80, ge=1, description="maximum number of tokens to generate")
    temperature: float = Field(0.8, ge=0, allow_inf_nan=False, description="0: always the most probable token")
    top_p: float = Field(
        1.0, gt=0, le=1, description="sample from the most probable tokens whose probabilities add up to this"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="the same seed gives the same text")


class TraceConfig(LocalConfig):
    """Show which neurons are active at each token of a text."""

    text: str = Field(min_length=1, description="the text to read")
    top_n: int | None = Field(
        None, ge=1, lt=2**31, description="show only the n largest neurons of each token and layer"
    )
    json_output: bool = Field(False, description="print the complete trace as one JSON object, like the service")
