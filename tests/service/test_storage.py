"""Which step a served model gets, and what its weights are kept in."""

from pathlib import Path

import pytest

from service.engine.native import choice
from service.serving.loading import engine_config, load
from service.settings import Settings


@pytest.mark.parametrize(
    ("settings", "cpu_step", "weights"),
    [
        ({}, "auto", "float32"),
        ({"dtype": "bfloat16"}, "auto", "bfloat16"),
        ({"dtype": "int8"}, "auto", "int8"),
        ({"dtype": "float16"}, "auto", "float32"),
        ({"cpu_step": "torch"}, "torch", "float32"),
    ],
)
def test_a_model_on_a_cpu_gets_the_step_and_the_storage_that_settings_ask_for(
    tiny_model_path: Path, settings: dict[str, str], cpu_step: str, weights: str
) -> None:
    given = Settings(model=tiny_model_path, device="cpu", **settings)
    if cpu_step != "torch" and choice.find_library("auto") is None:
        pytest.skip("there is no compiled step on this machine")
    config = engine_config(given, load(given, model_id="tiny", folder=tiny_model_path))
    assert (config.cpu_step, config.weights) == (cpu_step, weights)


def test_int8_is_refused_where_no_compiled_step_runs(tiny_model_path: Path) -> None:
    given = Settings(model=tiny_model_path, device="cpu", dtype="int8", cpu_step="torch")
    with pytest.raises(ValueError, match="dtype int8 needs the compiled step"):
        load(given, model_id="tiny", folder=tiny_model_path)
