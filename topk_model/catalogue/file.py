"""The neuron catalogue's file: its schema, the packing of a neuron's page, and how a file is written.

One SQLite file next to the weights that it was built from. What a list is filtered and ordered by are columns; the rest
of a neuron is one page, JSON compressed by zlib, in which tokens are ids: about 2 kB. Knows no model and no torch.
"""

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CATALOGUE_FILE = "catalogue.sqlite"
FORMAT_VERSION = 4
#: A neuron's row is about 2 kB: in SQLite's usual pages of 4 kB, half of the file would be empty.
SQLITE_PAGE_BYTES = 32_768
#: Number of positions at the start of a text, from BOS on, at which some neurons fire whatever the text says.
EARLY_POSITIONS = 16
#: A firing of this many times the neuron's mean, or more, has full strength.
FULL_STRENGTH = 2.0

SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE neurons (
    id INTEGER PRIMARY KEY,         -- place of the layer * hidden_size + neuron
    layer INTEGER NOT NULL,
    neuron INTEGER NOT NULL,
    density REAL NOT NULL,          -- share of positions, 0 to 1
    rate REAL NOT NULL,             -- mean over positions of `firing_strength`, each weighed by its `information`
    early_rate REAL NOT NULL,       -- the same over the first positions of windows
    max REAL,                       -- NULL, like all below, where the neuron never fired
    mean REAL,
    token_entropy REAL,             -- bits
    semantic_entropy REAL,          -- bits
    label TEXT,
    label_source TEXT,
    label_score REAL,
    top_tokens TEXT NOT NULL,       -- ids of the first few, as JSON
    also_in TEXT NOT NULL,          -- other layers in which the index fires at the same positions, as JSON
    page BLOB NOT NULL
);
-- Only the index of the texts is kept; rowid is the neuron's id.
CREATE VIRTUAL TABLE words USING fts5(label, fires_on, content='', tokenize='porter unicode61');
"""
COLUMNS = (
    "layer", "neuron", "density", "rate", "early_rate", "max", "mean", "token_entropy", "semantic_entropy",
    "label", "label_source", "label_score", "top_tokens", "also_in",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One neuron, as the file stores it."""

    columns: dict[str, Any]  # by the names in `COLUMNS`
    page: dict[str, Any]
    words: Sequence[str]  # the words that it fires on, for the search


def firing_strength(values: NDArray, means: NDArray | float) -> NDArray[np.float64]:
    """How strong firings are, 0 to 1, from their values and their neurons' means; 1 if a mean is unknown or 0."""
    scales = FULL_STRENGTH * np.abs(means)
    is_known = scales > 0
    return np.where(is_known, np.minimum(np.abs(values) / np.where(is_known, scales, 1), 1), 1)


def information(counts: NDArray[np.float64], special_ids: list[int]) -> NDArray[np.float64]:
    """-log2 of each token's frequency, over the mean of a token of the texts; 0 for special tokens.

    Args:
        counts: how often each occurs in the texts `[vocab]`. One is added to each, so that no result is infinite.
    """
    frequencies = (counts + 1) / (counts + 1).sum()
    bits = -np.log2(frequencies)
    bits /= (frequencies * bits).sum()
    bits[special_ids] = 0
    return bits


def pack(value: Any) -> bytes:
    """JSON compressed by zlib; floats are rounded to 4 significant digits."""
    return zlib.compress(json.dumps(shorten(value), ensure_ascii=False, separators=(",", ":")).encode(), 9)


def unpack(blob: bytes) -> Any:
    """What was packed. Raises ValueError if the blob is damaged."""
    try:
        return json.loads(zlib.decompress(blob))
    except zlib.error as error:
        raise ValueError(str(error)) from error


def shorten(value: Any) -> Any:
    """`value`, a JSON tree, with every float rounded to 4 significant digits."""
    if isinstance(value, float):
        short = float(f"{value:.4g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    if isinstance(value, dict):
        return {name: shorten(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [shorten(item) for item in value]
    return value


def write_catalogue(
    path: Path,
    facts: dict[str, Any],
    tokens: Sequence[str],
    token_counts: Sequence[int],
    special_ids: Sequence[int],
    rows: Iterable[Row],
) -> None:
    """Write the file; an existing file at `path` is replaced when the new one is complete.

    Args:
        facts: the fields of `CatalogueFacts` without `format_version`.
        tokens: the text of every token id.
        token_counts: how often each occurs in the texts.
        special_ids: those that are never counted.
        rows: one per neuron, in order of (layer, neuron).
    """
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    insert = f"INSERT INTO neurons VALUES (?, {', '.join('?' * len(COLUMNS))}, ?)"
    try:
        with closing(sqlite3.connect(new)) as database:
            database.execute("PRAGMA journal_mode = OFF")  # an unfinished file is discarded
            database.execute(f"PRAGMA page_size = {SQLITE_PAGE_BYTES}")
            database.executescript(SCHEMA)
            for number, row in enumerate(rows):
                database.execute(insert, (number, *(row.columns[name] for name in COLUMNS), pack(row.page)))
                searchable = number, row.columns["label"] or "", " ".join(row.words)
                database.execute("INSERT INTO words (rowid, label, fires_on) VALUES (?, ?, ?)", searchable)
            database.execute("INSERT INTO words (words) VALUES ('optimize')")
            whole = {
                "facts": facts | {"format_version": FORMAT_VERSION},
                "tokens": list(tokens),
                "token_counts": list(token_counts),
                "special_ids": list(special_ids),
            }
            for name, value in whole.items():
                database.execute("INSERT INTO facts VALUES (?, ?)", (name, pack(value)))
            database.commit()
            database.execute("VACUUM")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
