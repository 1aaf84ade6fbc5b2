"""Short stories for training: the sets, their licences, and how a story is read. Knows no model.

`stories.tsv` lists the sets, where each comes from, its licence, and how many times training reads it in one pass over
the data: the simplest stories most often, those that are hard to read not at all.
"""

import csv
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

#: Share of the stories of each set that is held out for validation.
HELD_OUT_SHARE = 0.04
#: Number of the stories' words that count as common.
NUM_COMMON = 3000


@dataclass(frozen=True, kw_only=True)
class StorySet:
    """A collection of stories."""

    key: str
    passes: int  # number of times that training reads it in one pass over the data
    name: str
    url: str
    licence: str


class Story(BaseModel):
    """One story: a line of a stories file. Other fields of the line are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)

    set_key: str = Field(alias="set")
    text: str

    @property
    def paragraphs(self) -> list[str]:
        return [line for line in (" ".join(line.split()) for line in self.text.split("\n")) if line]

    @property
    def is_held_out(self) -> bool:
        """Whether the story is held out; depends only on the story, so it is the same for any choice of stories."""
        return zlib.crc32(self.text.encode()) % 10_000 < HELD_OUT_SHARE * 10_000


def story_sets() -> list[StorySet]:
    """The sets, in their order in the training data; a set with 0 passes is not in the data."""
    lines = files("topk_model.training").joinpath("stories.tsv").read_text(encoding="utf-8").splitlines()
    return [
        StorySet(key=row["set"], passes=int(row["passes"]), name=row["name"], url=row["url"], licence=row["licence"])
        for row in csv.DictReader(lines, delimiter="\t")
    ]


def read_stories(source: Path) -> dict[str, list[Story]]:
    """The stories of a `.jsonl` or `.jsonl.xz`, by set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, a line is not a story, a story belongs to an unknown set, or a set has no story.
    """
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist")
    found: dict[str, list[Story]] = {one.key: [] for one in story_sets()}
    try:
        with (lzma.open if source.suffix == ".xz" else open)(source, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    story = Story.model_validate_json(line)
                except ValidationError as error:
                    raise ValueError(
                        f"line {number} of {source} is not an object with the strings set and text: "
                        f"{error.errors()[0]['msg']}"
                    ) from None
                if story.set_key not in found:
                    raise ValueError(
                        f"line {number} of {source} has the set {story.set_key!r}, must have one of {', '.join(found)}"
                    )
                found[story.set_key].append(story)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{source} is not a complete xz file: {error}") from error
    if missing := [key for key, stories in found.items() if not stories]:
        raise ValueError(f"{source} has no stories of the sets {', '.join(missing)}")
    return found


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


def common_words(stories: Iterable[Story]) -> frozenset[str]:
    """The `NUM_COMMON` words that these stories use most."""
    counts: Counter[str] = Counter()
    for story in stories:
        counts.update(words_of(story.text))
    return frozenset(word for word, _ in counts.most_common(NUM_COMMON))


def common_share(text: str, common: frozenset[str]) -> float:
    """Share of the words of a running text that are common."""
    words = words_of(text)
    return sum(word in common for word in words) / len(words) if words else 0.0
