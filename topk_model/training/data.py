"""From books to token ids: chooses texts, splits them, trains a tokenizer, writes arrays. Knows no model.

A data folder holds `tokenizer.json` with its configuration, `train.npy` and `validation.npy` (token ids),
`train_starts.npy` and `validation_starts.npy` (offsets of the paragraphs), and `sources.json` (what it was made
from, under which licence).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from topk_model.checkpoints import load_tokenizer
from topk_model.files import empty_staging, replace_folder
from topk_model.traces import index_type
from topk_model.training.books import COLLECTION, LICENCE, Book, chosen_titles, passages, read_books, reading_ease
from topk_model.training.options import DataConfig
from topk_model.training.own_texts import read_texts, split
from topk_model.training.stories import common_share, common_words, read_stories, story_sets
from topk_model.training.topics import by_topic

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that adds one BOS before a text."""
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
    """Offsets of training windows of `length + 1` tokens that begin at a paragraph if that loses little.

    The next window begins at the last paragraph that starts in this one's second half, or where this one ends.
    """
    offsets, at = [], 0
    while at + length + 1 <= num_tokens:
        offsets.append(at)
        next_start = starts[np.searchsorted(starts, at + length, side="right") - 1]
        at = int(next_start) if next_start > at + length // 2 else at + length
    return np.array(offsets, dtype=np.int64)


def load_data_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Raises FileNotFoundError if the folder was not made by `prepare`."""
    if not (folder / "tokenizer.json").exists():
        raise FileNotFoundError(f"{folder / 'tokenizer.json'} does not exist; make it with: topk data")
    return load_tokenizer(folder)


def borrow_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A model's tokenizer, for text to train on. Raises ValueError if it does not mark where texts begin and end."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer in {folder} has no bos_token or no eos_token; training needs both")
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class Document:
    """A separate text: it begins after BOS and ends with EOS in each split that has any part of it."""

    title: str
    licence: str
    runs: list[tuple[bool, list[str]]]  # paragraphs, and whether they are held out
    starts_within: bool  # whether a training window may begin at any of its paragraphs, or only where it begins

    def paragraphs(self, held_out: bool) -> list[str]:
        return [paragraph for is_held_out, run in self.runs if is_held_out == held_out for paragraph in run]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The sources of a data folder: documents in the order of the data, and their entries in `sources.json`."""

    documents: list[Document] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)

    def add_stories(self, path: Path) -> frozenset[str]:
        """Add each set of stories as often as the project's list says. Returns the commonest words of the first set."""
        found, sets = read_stories(path), story_sets()
        self.record["stories"] = []
        for one in sets:
            stories = found[one.key]
            documents = [
                Document(
                    title=one.name,
                    licence=one.licence,
                    runs=[(story.is_held_out, story.paragraphs)],
                    starts_within=False,
                )
                for story in stories
            ]
            for number in range(one.passes):
                self.documents.extend(d for d in documents if number == 0 or not d.runs[0][0])
            counts = {"stories": len(stories), "chars": sum(len(story.text) for story in stories)}
            self.record["stories"].append(vars(one) | counts)
        return common_words(found[sets[0].key])

    def add_books(self, config: DataConfig, common: frozenset[str]) -> None:
        """Add the books that are easy enough, and after them the paragraphs of all books by topic.

        Raises:
            ValueError: no book is easy enough.
        """
        self.record["books"] = []
        training: list[str] = []
        assert config.source is not None
        for book in tqdm(read_books(config.source), total=len(chosen_titles()), desc="reading", unit="book"):
            runs = list(passages(book))
            training += [paragraph for held_out, run in runs if not held_out for paragraph in run]
            ease = reading_ease(book.text)
            if ease < config.min_reading_ease:
                continue
            if (share := common_share(book.text, common)) >= config.min_common_share:
                self.documents.append(Document(title=book.title, licence=LICENCE, runs=runs, starts_within=True))
                self.record["books"].append(describe(book, ease, share if common else None))
        if not self.record["books"]:
            raise ValueError(
                f"no book has a reading ease of {config.min_reading_ease} or more and a share of common words of "
                f"{config.min_common_share} or more"
            )
        topics = by_topic(training) if config.topic_passes else {}
        self.documents.extend(
            Document(title=f"paragraphs on {topic}", licence=LICENCE, runs=[(False, paragraphs)], starts_within=True)
            for topic, paragraphs in list(topics.items()) * config.topic_passes
        )
        self.record["topics"] = [
            {"topic": topic, "paragraphs": len(paragraphs), "chars": sum(map(len, paragraphs))}
            for topic, paragraphs in topics.items()
        ]

    def add_texts(self, config: DataConfig) -> None:
        """Add the user's own texts.

        Raises:
            FileNotFoundError, ValueError: as for `read_texts` and `split`.
        """
        assert config.texts is not None
        assert config.licence is not None
        texts = list(tqdm(read_texts(config.texts, config.text_field), desc="reading", unit="text"))
        for one, runs in zip(texts, split(texts), strict=True):
            self.documents.append(Document(title=one.title, licence=config.licence, runs=runs, starts_within=True))
        chars = sum(len(one.text) for one in texts)
        self.record["texts"] = {"name": config.texts.resolve().name, "documents": len(texts), "chars": chars}

    def in_split(self, held_out: bool) -> list[dict[str, Any]]:
        """Title and licence of the documents of a split, in order; equal consecutive ones share one row."""
        named = ((d.title, d.licence) for d in self.documents if d.paragraphs(held_out))
        return [
            {"title": title, "licence": licence, "count": len(list(same))} for (title, licence), same in groupby(named)
        ]


