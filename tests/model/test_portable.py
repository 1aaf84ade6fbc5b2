"""A shipped folder loads in transformers, with this package and without it, to the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.references import realigned
from topk_model.checkpoints import load_model
from topk_model.model_folder import AUTO_MAP, CODE_FILE, DEFAULT_MODEL
from topk_model.release.portable import standalone_code
from topk_model.release.ship import ShipConfig, ship

PROMPT = [0, *range(5, 45)]


@pytest.fixture(scope="module")
def shipped(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("portable") / "model"
    ship(ShipConfig(run=finished_run, output=output, checkpoints=1, device="cpu", samples=0))
    return output


def run(code: str, *arguments: object, cache: Path) -> str:
    """What a new Python prints that runs `code`."""
    environment = os.environ | {"HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


WITHOUT_PACKAGE = f"""
import sys
sys.modules["topk_model"] = None  # as where it is not installed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model)
assert model.dtype == torch.float32, model.dtype
for parameter in model.parameters():  # see `realigned`
    parameter.data = parameter.data.clone()
with torch.inference_mode():
    ids = torch.tensor([{PROMPT}])
    logits = model(input_ids=ids).logits
    generated = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)
torch.save((logits, generated, AutoTokenizer.from_pretrained(sys.argv[1])("Tom saw a ship.").input_ids), sys.argv[2])
"""


@pytest.mark.parametrize("part", [".", "checkpoints/step-64"])
def test_the_code_beside_the_weights_gives_the_packages_numbers(shipped: Path, tmp_path: Path, part: str) -> None:
    folder = shipped / part
    if part != ".":
        for name in ("tokenizer.json", "tokenizer_config.json"):  # of the model, which a checkpoint shares
            if not (folder / name).exists():
                (folder / name).symlink_to(shipped / name)
    run(WITHOUT_PACKAGE, folder, tmp_path / "out.pt", cache=tmp_path)
    logits, generated, ids = torch.load(tmp_path / "out.pt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, tokenizer = load_model(folder, device="cpu")
        realigned(model)
        with torch.inference_mode():
            assert torch.equal(model(input_ids=torch.tensor([PROMPT])).logits, logits)
            again = model.generate(input_ids=torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again, generated)
    assert tokenizer("Tom saw a ship.").input_ids == ids


#: Each order of imports in a process of its own, forked from one that has torch already, which takes seconds.
IMPORTS = """
import os, sys, torch
for order in sys.argv[2:]:
    if not os.fork():
        exec(order)
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
        config = AutoConfig.from_pretrained(sys.argv[1])
        print(type(model).__module__, type(config).__module__, model.dtype, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, order
"""
ORDERS = {
    "package first": "import topk_model\nfrom transformers import AutoConfig, AutoModelForCausalLM",
    "transformers first": "from transformers import AutoConfig, AutoModelForCausalLM\nimport topk_model",
    "model first": (
        "import topk_model\nimport topk_model.modeling\nfrom transformers import AutoConfig, AutoModelForCausalLM"
    ),
    # transformers imports its AutoModel classes while it defines this configuration.
    "Llama first": "import topk_model\nfrom transformers import LlamaConfig, AutoConfig, AutoModelForCausalLM",
    "configuration first": (
        "import topk_model.configuration\nfrom transformers import AutoConfig, AutoModelForCausalLM"
    ),
}


def test_the_auto_classes_know_the_model_once_the_package_is_imported(shipped: Path, tmp_path: Path) -> None:
    told = run(IMPORTS, shipped, *ORDERS.values(), cache=tmp_path).splitlines()
    expected = "topk_model.modeling topk_model.configuration torch.float32"
    assert dict(zip(ORDERS, told, strict=True)) == dict.fromkeys(ORDERS, expected)


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, topk_model; print({'torch', 'transformers', 'numpy'} & sys.modules.keys())"
    assert run(code, cache=tmp_path) == "set()"


def test_the_files_name_nothing_of_the_machine_and_a_class_that_transformers_4_knows(shipped: Path) -> None:
    tokenizer = json.loads((shipped / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only", "name_or_path"} & tokenizer.keys()
    config = json.loads((shipped / "config.json").read_text())
    assert (config["dtype"], config["auto_map"]) == ("float32", AUTO_MAP)


def test_other_code_is_still_refused(shipped: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    fields = json.loads((shipped / "config.json").read_text()) | {"auto_map": {"AutoConfig": "other.Config"}}
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="auto_map refers to the checkpoint's own code"):
        load_model(tmp_path)


def test_the_default_models_code_is_the_packages() -> None:
    folders = [DEFAULT_MODEL, *DEFAULT_MODEL.glob("checkpoints/*"), DEFAULT_MODEL / "dense_twin"]
    for folder in folders:
        assert (folder / CODE_FILE).read_text() == standalone_code(), f"{folder}: run make_portable on it"
        assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
