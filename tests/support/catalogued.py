"""A small trained model with catalogues of itself and of its checkpoints, all made by the real commands."""

import shutil
from pathlib import Path

from service.cli import main
from topk_model.checkpoints import list_checkpoints

NUM_TOKENS = 4000


def make_model(run: Path, folder: Path) -> Path:
    """A model's folder from a finished run: the final weights, and the checkpoints but the last."""
    shutil.copytree(run / "final", folder)
    for step in list_checkpoints(run)[:-1]:
        name = f"step-{step}"
        shutil.copytree(run / "checkpoints" / name, folder / "checkpoints" / name)
    (folder / "training.json").write_text('{"steps": 140}')
    return folder


def catalogue_arguments(model: Path, **options: object) -> list[str]:
    """Arguments of `topk catalogue`."""
    fields: dict[str, object] = {"model": model, "tokens": NUM_TOKENS, "threads": 1} | options
    return ["catalogue", *(part for name, value in fields.items() for part in (f"--{name}", str(value)))]


def build(model: Path, **options: object) -> None:
    assert main(catalogue_arguments(model, **options)) == 0
