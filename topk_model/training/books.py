"""The project's books: the list of them, and each as clean paragraphs. Knows no tokens and no model."""

import csv
import lzma
import re
import unicodedata
import zlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from topk_model.files import read_text

COLLECTION = "https://github.com/mlschmitt/classic-books-markdown"
LICENCE = "public domain in the United States (titles of the collection; most are on Project Gutenberg)"
PASSAGE_CHARS = 8000
VALIDATION_SHARE = 0.01


class Book(BaseModel):
    """One text, as paragraphs separated by a blank line."""

    model_config = ConfigDict(frozen=True, strict=True)

    author: str
    title: str
    text: str


def clean(markdown: str) -> str:
    """Plain text of a Markdown book: no markup, straight quotes, one blank line between paragraphs."""
    text = unicodedata.normalize("NFC", markdown).replace("\r\n", "\n")
    text = text.translate({0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'", 0x00A0: " "})
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)  # links and images
    text = re.sub(r"^\s{0,3}(#{1,6}|>|\*\s*\*\s*\*|-{3,})\s*", "", text, flags=re.M)
    text = re.sub(r"(?<!\w)[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}(?!\w)", "", text)
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
    return "\n\n".join(p for p in paragraphs if p)


def chosen_titles() -> list[tuple[str, str]]:
    """(author, title) of the books the project trains on, from `books.tsv`."""
    lines = files("topk_model.training").joinpath("books.tsv").read_text(encoding="utf-8").splitlines()
    return [(row["author"], row["title"]) for row in csv.DictReader(lines, delimiter="\t")]


def read_books(source: Path) -> Iterator[Book]:
    """The chosen books, in the list's order.

    Raises:
        FileNotFoundError: the source is neither a folder nor a file, or lacks one of the chosen books.
        ValueError: it cannot be read, or a line of it is not a book.
    """
    titles = chosen_titles()
    if source.is_dir():
        for author, title in titles:
            path = source / author / f"{title}.md"
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing; is {source} a full clone of {COLLECTION}?")
            yield Book(author=author, title=title, text=clean(read_text(path)))
        return
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; get the books with: git clone {COLLECTION}")
    rows = {(book.author, book.title): book.text for book in read_lines(source)}
    for author, title in titles:
        if (author, title) not in rows:
            raise FileNotFoundError(f"{source} has no book {title!r} by {author!r}")
        yield Book(author=author, title=title, text=clean(rows[author, title]))


def read_lines(source: Path) -> Iterator[Book]:
    """The books of a `.jsonl` or `.jsonl.xz`, unchanged."""
    try:
        with (lzma.open if source.suffix == ".xz" else open)(source, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield Book.model_validate_json(line)
                except ValidationError as error:
                    raise ValueError(
                        f"line {number} of {source} is not an object with the strings author, title and text: "
                        f"{error.errors()[0]['msg']}"
                    ) from None
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{source} is not a complete xz file: {error}") from error


def reading_ease(text: str) -> float:
    """Flesch reading ease of the text's middle (Flesch 1948), with vowel groups counted as syllables.

    206.835 - 1.015 (words / sentences) - 84.6 (syllables / words)
    """
    middle = text[len(text) // 3 :][:150_000]
    words = re.findall(r"[A-Za-z']+", middle)
    sentences = len(re.findall(r'[.!?]["\']?\s', middle))
    if not words or not sentences:
        return 0.0
    syllables = sum(max(1, len(re.findall(r"[aeiouy]+", w.lower())) - w.lower().endswith("e")) for w in words)
    return 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words)


def passages(book: Book) -> Iterator[tuple[bool, list[str]]]:
    """The book, cut into runs of paragraphs, each with a flag: whether it is held out for validation.

    Which runs are held out depends only on the title and the run's number, so it is the same for any choice of books.
    """
    run: list[str] = []
    number = 0
    paragraphs = book.text.split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        run.append(paragraph)
        if sum(map(len, run)) >= PASSAGE_CHARS or i == len(paragraphs) - 1:
            digest = zlib.crc32(f"{book.author}/{book.title}/{number}".encode())
            yield digest % 10_000 < VALIDATION_SHARE * 10_000, run
            run, number = [], number + 1
