"""Loading checkpoints, refusing broken ones, and shipping a finished run."""

import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.support.references import realigned
from tests.support.tiny_run import train_config
from topk_model.checkpoints import list_checkpoints, load_model, resolve_device
from topk_model.generate import continue_text, trace_text
from topk_model.release.samples import PROMPTS
from topk_model.release.ship import ShipConfig, ship
from topk_model.training.train import train

TEXT = "Tom saw a ship. Ann took the rope."


@pytest.fixture
def model_folder(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run / "final", tmp_path / "model")


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def test_a_checkpoint_loads_as_transformers_would_load_it(model_folder: Path) -> None:
    model, tokenizer = load_model(model_folder, device="cpu")
    peer = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    assert ids[0, 0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == TEXT
    assert torch.equal(realigned(model)(ids).logits, realigned(peer)(ids).logits)
    assert not model.training
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_loading_touches_no_network_and_runs_no_pickle(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a checkpoint must not need this")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    load_model(model_folder, device="cpu")


def test_dtype_and_device_are_as_asked(model_folder: Path) -> None:
    assert load_model(model_folder, device="cpu")[0].dtype == torch.float32
    assert load_model(model_folder, device="cpu", dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert load_model(model_folder)[0].device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="dtype"):
        load_model(model_folder, device="cpu", dtype=torch.int8)
    with pytest.raises(ValueError, match="device is 'tpu'"):
        resolve_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="no CUDA device"):
        load_model(model_folder, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_go_to_cuda_as_bfloat16(model_folder: Path) -> None:
    model, _ = load_model(model_folder)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cuda", torch.bfloat16)}


@torch.no_grad()
def test_a_llama_loads_as_the_plain_model_or_with_a_given_sparsity(model_folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    llama = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2)).eval()
    llama.save_pretrained(tmp_path / "llama", max_shard_size="10KB")
    tokenizer.save_pretrained(tmp_path / "llama")
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) > 1
    model, _ = load_model(tmp_path / "llama", device="cpu")
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    assert model.config.topk_layers == []
    assert torch.equal(model(ids).logits, llama(ids).logits)
    sparse, _ = load_model(tmp_path / "llama", device="cpu", topk_k=4, n_nontopk=1)
    assert (sparse.config.topk_k, sparse.config.topk_layers) == (4, [0, 1])

    index = tmp_path / "llama" / "model.safetensors.index.json"
    whole = index.read_text()
    index.write_text(whole.replace("model-00001", "../model-00001"))
    with pytest.raises(ValueError, match="is not the name of a safetensors file"):
        load_model(tmp_path / "llama", device="cpu")
    index.write_text(whole)
    next((tmp_path / "llama").glob("model-00002*")).unlink()
    with pytest.raises(FileNotFoundError, match="model-00002"):
        load_model(tmp_path / "llama", device="cpu")


def replace_with_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 3000)


def add_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(folder)


