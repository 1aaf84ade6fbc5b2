"""The safetensors files of a model's weights, and all tensors in them. Knows no configuration.

A folder with two models, as after copying another one into it, is refused: it is unclear which one is meant.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from topk_model.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the index names no files, there are two models or an adapter, or the weights are pickled.
    """
    single = folder / SINGLE
    tensors = shard_of_tensor(folder)
    shards = sorted(set(tensors.values()))
    if not single.is_file() and not shards:
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")) or any(folder.glob("*.ckpt")):
            raise ValueError(f"{folder} contains pickled weights, which can run code; convert them to safetensors")
        raise FileNotFoundError(f"{single} is missing")
    if (folder / ADAPTER).is_file():
        raise ValueError(f"{folder} contains an adapter ({ADAPTER}), which is not supported: merge it into the weights")
    if single.is_file() and (others := sorted({*shards, *folder.glob("model-*-of-*.safetensors")} - {single})):
        raise ValueError(
            f"{folder} contains two models, {SINGLE} and {others[0].name}, and it is unclear which one is meant: "
            "remove the other one"
        )
    return shards or [single]


def shard_of_tensor(folder: Path) -> dict[str, Path]:
    """The file of each tensor, according to the index; empty without an index. Raises like `weight_files`."""
    index = folder / INDEX
    if not index.is_file():
        return {}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map")
    for name in sorted(set(map(str, weight_map.values()))):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: {name!r} is not the name of a safetensors file in the folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing")
    return {tensor: folder / str(name) for tensor, name in weight_map.items()}


def read_weights(folder: Path) -> dict[str, "Tensor"]:
    """All tensors of a checkpoint by name, as stored, each from the file that the index names for it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: as for `weight_files`, and if a file is damaged or lacks a tensor that the index assigns to it.
    """
    weights: dict[str, Tensor] = {}
    tensors = shard_of_tensor(folder)
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                held = set(file.keys())
                wanted = {name for name, shard in tensors.items() if shard == path} if tensors else held
                if missing := sorted(wanted - held):
                    raise ValueError(f"{path} lacks {missing[0]}, which {INDEX} assigns to it")
                weights.update((name, file.get_tensor(name)) for name in sorted(wanted))
        except SafetensorError as error:
            raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    return weights
