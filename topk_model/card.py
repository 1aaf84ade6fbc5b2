"""The model card of a shipped model, from measured facts. Knows no files."""

from dataclasses import dataclass
from typing import Any

from topk_model.modeling import TopKLMForCausalLM

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

WHAT_IT_CAN_DO = """It continues English prose in the register of the books it was trained on. It is a base model of
a few million parameters: it follows no instructions, knows no facts, loses the thread within a few sentences, and
repeats itself at low temperatures. The books are old, and their views of people are those of their time; nothing was
done to filter what the model writes. It is made for looking into: every neuron of its TopK layers can be traced and
steered. It is not made for giving anyone information or advice."""

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


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt and what the model wrote after it."""

    prompt: str
    continuation: str


def model_card(
    model: TopKLMForCausalLM,
    record: dict[str, Any],
    sources: dict[str, Any],
    samples: list[Sample],
    *,
    sampling: dict[str, Any],
    vocab_size: int,
    steps: list[int],
) -> str:
    """The card as Markdown.

    Args:
        record: what `training.json` holds.
        sources: what the data folder's `sources.json` holds.
        sampling: how the samples were drawn.
        vocab_size: tokens of the tokenizer.
        steps: training steps of the checkpoints that ship with the model.
    """
    sections = {
        "Shape": shape(model),
        "Training": training(record, steps),
        "Data": data(sources, vocab_size),
        "What it can and cannot do": WHAT_IT_CAN_DO,
        "Samples": sample_texts(samples, sampling),
        "What is ours": WHAT_IS_OURS,
        "Use": USE,
    }
    title = f"{FRONT_MATTER}\n# A TopK language model of {num_parameters(model) / 1e6:.1f}M parameters\n"
    return title + "".join(f"\n## {heading}\n\n{body}\n" for heading, body in sections.items())


def num_parameters(model: TopKLMForCausalLM) -> int:
    """Tied weights count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def table(rows: list[tuple[str, Any]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def shape(model: TopKLMForCausalLM) -> str:
    config = model.config
    layers = config.num_hidden_layers
    rule = "largest values" if config.topk_select == "signed" else "largest magnitudes"
    return table(
        [
            ("parameters", f"{num_parameters(model):,}"),
            ("layers", f"{layers}: {config.num_topk_layers} TopK, then {config.n_nontopk} dense (`n_nontopk`)"),
            ("width of the residual stream = neurons of a layer", config.hidden_size),
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


def training(record: dict[str, Any], steps: list[int]) -> str:
    options = record["config"]
    windows = record["tokens"] // record["steps"] // options["context"]
    rows = [
        ("steps", f"{record['steps']:,} of {windows} windows of {options['context']} tokens"),
        ("tokens", f"{record['tokens']:,}"),
        ("hours of training steps", record["hours"]),
        ("optimiser", f"AdamW, learning rate {options['learning_rate']}, weight decay {options['weight_decay']}"),
        (
            "schedule",
            f"{options['warmup_steps']} steps up, flat, linear fall over the last {options['decay_share']:.0%}",
        ),
        ("k", f"falls from dense over {options['anneal_steps']} steps"),
        ("started from", record["started_from"] or "random weights"),
        ("training loss, mean of the last 100 steps", f"{record['final_training_loss']} nats per token"),
        ("validation loss of these weights", f"{record['validation_loss']} nats per token"),
        ("", f"{record['validation_bits_per_byte']} bits per byte"),
    ]
    held_out = f"Validation is over {record['validation_tokens']:,} tokens of passages held out of the same books."
    kept = f" Checkpoints of steps {', '.join(map(str, steps))} are in `checkpoints/`." if steps else ""
    return f"{table(rows)}\n\n{held_out} All options are in `training.json`.{kept}\n\n![loss](loss.png)"


def data(sources: dict[str, Any], vocab_size: int) -> str:
    books = sources["books"]
    return (
        f"{len(books)} books, {sum(book['chars'] for book in books) / 1e6:.1f} million characters, from "
        f"<{sources['collection']}>. Licence: {sources['licence']}. Every title is in `sources.json`; books with a "
        f"Flesch reading ease below {sources['min_reading_ease']} were left out. One passage in a hundred is held "
        "out.\n\n"
        f"The tokenizer has {vocab_size:,} tokens; it puts one beginning-of-text token before a text."
    )


def sample_texts(samples: list[Sample], sampling: dict[str, Any]) -> str:
    drawn = ", ".join(f"{name} {value}" for name, value in sampling.items())
    quotes = "\n\n".join(quote(f"**{sample.prompt}**{sample.continuation}") for sample in samples)
    return f"Not picked: one continuation of each of {len(samples)} fixed prompts ({drawn}).\n\n{quotes}"


def quote(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())
