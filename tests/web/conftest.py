"""A service with presets and an API key."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.presets import preset
from tests.support.served import Served, serve_app
from tests.support.web.write_page import KEY
from topk_model.model_folder import weights_digest
from topk_model.steering.presets import write_presets


@pytest.fixture(scope="module")
def with_presets(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("presets") / "model"
    shutil.copytree(tiny_model_path, folder)
    presets = [preset("sea", value=2.5, words=("ship", "sea")), preset("war", neuron=9)]
    write_presets(folder, weights_digest(folder), 0.2, presets)
    with serve_app(folder, api_keys=KEY) as service:
        service.client.headers["Authorization"] = f"Bearer {KEY}"
        yield service
