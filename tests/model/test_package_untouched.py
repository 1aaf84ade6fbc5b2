"""The commands leave the installed package as it is, unless an option names it as the place to write to."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from topk_model import model_folder
from topk_model.catalogue.build.build import CatalogueConfig, build_catalogue
from topk_model.release import evaluate as evaluate_module
from topk_model.release.evaluate import EvaluateConfig, evaluate
from topk_model.release.ship import ShipConfig, ship
from topk_model.steering.find_presets import PresetsConfig, find_presets


@pytest.fixture
def package(catalogued_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose default model is the small one."""
    folder = tmp_path / "package"
    shutil.copytree(catalogued_model, folder / "default")
    monkeypatch.setattr(model_folder, "PACKAGE", folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_shipped_into_its_run_by_default(finished_run: Path, tmp_path: Path, package: Path) -> None:
    before = contents(package)
    run = shutil.copytree(finished_run, tmp_path / "run")
    ship(ShipConfig(run=run, device="cpu", samples=0))
    assert (run / "model" / "model.safetensors").exists()
    assert contents(package) == before


def test_a_catalogue_and_presets_are_not_written_into_the_package(
    package: Path, data_folder: Path, tmp_path: Path
) -> None:
    before = contents(package)
    common: dict[str, Any] = {"model": package / "default", "threads": 1}
    catalogue = CatalogueConfig(**common, data=data_folder, tokens=1000, checkpoints=False)
    presets = PresetsConfig(**common, texts=1, held_out=data_folder)
    for work, config in ((build_catalogue, catalogue), (find_presets, presets)):
        with pytest.raises(
            ValueError, match="belongs to the installed package; name a folder to write to with --output"
        ):
            work(config)  # type: ignore[operator]
    assert contents(package) == before
    find_presets(presets.model_copy(update={"output": tmp_path / "presets"}))
    assert (tmp_path / "presets" / "presets.json").exists()
    assert contents(package) == before
    find_presets(presets.model_copy(update={"output": package / "default"}))
    assert (package / "default" / "presets.json").exists()


def test_an_evaluation_is_written_into_the_package_only_if_asked(
    package: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(package)
    written: list[Path] = []
    monkeypatch.setattr(evaluate_module, "write_card", written.append)
    monkeypatch.setattr(evaluate_module, "check_card", lambda folder: None)  # it was not made by topk ship
    common: dict[str, Any] = {"model": package / "default", "texts": 1, "prompts": 1, "threads": 1}
    common["held_out"] = data_folder
    evaluate(EvaluateConfig(**common))
    assert "--write" in capsys.readouterr().out
    assert (contents(package), written) == (before, [])
    evaluate(EvaluateConfig(**common, write=True))
    assert written == [package / "default"]
    assert "evaluation.json" in contents(package / "default")
