"""From books to token ids: choose texts, split them, train a tokenizer, write arrays. Knows no model.

A data folder holds `tokenizer.json` with its configuration, `train.npy` and `validation.npy` (token ids),
`train_starts.npy` and `validation_starts.npy` (offsets of the paragraphs), and `sources.json` (what it was made
from, under which licence).
"""

import csv
import hashlib
import json
import lzma
import re
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from topk_model.checkpoints import load_tokenizer
from topk_model.files import empty_staging, read_text, replace_folder
from topk_model.traces import MAX_UINT16_WIDTH, index_type
from topk_model.training.topics import by_topic

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
COLLECTION = "https://github.com/mlschmitt/classic-books-markdown"
LICENCE = "public domain in the United States (titles of the collection; most are on Project Gutenberg)"
PASSAGE_CHARS = 8000
VALIDATION_SHARE = 0.01


class DataConfig(BaseModel):
    """Make a training set: clean the books, train the tokenizer, tokenize."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Path = Field(
        description=f"a clone of {COLLECTION}, or a local copy as JSON lines (.jsonl or .jsonl.xz) with the fields "
        "author, title and text"
    )
    output: Path = Field(Path("data/books"), description="folder to write")
    vocab_size: int = Field(
        8192, ge=300, le=MAX_UINT16_WIDTH, description="tokens, the 256 bytes and 3 special ones included"
    )
    tokenizer: Path | None = Field(
        None, description="folder of a model whose tokenizer to use instead of training one, as --init-from needs"
    )
    min_reading_ease: float = Field(
        76.0, description="books below this Flesch reading ease are left out; 100 is very easy, 50 is hard"
    )
    topic_passes: int = Field(
        2, ge=0, description="times that the paragraphs of all books about an everyday topic come again, topic by topic"
    )


class Book(BaseModel):
    """One text, as paragraphs parted by a blank line."""

    model_config = ConfigDict(frozen=True, strict=True)

    author: str
    title: str
    text: str


def clean(markdown: str) -> str:
    """Plain text of a Markdown book: no marks, straight quotes, one blank line between paragraphs."""
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
        ValueError: it cannot be read, or a line of it is no book.
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
    """The books of a `.jsonl` or `.jsonl.xz`, as they stand there."""
    try:
        with (lzma.open if source.suffix == ".xz" else open)(source, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield Book.model_validate_json(line)
                except ValidationError as error:
                    raise ValueError(
                        f"line {number} of {source} is no object with the strings author, title and text: "
                        f"{error.errors()[0]['msg']}"
                    ) from None
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{source} is no whole xz file: {error}") from error


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
    """The book cut into runs of paragraphs, each with whether it is held out for validation.

    Which run is held out depends on the title and the run's number alone, so it survives other choices of books.
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


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts one BOS before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def windows(starts: NDArray[np.int64], num_tokens: int, length: int) -> NDArray[np.int64]:
    """Offsets of training windows of `length + 1` tokens that begin at a paragraph wherever that loses little.

    The next window begins at the last paragraph that starts in this one's second half, or where this one ends.
    """
    offsets, at = [], 0
    while at + length + 1 <= num_tokens:
        offsets.append(at)
        next_start = starts[np.searchsorted(starts, at + length, side="right") - 1]
        at = int(next_start) if next_start > at + length // 2 else at + length
    return np.array(offsets, dtype=np.int64)


