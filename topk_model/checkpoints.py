"""Checkpoints on disk: finding, checking and loading them. Knows no training and no server.

A checkpoint is a folder with `config.json`, `model.safetensors` (or its shards and their index) and `tokenizer.json`.
A model's folder may have training checkpoints as `checkpoints/step-N`, which share its tokenizer. It may also have the
text that was held out from training, and a dense twin: the same model trained without TopK.
Nothing is ever fetched, unpickled or executed.
"""

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from topk_model.configuration import TopKLMConfig, make_config
from topk_model.files import read_json
from topk_model.model_folder import AUTO_MAP, step_folder, step_of
from topk_model.modeling import RotaryEmbedding, TopKLMForCausalLM
from topk_model.options import Device
from topk_model.special_tokens import end_token_ids
from topk_model.weight_files import read_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def resolve_device(device: Device | torch.device) -> torch.device:
    """The device that `device` names on this machine; "auto" is CUDA if available.

    Raises:
        ValueError: CUDA was requested but is not available, or the name is unknown.
    """
    if isinstance(device, torch.device):
        return device
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {device!r}, but must be one of auto, cpu, cuda")
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ValueError("device is 'cuda', but torch finds no CUDA device; use auto or cpu")
    return torch.device("cuda" if has_cuda and device != "cpu" else "cpu")


def list_checkpoints(path: Path | str) -> list[int]:
    """Steps of the checkpoints of the model in `path`, ascending; empty if it has none."""
    steps = (step_of(p.name) for p in Path(path).glob("checkpoints/*") if p.is_dir())
    return sorted(step for step in steps if step is not None)


def checkpoint_folder(path: Path | str, step: int | None = None) -> Path:
    """The folder of the model in `path`, or of its checkpoint of `step`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; a model is a folder with config.json and model.safetensors")
    if step is None:
        return root
    folder = step_folder(root, step)
    if not folder.is_dir():
        kept = ", ".join(map(str, list_checkpoints(root))) or "none"
        raise FileNotFoundError(f"{root} has no checkpoint of step {step}; it has: {kept}")
    return folder


def load_model(
    path: Path | str,
    *,
    step: int | None = None,
    device: Device | torch.device = "auto",
    dtype: torch.dtype | None = None,
    topk_k: int | None = None,
    n_nontopk: int | None = None,
    topk_select: str | None = None,
) -> tuple[TopKLMForCausalLM, PreTrainedTokenizerBase]:
    """Load a TopK LM, or a Llama as one, and its tokenizer, from a local folder.

    Args:
        path: the model's folder.
        step: load that model's checkpoint `checkpoints/step-N` instead.
        device: device of the weights.
        dtype: type of the weights (default: float32 on the CPU, bfloat16 on CUDA).
        topk_k: used instead of the checkpoint's, like `n_nontopk` and `topk_select`. A Llama has none of the three:
            if they are not given, it is loaded as the plain model, n_nontopk = number of layers.

    Returns:
        The model in eval mode, and the tokenizer. The configuration names every token that ends a text, whichever file
        it comes from.

    Raises:
        FileNotFoundError: the folder, or a file that a checkpoint needs, is missing.
        ValueError: a file cannot be read; the weights do not match the configuration, are not finite or not in the
            safetensors format; the tokenizer has ids that the embedding lacks; or the model needs its own code.
    """
    folder = checkpoint_folder(path, step)
    place = resolve_device(device)
    if dtype is None:
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    config = read_config(folder, topk_k=topk_k, n_nontopk=n_nontopk, topk_select=topk_select)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(config, tokenizer, folder)
    ends = end_token_ids(config, tokenizer, homes(folder))
    config.eos_token_id = ends if len(ends) > 1 else ends[0] if ends else None
    return load_weights(folder, config, dtype).to(place).eval(), tokenizer


def read_config(folder: Path, **sparsity: int | str | None) -> TopKLMConfig:
    """The configuration in `folder`, a Llama's as that of a TopK LM; see `load_model` for `sparsity` and errors."""
    path = folder / "config.json"
    fields = read_json(path)
    model_type = fields.get("model_type")
    if model_type not in ("topk_lm", "llama"):
        raise ValueError(f"{path}: model_type is {model_type!r}, but must be 'topk_lm' or 'llama'")
    if fields.get("auto_map", AUTO_MAP) != AUTO_MAP:
        raise ValueError(f"{path}: auto_map refers to the checkpoint's own code, which is never run")
    if "quantization_config" in fields:
        raise ValueError(f"{path}: quantization_config is not supported: the weights must be plain floats")
    if model_type == "llama":
        dense = {"topk_k": fields.get("hidden_size"), "n_nontopk": fields.get("num_hidden_layers")}
        fields = {**fields, **dense, "model_type": "topk_lm", "architectures": ["TopKLMForCausalLM"]}
    # If the file names no token there is none: Llama's defaults are Llama's tokens.
    fields = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | fields
    return make_config({**fields, **{name: value for name, value in sparsity.items() if value is not None}}, path)


