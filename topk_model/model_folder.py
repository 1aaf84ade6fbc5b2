"""The names of the parts of a model's folder, the digest of its weights, and whether it may be written to.

`checkpoints.py` describes the contents of such a folder. Needs no torch and loads no weights.
"""

import hashlib
import re
from pathlib import Path

from topk_model.weight_files import weight_files

#: The installed package: nothing is written into it unless an option names it as the output folder.
PACKAGE = Path(__file__).resolve().parent
DEFAULT_MODEL = Path(__file__).parent / "default"
HELD_OUT, DENSE_TWIN = "held_out", "dense_twin"
#: The model's code next to the weights, for transformers, and its name in config.json. This package never runs it.
CODE_FILE = "modeling_topk_lm.py"
AUTO_MAP = {
    "AutoConfig": "modeling_topk_lm.TopKLMConfig",
    "AutoModelForCausalLM": "modeling_topk_lm.TopKLMForCausalLM",
}
#: A checkpoint's name is this prefix and its step.
STEP_PREFIX = "step-"


def step_name(step: int) -> str:
    """The name of the checkpoint of `step`."""
    return f"{STEP_PREFIX}{step}"


def step_of(name: str) -> int | None:
    """The step of the checkpoint with that name; None if it is not a checkpoint's name."""
    found = re.fullmatch(rf"{STEP_PREFIX}(\d+)", name)
    return int(found[1]) if found else None


def step_folder(path: Path, step: int) -> Path:
    """The folder of the checkpoint of `step` of the model or run in `path`."""
    return path / "checkpoints" / step_name(step)


def weights_digest(folder: Path) -> str:
    """SHA-256 of the folder's safetensors file; of the names and digests of its shards if there are several.

    Raises:
        FileNotFoundError, ValueError: as for `topk_model.weight_files.weight_files`.
    """
    files = weight_files(folder)
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(files) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {path.name}\n" for path, digest in zip(files, digests, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def output_beside(model: Path, output: Path | None, option: str = "--output") -> Path:
    """`output`, or without one the model's own folder.

    Raises:
        ValueError: the model's own folder belongs to the installed package.
    """
    if output is None and is_packaged(model):
        raise ValueError(f"{model} belongs to the installed package; name a folder to write to with {option}")
    return model if output is None else output


def is_packaged(folder: Path) -> bool:
    return folder.resolve().is_relative_to(PACKAGE)
