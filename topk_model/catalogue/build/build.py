"""`topk catalogue`: build the neuron catalogue of a model and of its checkpoints.

One pass over text for each checkpoint, the same text for all; the figures, labels and effects come from their own
modules. The memory needed is about 8 bytes * tokens * TopK layers * k, and 0.7 GB for torch and the words.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from topk_model.catalogue.build import effects, labels, raising, statistics
from topk_model.catalogue.build.effects import ABLATED_POSITIONS, Ablation, ablation_effects, extremes, logit_effects
from topk_model.catalogue.build.examples import top_positions
from topk_model.catalogue.build.firings import Firings, States, count_together, read_states
from topk_model.catalogue.build.labels import Labeller
from topk_model.catalogue.build.lexicon import SplitText, prepare
from topk_model.catalogue.build.options import CatalogueConfig
from topk_model.catalogue.build.raising import Raising, raise_all
from topk_model.catalogue.build.statistics import BRIEF, FULL, Reading, layer_figures, related, same_layers, strengths
from topk_model.catalogue.build.texts import Texts, special_ids, texts_of_data, texts_of_file, token_texts
from topk_model.catalogue.build.words import Vocabulary, split_words, word_vectors
from topk_model.catalogue.file import CATALOGUE_FILE, EARLY_POSITIONS, FORMAT_VERSION, Row, information, write_catalogue
from topk_model.catalogue.reader import CatalogueFacts
from topk_model.checkpoints import (
    checkpoint_folder,
    list_checkpoints,
    load_model,
    load_tokenizer,
    read_config,
)
from topk_model.files import read_json
from topk_model.model_folder import output_beside, weights_digest
from topk_model.modeling import TopKLMForCausalLM

#: Tokens per window, without BOS; fewer if the model's context is shorter.
WINDOW_TOKENS = 255
#: Number of tokens of running text from which word vectors are learned, if there are that many.
WORD_TOKENS = 3_000_000
#: Share of the texts in which neurons are ablated, and that many tokens again are held out for the labels at most.
ABLATION_SHARE = 0.2
HELD_OUT_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Material:
    """The texts that all checkpoints read, and what is known about them without a model."""

    texts: Texts
    held_out: Texts
    sample: Texts  # the first part of the texts, in which neurons are ablated
    tokens: list[str]  # text of every token id
    is_shown: NDArray[np.bool_]  # [vocab]: tokens that an effect may name
    vocabulary: Vocabulary
    vectors: NDArray[np.float32]
    word_of: NDArray[np.int32]  # [positions of texts]
    labeller: Labeller


def gather(config: CatalogueConfig, tokenizer: PreTrainedTokenizerBase, context: int, vocab_size: int) -> Material:
    """Choose the texts and learn their words. Raises like `texts_of_data` and `texts_of_file`."""
    length = min(WINDOW_TOKENS, context - 1)
    held_out_tokens = round(config.tokens * HELD_OUT_SHARE)
    if config.text is not None:
        texts, held_out = texts_of_file(
            config.text, tokenizer, length=length, num_tokens=config.tokens, seed=config.seed
        )
        running = texts
    else:

        def chosen(split: str, num_tokens: int) -> Texts:
            return texts_of_data(
                config.data, tokenizer, split=split, length=length, num_tokens=num_tokens, seed=config.seed
            )  # fmt: skip

        texts, held_out = chosen("train", config.tokens), chosen("validation", held_out_tokens)
        running = chosen("train", max(WORD_TOKENS, config.tokens))  # the texts are its first windows
    tokens = token_texts(tokenizer, vocab_size)
    special = set(special_ids(tokenizer))
    words, begins = split_words(running, tokens)
    vocabulary = Vocabulary.of(words)
    word_of = vocabulary.number(words[: len(texts.ids)])
    held_out_words, held_out_begins = split_words(held_out, tokens)
    counts = np.bincount(texts.ids, minlength=vocab_size)
    of_token = information(counts.astype(np.float64), special_ids(tokenizer))
    lexicon, *passages = prepare(
        vocabulary,
        tokens,
        SplitText(texts=texts, words=word_of, begins=begins[: len(texts.ids)], information=of_token[texts.ids]),
        SplitText(
            texts=held_out,
            words=vocabulary.number(held_out_words),
            begins=held_out_begins,
            information=of_token[held_out.ids],
        ),
    )
    return Material(
        texts=texts,
        held_out=held_out,
        sample=texts.first(round(len(texts.ids) * ABLATION_SHARE)),
        tokens=tokens,
        is_shown=np.array([bool(text) and i not in special for i, text in enumerate(tokens)]),
        vocabulary=vocabulary,
        vectors=word_vectors(words, vocabulary),
        word_of=word_of,
        labeller=Labeller(lexicon, *passages),
    )


class Builder:
    """Builds the catalogue of one checkpoint: `read`, then `rows`."""

    def __init__(self, model: TopKLMForCausalLM, bos_id: int | None, material: Material, reading: Reading) -> None:
        self.model, self.bos_id, self.material, self.reading = model, bos_id, material, reading
        self.config = model.config
        self.is_shown = torch.from_numpy(material.is_shown)
        self.states: list[States] = []
        self.held_out: list[States] = []
        self.ablations: list[dict[str, Any] | None] = []
        self.steering: list[list[dict[str, Any] | None]] = [[None] * model.config.hidden_size] * len(
            self.config.topk_layers
        )

    @property
    def num_windows(self) -> int:
        """The number that `read` will read."""
        return len(self.material.texts) + len(self.material.held_out) + len(self.material.sample)

    def read(self, advance: Callable[[int], object]) -> None:
        """Do everything that needs the model; `advance` is called as windows are read."""
        self.states = read_states(self.model, self.material.texts, self.bos_id, advance)
        self.held_out = read_states(self.model, self.material.held_out, self.bos_id, advance)
        self.ablations = self.ablate(advance)

    def steer(self, advance: Callable[[int], object]) -> None:
        """What raising each neuron does; `advance` is told of neurons as they are done. After `read`."""
        config = self.config
        maxima = np.zeros((len(self.states), config.hidden_size), dtype=np.float32)
        for row, states in zip(maxima, self.states, strict=True):
            np.maximum.at(row, states.indices.ravel(), strengths(states.values.ravel(), config.topk_select))
        measured = Raising(self.model, self.material.held_out, self.bos_id, self.is_shown)
        self.steering = raise_all(measured, config.topk_layers, maxima, advance)

    def rows(self) -> Iterator[Row]:
        """The row of every neuron, in order."""
        config, material = self.config, self.material
        counts = np.stack([states.counts(config.hidden_size) for states in self.states])
        logits = logit_effects(self.model, self.is_shown, self.reading.detail.effects)
        for place, layer in enumerate(config.topk_layers):
            # One layer at a time: sorted by neuron, the states need the same amount of memory again.
            firings = Firings.of(self.states[place], config.hidden_size)
            together = count_together(self.states, config.hidden_size, place)
            same = same_layers(together, counts, place, material.texts.num_counted)
            near = related(together, counts, place, material.texts.num_counted, self.reading.detail.related)
            labels = material.labeller.layer_labels(firings, Firings.of(self.held_out[place], config.hidden_size))
            for neuron, (columns, page, words) in enumerate(layer_figures(firings, self.reading)):
                label = labels[neuron]
                columns |= {"layer": layer, "neuron": neuron, "label": label and label.text}
                columns["also_in"] = json.dumps([config.topk_layers[p] for p in same[neuron]])
                columns |= {"label_source": label and label.source, "label_score": label and label.score}
                page["evidence"] = list(label.evidence) if label else []
                page["related"] = [[config.topk_layers[p], n, pmi] for p, n, pmi in near[neuron]]
                page["steering"] = self.steering[place][neuron]
                page["logits"] = logits[neuron]
                page["ablation"] = self.ablations[place * config.hidden_size + neuron]
                yield Row(columns=columns, page=page, words=words)

    def ablate(self, advance: Callable[[int], object]) -> list[dict[str, Any] | None]:
        """The effect of ablating each neuron, in its page's format; None if it does not fire in the sample."""
        texts = self.material.sample
        has_next = np.ones(len(texts.ids), dtype=bool)
        has_next[texts.starts[1:] - 1] = False
        ablations = []
        for place, layer in enumerate(self.config.topk_layers):
            firings = Firings.of(self.states[place].first(len(texts.ids)), self.config.hidden_size)
            for neuron in range(self.config.hidden_size):
                positions, values = firings[neuron]
                usable = np.flatnonzero(has_next[positions])
                strength = strengths(values[usable], self.config.topk_select)
                ablations += [
                    Ablation(layer=layer, neuron=neuron, number=place * self.config.hidden_size + neuron, position=peak)
                    for peak in top_positions(positions[usable], strength, texts, ABLATED_POSITIONS)
                ]
        num_neurons = len(self.states) * self.config.hidden_size
        changes, is_likely, losses, counts = ablation_effects(
            self.model, texts, self.bos_id, ablations, num_neurons, advance
        )
        found = extremes(changes, self.is_shown & is_likely, self.reading.detail.effects)
        return [
            {"positive": raised, "negative": lowered, "loss_change": loss, "num_positions": count} if count else None
            for (raised, lowered), loss, count in zip(found, losses.tolist(), counts.tolist(), strict=True)
        ]


