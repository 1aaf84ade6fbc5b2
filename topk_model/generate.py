"""Continue and trace a text with a model in this process: no server, no batching, no edits."""

import json
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from topk_model.checkpoints import load_model
from topk_model.model_folder import step_name
from topk_model.modeling import CACHE_FIELD, Sparsify, TopKLMForCausalLM
from topk_model.options import GenerateConfig, TraceConfig
from topk_model.special_tokens import listed, special_token_ids, text_ids
from topk_model.token_bytes import TokenTexts
from topk_model.traces import Trace, TraceSpec, select_entries


def choose_token(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token id, drawn from `logits` `[vocab]` on the CPU."""
    if temperature == 0:
        return int(logits.argmax())
    # The largest is subtracted, so that even the smallest temperature gives finite numbers.
    probabilities, ids = ((logits.double() - logits.max()) / temperature).softmax(-1).sort(descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= top_p] = 0.0
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


@torch.inference_mode()
def continue_text(
    model: TopKLMForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    seed: int,
    sparsify: Sparsify | None = None,
) -> str:
    """The model's continuation of `prompt`, up to a token that ends a text.

    Args:
        sparsify: replaces the model's own TopK, to edit what it writes.

    Raises:
        ValueError: prompt and continuation do not fit the model's context.
    """
    ids = text_ids(tokenizer, prompt)
    context = model.config.max_position_embeddings
    if not ids or len(ids) + max_tokens > context:
        raise ValueError(
            f"prompt is {len(ids)} tokens and max_tokens is {max_tokens}: together they must be at most {context}, "
            "the model's context, and the prompt must have at least 1"
        )
    ends = listed(model.config.eos_token_id, "eos_token_id")
    generator = torch.Generator().manual_seed(seed)
    cache, next_ids = None, ids
    written: list[int] = []
    while len(written) < max_tokens:
        step = torch.tensor([next_ids], device=model.device)
        output = model(input_ids=step, cache=cache, use_cache=True, logits_to_keep=1, sparsify=sparsify)
        cache = output[CACHE_FIELD]
        token = choose_token(output.logits[0, -1].float().cpu(), temperature, top_p, generator)
        if token in ends:
            break
        written.append(token)
        next_ids = [token]
    return TokenTexts(tokenizer).decode(written)


@torch.inference_mode()
def trace_text(
    model: TopKLMForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str, *, name: str, step: int | None
) -> Trace:
    """Every active neuron of every TopK layer at every token of `text`.

    Raises:
        ValueError: the text is longer than the model's context, or the model has no TopK layer.
    """
    config = model.config
    ids = text_ids(tokenizer, text)
    if not 1 <= len(ids) <= config.max_position_embeddings:
        raise ValueError(f"text is {len(ids)} tokens, but must be between 1 and {config.max_position_embeddings}")
    if not config.num_topk_layers:
        raise ValueError("n_nontopk equals the number of layers: the model has no TopK layers and nothing to trace")
    states: list[Tensor] = []

    def keep(layer: int, hidden: Tensor) -> Tensor:
        hidden = model.model.sparsify(layer, hidden)
        if layer < config.num_topk_layers:
            states.append(hidden[0].float().cpu())
        return hidden

    model(input_ids=torch.tensor([ids], device=model.device), sparsify=keep)
    dense = torch.stack(states, dim=1).numpy()  # [tokens, layers, hidden_size]
    entries = dense.nonzero()
    phase: Literal["prompt"] = "prompt"
    spec = TraceSpec(layers=tuple(config.topk_layers), by_magnitude=config.topk_select == "abs")
    special, texts = special_token_ids(tokenizer, config), TokenTexts(tokenizer)
    return Trace(
        model=name,
        checkpoint=None if step is None else step_name(step),
        k=config.topk_k,
        hidden_size=config.hidden_size,
        layers=spec.layers,
        token_ids=tuple(ids),
        tokens=tuple(map(texts.name, ids)),
        phases=(phase,) * len(ids),
        is_special=tuple(i in special for i in ids),
        chunk=select_entries(
            spec, 0, len(spec.layers), np.count_nonzero(dense, axis=-1), entries[2].astype(np.int32), dense[entries]
        ),
    )


def generate(config: GenerateConfig) -> None:
    """Print the prompt and its continuation. Raises like `load_model` and `continue_text`."""
    model, tokenizer = load_model(config.model, step=config.step, device=config.device)
    sampling = config.model_dump(include={"max_tokens", "temperature", "top_p", "seed"})
    print(config.prompt + continue_text(model, tokenizer, config.prompt, **sampling))


def trace(config: TraceConfig) -> None:
    """Print a trace: one line per token and layer, or JSON. Raises like `load_model` and `trace_text`."""
    model, tokenizer = load_model(config.model, step=config.step, device=config.device)
    whole = trace_text(model, tokenizer, config.text, name=config.model.resolve().name, step=config.step)
    if config.json_output:
        print(json.dumps(whole.to_json(), default=plain))
        return
    chunk, num_layers = whole.chunk, len(whole.layers)
    print(f"{whole.model}, k={whole.k}: neuron=activation, strongest first")
    for row in range(len(whole.token_ids) * num_layers):
        token, place = divmod(row, num_layers)
        entries = slice(chunk.offsets[row], chunk.offsets[row + 1])
        pairs = list(zip(chunk.indices[entries], chunk.values[entries], strict=True))
        pairs.sort(key=lambda pair: -abs(pair[1]) if model.config.topk_select == "abs" else -pair[1])
        shown = "  ".join(f"{neuron}={value:.2f}" for neuron, value in pairs[: config.top_n])
        shown_token = json.dumps(whole.tokens[token], ensure_ascii=False)
        print(f"{token:4d} {shown_token:16s} layer {whole.layers[place]:2d}  {shown}")


def plain(array: Any) -> list[int] | list[float]:
    """A NumPy array for a JSON writer, floats as the shortest text that reads back to the same float32."""
    if array.dtype == np.float32:
        return [float(str(value)) for value in array]
    return array.tolist()
