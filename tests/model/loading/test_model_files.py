"""What a model's several files say of one thing: every one that is right counts, and two that differ are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from service.text import TextTokenizer
from tests.support.handmade_tokenizers import handmade, special, word
from tests.support.tiny import tiny_config
from topk_model.checkpoints import load_model
from topk_model.generate import continue_text, trace_text
from topk_model.model_folder import weights_digest
from topk_model.modeling import TopKLMForCausalLM
from topk_model.special_tokens import special_token_ids

ADDED = [special("<|bos|>"), special("<|eos|>"), special("<|im_end|>"), word("naïve"), special("<|tool|>")]
SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose config.json names no token at all."""
    tokenizer = handmade(ADDED, bos="<|bos|>", eos="<|eos|>")
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, pad_token_id=None)
    place = tmp_path / "model"
    TopKLMForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    edit(place / "config.json", drop=("bos_token_id", "eos_token_id", "pad_token_id"))
    (place / "generation_config.json").unlink()
    return place


def edit(path: Path, drop: tuple[str, ...] = (), **fields: Any) -> None:
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({name: value for name, value in (old | fields).items() if name not in drop}))


def id_of(text: str) -> int:
    token_id: int = handmade(ADDED, bos="<|bos|>", eos="<|eos|>").convert_tokens_to_ids(text)
    return token_id


def ends(folder: Path) -> Any:
    return load_model(folder, device="cpu")[0].config.eos_token_id


def test_end_tokens_are_those_of_every_file(folder: Path) -> None:
    eos, im_end, tool = map(id_of, ("<|eos|>", "<|im_end|>", "<|tool|>"))
    assert ends(folder) == eos  # of tokenizer_config.json alone, and no default of another model
    edit(folder / "generation_config.json", eos_token_id=[im_end, eos])
    assert ends(folder) == [eos, im_end]
    edit(folder / "config.json", eos_token_id=tool)
    assert ends(folder) == [tool, eos, im_end]
    edit(folder / "tokenizer_config.json", drop=("eos_token",))
    assert ends(folder) == [tool, im_end, eos]
    edit(folder / "generation_config.json", eos_token_id=-1)
    assert ends(folder) == tool
    edit(folder / "config.json", eos_token_id=None)
    assert ends(folder) is None


@pytest.mark.parametrize("value", [4000, "<|eos|>", [1, 2.0], -7, True])
def test_an_end_token_that_is_none_is_refused_with_its_file(folder: Path, value: object) -> None:
    edit(folder / "generation_config.json", eos_token_id=value)
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id is .* must be"):
        load_model(folder, device="cpu")


def test_a_checkpoint_shares_its_models_generation_config(folder: Path) -> None:
    step = folder / "checkpoints" / "step-5"
    step.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, step)
    edit(folder / "generation_config.json", eos_token_id=id_of("<|im_end|>"))
    assert load_model(folder, step=5, device="cpu")[0].config.eos_token_id == ends(folder)


def test_no_token_is_special_by_a_default_of_another_model(folder: Path) -> None:
    model, tokenizer = load_model(folder, device="cpu")
    assert (model.config.bos_token_id, model.config.pad_token_id) == (None, None)
    named = {"<|bos|>", "<|eos|>", "<|im_end|>", "<|tool|>"}  # <|im_end|> and <|tool|> by tokenizer.json alone
    assert special_token_ids(tokenizer, model.config) == set(map(id_of, named))


def test_a_word_of_the_vocabulary_may_end_texts_and_stays_text(folder: Path) -> None:
    newline = handmade().convert_tokens_to_ids("Ċ")
    edit(folder / "config.json", eos_token_id=newline)
    model, tokenizer = load_model(folder, device="cpu")
    assert newline in model.config.eos_token_id
    assert newline not in special_token_ids(tokenizer, model.config)


@pytest.mark.parametrize("end", ["<|eos|>", "<|im_end|>", "Ġ"])
def test_generate_ends_at_any_of_them_and_shows_none(folder: Path, end: str) -> None:
    edit(folder / "generation_config.json", eos_token_id=[id_of("<|im_end|>"), handmade().convert_tokens_to_ids("Ġ")])
    model, tokenizer = load_model(folder, device="cpu")
    scripted = iter([id_of("naïve"), tokenizer.convert_tokens_to_ids("x"), tokenizer.convert_tokens_to_ids(end)])
    forward = model.forward

    def write(**kwargs: Any) -> Any:
        output = forward(**kwargs)
        output.logits[0, -1, next(scripted)] = 1e4
        return output

    model.forward = write  # type: ignore[method-assign]
    assert continue_text(model, tokenizer, "a", max_tokens=9, temperature=0.0, seed=0) == "naïvex"


def test_a_local_trace_names_tokens_as_the_service_does(folder: Path) -> None:
    model, tokenizer = load_model(folder, device="cpu")
    trace = trace_text(model, tokenizer, "naïve é<|tool|>", name="m", step=None)
    assert trace.tokens == ("<|bos|>", "naïve", " ", "bytes:\\xc3", "bytes:\\xa9", *"<|tool|>")
    assert trace.is_special == (True, *[False] * 12)
    assert trace.token_ids == TextTokenizer(tokenizer).encode("naïve é<|tool|>")


def with_index(folder: Path, shard: str) -> dict[str, Any]:
    weights = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weights


def stale_single(folder: Path) -> None:
    save_file(with_index(folder, SHARD), folder / SHARD)


def lost_index(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / SHARD)


def test_an_adapter_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"contains an adapter \(adapter_config\.json\).*merge it into the weights"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("spoil", [stale_single, lost_index])
def test_two_models_in_one_folder_are_refused(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder)
    for read in (lambda: load_model(folder, device="cpu"), lambda: weights_digest(folder)):
        with pytest.raises(ValueError, match=rf"two models, model\.safetensors and {SHARD}.*remove the other"):
            read()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    (folder / SHARD).unlink()
    load_model(folder, device="cpu")


def test_an_index_may_name_the_single_file(folder: Path) -> None:
    plain = weights_digest(folder)
    with_index(folder, "model.safetensors")
    load_model(folder, device="cpu")
    assert weights_digest(folder) == plain


def test_each_tensor_comes_from_the_shard_that_the_index_names(folder: Path) -> None:
    """A shard of an older export may hold a tensor of the same name."""
    weights = with_index(folder, SHARD)
    name = "model.norm.weight"
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    index = {"weight_map": {tensor: second if tensor != name else first for tensor in weights}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({name: weights[name]}, folder / first)
    save_file(weights | {name: weights[name] + 1}, folder / second)
    (folder / "model.safetensors").unlink()
    assert torch.equal(load_model(folder, device="cpu")[0].model.norm.weight, weights[name])
    save_file({"other": weights[name].clone()}, folder / first)
    with pytest.raises(ValueError, match=rf"{first} lacks {name}"):
        load_model(folder, device="cpu")
