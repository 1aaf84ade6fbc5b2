"""The options of `topk neurons`. Does not need a catalogue, so that help is shown at once."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from topk_model.catalogue.reader import ORDERS
from topk_model.options import LocalConfig


class NeuronsConfig(LocalConfig):
    """Show one neuron (--layer and --neuron), find those that stand for a text (--text, or --positive and --negative),
    list those that the other options describe, or draw some at random for their labels to be judged (--sample)."""

    layer: int | None = Field(None, ge=0, lt=2**31, description="TopK layer of the neuron, the list or the search")
    neuron: int | None = Field(None, ge=0, lt=2**31, description="show everything about this neuron of that layer")
    plot: Path | None = Field(
        None, description="with --neuron: write a picture (PNG) of its history over checkpoints and layers to this file"
    )
    text: str | None = Field(None, min_length=1, description="find the neurons that stand for this text")
    positive: Path | None = Field(None, description="file of texts, one per line: find what sets them apart")
    negative: Path | None = Field(None, description="from the texts in this file")
    label: str | None = Field(
        None, min_length=1, description="list neurons with these words in their label or top tokens"
    )
    min_density: float | None = Field(
        None, ge=0, le=1, description="list neurons that are active at this fraction of positions or more"
    )
    max_density: float | None = Field(
        None, ge=0, le=1, description="list neurons that are active at this fraction of positions or less"
    )
    min_token_entropy: float | None = Field(
        None, ge=0, description="list neurons of at least this token entropy, in bits"
    )
    max_token_entropy: float | None = Field(
        None, ge=0, description="list neurons of at most this token entropy, in bits"
    )
    order: str | None = Field(
        None,
        description=f"order of the list: {', '.join(ORDERS)}; with a minus, as in --order=-density, largest first",
    )
    sample: int | None = Field(
        None, ge=1, description="draw this many neurons at random and write their passages and, apart, their labels"
    )
    seed: int = Field(0, ge=0, description="with --sample: which neurons are drawn")
    output: Path | None = Field(None, description="with --sample: folder to write passages.json and labels.json to")
    limit: int = Field(20, ge=1, lt=2**31, description="most neurons to show")
    examples: int = Field(
        0, ge=0, description="with --text or --positive: number of examples to show of each neuron found"
    )

    @model_validator(mode="after")
    def check_task(self) -> Self:
        if self.neuron is not None and self.layer is None:
            raise ValueError("--neuron needs --layer")
        if self.plot is not None and self.neuron is None:
            raise ValueError("--plot needs --layer and --neuron")
        if self.plot is not None and self.plot.suffix != ".png":
            raise ValueError(f"--plot must end in .png, not {str(self.plot)!r}")
        if (self.positive is None) != (self.negative is None):
            raise ValueError("--positive and --negative must be given together")
        if self.examples and self.text is None and self.positive is None:
            raise ValueError("--examples needs --text or --positive")
        if (self.sample is None) != (self.output is None):
            raise ValueError("--sample and --output go together")
        tasks = {
            "--neuron": self.neuron, "--text": self.text, "--positive": self.positive, "--sample": self.sample
        }  # fmt: skip
        given = [name for name, value in tasks.items() if value is not None]
        listed = {"label", "min_density", "max_density", "min_token_entropy", "max_token_entropy", "order"}
        given += sorted("--" + name.replace("_", "-") for name in listed & self.model_fields_set)[:1]
        if len(given) > 1:
            raise ValueError(f"{given[1]} cannot be used with {given[0]}")
        return self
