"""Loads a model from its folder, with its tokenizer, catalogue, presets and facts. Runs nothing."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch

from service.engine.config import EngineConfig, Weights
from service.engine.native.choice import find_library
from service.requests.facts import ModelFacts
from service.settings import Settings
from service.text import TextTokenizer
from topk_model.catalogue.file import CATALOGUE_FILE
from topk_model.catalogue.reader import Catalogue
from topk_model.checkpoints import checkpoint_folder, list_checkpoints, load_model, resolve_device
from topk_model.configuration import TopKLMConfig
from topk_model.model_folder import step_name, weights_digest
from topk_model.modeling import TopKLMForCausalLM
from topk_model.special_tokens import special_token_ids
from topk_model.steering.examples import SteeringExample, read_examples
from topk_model.steering.presets import Preset, read_presets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: A model has this many times the KV blocks of a checkpoint loaded on demand.
CHECKPOINT_CACHE_DIVISOR = 4
_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in memory, with the other contents of its folder."""

    model: TopKLMForCausalLM
    tokenizer: TextTokenizer
    facts: ModelFacts
    folder: Path  # of the model, even for one of its checkpoints
    catalogue: Catalogue | None
    checkpoints: tuple[str, ...]  # step-N, ascending; empty for a checkpoint
    is_checkpoint: bool
    weights: Weights | None  # the type in which the compiled step stores weights; None: torch runs the steps


def weights_of_step(settings: Settings) -> Weights | None:
    """The type in which the compiled step is to store weights; None if torch is to run the steps.

    Raises:
        ValueError: `dtype` is int8 and there is no compiled step.
        BuildError: the compiled step is required but not available.
    """
    if resolve_device(settings.device).type == "cpu" and find_library(settings.cpu_step) is not None:
        return {"bfloat16": "bfloat16", "int8": "int8"}.get(settings.dtype, "float32")  # type: ignore[return-value]
    if settings.dtype == "int8":
        raise ValueError("dtype int8 needs the compiled step, which runs only on a CPU and not with cpu_step torch")
    return None


def load(
    settings: Settings, *, model_id: str, folder: Path, step: int | None = None, has_examples: bool = True
) -> LoadedModel:
    """The model in `folder`, or its checkpoint of training step `step`, to be served as `model_id`.

    If it has no catalogue, its weights are read twice, the second time for their digest, which takes seconds for many
    gigabytes.

    Args:
        has_examples: False leaves its steering examples unread.

    Raises:
        FileNotFoundError, ValueError: as for `topk_model.checkpoints.load_model`.
    """
    weights = weights_of_step(settings)
    # The compiled step does its own rounding, from the values in the files.
    dtype = torch.float32 if weights in ("bfloat16", "int8") else _DTYPES[settings.dtype]
    model, fast = load_model(folder, step=step, device=settings.device, dtype=dtype)
    tokenizer = TextTokenizer(cast("PreTrainedTokenizerFast", fast), special_token_ids(fast, model.config))
    place = folder.resolve()  # a checkpoint may also be served as a model of its own
    own_step = place.name if place.parent.name == "checkpoints" else None
    weights_folder = checkpoint_folder(folder, step)
    catalogue = open_catalogue(weights_folder, model.config)
    digest = weights_digest(weights_folder) if catalogue is None else catalogue.facts.weights
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        facts=model_facts(
            model_id,
            model.config,
            tokenizer,
            checkpoint=own_step if step is None else step_name(step),
            catalogue=catalogue,
            presets=read_presets(weights_folder, digest),
            examples=read_examples(weights_folder, digest) if has_examples else (),
            weights_sha256=digest,
        ),
        folder=folder,
        catalogue=catalogue,
        checkpoints=() if step is not None else tuple(step_name(kept) for kept in list_checkpoints(folder)),
        is_checkpoint=step is not None,
        weights=weights,
    )


def model_facts(
    model_id: str,
    config: TopKLMConfig,
    tokenizer: TextTokenizer,
    *,
    checkpoint: str | None,
    catalogue: Catalogue | None = None,
    presets: tuple[Preset, ...] = (),
    examples: tuple[SteeringExample, ...] = (),
    weights_sha256: str | None = None,
) -> ModelFacts:
    """The facts of a model that planning needs."""
    return ModelFacts(
        id=model_id,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        topk_layers=tuple(config.topk_layers),
        n_nontopk=config.n_nontopk,
        k=config.topk_k,
        select=cast(Literal["signed", "abs"], config.topk_select),
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        bos_id=tokenizer.bos_id,
        pad_id=tokenizer.pad_id,
        special_ids=tokenizer.special_ids,
        checkpoint=checkpoint,
        has_chat_template=tokenizer.has_chat_template,
        neuron_max=None if catalogue is None else catalogue.maximum,
        presets=presets,
        examples=examples,
        weights_sha256=weights_sha256,
    )


def open_catalogue(folder: Path, config: TopKLMConfig) -> Catalogue | None:
    """The catalogue of the checkpoint in `folder`; None if there is none.

    Raises:
        ValueError: it cannot be used with these weights, or was built for another configuration.
    """
    if not (folder / CATALOGUE_FILE).is_file():
        return None
    catalogue = Catalogue.open(folder)
    if (list(catalogue.facts.layers), catalogue.facts.hidden_size) != (config.topk_layers, config.hidden_size):
        raise ValueError(f"{folder / CATALOGUE_FILE} was built for other layers than config.json has; build it again")
    return catalogue


def engine_config(settings: Settings, loaded: LoadedModel) -> EngineConfig:
    """The engine's sizes: a checkpoint's cache is smaller, but can hold any sequence that the model's cache can."""
    config = settings.engine_config()
    config = replace(config, **({"cpu_step": "torch"} if loaded.weights is None else {"weights": loaded.weights}))
    if not loaded.is_checkpoint:
        return config
    longest = -(-loaded.facts.context_length // config.block_size)
    return replace(
        config, num_blocks=min(config.num_blocks, max(config.num_blocks // CHECKPOINT_CACHE_DIVISOR, longest))
    )
