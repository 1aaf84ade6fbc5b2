"""The texts that a catalogue is built from, cut into windows: from a data folder, or from the user's own file.

The text on which the labels are tested is held out: the validation split of a data folder, or every tenth window of a
file. The choice of windows depends on the seed only, so that all checkpoints of a run read the same texts. Knows no
model.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from topk_model.checkpoints import load_tokenizer
from topk_model.files import read_json, read_text
from topk_model.special_tokens import special_token_ids
from topk_model.training.data import TokenWindows

#: One in this many windows of a file is held out.
HELD_OUT_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Windows of text as one run of token ids without BOS; a *position* is an index into it."""

    ids: NDArray[np.int64]  # [positions]
    starts: NDArray[np.int64]  # [windows + 1]: window w is ids[starts[w]:starts[w + 1]]
    sources: tuple[str | None, ...]  # title of each window's text
    is_counted: NDArray[np.bool_]  # [positions]; False at special tokens

    @classmethod
    def make(
        cls, windows: Sequence[NDArray[np.integer]], sources: Sequence[str | None], special_ids: Sequence[int]
    ) -> "Texts":
        ids = np.concatenate([np.empty(0, dtype=np.int64), *windows])
        starts = np.cumsum([0, *map(len, windows)])
        return cls(ids=ids, starts=starts, sources=tuple(sources), is_counted=~np.isin(ids, special_ids))

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts) - 1

    @property
    def num_counted(self) -> int:
        return int(np.count_nonzero(self.is_counted))

    @property
    def window_of(self) -> NDArray[np.int64]:
        """`[positions]`"""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def bounds(self, position: int) -> tuple[int, int, int]:
        """Number of the window that a position is in, its first position and the one after its last."""
        window = int(np.searchsorted(self.starts, position, side="right")) - 1
        return window, int(self.starts[window]), int(self.starts[window + 1])

    def place(self) -> NDArray[np.int64]:
        """The index of each position in its window `[positions]`, from 0, without BOS."""
        return np.arange(len(self.ids)) - np.repeat(self.starts[:-1], np.diff(self.starts))

    def digest(self) -> str:
        """SHA-256 of the token ids and the cuts, as little-endian 64-bit integers."""
        return hashlib.sha256(self.ids.astype("<i8").tobytes() + self.starts.astype("<i8").tobytes()).hexdigest()

    def first(self, num_positions: int) -> "Texts":
        """The first windows with at least that many positions, or all."""
        count = min(int(np.searchsorted(self.starts, num_positions)), len(self))
        end = int(self.starts[count])
        return Texts(
            ids=self.ids[:end],
            starts=self.starts[: count + 1],
            sources=self.sources[:count],
            is_counted=self.is_counted[:end],
        )

    def batches(self, bos_id: int | None, num_windows: int) -> Iterator[tuple[slice, NDArray[np.int64]]]:
        """Windows in order, `num_windows` at a time: which, and their ids `[windows, longest]`, BOS first, then padded.

        After a window's last token the ids are arbitrary; nothing before may read them.
        """
        width = int(bos_id is not None)
        for first in range(0, len(self), num_windows):
            which = slice(first, min(first + num_windows, len(self)))
            lengths = np.diff(self.starts[which.start : which.stop + 1])
            rows = np.zeros((len(lengths), width + lengths.max()), dtype=np.int64)
            if bos_id is not None:
                rows[:, 0] = bos_id
            for row, window in enumerate(range(which.start, which.stop)):
                rows[row, width : width + lengths[row]] = self.ids[self.starts[window] : self.starts[window + 1]]
            yield which, rows


def choose(num_windows: int, count: int, seed: int) -> NDArray[np.int64]:
    """`count` of the windows, or all, in an order that depends on the seed."""
    return np.random.default_rng(seed).permutation(num_windows)[:count]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return sorted(special_token_ids(tokenizer))