def describe(book: Book, ease: float, common: float | None) -> dict[str, Any]:
    """The entry of a book in `sources.json`."""
    fields = {"author": book.author, "title": book.title, "chars": len(book.text), "ease": round(ease, 1)}
    return fields if common is None else fields | {"common_share": round(common, 3)}


def encode(
    documents: Iterable[Document], held_out: bool, tokenizer: PreTrainedTokenizerBase
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
    """Token ids of one split, and the offsets at which a window may begin.

    A window has BOS before it, so the first document has none; each ends with EOS and the BOS of the next.
    """
    ends = [tokenizer.eos_token_id, tokenizer.bos_token_id]
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # as text: a document that contains "<|eos|>" does not end there
    ids: list[int] = []
    starts: list[int] = []
    for document in documents:
        paragraphs = document.paragraphs(held_out)
        pieces = [paragraph + "\n\n" for paragraph in paragraphs[:-1]] + paragraphs[-1:]
        for i, encoding in enumerate(backend.encode_batch(pieces, add_special_tokens=False)):
            if i == 0 or document.starts_within:
                starts.append(len(ids))
            ids += encoding.ids
        ids += ends if pieces else []
    return np.array(ids, dtype=index_type(len(tokenizer))), np.array(starts, dtype=np.int64)


def prepare(config: DataConfig) -> None:
    """Write the data folder that `config` describes, completely or not at all. The module lists its contents.

    Raises:
        FileNotFoundError: a source, one of its books, or the tokenizer is missing.
        ValueError: `output` contains something else than data, a source cannot be read, no book is easy enough to read,
            or the tokenizer cannot be used.
    """
    output = config.output.resolve()
    if output.exists() and any(output.iterdir()) and not (output / "sources.json").exists():
        raise ValueError(f"{config.output} contains something that was not made by topk data; move it away first")
    sources = Sources()
    if config.texts is not None:
        sources.add_texts(config)
    else:
        common = sources.add_stories(config.stories) if config.stories is not None else frozenset()
        sources.add_books(config, common)
    if config.tokenizer is not None:
        tokenizer = borrow_tokenizer(config.tokenizer)
    else:
        train_texts = ("\n\n".join(document.paragraphs(held_out=False)) for document in sources.documents)
        tokenizer = train_tokenizer(train_texts, config.vocab_size)

    staging = empty_staging(output)
    tokenizer.save_pretrained(staging)
    num_tokens = {}
    for held_out, name in ((False, "train"), (True, "validation")):
        documents = tqdm(sources.documents, desc=f"tokenizing {name}", unit="text")
        ids, starts = encode(documents, held_out, tokenizer)
        np.save(staging / f"{name}.npy", ids)
        np.save(staging / f"{name}_starts.npy", starts)
        num_tokens[name] = len(ids)
    of_books = {
        "collection": COLLECTION,
        "licence": LICENCE,
        "min_reading_ease": config.min_reading_ease,
        "min_common_share": config.min_common_share,
        "topic_passes": config.topic_passes,
    }
    record = {
        **(of_books if config.texts is None else {"licence": config.licence}),
        **sources.record,
        "documents": {"train": sources.in_split(held_out=False), "validation": sources.in_split(held_out=True)},
    }
    with (staging / "sources.json").open("w", encoding="utf-8") as f:
        f.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    replace_folder(staging, output)
    print(f"{num_tokens['train']:,} training tokens, {num_tokens['validation']:,} held out, in {config.output}")


@dataclass(frozen=True, kw_only=True)
class TokenWindows:
    """One split of a data folder, cut into windows of `length` inputs and as many targets."""

    tokens: NDArray[np.unsignedinteger]
    offsets: NDArray[np.int64]
    length: int
    bos_id: int

    @classmethod
    def load(cls, folder: Path, split: str, length: int, bos_id: int) -> "TokenWindows":
        """Raises FileNotFoundError if the folder was not made by `prepare`."""
        if not (folder / f"{split}.npy").exists():
            raise FileNotFoundError(f"{folder / f'{split}.npy'} does not exist; make it with: topk data")
        tokens = np.load(folder / f"{split}.npy", mmap_mode="r")
        starts = np.load(folder / f"{split}_starts.npy")
        return cls(tokens=tokens, offsets=windows(starts, len(tokens), length), length=length, bos_id=bos_id)

    def __len__(self) -> int:
        return len(self.offsets)

    def digest(self) -> str:
        """SHA-256 of the tokens as stored."""
        return hashlib.sha256(np.ascontiguousarray(self.tokens).data).hexdigest()

    def disjoint(self) -> "TokenWindows":
        """The windows that share no token with an earlier one."""
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
    """The windows that each step reads: a new permutation per epoch, from the seed only, so any step can be resumed."""

    def __init__(self, num_windows: int, per_step: int, seed: int) -> None:
        self.num_windows, self.per_step, self.seed = num_windows, per_step, seed
        self.steps_per_epoch = num_windows // per_step
        if not self.steps_per_epoch:
            raise ValueError(f"{num_windows} windows are fewer than the {per_step} per step; use more data")
        self.epoch, self.permutation = -1, np.empty(0, dtype=np.int64)

    def windows(self, step: int) -> NDArray[np.int64]:
        """Window numbers `[per_step]` of `step`."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.epoch = epoch
            self.permutation = np.random.default_rng((self.seed, epoch)).permutation(self.num_windows)
        return self.permutation[at * self.per_step : (at + 1) * self.per_step]
