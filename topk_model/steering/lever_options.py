"""What `topk lever` is told. Needs no torch: help answers at once."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from topk_model.options import LocalConfig


class LeverConfig(LocalConfig):
    """Find the neurons that make words (--words), or texts (--towards and --away), likelier, and what that costs."""

    words: list[str] | None = Field(
        None, min_length=1, description="words to make likelier, each as a whole: --words winter,snow,ice"
    )
    towards: Path | None = Field(None, description="or file of texts to make likelier, one per line")
    away: Path | None = Field(None, description="than the texts in this file")
    max_cost: float = Field(
        0.2, gt=0, allow_inf_nan=False, description="nats per token that what is written may be less likely"
    )
    limit: int = Field(5, ge=1, le=100, description="most levers to show")
    prompt: str | None = Field(
        None, min_length=1, description="text to continue, plain and with each lever (default: none)"
    )
    max_tokens: int = Field(32, ge=1, description="most tokens of a continuation")
    temperature: float = Field(0.8, ge=0, allow_inf_nan=False, description="of the continuations")
    seed: int = Field(0, ge=0, lt=2**63, description="of the continuations")
    plot: Path | None = Field(None, description="write a picture (PNG) of the effect over the cost to this file")

    @model_validator(mode="after")
    def check_task(self) -> Self:
        if (self.words is None) == (self.towards is None):
            raise ValueError("either --words or --towards is needed, and not both")
        if (self.towards is None) != (self.away is None):
            raise ValueError("--towards and --away go together")
        if any(not word.strip() for word in self.words or ()):
            raise ValueError("--words holds a blank word")
        if self.plot is not None and self.plot.suffix != ".png":
            raise ValueError(f"--plot must end in .png, not {str(self.plot)!r}")
        return self
