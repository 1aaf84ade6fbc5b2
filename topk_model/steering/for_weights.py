"""JSON files that are kept with a model and hold for its weights alone, since a neuron has its meaning only there."""

import json
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class FileForWeights(BaseModel):
    """What such a file holds. A kind of file sets the class variables and adds its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    NAME: ClassVar[str]
    FORMAT: ClassVar[int]
    CONTENT: ClassVar[str]  # what it holds, and the name of the command that makes it

    format_version: int
    weights: str = Field(description="SHA-256 of the weights")

    @classmethod
    def read(cls, folder: Path, digest: str) -> Self | None:
        """The file of the model in `folder`, whose weights have the SHA-256 `digest`; None if it has none.

        Raises:
            ValueError: the file is damaged, has another format version, or is for other weights.
        """
        path = folder / cls.NAME
        if not path.exists():
            return None
        try:
            file = cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} is not a file of {cls.CONTENT}: {error.errors()[0]['msg']}") from None
        if file.format_version != cls.FORMAT:
            raise ValueError(f"{path} has format version {file.format_version}, but this program reads {cls.FORMAT}")
        if file.weights != digest:
            raise ValueError(
                f"{path} was made for other weights; make it again with: topk {cls.CONTENT} --model {folder}"
            )
        return file

    def write(self, folder: Path) -> None:
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        (folder / self.NAME).write_text(text, encoding="utf-8")