def load_data_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises FileNotFoundError where the folder was not made by `prepare`."""
    if not (folder / "tokenizer.json").exists():
        raise FileNotFoundError(f"{folder / 'tokenizer.json'} does not exist; make it with: topk data")
    return load_tokenizer(folder)


def borrow_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A model's tokenizer, for text to train on. Raises ValueError where it does not mark where texts begin and end."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer in {folder} has no bos_token or no eos_token; training needs both")
    return tokenizer


def prepare(config: DataConfig) -> None:
    """Write the data folder that `config` describes, whole or not at all. See the module for what is in it.

    Raises:
        FileNotFoundError: the source, one of its books, or the tokenizer is missing.
        ValueError: `output` holds something that is no data, the source cannot be read, no book is easy enough to read,
            or the tokenizer cannot be used.
    """
    output = config.output.resolve()
    if output.exists() and any(output.iterdir()) and not (output / "sources.json").exists():
        raise ValueError(f"{config.output} holds something that was not made by topk data; move it away first")
    texts: list[list[tuple[bool, list[str]]]] = []
    sources, training = [], []
    for book in tqdm(read_books(config.source), total=len(chosen_titles()), desc="reading", unit="book"):
        runs = list(passages(book))
        training += [paragraph for held_out, run in runs if not held_out for paragraph in run]
        ease = reading_ease(book.text)
        if ease >= config.min_reading_ease:
            texts.append(runs)
            source = {"author": book.author, "title": book.title, "chars": len(book.text), "ease": round(ease, 1)}
            sources.append(source)
    if not texts:
        raise ValueError(f"no book has a reading ease of {config.min_reading_ease} or more")
    topics = by_topic(training) if config.topic_passes else {}
    topic_sources: list[dict[str, Any]] = [
        {"topic": topic, "paragraphs": len(paragraphs), "chars": sum(map(len, paragraphs))}
        for topic, paragraphs in topics.items()
    ]
    print(
        f"{len(texts)} books, {sum(s['chars'] for s in sources) / 1e6:.1f} MB; "
        f"{len(topics)} topics, {sum(t['chars'] for t in topic_sources) / 1e6:.1f} MB"
    )
    texts += [[(False, paragraphs)] for paragraphs in topics.values()] * config.topic_passes
    if config.tokenizer is not None:
        tokenizer = borrow_tokenizer(config.tokenizer)
    else:
        train_runs = (run for runs in texts for held_out, run in runs if not held_out)
        tokenizer = train_tokenizer(("\n\n".join(run) for run in train_runs), config.vocab_size)
    id_type = index_type(len(tokenizer))

    ids: dict[bool, list[NDArray[np.unsignedinteger]]] = {False: [], True: []}
    starts: dict[bool, list[int]] = {False: [], True: []}
    lengths = {False: 0, True: 0}
    for runs in tqdm(texts, desc="tokenizing", unit="text"):
        for held_out, run in runs:
            pieces = [paragraph + "\n\n" for paragraph in run]
            for encoding in tokenizer.backend_tokenizer.encode_batch(pieces, add_special_tokens=False):
                starts[held_out].append(lengths[held_out])
                lengths[held_out] += len(encoding.ids)
                ids[held_out].append(np.array(encoding.ids, dtype=id_type))
        ids[False].append(np.array([tokenizer.eos_token_id], dtype=id_type))
        lengths[False] += 1
    staging = empty_staging(output)
    tokenizer.save_pretrained(staging)
    for held_out, name in ((False, "train"), (True, "validation")):
        np.save(staging / f"{name}.npy", np.concatenate([np.empty(0, dtype=id_type), *ids[held_out]]))
        np.save(staging / f"{name}_starts.npy", np.array(starts[held_out], dtype=np.int64))
    record = {
        "collection": COLLECTION,
        "licence": LICENCE,
        "min_reading_ease": config.min_reading_ease,
        "topic_passes": config.topic_passes,
        "books": sources,
        "topics": topic_sources,
    }
    with (staging / "sources.json").open("w", encoding="utf-8") as f:
        f.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    replace_folder(staging, output)
    print(f"{lengths[False]:,} training tokens, {lengths[True]:,} held out, in {config.output}")


@dataclass(frozen=True, kw_only=True)
class TokenWindows:
    """One split of a data folder, cut into windows of `length` inputs and as many targets."""

    tokens: NDArray[np.unsignedinteger]
    offsets: NDArray[np.int64]
    length: int
    bos_id: int

    @classmethod
    def load(cls, folder: Path, split: str, length: int, bos_id: int) -> "TokenWindows":
        """Raises FileNotFoundError where the folder was not made by `prepare`."""
        if not (folder / f"{split}.npy").exists():
            raise FileNotFoundError(f"{folder / f'{split}.npy'} does not exist; make it with: topk data")
        tokens = np.load(folder / f"{split}.npy", mmap_mode="r")
        starts = np.load(folder / f"{split}_starts.npy")
        return cls(tokens=tokens, offsets=windows(starts, len(tokens), length), length=length, bos_id=bos_id)

    def __len__(self) -> int:
        return len(self.offsets)

    def digest(self) -> str:
        """SHA-256 of the tokens, as they are stored."""
        return hashlib.sha256(np.ascontiguousarray(self.tokens).data).hexdigest()

    def disjoint(self) -> "TokenWindows":
        """Those of the windows that share no token with one before."""
        offsets: list[int] = []
        for offset in self.offsets.tolist():
            if not offsets or offset >= offsets[-1] + self.length:
                offsets.append(offset)
        return replace(self, offsets=np.array(offsets, dtype=np.int64))

    def rows(self, which: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token ids `[len(which), length + 1]`: BOS and then the windows' tokens."""
        out = np.empty((len(which), self.length + 1), dtype=np.int64)
        out[:, 0] = self.bos_id
        for row, offset in enumerate(self.offsets[which]):
            out[row, 1:] = self.tokens[offset : offset + self.length]
        return out


class Order:
    """Which windows each step reads: a fresh permutation an epoch, from the seed alone, so any step can be resumed."""

    def __init__(self, num_windows: int, per_step: int, seed: int) -> None:
        self.num_windows, self.per_step, self.seed = num_windows, per_step, seed
        self.steps_per_epoch = num_windows // per_step
        if not self.steps_per_epoch:
            raise ValueError(f"{num_windows} windows are fewer than the {per_step} of one step; use more data")
        self.epoch, self.permutation = -1, np.empty(0, dtype=np.int64)

    def windows(self, step: int) -> NDArray[np.int64]:
        """Window numbers `[per_step]` of `step`."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.epoch = epoch
            self.permutation = np.random.default_rng((self.seed, epoch)).permutation(self.num_windows)
        return self.permutation[at * self.per_step : (at + 1) * self.per_step]
