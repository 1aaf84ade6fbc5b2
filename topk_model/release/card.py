"""The model card of a shipped model: a text generated only from the measured facts in its folder."""

from pathlib import Path
from typing import Any

from topk_model.checkpoints import list_checkpoints, read_config
from topk_model.configuration import TopKLMConfig
from topk_model.files import read_json, replace_text
from topk_model.steering.presets import MAX_COST, MIN_LOG_ODDS
from topk_model.training.stories import HELD_OUT_SHARE

FRONT_MATTER = """---
language: en
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags:
- topk-lm
- sparse-activations
- interpretability
---
"""

#: For a model trained on the user's own texts, whose language and licence we do not know.
FRONT_MATTER_OF_OTHERS = FRONT_MATTER.replace("language: en\nlicense: apache-2.0\n", "license: other\n")

WHAT_ANY_CAN_DO = """It continues text like that on which it was trained. It is a base model: it follows no
instructions, and nothing was done to filter what it writes. It is made for inspection: every neuron of its TopK layers
can be traced and steered. It is not made for giving anyone information or advice."""

WHAT_IT_CAN_DO = """It continues English prose in the register of the books it was trained on. It is a base model of
a few million parameters: it follows no instructions, knows no facts, loses the thread within a few sentences, and
repeats itself at low temperatures. The books are old, and their views of people are those of their time; nothing was
done to filter what the model writes. It is made for inspection: every neuron of its TopK layers can be traced and
steered. It is not made for giving anyone information or advice."""

WHAT_STORIES_TEACH = """It continues short stories in the simple English of those it was trained on. It is a base
model of a few million parameters: it follows no instructions, knows no facts, and loses the thread after a few
sentences. Most of its stories were themselves written by a language model; nothing was done to filter what this one
writes. It is made for inspection: every neuron of its TopK layers can be traced and steered. It is not made for giving
anyone information or advice."""

WHAT_IS_OURS = """The idea of the sparse residual stream is from *TopK Language Models* (Takahashi, Inaba, Inui,
Heinzerling, arXiv 2506.21468). The public material gives no k, no width and no training recipe: k, the number of dense
layers, the shape and the recipe here are choices of this project, and no replication of the paper's results is
claimed."""

USE = """`topk generate --prompt "Once upon a time,"` and `topk trace --text "…"` read it without a server, `topk serve`
serves it. In Python:

```python
from topk_model.checkpoints import load_model

model, tokenizer = load_model("path/to/this/folder")
```

The weights are stored in float16 and load to float32 without a change. Parameter names and shapes are those of
transformers' Llama."""


#: The files that the card is generated from; the last two may be missing.
TRAINING, SOURCES, SAMPLES, EVALUATION, NOTES = (
    "training.json", "sources.json", "samples.json", "evaluation.json", "notes.md",
)  # fmt: skip

#: Figures of the evaluation: description, name in the record, and format.
FIGURES = (
    ("loss, nats per token", "val_loss", "{}"),
    ("median token entropy of a neuron, bits", "median_token_entropy", "{}"),
    ("neurons that are never active", "dead_neuron_share", "{:.1%}"),
    ("concepts that one neuron steers", "num_concepts_steered", "{}"),
)


def check_card(folder: Path) -> None:
    """Raises FileNotFoundError if a file that the card needs is missing."""
    for name in (TRAINING, SOURCES, SAMPLES):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}, which the model card needs, is missing; see topk ship")


def write_card(folder: Path) -> None:
    """Write `README.md` from the files in a shipped model's folder.

    Raises:
        FileNotFoundError: one of the files that it needs is missing.
        ValueError: one of these files is damaged.
    """
    config, record, sources = read_config(folder), read_json(folder / TRAINING), read_json(folder / SOURCES)
    is_of_books = "texts" not in sources
    sections = {
        "Shape": shape(config, record["parameters"]),
        "Training": training(record, list_checkpoints(folder), held_out_of(sources)),
        "Data": data(sources, config.vocab_size),
        "What it can and cannot do": what_it_can_do(sources),
        "Samples": sample_texts(read_json(folder / SAMPLES)) or "None were written.",
    }
    if (folder / EVALUATION).exists():
        sections["Evaluation"] = evaluation(read_json(folder / EVALUATION), record["config"]["anneal_steps"])
    if (folder / NOTES).exists():
        sections["How it was decided"] = (folder / NOTES).read_text(encoding="utf-8").strip()
    sections |= {"What is ours": WHAT_IS_OURS, "Use": USE}
    front_matter = FRONT_MATTER if is_of_books else FRONT_MATTER_OF_OTHERS
    title = f"{front_matter}\n# A TopK language model of {record['parameters'] / 1e6:.1f}M parameters\n"
    text = title + "".join(f"\n## {heading}\n\n{body}\n" for heading, body in sections.items())
    replace_text(folder / "README.md", text)


