"""`topk neurons`: reads a model's neuron catalogue from the command line, without a server.

One neuron's page as text, a list, a search by text or by contrast, and a picture of one neuron's history. A search
runs the model; everything else needs only its catalogue.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from topk_model.catalogue.history import history
from topk_model.catalogue.judging import LABELS_FILE, PASSAGES_FILE, write_sample
from topk_model.catalogue.neuron import Example, Histogram, Neuron, Steering, TokenEffect
from topk_model.catalogue.options import NeuronsConfig
from topk_model.catalogue.plots import plot_history
from topk_model.catalogue.reader import Catalogue, NeuronQuery
from topk_model.catalogue.search import TextFirings, hits, score_contrast, score_text
from topk_model.checkpoints import checkpoint_folder, load_model
from topk_model.files import read_text
from topk_model.generate import trace_text

BARS = " ▁▂▃▄▅▆▇█"
SHOWN_TOKENS = 10


def neurons(config: NeuronsConfig) -> None:
    """Print what the options request.

    Raises:
        FileNotFoundError: the model, its catalogue or a file of texts is missing.
        ValueError: the catalogue cannot be used, there is no such neuron, or a text cannot be read by the model.
    """
    catalogue = Catalogue.open(checkpoint_folder(config.model, config.step))
    try:
        if config.layer is not None:
            catalogue.number(config.layer, 0)
        lines = list(answer(config, catalogue))
    except IndexError as error:
        raise ValueError(str(error)) from None
    print("\n".join(lines))


def answer(config: NeuronsConfig, catalogue: Catalogue) -> Iterator[str]:
    """The lines to print."""
    if config.neuron is not None and config.layer is not None:
        yield from page_lines(catalogue.neuron(config.layer, config.neuron))
        if config.plot is not None:
            plot_history(history(config.model, config.layer, config.neuron), config.plot)
            yield f"\nhistory: {config.plot}"
    elif config.sample is not None and config.output is not None:
        count = write_sample(catalogue, config.sample, config.seed, config.output)
        yield f"{count} neurons: {config.output / PASSAGES_FILE}, and their labels: {config.output / LABELS_FILE}"
    elif config.text is not None or config.positive is not None:
        yield from match_lines(search(config, catalogue), catalogue, config)
    else:
        yield from list_lines(config, catalogue)


def search(config: NeuronsConfig, catalogue: Catalogue) -> NDArray[np.float64]:
    """Scores `[TopK layers, hidden_size]` of the neurons for the texts that `config` names."""
    model, tokenizer = load_model(config.model, step=config.step, device=config.device)

    def firings(texts: Iterable[tuple[str, str]]) -> TextFirings:
        found = TextFirings.none(catalogue)
        for where, text in texts:
            try:
                trace = trace_text(model, tokenizer, text, name="", step=None)
            except ValueError as error:
                raise ValueError(f"{where}{error}") from None
            found += TextFirings.of(trace.chunk, trace.token_ids, catalogue)
        return found

    if config.text is not None:
        return score_text(firings([("", config.text)]))
    assert config.positive is not None
    assert config.negative is not None
    return score_contrast(firings(texts_in(config.positive)), firings(texts_in(config.negative)))


def texts_in(path: Path) -> list[tuple[str, str]]:
    """The non-empty lines of a file, each with its position before it. Raises ValueError if there is none."""
    lines = read_text(path).split("\n")
    texts = [(f"line {i} of {path}: ", line.rstrip("\r")) for i, line in enumerate(lines, start=1) if line.strip()]
    if not texts:
        raise ValueError(f"{path} contains no text")
    return texts


def match_lines(scores: NDArray[np.float64], catalogue: Catalogue, config: NeuronsConfig) -> Iterator[str]:
    layers = catalogue.facts.layers
    yield f"{'layer':>5} {'neuron':>6} {'score':>6} {'density':>8}  label, or top tokens"
    among = layers if config.layer is None else [config.layer]
    for row, neuron in hits(scores, catalogue, among, config.limit):
        page = catalogue.neuron(layers[row], neuron)
        words = page.label.text if page.label else shown_tokens([top.token for top in page.top_tokens[:5]])
        same = f"  (also in {', '.join(map(str, page.also_in))})" if page.also_in else ""
        yield f"{layers[row]:5d} {neuron:6d} {scores[row, neuron]:6.2f} {page.density:8.2%}  {words}{same}"
        yield from map(example_line, page.top_examples[: config.examples])


def list_lines(config: NeuronsConfig, catalogue: Catalogue) -> Iterator[str]:
    names = {"layer", "label", "min_density", "max_density", "min_token_entropy", "max_token_entropy", "order", "limit"}
    found, total = catalogue.neurons(NeuronQuery(**config.model_dump(include=names)))
    yield f"{'layer':>5} {'neuron':>6} {'density':>8} {'entropy':>7} {'max':>7}  label, or top tokens"
    for one in found:
        words = one.label or shown_tokens(one.top_tokens)
        figures = f"{one.density:8.2%} {figure(one.token_entropy):>7} {figure(one.max):>7}"
        yield f"{one.layer:5d} {one.neuron:6d} {figures}  {words}"
    yield f"{len(found)} of {total} neurons"


def page_lines(page: Neuron) -> Iterator[str]:
    """Everything about one neuron, for people to read."""
    yield f"layer {page.layer}, neuron {page.neuron}" + (": never active" if page.is_dead else "")
    if page.label is not None:
        yield f"{'label':14s}{page.label.text}  ({page.label.source}, score {page.label.score:.2f})"
        yield f"{'evidence':14s}{'; '.join(page.label.evidence)}"
    yield f"{'density':14s}{page.density:.2%} of positions"
    if page.is_dead:
        return
    yield f"{'entropy':14s}tokens {figure(page.token_entropy)} bits, meanings {figure(page.semantic_entropy)} bits"
    quantiles = ", ".join(f"{float(name):.1%} {value:.2f}" for name, value in page.quantiles.items())
    yield f"{'activation':14s}mean {figure(page.mean)}, {quantiles}, max {figure(page.max)}"
    yield f"{'':14s}{bars(page.histogram)}"
    tops = (f"{shown(top.token)} {top.share:.0%}" for top in page.top_tokens[:SHOWN_TOKENS])
    yield f"{'top tokens':14s}{'  '.join(tops)}"
    if page.steering is not None:
        yield from steering_lines(page.steering)
    yield f"{'writes':14s}+ {effects(page.logit_effect.positive)}"
    yield f"{'':14s}- {effects(page.logit_effect.negative)}"
    yield f"{'':14s}({page.logit_effect.note})"
    if (ablated := page.ablation_effect) is not None:
        yield f"{'ablated':14s}+ {effects(ablated.positive)}"
        yield f"{'':14s}- {effects(ablated.negative)}"
        yield f"{'':14s}loss {ablated.loss_change:+.3f} nats per token at {ablated.num_positions} positions"
    near = (f"{n.layer}/{n.neuron} {n.pmi:.1f}" + (f" ({n.label})" if n.label else "") for n in page.related)
    yield f"{'fires with':14s}{'  '.join(near)}"
    yield "fires most in"
    yield from map(example_line, page.top_examples)
    yield "strongest at"
    yield from map(example_line, page.strongest_firings)


def steering_lines(steering: Steering) -> Iterator[str]:
    """What raising the neuron brings, and its curve."""
    yield f"{'raised':14s}+ {effects(steering.words)}"
    yield f"{'':14s}best at {steering.in_units_of_max:g} x max, which adds {steering.value:.2f}"
    for point in steering.curve:
        figures = f"{point.share:6.1%} of what comes next, log-odds {point.log_odds:+.2f}, cost {point.cost:+.2f} nats"
        yield f"{'':14s}{point.in_units_of_max:5.2f} x max: {figures}"


def example_line(example: Example) -> str:
    """The strongest activation and the text; firings at least half as strong are between « and »."""
    tokens = [token.replace("\n", "⏎") for token in example.tokens]
    for i, activation in enumerate(example.activations):
        if activation and abs(activation) >= abs(example.max) / 2:
            tokens[i] = f"{' ' * tokens[i].startswith(' ')}«{tokens[i].strip()}»"
    source = f"   [{example.source}]" if example.source else ""
    return f"{example.max:12.2f}  {''.join(tokens).strip()}{source}"


def bars(histogram: Histogram) -> str:
    """A line of bars, from the weakest to the strongest activation."""
    largest = max(histogram.counts, default=0) or 1
    heights = (-(-count * (len(BARS) - 1) // largest) for count in histogram.counts)
    ends = f"{histogram.edges[0]:.2f}", f"{histogram.edges[-1]:.2f}"
    return f"{ends[0]} {''.join(BARS[height] for height in heights)} {ends[1]}"


def effects(tokens: Sequence[TokenEffect]) -> str:
    return "  ".join(f"{shown(one.token)} {one.value:+.2f}" for one in tokens[:SHOWN_TOKENS])


def shown_tokens(tokens: Iterable[str]) -> str:
    return " ".join(map(shown, tokens))


def shown(token: str) -> str:
    return json.dumps(token, ensure_ascii=False)


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
