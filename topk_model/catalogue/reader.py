"""Reads a neuron catalogue: one neuron, or the neurons that meet conditions.

`topk catalogue` writes the file. Knows no model, no torch and no server.
"""

import json
import re
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topk_model.catalogue.file import CATALOGUE_FILE, FORMAT_VERSION, information, unpack
from topk_model.catalogue.neuron import (
    AblationEffect,
    Example,
    Histogram,
    Label,
    LogitEffect,
    Neuron,
    NeuronSummary,
    Related,
    Steering,
    SteeringPoint,
    TokenEffect,
    TopToken,
)
from topk_model.model_folder import weights_digest

#: What a list of neurons can be ordered by; a minus before the name reverses the order.
ORDERS = ("density", "max", "mean", "token_entropy", "semantic_entropy", "score")


#: The format before this one: it knows no neuron in several layers, and not what raising a neuron does.
WITHOUT_RAISING = 3
#: Fields of a summary that are no column of the file.
DERIVED = ("score", "is_dead", "top_tokens", "also_in")


class UnusableError(ValueError):
    """The file is intact, but not the right one."""


@dataclass(frozen=True, kw_only=True)
class CatalogueFacts:
    """What a catalogue was built from. Every figure's definition is in `definitions`, by the name of its field."""

    format_version: int
    weights: str  # digest of the weights; see `weights_digest`
    texts: str  # SHA-256 of the token ids that were read: examples of two catalogues can be compared if it is the same
    step: int | None  # training step of the weights, if known
    k: int
    select: str  # "signed" or "abs"
    hidden_size: int
    layers: tuple[int, ...]  # TopK layers, ascending
    num_tokens: int  # positions counted, without special tokens
    num_texts: int  # windows of text
    num_held_out_tokens: int  # positions on which the labels' scores were measured
    definitions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class NeuronQuery:
    """Which neurons to list. All conditions must hold; a dead neuron has no entropy and meets no bound on it.

    The words of `label`, compared by their stems, must all occur in a neuron's label or in the words that it fires on.
    `order` is one of `ORDERS`, with a minus before it for largest first; without it, the best matches of `label` come
    first, or without `label` the order is by layer and neuron.
    """

    layer: int | None = None
    min_density: float | None = None
    max_density: float | None = None
    min_token_entropy: float | None = None
    max_token_entropy: float | None = None
    label: str | None = None
    is_dead: bool | None = None
    order: str | None = None
    limit: int = 50
    offset: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError if `order`, `limit` or `offset` is invalid."""
        if self.order is not None and self.order.removeprefix("-") not in ORDERS:
            orders = ", ".join(ORDERS)
            raise ValueError(f"order is {self.order!r}, but must be one of {orders}, or one with a minus before it")
        if self.limit < 0 or self.offset < 0:
            raise ValueError(f"limit is {self.limit} and offset {self.offset}; neither may be negative")


@dataclass(kw_only=True, eq=False)
class Catalogue:
    """The catalogue of one checkpoint, opened for reading; it may be read from several threads."""

    facts: CatalogueFacts
    densities: NDArray[np.float32]  # [TopK layers, hidden_size]
    rates: NDArray[np.float32]  # the same, each firing weighted by its strength; see `firing_strength`
    early_rates: NDArray[np.float32]  # the rates at the texts' first positions
    maxima: NDArray[np.float32]  # [TopK layers, hidden_size]; NaN: never active
    means: NDArray[np.float32]  # [TopK layers, hidden_size]; NaN: never active
    also_in: tuple[tuple[int, ...], ...]  # of every neuron, in order: other layers in which it is the same one
    information: NDArray[np.float64]  # [vocab]: -log2 of each token's frequency, over its mean; 0: a special token
    path: Path
    tokens: tuple[str, ...] = field(repr=False)  # text of every token id
    database: sqlite3.Connection = field(repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def open(cls, folder: Path | str) -> "Catalogue":
        """The catalogue of the checkpoint in `folder`.

        Raises:
            FileNotFoundError: the folder has no catalogue, or no weights.
            ValueError: it is damaged, has another format, or was built from other weights.
        """
        path = Path(folder) / CATALOGUE_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; build it with: topk catalogue --model {folder}")
        digest = weights_digest(Path(folder))
        # The file is only ever replaced, never written to, so it needs no lock.
        uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        database = sqlite3.connect(uri, uri=True, check_same_thread=False)
        try:
            return cls.read(path, database, digest)
        except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
            database.close()
            if isinstance(error, UnusableError):
                raise ValueError(str(error)) from None
            raise ValueError(f"{path} is damaged: {error}; build it again with: topk catalogue") from error

    @classmethod
    def read(cls, path: Path, database: sqlite3.Connection, digest: str) -> "Catalogue":
        """Raises UnusableError for another format or other weights, and SQLite's errors for a damaged file."""
        if (verdict := database.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise ValueError(verdict)
        stored = {name: unpack(value) for name, value in database.execute("SELECT name, value FROM facts")}
        version = stored["facts"]["format_version"]
        if version == WITHOUT_RAISING:
            database.execute("CREATE TEMP VIEW neurons AS SELECT *, '[]' AS also_in FROM main.neurons")
        elif version != FORMAT_VERSION:
            raise UnusableError(
                f"{path} has format {version}, but this program reads {WITHOUT_RAISING} and {FORMAT_VERSION}: build it "
                "again"
            )
        facts = CatalogueFacts(**stored["facts"] | {"layers": tuple(stored["facts"]["layers"])})
        if facts.weights != digest:
            raise UnusableError(
                f"{path} was built from other weights than those next to it: build it again with: topk catalogue"
            )
        shape = len(facts.layers), facts.hidden_size
        columns = database.execute("SELECT density, rate, early_rate, max, mean FROM neurons ORDER BY id").fetchall()
        densities, rates, early_rates, maxima, means = np.array(columns, dtype=np.float32).T.reshape(5, *shape)
        return cls(
            facts=facts,
            densities=densities,
            rates=rates,
            early_rates=early_rates,
            maxima=maxima,
            means=means,
            also_in=tuple(
                tuple(json.loads(layers)) for (layers,) in database.execute("SELECT also_in FROM neurons ORDER BY id")
            ),
            information=information(np.array(stored["token_counts"], dtype=np.float64), stored["special_ids"]),
            path=path,
            tokens=tuple(stored["tokens"]),
            database=database,
        )

    def close(self) -> None:
        """Close the file; the catalogue cannot be used afterwards."""
        with self.lock:
            self.database.close()

    def rows(self, sql: str, parameters: Iterable[Any]) -> list[tuple[Any, ...]]:
        with self.lock:
            return self.database.execute(sql, tuple(parameters)).fetchall()

    def number(self, layer: int, neuron: int) -> int:
        """The neuron's row. Raises IndexError if the model has no such TopK layer or neuron."""
        facts = self.facts
        if layer not in facts.layers:
            listed = ", ".join(map(str, facts.layers))
            raise IndexError(f"layer {layer} is not a TopK layer; the TopK layers are: {listed}")
        if not 0 <= neuron < facts.hidden_size:
            raise IndexError(f"neuron {neuron} is out of range; the model has 0 to {facts.hidden_size - 1}")
        return facts.layers.index(layer) * facts.hidden_size + neuron

    def maximum(self, layer: int, neuron: int) -> float | None:
        """The neuron's largest activation; None if it never fired. Raises IndexError like `neuron`."""
        value = float(self.maxima.flat[self.number(layer, neuron)])
        return None if np.isnan(value) else value

    def labels(self, pairs: Iterable[tuple[int, int]]) -> list[str | None]:
        """The labels' texts of (layer, neuron) pairs; None if there is no label. Raises IndexError like `neuron`."""
        numbers = [self.number(layer, neuron) for layer, neuron in pairs]
        marks = ", ".join("?" * len(numbers))
        found = dict(self.rows(f"SELECT id, label FROM neurons WHERE id IN ({marks})", numbers))
        return [found[number] for number in numbers]

    def neuron(self, layer: int, neuron: int) -> Neuron:
        """Everything about one neuron.

        Raises:
            IndexError: the model has no such TopK layer or neuron.
        """
        columns = "label, label_source, label_score, density, max, mean, token_entropy, semantic_entropy, page"
        sql = f"SELECT {columns} FROM neurons WHERE id = ?"
        number = self.number(layer, neuron)
        row = self.rows(sql, [number])[0]
        text, source, score, density, largest, mean, token_entropy, semantic_entropy, blob = row
        page = unpack(blob)
        label = None
        if text is not None:
            label = Label(text=text, source=source, score=score, evidence=tuple(page["evidence"]))
        related = [(near[0], near[1]) for near in page["related"]]
        near_labels = self.labels(related)
        return Neuron(
            layer=layer,
            neuron=neuron,
            label=label,
            density=density,
            max=largest,
            mean=mean,
            quantiles={name: float(value) for name, value in page["quantiles"].items()},
            is_dead=density == 0,
            histogram=equal_bins(page["range"], page["counts"]),
            token_entropy=token_entropy,
            semantic_entropy=semantic_entropy,
            top_tokens=tuple(
                TopToken(token_id=i, token=self.tokens[i], count=count, share=float(share), mean=float(mean))
                for i, count, share, mean in page["top_tokens"]
            ),
            top_examples=tuple(self.example(**passage) for passage in page["passages"]),
            strongest_firings=tuple(self.example(**firing) for firing in page["strongest"]),
            logit_effect=LogitEffect(
                note=self.facts.definitions["logit_effect"],
                positive=self.effects(page["logits"][0]),
                negative=self.effects(page["logits"][1]),
            ),
            steering=page.get("steering") and self.steering(largest, **page["steering"]),
            ablation_effect=page["ablation"]
            and AblationEffect(
                positive=self.effects(page["ablation"]["positive"]),
                negative=self.effects(page["ablation"]["negative"]),
                loss_change=float(page["ablation"]["loss_change"]),
                num_positions=page["ablation"]["num_positions"],
            ),
            related=tuple(
                Related(layer=near[0], neuron=near[1], pmi=float(near[2]), label=near_label)
                for near, near_label in zip(page["related"], near_labels, strict=True)
            ),
            also_in=self.also_in[number],
        )

    def top_positions(self, layer: int, neuron: int) -> list[int]:
        """Positions in the texts, in tokens, at which the neuron fires most strongly, in descending order, at most one
        per window.

        Raises:
            IndexError: as for `neuron`.
        """
        blob = self.rows("SELECT page FROM neurons WHERE id = ?", [self.number(layer, neuron)])[0][0]
        return list(unpack(blob)["positions"])

    def example(
        self, ids: list[int], activations: list[float], peak: int, source: str | None, text: str | None = None
    ) -> Example:
        """A stored example; `text` is stored only if it differs from its tokens' joined texts."""
        tokens = tuple(self.tokens[i] for i in ids)
        return Example(
            text="".join(tokens) if text is None else text,
            token_ids=tuple(ids),
            tokens=tokens,
            activations=tuple(map(float, activations)),
            peak=peak,
            max=float(activations[peak]),
            source=source,
        )

    def steering(
        self, largest: float, words: list[tuple[int, float]], best: float, curve: list[list[float]]
    ) -> Steering:
        return Steering(
            words=self.effects(words),
            value=best * largest,
            in_units_of_max=float(best),
            curve=tuple(
                SteeringPoint(in_units_of_max=float(at), share=float(share), log_odds=float(rise), cost=float(cost))
                for at, share, rise, cost in curve
            ),
        )

    def effects(self, pairs: list[tuple[int, float]]) -> tuple[TokenEffect, ...]:
        return tuple(TokenEffect(token_id=i, token=self.tokens[i], value=float(value)) for i, value in pairs)

    def neurons(self, query: NeuronQuery) -> tuple[list[NeuronSummary], int]:
        """One page of the neurons that `query` describes, and their total number."""
        tests: list[tuple[str, Any]] = [
            ("layer = ?", query.layer),
            ("density >= ?", query.min_density),
            ("density <= ?", query.max_density),
            ("token_entropy >= ?", query.min_token_entropy),
            ("token_entropy <= ?", query.max_token_entropy),
            ("(density = 0) = ?", query.is_dead),
        ]
        tests = [(test, value) for test, value in tests if value is not None]
        table, order = "neurons", "id"
        if query.label is not None:
            # Only words are passed to FTS5, each in quotes, so that nothing in a query is syntax.
            words = re.findall(r"\w+", query.label)
            if not words:
                return [], 0
            table, order = "words JOIN neurons ON words.rowid = id", "bm25(words, 4.0, 1.0), id"
            tests.append(("words MATCH ?", " ".join(f'"{word}"' for word in words)))
        if query.order is not None:
            column = query.order.removeprefix("-").replace("score", "label_score")
            order = f"{column} {'DESC' if query.order.startswith('-') else 'ASC'} NULLS LAST, id"
        where = " AND ".join(test for test, _ in tests) or "1"
        parameters = [value for _, value in tests]
        total = self.rows(f"SELECT count(*) FROM {table} WHERE {where}", parameters)[0][0]
        names = [name for name in (f.name for f in fields(NeuronSummary)) if name not in DERIVED]
        sql = (
            f"SELECT label_score, top_tokens, also_in, {', '.join(f'neurons.{name}' for name in names)} FROM {table} "
            f"WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?"
        )
        summaries = []
        for score, top, layers, *values in self.rows(sql, [*parameters, query.limit, query.offset]):
            shown = tuple(self.tokens[i] for i in json.loads(top))
            columns = dict(zip(names, values, strict=True))
            is_dead, also_in = columns["density"] == 0, tuple(json.loads(layers))
            summary = NeuronSummary(**columns, score=score, is_dead=is_dead, top_tokens=shown, also_in=also_in)
            summaries.append(summary)
        return summaries, total


def equal_bins(ends: list[float], counts: list[int]) -> Histogram:
    """Of bins of equal width between two `ends`; empty if there are no counts."""
    edges = np.linspace(ends[0], ends[1], len(counts) + 1).tolist() if counts else []
    return Histogram(edges=tuple(edges), counts=tuple(counts))