def training_step(folder: Path) -> int | None:
    """The last training step of a finished model, if `training.json`, or the run that it ends, gives it."""
    path = folder.parent / "run.json" if folder.name == "final" else folder / "training.json"
    step = read_json(path).get("steps") if path.is_file() else None
    return step if isinstance(step, int) else None


def build_catalogue(config: CatalogueConfig) -> None:
    """Write the catalogue of every checkpoint that `config` names. Each file is complete or does not exist.

    Raises:
        FileNotFoundError: the model, a checkpoint or the texts are missing.
        ValueError: the model has no TopK layer, or the texts do not match it.
        FloatingPointError: an activation is not finite.
    """
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    steps = wanted_steps(config)
    place = output_beside(config.model, config.output)
    shape = read_config(checkpoint_folder(config.model, steps[0]))
    if not shape.num_topk_layers:
        raise ValueError(f"{config.model} has no TopK layer: n_nontopk equals its number of layers")
    tokenizer = load_tokenizer(checkpoint_folder(config.model, steps[0]))
    material = gather(config, tokenizer, shape.max_position_embeddings, shape.vocab_size)
    for step in steps:
        folder = checkpoint_folder(config.model, step)
        output = place / folder.relative_to(config.model)
        output.mkdir(parents=True, exist_ok=True)
        name = "the model" if step is None else f"step {step}"
        build_one(config, material, step, folder, output / CATALOGUE_FILE, name)