def held_out_of(sources: dict[str, Any]) -> str:
    """What the validation passages were taken from."""
    if "texts" in sources:
        return "texts"
    return "stories and books" if sources.get("stories") else "books"


def what_it_can_do(sources: dict[str, Any]) -> str:
    if "texts" in sources:
        return WHAT_ANY_CAN_DO
    return WHAT_STORIES_TEACH if sources.get("stories") else WHAT_IT_CAN_DO


def table(rows: list[tuple[str, Any]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def shape(config: TopKLMConfig, num_parameters: int) -> str:
    layers = config.num_hidden_layers
    rule = "largest values" if config.topk_select == "signed" else "largest magnitudes"
    return table(
        [
            ("parameters", f"{num_parameters:,}"),
            ("layers", f"{layers}: {config.num_topk_layers} TopK, then {config.n_nontopk} dense (`n_nontopk`)"),
            ("width of the residual stream = neurons per layer", config.hidden_size),
            ("kept after each TopK layer (`topk_k`)", f"{config.topk_k}, the {rule} (`{config.topk_select}`)"),
            ("MLP width (SwiGLU)", config.intermediate_size),
            (
                "attention",
                f"{config.num_attention_heads} query heads, {config.num_key_value_heads} key-value heads, RoPE",
            ),
            ("context", f"{config.max_position_embeddings} tokens"),
            ("embeddings", "tied" if config.tie_word_embeddings else "not tied"),
        ]
    )


def training(record: dict[str, Any], steps: list[int], held_out_of: str) -> str:
    options = record["config"]
    last_of_several = "" if record.get("schedule_kept", True) else ": the last of several that this run had"
    windows = record["tokens"] // record["steps"] // options["context"]
    rows = [
        ("steps", f"{record['steps']:,} of {windows} windows of {options['context']} tokens"),
        ("tokens", f"{record['tokens']:,}"),
        ("hours of training steps", record["hours"]),
        ("optimiser", optimiser(options)),
        (
            "schedule",
            f"{options['warmup_steps']} steps up, constant, linear decay over the last {options['decay_share']:.0%}"
            + last_of_several,
        ),
        *objective(options, last_of_several),
        ("k", f"falls from dense over {options['anneal_steps']} steps"),
        ("started from", record["started_from"] or "random weights"),
        ("training loss, mean of the last 100 steps", f"{record['final_training_loss']} nats per token"),
        ("validation loss of these weights", f"{record['validation_loss']} nats per token"),
        ("", f"{record['validation_bits_per_byte']} bits per byte"),
    ]
    held_out = (
        f"Validation is over {record['validation_tokens']:,} tokens of passages held out of the same {held_out_of}."
    )
    kept = f" Checkpoints of steps {', '.join(map(str, steps))} are in `checkpoints/`." if steps else ""
    if any(step < options["anneal_steps"] for step in steps):
        kept += f" Those before step {options['anneal_steps']} were trained with a larger k and run with the final one."
    return f"{table(rows)}\n\n{held_out} All options are in `training.json`.{kept}\n\n![loss](loss.png)"


def objective(options: dict[str, Any], last_of_several: str) -> list[tuple[str, str]]:
    """The row of an objective that is not the cross-entropy throughout."""
    if not (gamma := options.get("tailr_gamma")):
        return []
    return [
        (
            "objective",
            f"cross-entropy; in the last {options['tailr_share']:.0%} of the steps TaiLr with γ = {gamma:g} (Ji et al. "
            "2023, arXiv 2302.13344): tokens that the model finds unlikely count less, which costs held-out loss and "
            f"makes sampled text plainer{last_of_several}",
        )
    ]


def optimiser(options: dict[str, Any]) -> str:
    adamw = f"AdamW, learning rate {options['learning_rate']}"
    if options["optimizer"] == "muon":
        adamw = f"Muon, learning rate {options['muon_learning_rate']}, for the blocks' matrices, {adamw} for the rest"
    return f"{adamw}, weight decay {options['weight_decay']}"


def data(sources: dict[str, Any], vocab_size: int) -> str:
    tokenizer = f"The tokenizer has {vocab_size:,} tokens; it adds one beginning-of-text token before a text."
    if "texts" in sources:
        texts = sources["texts"]
        return (
            f"{texts['documents']:,} documents of `{texts['name']}`, {texts['chars'] / 1e6:.2f} million characters. "
            f"Licence: {sources['licence']}. Every title is in `sources.json`. Passages are held out for validation by "
            f"what they say.\n\n{tokenizer}"
        )
    parts = [stories(sources["stories"]) if sources.get("stories") else "", books(sources)]
    held_out = "One passage of the books in a hundred is held out"
    held_out += f", and {HELD_OUT_SHARE:.0%} of the stories." if sources.get("stories") else "."
    parts[-1] += f" {held_out}"
    parts.append(tokenizer)
    return "\n\n".join(part for part in parts if part)


def stories(sets: list[dict[str, Any]]) -> str:
    """The table of the sets of stories used."""
    rows = [("stories", "number", "million characters", "times per pass", "licence")]
    rows += [
        (f"[{s['name']}]({s['url']})", f"{s['stories']:,}", f"{s['chars'] / 1e6:.2f}", str(s["passes"]), s["licence"])
        for s in sets
        if s["passes"]
    ]
    heading, *lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([heading, "|---" * len(rows[0]) + "|", *lines])


def books(sources: dict[str, Any]) -> str:
    found, topics, passes = sources["books"], sources.get("topics", []), sources.get("topic_passes", 0)
    again = (
        f" They are followed by the paragraphs of the entire collection about one of {len(topics)} everyday "
        f"topics, {sum(topic['chars'] for topic in topics) / 1e6:.1f} million characters, grouped by topic and "
        f"added {'once' if passes == 1 else f'{passes} times'}, because without them no neuron stood for a topic as "
        "rare in prose as war."
    )
    harder = f"books with a Flesch reading ease below {sources['min_reading_ease']} were left out"
    if sources.get("min_common_share"):
        harder += (
            f", as were those with less than {sources['min_common_share']:.1%} of their words among the 3,000 "
            "commonest of the first set of stories"
        )
    return (
        f"{len(found)} books, {sum(book['chars'] for book in found) / 1e6:.1f} million characters, from "
        f"<{sources['collection']}>. Licence: {sources['licence']}. Every title is in `sources.json`; {harder}."
        f"{again if topics else ''}"
    )


def sample_texts(record: dict[str, Any]) -> str:
    parts = []
    for drawn in record["samples"]:
        if not (texts := drawn["texts"]):
            continue
        prompts, seeds = {text["prompt"] for text in texts}, {text["seed"] for text in texts}
        quotes = "\n\n".join(quote(f"**{text['prompt']}**{text['continuation']}") for text in texts)
        parts.append(
            f"At temperature {drawn['temperature']}, not selected: {len(prompts)} fixed prompts, each with "
            f"{len(seeds)} seeds, at most {record['max_tokens']} tokens.\n\n{quotes}"
        )
    return "\n\n".join(parts)


def quote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def compared(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """The evaluation's rows, heading first: a figure, the model's value, and its twin's if there is a twin."""
    if not record["dense"]:
        return [("held-out text", "TopK"), *((name, written(record[key], form)) for name, key, form in FIGURES)]
    rows = [(name, written(record[key], form), written(record[f"dense_{key}"], form)) for name, key, form in FIGURES]
    bits = [str(record[key]) for key in ("median_token_entropy", "dense_median_token_entropy_at_k")]
    at_k = ("the same, of the k largest of each position alone", *bits)
    return [("held-out text", "TopK", "dense twin"), *rows[:2], at_k, *rows[2:]]


def written(value: float | None, form: str) -> str:
    """A value of the table; a dash if it was not measured."""
    return "–" if value is None else form.format(value)


def evaluation(record: dict[str, Any], anneal_steps: int) -> str:
    """The model's figures, next to those of its dense twin if it has one.

    Args:
        anneal_steps: before this training step, k was larger.
    """
    measured = "`topk evaluate` reproduces every figure of this section."
    if record["dense"]:
        measured += (
            " The twin has the same shape, data and number of tokens, but no TopK; its neurons are the coordinates of "
            "its states, active at every token. The row that counts only a position's k largest shows how much of the "
            "difference in token entropy is due to sparsity alone."
        )
    heading, *rows = [f"| {' | '.join(row)} |" for row in compared(record)]
    parts = [
        measured,
        "\n".join([heading, "|---" * (heading.count("|") - 1) + "|", *rows]),
        steering(record["topk"]["steering"] or []),
        clicks(record["topk"]["clicks"]),
        emergence(record["emergence"], anneal_steps) if record["emergence"] else "",
    ]
    return "\n\n".join(part for part in parts if part)


def steering(rows: list[dict[str, Any]]) -> str:
    """The table of the presets, strongest first."""
    if not rows:
        return ""
    steers = [row for row in rows if row["steers"]]
    head = (
        f"{len(steers)} of {len(rows)} presets steer, by {len({row['neuron'] for row in steers})} different neurons: "
        f"their words' log-odds rise by at least {MIN_LOG_ODDS} nats at a cost of {MAX_COST}, on the half of the "
        "held-out texts that they were not found on.\n\n"
        "At the strength that a click gives, on that half: change of the log-odds of the concept's words; × max, what "
        "is added to the neuron, in multiples of its largest magnitude on the other; cost, nats per token that the "
        "text written under steering is less likely under the plain model; the concept's words in 100 written tokens "
        "and the share of 4-token runs written twice, plain and steered.\n\n"
        "| concept | layer | neuron | × max | log-odds | cost | words in 100 | repeated |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    lines = [
        f"| {row['name']}{'' if row['steers'] else ' (does not)'} | {row['layer']} | {row['neuron']} | "
        f"{row['strength']:g} | {row['log_odds']:+.2f} | {row['cost']:+.2f} | "
        f"{row['words_per_100_tokens'][0]:.1f} → {row['words_per_100_tokens'][1]:.1f} | "
        f"{row['repetition'][0]:.1%} → {row['repetition'][1]:.1%} |"
        for row in sorted(rows, key=lambda row: -row["log_odds"])
    ]
    curves = "By strength, one curve per concept, the ten strongest neurons in colour:\n\n![steering](steering.png)"
    return "\n\n".join(["\n".join([head, *lines]), curves])


def clicks(record: dict[str, Any] | None) -> str:
    """What one click on a preset gives."""
    if record is None:
        return ""
    counted = [
        (f"the first {record['first']['presets']} presets", record["first"]),
        ("all presets", record),
        *((f"all presets, seed {row['seed']}", row) for row in record["seeds"]),
        *((row["name"], row) for row in record["presets"]),
    ]
    lines = [
        f"| {name} | {row['texts']} | {row['plain']:.0%} | {row['steered']:.0%} | {row['cost']:+.2f} |"
        for name, row in counted
    ]
    return (
        "With one click: the share of texts that hold one of their preset's words, plain and steered, and how much "
        "less likely the steered texts are under the plain model than the plain ones, nats a token. "
        f"{len(record['prompts'])} prompts, {record['tokens']} tokens, temperature {record['temperature']}.\n\n"
        "| | texts | plain | steered | cost |\n|---|---:|---:|---:|---:|\n" + "\n".join(lines)
    )


def emergence(record: dict[str, Any], anneal_steps: int) -> str:
    """When the labelled neurons became what they are, and how similar an index is in consecutive layers."""
    if not record["steps"]:
        return ""
    steps = "\n".join(
        f"| {row['step'] if row['step'] is not None else 'final'} | {row['median_overlap']:.2f} | "
        f"{row['share_become']:.0%} |"
        for row in record["steps"]
    )
    layers = "\n".join(
        f"| {row['layers'][0]} and {row['layers'][1]} | {row['num_neurons']} | {row['median_overlap']} | "
        f"{row['median_overlap_of_others']} |"
        for row in record["layers"]
    )
    return (
        f"Emergence of the {record['num_labelled']} labelled neurons: the median Jaccard overlap of their ten top "
        "tokens with their final ones, and the share that from this step on has an overlap of at least a half. "
        f"Before step {anneal_steps}, part of the difference is due to TopK, not the neuron: k was larger then."
        f"\n\n| step | overlap | have become |\n|---|---|---|\n{steps}\n\n![emergence](emergence.png)\n\n"
        "The same index in consecutive layers: the median overlap of its top tokens, and that of another index."
        f"\n\n| layers | labelled neurons | same index | other index |\n|---|---|---|---|\n{layers}"
    )
