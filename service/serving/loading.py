"""From a folder to a model in memory, with its tokenizer, catalogue, presets and facts. Runs nothing."""

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
from topk_model.steering.presets import Preset, read_presets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: A checkpoint loaded on demand gets one in so many of the KV blocks that a model gets.
CHECKPOINT_CACHE_DIVISOR = 4
_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in memory, with what stands beside its weights."""

    model: TopKLMForCausalLM
    tokenizer: TextTokenizer
    facts: ModelFacts
    folder: Path  # of the model, also for a checkpoint of it
    catalogue: Catalogue | None
    checkpoints: tuple[str, ...]  # step-N, ascending; none of a checkpoint
    is_checkpoint: bool
    weights: Weights | None  # what the compiled step keeps the weights in; None: torch runs the steps


def weights_of_step(settings: Settings) -> Weights | None:
    """What the compiled step is to keep weights in; None if torch is to run the steps.

    Raises:
        ValueError: `dtype` is int8 where there is no compiled step.
        BuildError: the compiled step is demanded and cannot be had.
    """
    if resolve_device(settings.device).type == "cpu" and find_library(settings.cpu_step) is not None:
        return {"bfloat16": "bfloat16", "int8": "int8"}.get(settings.dtype, "float32")  # type: ignore[return-value]
    if settings.dtype == "int8":
        raise ValueError("dtype int8 needs the compiled step, which runs on a CPU and not with cpu_step torch")
    return None


def load(settings: Settings, *, model_id: str, folder: Path, step: int | None = None) -> LoadedModel:
    """The model in `folder`, or its checkpoint of training step `step`, to be served as `model_id`.

    If it has no catalogue, its weights are read twice, the second time for their digest: some seconds for many
    gigabytes.

    Raises:
        FileNotFoundError, ValueError: as `topk_model.checkpoints.load_model`.
    """
    weights = weights_of_step(settings)
    # The compiled step rounds by itself, from what stands in the files.
    dtype = torch.float32 if weights in ("bfloat16", "int8") else _DTYPES[settings.dtype]
    model, fast = load_model(folder, step=step, device=settings.device, dtype=dtype)
    tokenizer = TextTokenizer(cast("PreTrainedTokenizerFast", fast), special_token_ids(fast, model.config))
    place = folder.resolve()  # a checkpoint may be served as a model of its own, too
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
    weights_sha256: str | None = None,
) -> ModelFacts:
    """What planning must know of a model."""
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
        weights_sha256=weights_sha256,
    )


def open_catalogue(folder: Path, config: TopKLMConfig) -> Catalogue | None:
    """The catalogue of the checkpoint in `folder`; None if nobody has built one.

    Raises:
        ValueError: it cannot be used for these weights, or was made under another configuration.
    """
    if not (folder / CATALOGUE_FILE).is_file():
        return None
    catalogue = Catalogue.open(folder)
    if (list(catalogue.facts.layers), catalogue.facts.hidden_size) != (config.topk_layers, config.hidden_size):
        raise ValueError(f"{folder / CATALOGUE_FILE} is of other layers than config.json names; build it again")
    return catalogue


def engine_config(settings: Settings, loaded: LoadedModel) -> EngineConfig:
    """The engine's sizes: a checkpoint's cache is smaller, but holds any sequence that the model's own holds."""
    config = settings.engine_config()
    config = replace(config, **({"cpu_step": "torch"} if loaded.weights is None else {"weights": loaded.weights}))
    if not loaded.is_checkpoint:
        return config
    longest = -(-loaded.facts.context_length // config.block_size)
    return replace(
        config, num_blocks=min(config.num_blocks, max(config.num_blocks // CHECKPOINT_CACHE_DIVISOR, longest))
    )