def wanted_steps(config: CatalogueConfig) -> list[int | None]:
    """The steps to process; None stands for the model itself, which comes first."""
    if config.steps is not None:
        return list(config.steps)
    return [None, *(list_checkpoints(config.model) if config.checkpoints else [])]


def build_one(
    config: CatalogueConfig, material: Material, step: int | None, folder: Path, path: Path, name: str
) -> None:
    """Write the catalogue of one checkpoint; see `build_catalogue` for Raises."""
    model, tokenizer = load_model(config.model, step=step, device=config.device, dtype=torch.float32)
    shape = model.config
    places = material.texts.place() + int(tokenizer.bos_token_id is not None)
    counts = np.bincount(material.texts.ids, minlength=shape.vocab_size)
    of_token = information(counts.astype(np.float64), special_ids(tokenizer))
    reading = Reading(
        texts=material.texts,
        is_early=places < EARLY_POSITIONS,
        is_piece=material.labeller.shown.pieces >= 0,
        information=of_token[material.texts.ids],
        select=shape.topk_select,
        vocab_size=shape.vocab_size,
        word_of=material.word_of,
        vectors=material.vectors,
        words=material.vocabulary.names,
        decode=tokenizer.decode,
        tokens=material.tokens,
        detail=FULL if step is None else BRIEF,
    )
    facts = CatalogueFacts(
        format_version=FORMAT_VERSION,
        weights=weights_digest(folder),
        texts=material.texts.digest(),
        step=training_step(folder) if step is None else step,
        k=shape.topk_k,
        select=shape.topk_select,
        hidden_size=shape.hidden_size,
        layers=tuple(shape.topk_layers),
        num_tokens=material.texts.num_counted,
        num_texts=len(material.texts),
        num_held_out_tokens=material.held_out.num_counted,
        definitions=statistics.definitions(shape.topk_select)
        | labels.DEFINITIONS
        | effects.DEFINITIONS
        | raising.DEFINITIONS,
    )
    num_neurons = shape.num_topk_layers * shape.hidden_size
    builder = Builder(model, tokenizer.bos_token_id, material, reading)
    with tqdm(total=builder.num_windows, desc=f"{name}: reading", unit="window") as bar:
        builder.read(bar.update)
    if reading.detail.steering:
        with tqdm(total=num_neurons, desc=f"{name}: raising", unit="neuron") as bar:
            builder.steer(bar.update)
    rows = tqdm(builder.rows(), total=num_neurons, desc=f"{name}: summing up", unit="neuron")
    write_catalogue(path, asdict(facts), material.tokens, counts.tolist(), special_ids(tokenizer), rows)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
