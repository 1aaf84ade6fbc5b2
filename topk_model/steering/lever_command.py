"""`topk lever`: find levers for any words or texts from the command line, without a server."""

from collections.abc import Callable, Iterator
from functools import partial

from transformers import PreTrainedTokenizerBase

from topk_model.catalogue.reader import Catalogue
from topk_model.catalogue.show import texts_in
from topk_model.checkpoints import checkpoint_folder, load_model
from topk_model.generate import continue_text
from topk_model.model_folder import HELD_OUT
from topk_model.modeling import TopKLMForCausalLM
from topk_model.special_tokens import text_ids
from topk_model.steering.bench import Lever, moved
from topk_model.steering.finder import Found, LeverFinder, ordinary_texts
from topk_model.steering.lever_options import LeverConfig
from topk_model.steering.levers import Bar, Measurement
from topk_model.steering.plots import plot_levers
from topk_model.steering.words import MIN_TEXT_TOKENS, Contrast, WordTree, word_ids

#: What is known of a neuron: its label, and its largest activation.
Known = Callable[[Lever], tuple[str | None, float | None]]


def lever(config: LeverConfig) -> None:
    """Print the levers, and draw them if a picture is wanted.

    Raises:
        FileNotFoundError: the model or a file of texts is missing.
        ValueError: the model or its catalogue cannot be read, the model has no TopK layer, or it cannot read a word, a
            text or the prompt.
    """
    model, tokenizer = load_model(config.model, step=config.step, device=config.device)
    if not model.config.topk_layers:
        raise ValueError("n_nontopk equals the number of layers: the model has no TopK layer, and no neuron to move")
    with Bar() as bar:
        finder = LeverFinder(model, ordinary_texts(config.model / HELD_OUT, model, tokenizer, bar))
        find: Callable[..., Found]
        if config.words is not None:
            find = partial(finder.of_words, tree_of(config.words, model, tokenizer))
        else:
            find = partial(finder.of_texts, contrast_of(config, model, tokenizer))
        found = find(max_cost=config.max_cost, limit=config.limit, watch=bar)
    known, levers = catalogued(config), [one.lever for one in found.search.levers]
    print("\n".join(table(found, known)))
    if config.prompt is not None:
        sampling = config.model_dump(include={"max_tokens", "temperature", "seed"})
        write = partial(continue_text, model, tokenizer, config.prompt, **sampling)
        print(f"\n{'plain':10s}{config.prompt}{write()}")
        for one in levers:
            print(f"{place(one):10s}{config.prompt}{write(sparsify=moved(model, one))}")
    if config.plot is not None and levers:
        plot_levers(found.search.levers, [f"{place(one)}  {known(one)[0] or ''}" for one in levers], config.plot)
        print(f"\neffect over cost: {config.plot}")


def tree_of(words: list[str], model: TopKLMForCausalLM, tokenizer: PreTrainedTokenizerBase) -> WordTree:
    """Raises ValueError if the model cannot read a word."""

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    tree, context = WordTree.of([word_ids(encode, word) for word in words]), model.config.max_position_embeddings
    if tree.depth >= context // 2:
        raise ValueError(f"--words has one of {tree.depth + 1} tokens, must be at most {context // 2}")
    return tree


def contrast_of(config: LeverConfig, model: TopKLMForCausalLM, tokenizer: PreTrainedTokenizerBase) -> Contrast:
    """Raises ValueError if the model cannot read a text, or there is none."""
    assert config.towards is not None
    assert config.away is not None
    sides, context = [], model.config.max_position_embeddings
    for path in (config.towards, config.away):
        several = [(where, tuple(text_ids(tokenizer, text))) for where, text in texts_in(path)]
        for where, ids in several:
            if not MIN_TEXT_TOKENS <= len(ids) <= context:
                raise ValueError(f"{where}{len(ids)} tokens, must be between {MIN_TEXT_TOKENS} and {context}")
        sides.append([ids for _, ids in several])
    return Contrast(towards=sides[0], away=sides[1])


def catalogued(config: LeverConfig) -> Known:
    """What the model's catalogue knows of a neuron; nothing if there is none."""
    try:
        catalogue = Catalogue.open(checkpoint_folder(config.model, config.step))
    except FileNotFoundError:
        return lambda _: (None, None)
    return lambda one: (catalogue.labels([(one.layer, one.neuron)])[0], catalogue.maximum(one.layer, one.neuron))


def table(found: Found, known: Known) -> Iterator[str]:
    """The levers; if there is none, what was tried."""
    search = found.search
    begins = f"log-odds {found.log_odds:.2f}" + ("" if found.rate is None else f", {1000 * found.rate:.3f} in 1,000")
    yield f"plain model: {begins}"
    if not search.levers:
        yield f"No neuron moves this; {len(search.tried)} were tried, here on the texts for finding:"
    yield f"{'layer':>5} {'neuron':>6} {'value':>8} {'x max':>6} {'log-odds':>14} {'cost':>6} {'in 1,000':>8}  label"
    rows: list[tuple[Lever, Measurement]] = [(one.lever, one.effect) for one in search.levers or search.tried]
    for one, effect in rows:
        label, largest = known(one)
        multiple = f"{one.value / largest:6.2f}" if largest else f"{'-':>6}"
        rise = f"{effect.log_odds:+.2f} ± {effect.error:.2f}"
        rate = "-" if effect.rate is None else f"{1000 * effect.rate:.3f}"
        yield (
            f"{one.layer:5d} {one.neuron:6d} {one.value:8.2f} {multiple} {rise:>14} {effect.cost:6.2f} {rate:>8}  "
            f"{label or '-'}"
        )


def place(one: Lever) -> str:
    return f"{one.layer}/{one.neuron}"