def set_value(value: float) -> Callable[[Path], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value

    return lambda folder: edit_weights(folder, change)


BROKEN: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no folder": (shutil.rmtree, FileNotFoundError, "is not a folder"),
    "no config": (lambda f: (f / "config.json").unlink(), FileNotFoundError, r"config\.json is missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, r"model\.safetensors is missing"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), FileNotFoundError, r"tokenizer\.json is missing"),
    "pickled weights": (replace_with_pickle, ValueError, "convert them to safetensors"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), ValueError, r"config\.json is not JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), ValueError, "is not a JSON object"),
    "other model": (lambda f: edit_json(f / "config.json", model_type="gpt2"), ValueError, "model_type is 'gpt2'"),
    "remote code": (lambda f: edit_json(f / "config.json", auto_map={"AutoModel": "x.Y"}), ValueError, "auto_map"),
    "tokenizer code": (
        lambda f: edit_json(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
        ValueError,
        "tokenizer_config.json: auto_map",
    ),
    "quantized": (
        lambda f: edit_json(f / "config.json", quantization_config={"bits": 4}),
        ValueError,
        "quantization_config is not supported",
    ),
    "k too large": (lambda f: edit_json(f / "config.json", topk_k=33), ValueError, "topk_k is 33, must be"),
    "odd heads": (lambda f: edit_json(f / "config.json", head_dim=7), ValueError, "head_dim is 7, must be even"),
    "no heads": (lambda f: edit_json(f / "config.json", num_attention_heads=0), ValueError, "num_attention_heads is 0"),
    "no context": (
        lambda f: edit_json(f / "config.json", max_position_embeddings=0),
        ValueError,
        "max_position_embeddings is 0, must be at least 1",
    ),
    "padding of another vocabulary": (
        lambda f: edit_json(f / "config.json", pad_token_id=320),
        ValueError,
        r"pad_token_id is 320, must be below vocab_size \(320\)",
    ),
    "unknown type": (lambda f: edit_json(f / "config.json", dtype="foo"), ValueError, "has no attribute 'foo'"),
    "flat rotation": (
        lambda f: edit_json(f / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 0.0}),
        ValueError,
        r"rope_theta is 0\.0, must be a positive number",
    ),
    "negative eps": (lambda f: edit_json(f / "config.json", rms_norm_eps=-1e-6), ValueError, "rms_norm_eps is -1e-06"),
    "k is text": (lambda f: edit_json(f / "config.json", topk_k="many"), ValueError, "topk_k"),
    "other width": (
        lambda f: edit_json(f / "config.json", intermediate_size=40),
        ValueError,
        r"has shape \[48, 32\], but config.json requires \[40, 32\]",
    ),
    "more layers": (lambda f: edit_json(f / "config.json", num_hidden_layers=4), ValueError, "9 tensors are missing"),
    "fewer layers": (
        lambda f: edit_json(f / "config.json", num_hidden_layers=2),
        ValueError,
        r"9 tensors do not belong to this model: model\.layers\.2",
    ),
    "one tensor missing": (
        lambda f: edit_weights(f, lambda w: w.pop("model.norm.weight")),
        ValueError,
        r"1 tensors are missing: model\.norm\.weight",
    ),
    "no embedding": (
        lambda f: edit_weights(f, lambda w: w.pop("model.embed_tokens.weight")),
        ValueError,
        "embed_tokens",
    ),
    "one tensor more": (
        lambda f: edit_weights(f, lambda w: w.update(extra=torch.ones(1))),
        ValueError,
        "1 tensors do not belong to this model: extra",
    ),
    "integers": (
        lambda f: edit_weights(f, lambda w: w.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})),
        ValueError,
        "must be a floating-point tensor",
    ),
    "untied head": (
        lambda f: edit_weights(f, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 1})),
        ValueError,
        "differs from the embedding",
    ),
    "NaN": (set_value(float("nan")), ValueError, r"layers\.1\.mlp\.up_proj\.weight has values that are not finite"),
    "infinity": (set_value(float("-inf")), ValueError, "not finite"),
    "cut weights": (cut_weights, ValueError, "is not a complete safetensors file"),
    "weights are text": (
        lambda f: (f / "model.safetensors").write_text("hello"),
        ValueError,
        "not a complete safetensors",
    ),
    "tokenizer is not JSON": (lambda f: (f / "tokenizer.json").write_text("{"), ValueError, r"tokenizer\.json"),
    "tokenizer is no tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), ValueError, "cannot be read"),
    "tokenizer of another model": (add_token, ValueError, "ids up to 320, but vocab_size is 320"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_refused_with_its_reason(name: str, model_folder: Path) -> None:
    damage, error, message = BROKEN[name]
    damage(model_folder)
    with pytest.raises(error, match=message):
        load_model(model_folder, device="cpu")


def test_kept_checkpoints_are_listed_and_loaded_by_step(finished_run: Path) -> None:
    assert list_checkpoints(finished_run) == [64, 128, 140]
    by_step, _ = load_model(finished_run, step=64, device="cpu")
    by_path, tokenizer = load_model(finished_run / "checkpoints" / "step-64", device="cpu")
    assert torch.equal(by_step.lm_head.weight, by_path.lm_head.weight)
    assert tokenizer.bos_token_id == 0
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 65; it has: 64, 128, 140"):
        load_model(finished_run, step=65)
    assert list_checkpoints(finished_run / "final") == []


def test_steps_are_listed_by_number_and_strangers_left_out(tmp_path: Path) -> None:
    for name in ("step-1000", "step-200", "step-x", "step-30", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-7").touch()
    assert list_checkpoints(tmp_path) == [30, 200, 1000]


@pytest.fixture(scope="module")
def shipped(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shipped") / "default"
    ship(ShipConfig(run=finished_run, output=output, checkpoints=2, samples=1, device="cpu"))
    return output


def test_shipping_writes_what_a_model_needs_and_nothing_else(shipped: Path, finished_run: Path) -> None:
    assert sorted(p.name for p in shipped.iterdir()) == [
        "README.md",
        "checkpoints",
        "config.json",
        "generation_config.json",
        "held_out",
        "loss.png",
        "model.safetensors",
        "modeling_topk_lm.py",
        "samples.json",
        "sources.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    ]
    assert list_checkpoints(shipped) == [64, 128]
    assert list(shipped.parent.iterdir()) == [shipped]
    assert str(finished_run.parent) not in "".join(p.read_text() for p in shipped.glob("*.json"))


def test_shipped_weights_are_the_final_ones_in_half_precision(shipped: Path, finished_run: Path) -> None:
    stored, final = load_file(shipped / "model.safetensors"), load_file(finished_run / "final" / "model.safetensors")
    model, _ = load_model(shipped, device="cpu")
    assert json.loads((shipped / "config.json").read_text())["dtype"] == "float32"  # what they are to be run in
    for name, tensor in stored.items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, final[name].half())
        assert torch.equal(model.state_dict()[name], tensor.float())
    early, _ = load_model(shipped, step=64, device="cpu")
    assert early.config == model.config


def test_the_card_tells_what_was_measured(shipped: Path) -> None:
    card, record = (shipped / "README.md").read_text(), json.loads((shipped / "training.json").read_text())
    assert card.startswith("---\nlanguage: en\nlicense: apache-2.0\n")
    assert record["config"]["topk_k"] == 6
    assert record["steps"] == 140
    assert 0 < record["validation_loss"] < 4
    # The held-out text is ASCII: its bytes are its characters.
    assert 0 < record["validation_bits_per_byte"] < record["validation_loss"] / 0.69
    for fact in (
        f"{record['validation_loss']} nats per token",
        f"{record['validation_bits_per_byte']} bits per byte",
        f"{record['hours']}",
        "public domain",
        "288 books",
        "loss.png",
        "no replication of the paper's results is claimed",
        "64, 128",
    ):
        assert fact in " ".join(card.split())
    model, tokenizer = load_model(shipped, device="cpu", dtype=torch.float32)
    for temperature in (1.0, 0.7):
        for prompt in PROMPTS:
            written = continue_text(model, tokenizer, prompt, max_tokens=64, temperature=temperature, seed=0)
            assert f"> **{prompt}**{written}".splitlines()[0].rstrip() in card


def test_a_shipped_model_is_replaced_whole_or_not_at_all(shipped: Path, finished_run: Path, tmp_path: Path) -> None:
    output = shutil.copytree(shipped, tmp_path / "default")
    before = (output / "training.json").read_bytes()
    for options, message in (
        ({"max_mb": 0.01}, "MB, max_mb is 0.01"),
        ({"checkpoints": 2, "max_checkpoints_mb": 0.01}, "max_checkpoints_mb is 0.01"),
        ({"checkpoints": 3}, "has 2 before its last step"),
    ):
        with pytest.raises(ValueError, match=message):
            ship(ShipConfig(run=finished_run, output=output, samples=0, **options))
        assert list(tmp_path.iterdir()) == [output]
        assert (output / "training.json").read_bytes() == before
    (output / "stale").touch()
    (tmp_path / "default.old").mkdir()
    (tmp_path / "default.old" / "left").write_text("by a process that was killed")
    ship(ShipConfig(run=finished_run, output=output, samples=0))
    assert not (tmp_path / "default.old").exists()
    assert list_checkpoints(output) == []
    assert not (output / "stale").exists()


def test_a_link_to_a_shipped_model_stays_one(finished_run: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "place")
    for _ in range(2):
        ship(ShipConfig(run=finished_run, output=link, samples=0))
    assert link.is_symlink()
    assert (tmp_path / "place" / "training.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "place"]


def test_the_card_tells_of_a_run_that_went_on_with_another_schedule(shipped: Path, data_folder: Path, tmp_path) -> None:
    for steps in (2, 4):
        train(train_config(data_folder, tmp_path / "run", steps=steps, decay_share=1.0))
    ship(ShipConfig(run=tmp_path / "run", output=tmp_path / "out", samples=0))
    told = ["several that this run had" in (folder / "README.md").read_text() for folder in (tmp_path / "out", shipped)]
    assert told == [True, False]


def test_samples_of_a_narrow_model_end_with_its_context(data_folder: Path, tmp_path: Path) -> None:
    train(train_config(data_folder, tmp_path / "run", steps=2, context=24))
    ship(ShipConfig(run=tmp_path / "run", output=tmp_path / "out"))
    model, tokenizer = load_model(tmp_path / "out", device="cpu")
    texts = json.loads((tmp_path / "out" / "samples.json").read_text())["samples"][0]["texts"]
    assert texts
    assert all(len(tokenizer(text["prompt"]).input_ids) < model.config.max_position_embeddings for text in texts)


def test_shipping_refuses_an_unfinished_run_and_a_foreign_folder(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not finished"):
        ship(ShipConfig(run=tmp_path, output=tmp_path / "out"))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="not a shipped model"):
        ship(ShipConfig(run=finished_run, output=tmp_path))
    assert (tmp_path / "notes.txt").exists()


def test_continuations_depend_on_the_seed_alone(shipped: Path) -> None:
    model, tokenizer = load_model(shipped, device="cpu")

    def write(seed: int, temperature: float = 1.0) -> str:
        return continue_text(model, tokenizer, "Tom saw", max_tokens=20, temperature=temperature, seed=seed)

    assert write(1) == write(1) != write(2)
    assert write(1, 0.0) == write(2, 0.0) == write(1, 1e-310)
    ids = tokenizer("Tom saw", return_tensors="pt").input_ids
    greedy = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    assert write(0, 0.0) == tokenizer.decode(greedy, skip_special_tokens=True)
    with pytest.raises(ValueError, match="together they must be at most 96"):
        continue_text(model, tokenizer, "Tom saw", max_tokens=96, temperature=0.0, seed=0)


def test_a_local_trace_has_k_entries_a_row(shipped: Path) -> None:
    model, tokenizer = load_model(shipped, device="cpu")
    trace = trace_text(model, tokenizer, TEXT, name="m", step=64)
    assert set(trace.chunk.offsets[1:] - trace.chunk.offsets[:-1]) == {6}
    assert trace.layers == (0, 1)
    assert trace.checkpoint == "step-64"
    assert "".join(trace.tokens[1:]) == TEXT
    assert trace.is_special == (True,) + (False,) * (len(trace.tokens) - 1)
    with pytest.raises(ValueError, match="must be between 1 and 96"):
        trace_text(model, tokenizer, TEXT * 30, name="m", step=None)