def texts_of_data(
    folder: Path, tokenizer: PreTrainedTokenizerBase, *, split: str, length: int, num_tokens: int, seed: int
) -> Texts:
    """About `num_tokens` tokens of one split of a data folder, in windows of `length` that do not overlap.

    Raises:
        FileNotFoundError: the folder was not made by `topk data`.
        ValueError: its tokenizer is not the model's, or the split is shorter than one window.
    """
    data = TokenWindows.load(folder, split, length, tokenizer.bos_token_id).disjoint()
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"{folder} has another tokenizer than the model: its token ids mean other text")
    if not len(data):
        raise ValueError(f"{folder / f'{split}.npy'} is shorter than one window of {length} tokens")
    chosen = data.offsets[choose(len(data), -(-num_tokens // length), seed)]
    titles = document_names(folder, split, data.tokens, tokenizer.eos_token_id, chosen)
    return Texts.make([data.tokens[o : o + length] for o in chosen], titles, special_ids(tokenizer))


def document_names(
    folder: Path, split: str, tokens: NDArray[np.unsignedinteger], eos_id: int, offsets: NDArray[np.int64]
) -> list[str | None]:
    """The name of the document at each offset, with its licence if that is not the one of the books.

    No document has a name if the folder does not name as many as the split has, each followed by EOS.
    """
    sources = read_json(folder / "sources.json") if (folder / "sources.json").is_file() else {}
    names: list[str | None] = []
    for row in sources.get("documents", {}).get(split, []):
        is_book = row["licence"] == sources["licence"]
        names += [row["title"] if is_book else f"{row['title']}, {row['licence']}"] * row["count"]
    ends = np.flatnonzero(tokens == eos_id)
    if len(ends) != len(names):
        return [None] * len(offsets)
    return [names[i] for i in np.searchsorted(ends, offsets)]


def texts_of_file(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, length: int, num_tokens: int, seed: int
) -> tuple[Texts, Texts]:
    """About `num_tokens` tokens of a file, and its held-out part, in windows of at most `length` tokens.

    The file is plain text, or JSON lines (.jsonl) with a field `text` and optionally `title`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8 or not such JSON, or it is too short to hold anything out.
    """
    windows, titles = [], []
    for title, text in read_documents(path):
        ids = np.array(
            tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids,
            dtype=np.int64,
        )
        cuts = range(0, len(ids), length)
        windows += [ids[at : at + length] for at in cuts]
        titles += [title] * len(cuts)
    if len(windows) < HELD_OUT_EVERY:
        raise ValueError(f"{path} has {len(windows)} windows of {length} tokens, but needs at least {HELD_OUT_EVERY}")
    order = choose(len(windows), len(windows), seed)
    held_out, shown = order[::HELD_OUT_EVERY], np.delete(order, slice(None, None, HELD_OUT_EVERY))
    parts = [
        Texts.make([windows[w] for w in which], [titles[w] for w in which], special_ids(tokenizer)).first(num_tokens)
        for which in (shown, held_out)
    ]
    return parts[0], parts[1]


def read_documents(path: Path) -> Iterator[tuple[str | None, str]]:
    """(title, text) of each document in a file; see `texts_of_file` for Raises."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    content = read_text(path)
    if path.suffix != ".jsonl":
        yield path.stem, content
        return
    for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
            text, title = row["text"], row.get("title")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path}, line {number}, is not a JSON object with a field text") from None
        if not isinstance(text, str) or not isinstance(title, str | None):
            raise ValueError(f"{path}, line {number}: text must be a string, as must title if it is given")
        yield title, text


def token_texts(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[str]:
    """What each token adds to a text that it does not begin, including spaces; "" for ids that the tokenizer lacks.

    A token with only part of a character adds a replacement character.
    """
    anchor = tokenizer("a", add_special_tokens=False).input_ids
    before = tokenizer.decode(anchor)
    known = set(tokenizer.get_vocab().values())
    pairs = [[*anchor, i] if i in known else anchor for i in range(vocab_size)]
    texts = [text[len(before) :] for text in tokenizer.batch_decode(pairs)]
    for token_id, added in tokenizer.added_tokens_decoder.items():  # decoders corrupt these
        if token_id < vocab_size:
            texts[token_id] = added.content
    return texts