def homes(folder: Path) -> list[Path]:
    """Folders of the files that a checkpoint shares with its model: its own folder, then the model's."""
    return [folder, folder.parent.parent] if folder.parent.name == "checkpoints" else [folder]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, or of the model of which `folder` is a checkpoint; see `load_model` for errors."""
    home = next((h for h in homes(folder) if (h / "tokenizer.json").is_file()), None)
    if home is None:
        raise FileNotFoundError(f"{folder / 'tokenizer.json'} is missing: the model has no tokenizer")
    settings = home / "tokenizer_config.json"
    if settings.exists() and "auto_map" in read_json(settings):
        raise ValueError(f"{settings}: auto_map refers to the checkpoint's own code, which is never run")
    read_json(home / "tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(home, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception for a file it cannot read
        raise ValueError(f"{home / 'tokenizer.json'} cannot be read: {error}") from error


def check_vocabulary(config: TopKLMConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Check that every id of the tokenizer has an embedding; unused rows of the embedding are common and allowed.

    Raises:
        ValueError: an id has no embedding.
    """
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has ids up to {highest}, but vocab_size is {config.vocab_size}: "
            "it is not this model's tokenizer"
        )


def load_weights(folder: Path, config: TopKLMConfig, dtype: torch.dtype) -> TopKLMForCausalLM:
    """A model of `config` with all weights in `folder` as `dtype`, on the CPU; see `load_model` for errors."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}, but must be one of {', '.join(map(str, DTYPES))}")
    with torch.device("meta"):
        model = TopKLMForCausalLM(config)
    weights = read_weights(folder)
    # Older Llama checkpoints store this buffer, which the configuration determines.
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        weights.setdefault("lm_head.weight", weights.get("model.embed_tokens.weight", torch.empty(0)))

    if missing := sorted(expected.keys() - weights.keys()):
        raise ValueError(f"{folder}: {len(missing)} tensors are missing: {listing(missing)}")
    if unexpected := sorted(weights.keys() - expected.keys()):
        raise ValueError(f"{folder}: {len(unexpected)} tensors do not belong to this model: {listing(unexpected)}")
    for name, shape in expected.items():
        if weights[name].shape != shape:
            stored = list(weights[name].shape)
            raise ValueError(f"{folder}: {name} has shape {stored}, but config.json requires {list(shape)}")
        if not weights[name].is_floating_point():
            raise ValueError(f"{folder}: {name} is {weights[name].dtype}, but must be a floating-point tensor")
        weights[name] = weights[name].to(dtype)
        if not weights[name].isfinite().all():
            raise ValueError(f"{folder}: {name} has values that are not finite as {dtype}")
    if config.tie_word_embeddings and not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"]):
        raise ValueError(f"{folder}: tie_word_embeddings is set, but lm_head.weight differs from the embedding")

    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.model.rotary_emb = RotaryEmbedding(config)  # its buffer is not stored and is still a meta tensor
    model.config.dtype = dtype
    return model


def listing(names: list[str]) -> str:
    """The first few of `names`."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
