"""The user's own texts for training: a folder or a file, each text a document. Knows no tokens and no model."""

import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from topk_model.files import read_text
from topk_model.training.books import PASSAGE_CHARS, VALIDATION_SHARE

PLAIN, LINES, COLUMNS = (".txt", ".md"), ".jsonl", ".parquet"
SUFFIXES = (*PLAIN, LINES, COLUMNS)
#: Complete passages are held out. If there are few texts, passages are shorter, so that there are enough to choose
#: from, and more of them are held out.
NUM_PASSAGES, MIN_PASSAGE_CHARS = 100, 200
MIN_HELD_OUT_CHARS, MAX_HELD_OUT_SHARE = 20_000, 0.1


@dataclass(frozen=True, kw_only=True)
class OwnText:
    """One document."""

    title: str
    text: str


def files_of(source: Path) -> list[Path]:
    """The files to read: `source`, or all files of our types in a folder, without hidden ones.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file has another type.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    types = ", ".join(SUFFIXES)
    if source.is_file():
        if source.suffix not in SUFFIXES:
            raise ValueError(f"{source} must be a folder or end in one of {types}")
        return [source]
    inside = [path for path in sorted(source.rglob("*")) if path.is_file()]
    shown = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(source).parts)]
    found = [path for path in shown if path.suffix in SUFFIXES]
    if not found:
        raise FileNotFoundError(f"{source} contains no file that ends in one of {types}")
    if left_out := len(shown) - len(found):
        print(f"{left_out} files in {source} are skipped: they end in none of {types}")
    return found


def read_texts(source: Path, text_field: str) -> Iterator[OwnText]:
    """Every document that is not blank, in the order of the files' names.

    Raises:
        FileNotFoundError, ValueError: as for `files_of`; or a file cannot be read, or a row has no text.
    """
    for path in files_of(source):
        name = str(path.relative_to(source)) if path != source else path.name
        rows = plain if path.suffix in PLAIN else json_lines if path.suffix == LINES else parquet
        for title, text in rows(path, text_field):
            if text.strip():
                yield OwnText(title=title or name, text=text)


def plain(path: Path, _: str) -> Iterator[tuple[str | None, str]]:
    yield None, read_text(path).removeprefix("\ufeff")


def json_lines(path: Path, text_field: str) -> Iterator[tuple[str | None, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if not content:
                continue
            try:
                row = json.loads(content.decode())
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number} of {path} is not valid JSON: {error}") from None
            text = row.get(text_field) if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise ValueError(f"line {number} of {path} must be an object with a string in {text_field!r}")
            title = row.get("title")
            yield title if isinstance(title, str) and title else None, checked(text, f"line {number} of {path}")


def parquet(path: Path, text_field: str) -> Iterator[tuple[str | None, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if text_field not in columns:
                raise ValueError(f"{path} has no column {text_field!r}; it has {', '.join(columns)}")
            wanted = [text_field, *(["title"] if "title" in columns and text_field != "title" else [])]
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    if row[text_field] is None:
                        continue
                    if not isinstance(row[text_field], str):
                        raise ValueError(f"row {number} of {path} has no string in {text_field!r}")
                    title = row.get("title")
                    yield title if isinstance(title, str) and title else None, row[text_field]
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error


def checked(text: str, where: str) -> str:
    """`text`, if it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} is not valid Unicode: character {error.start} is half a surrogate pair") from None
    return text


def paragraphs_of(text: str, max_chars: int) -> list[str]:
    """A document's paragraphs: separated by blank lines, or if there are none by lines; long ones are cut."""
    text = text.replace("\r\n", "\n").strip("\n")
    found = re.split(r"\n[ \t]*\n\s*", text)
    if len(found) == 1:
        found = text.split("\n")
    cut = []
    for paragraph in found:
        rest = paragraph.rstrip()
        while len(rest) > 2 * max_chars:
            at = rest.rfind(" ", max_chars, 2 * max_chars)
            end = at if at > 0 else 2 * max_chars
            cut.append(rest[:end])
            rest = rest[end:].lstrip(" ")
        cut.append(rest)
    return [paragraph for paragraph in cut if paragraph.strip()]


def split(texts: list[OwnText]) -> list[list[tuple[bool, list[str]]]]:
    """Each document as runs of paragraphs, and whether a run is held out, which depends only on its text.

    Raises:
        ValueError: there are too few to hold any out.
    """
    num_chars = sum(len(one.text) for one in texts)
    passage = min(PASSAGE_CHARS, max(MIN_PASSAGE_CHARS, num_chars // NUM_PASSAGES))
    runs = [list(passages(paragraphs_of(one.text, passage), passage)) for one in texts]
    digests = sorted({zlib.crc32("\n\n".join(run).encode()) for document in runs for run in document})
    if len(digests) < 2:
        raise ValueError(f"the texts have {num_chars} characters: too few to hold some out for validation")
    share = max(VALIDATION_SHARE, min(MAX_HELD_OUT_SHARE, MIN_HELD_OUT_CHARS / num_chars))
    held_out = set(digests[: math.ceil(share * len(digests))])
    return [[(zlib.crc32("\n\n".join(run).encode()) in held_out, run) for run in document] for document in runs]


def passages(paragraphs: list[str], num_chars: int) -> Iterator[list[str]]:
    """Runs of paragraphs of at least that many characters each, except the last."""
    run: list[str] = []
    for paragraph in paragraphs:
        run.append(paragraph)
        if sum(map(len, run)) >= num_chars:
            yield run
            run = []
    if run:
        yield run
