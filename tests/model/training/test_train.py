"""Training: schedules, exact resumption, several processes, starts from checkpoints, and the data it reads."""

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.tiny_run import as_arguments, train_config
from topk_model.checkpoints import list_checkpoints, load_model
from topk_model.release.ship import ShipConfig, ship
from topk_model.training.data import DataConfig, Order, TokenWindows, load_data_tokenizer, prepare, windows
from topk_model.training.options import (
    TrainConfig,
    annealed_k,
    lr_share,
)
from topk_model.training.runs import is_kept, read_metrics
from topk_model.training.settling import settle
from topk_model.training.train import Run, build_model, token_weights, train

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--")


Process = subprocess.Popen[str]
Start = Callable[[tuple[str, ...], list[str]], Process]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `topk train` under a launcher; whatever still runs at the end of the test is killed."""
    processes: list[Process] = []

    def start_one(launcher: tuple[str, ...], arguments: list[str]) -> Process:
        command = [*launcher, "service.cli", "train", *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, **pipes))
        return processes[-1]

    yield start_one
    for process in processes:
        for pid in [process.pid, *children(process)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def children(process: Process) -> list[int]:
    """Process ids of the direct children, none where the process has ended."""
    with suppress(FileNotFoundError):
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    return []


def wait_until(condition: Callable[[], bool], process: Process) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def num_steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run)]


def assert_same_weights(a: Path, b: Path) -> None:
    theirs = weights(b)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(a).items())


LONG = {"steps": 200, "anneal_steps": 150, "save_seconds": 0.05, "evaluate_every": 1000}


@pytest.fixture(scope="module")
def uninterrupted(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted")
    train(train_config(data_folder, run, **LONG))
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    number: signal.Signals, start: Start, data_folder: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start((sys.executable, "-m"), as_arguments(data_folder, run, **LONG))
    wait_until(lambda: num_steps(run) >= 20 and (run / "state.pt").exists(), process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (0 if number == signal.SIGTERM else -signal.SIGKILL), output
    assert not (run / "final").exists()
    if number == signal.SIGTERM:
        assert "to continue: topk train --run" in output

    train(TrainConfig(run=run))
    assert_same_weights(run, uninterrupted)
    assert losses(run) == losses(uninterrupted)
    assert [row["step"] for row in read_metrics(run)] == list(range(1, LONG["steps"] + 1))


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_and_stop_together(
    start: Start, data_folder: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(TORCHRUN, as_arguments(data_folder, run, **LONG, batch_size=1))
    wait_until(lambda: num_steps(run) >= 10, process)
    second = next(p for p in children(process) if b"\0RANK=1\0" in Path(f"/proc/{p}/environ").read_bytes())
    os.kill(second, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "to continue" in output
    together = losses(run)
    assert 10 <= len(together) == torch.load(run / "state.pt", weights_only=True)["step"] < LONG["steps"]
    np.testing.assert_allclose(together[:20], losses(uninterrupted)[: len(together)][:20], atol=5e-4)

    train(TrainConfig(run=run, batch_size=1, accumulate=2))
    np.testing.assert_allclose(losses(run)[-20:], losses(uninterrupted)[-20:], atol=0.1)
    assert read_metrics(run)[-1]["tokens"] == read_metrics(uninterrupted)[-1]["tokens"]


def test_k_falls_from_dense_to_its_target() -> None:
    config = TrainConfig(hidden_size=64, topk_k=5, anneal_steps=100)
    ks = [annealed_k(config, step) for step in range(150)]
    assert ks[0] == 64
    assert ks == sorted(ks, reverse=True)
    assert set(ks[100:]) == {5}


def test_the_learning_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, decay_share=0.5, learning_rate=1.0, min_lr_share=0.1)
    rates = [config.learning_rate * lr_share(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:50] == [1.0] * 40
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.1)
    assert lr_share(TrainConfig(steps=10, decay_share=0, warmup_steps=0), 9) == 1.0


def test_unlikely_tokens_count_less_in_the_last_steps(data_folder: Path, tmp_path: Path) -> None:
    weights = token_weights(-torch.tensor([0.5, 0.01, 0.0001]).log(), gamma=0.01)
    assert weights.tolist() == pytest.approx([0.5 / 0.505, 0.01 / 0.0199, 0.0001 / 0.010099], rel=1e-5)
    assert token_weights(torch.tensor([0.1, 9.0]), gamma=0.0).tolist() == [1.0, 1.0]
    runs = [tmp_path / name for name in ("alike", "tailr")]
    for run, gamma in zip(runs, (0.0, 0.1), strict=True):
        train(train_config(data_folder, run, steps=20, tailr_gamma=gamma, tailr_share=0.5))
    alike, tailr = map(losses, runs)
    assert alike[:11] == tailr[:11]  # the loss of a step is from before its update
    assert all(a != b for a, b in zip(alike[11:], tailr[11:], strict=True))


def test_kept_checkpoints_are_log_spaced_and_include_the_last() -> None:
    assert [step for step in range(1, 1001) if is_kept(step, 1000)] == [64, 128, 256, 512, 1000]


def test_a_finished_run_holds_everything(finished_run: Path) -> None:
    metrics = read_metrics(finished_run)
    assert len(metrics) == 140
    assert metrics[-1]["k"] == 6
    assert "validation_loss" in metrics[-1]
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 1.0
    assert list_checkpoints(finished_run) == [64, 128, 140]
    assert (finished_run / "loss.png").read_bytes().startswith(b"\x89PNG")
    final, _ = load_model(finished_run / "final", device="cpu")
    last, _ = load_model(finished_run, step=140, device="cpu")
    early, _ = load_model(finished_run, step=64, device="cpu")
    assert torch.equal(final.lm_head.weight, last.lm_head.weight)
    assert not torch.equal(final.lm_head.weight, early.lm_head.weight)


def test_the_dense_twin_has_no_topk_layer(data_folder: Path, tmp_path: Path) -> None:
    train(train_config(data_folder, tmp_path, steps=3, n_nontopk=3))
    assert {row["k"] for row in read_metrics(tmp_path)} == {32}
    model, _ = load_model(tmp_path / "final", device="cpu")
    assert model.config.topk_layers == []


def test_heads_may_be_narrower_than_the_residual_stream(data_folder: Path, tmp_path: Path) -> None:
    train(train_config(data_folder, tmp_path, steps=2, head_dim=4))
    model, _ = load_model(tmp_path / "final", device="cpu")
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (4 * 4, 32)
    with pytest.raises(ValueError, match="was started with head_dim=4, not 8"):
        settle(TrainConfig(run=tmp_path, head_dim=8))


def test_a_run_is_continued_with_its_own_options_and_as_nothing_else(finished_run: Path) -> None:
    assert settle(TrainConfig(run=finished_run)).hidden_size == 32
    assert settle(TrainConfig(run=finished_run, steps=200, threads=1)).steps == 200
    assert settle(TrainConfig(run=finished_run, topk_k=4, anneal_steps=120)).topk_k == 4
    with pytest.raises(ValueError, match="was started with hidden_size=32, not 64"):
        settle(TrainConfig(run=finished_run, hidden_size=64))
    with pytest.raises(ValueError, match=r"started with 4 windows per step.* now 12"):
        train(TrainConfig(run=finished_run, accumulate=3))
    with pytest.raises(ValueError, match="has reached step 140, but steps is 100"):
        train(TrainConfig(run=finished_run, steps=100))


def test_a_finished_run_that_goes_on_is_not_finished(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    monkeypatch.setattr(Run, "run", lambda self, stopping: None)  # told to stop at once
    train(TrainConfig(run=run, steps=200))
    with pytest.raises(FileNotFoundError, match="is not finished"):
        ship(ShipConfig(run=run, output=tmp_path / "out", samples=0))


def test_a_run_does_not_go_on_over_other_data(
    finished_run: Path, data_folder: Path, books: Path, tmp_path: Path
) -> None:
    run, data = shutil.copytree(finished_run, tmp_path / "run"), shutil.copytree(data_folder, tmp_path / "data")
    train(train_config(data, tmp_path / "other", steps=2))
    prepare(DataConfig(source=books, output=data, vocab_size=320, topic_passes=1))
    with pytest.raises(ValueError, match=r"data has other tokens than when .*other was started"):
        train(TrainConfig(run=tmp_path / "other", steps=3))
    (run / "state.pt").write_bytes((run / "state.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.pt is damaged, so .*run cannot be continued"):
        train(TrainConfig(run=run, steps=200))
    (run / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged, so .*run cannot be continued"):
        train(TrainConfig(run=run, steps=200))


def test_held_out_text_holds_at_least_a_window(data_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(data_folder, tmp_path / "data")
    np.save(data / "validation.npy", np.load(data / "validation.npy")[:90])
    with pytest.raises(ValueError, match=r"held-out text in .*data is shorter than one window of context=96"):
        train(train_config(data, tmp_path / "run"))


def save_llama(folder: Path, data: Path, **fields: Any) -> LlamaForCausalLM:
    tokenizer = load_data_tokenizer(data)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    llama = LlamaForCausalLM(LlamaConfig(**(shape | fields))).eval()
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return llama


def test_training_can_start_from_a_llama(data_folder: Path, tmp_path: Path) -> None:
    llama = save_llama(tmp_path / "llama", data_folder)
    options = {"data": data_folder, "run": tmp_path / "run", "init_from": tmp_path / "llama"}
    config = TrainConfig(**options, context=96, topk_k=7, n_nontopk=1, steps=2, anneal_steps=2, threads=1, batch_size=1)
    settled = settle(config)
    assert (settled.hidden_size, settled.num_layers) == (48, 2)
    model = build_model(settled, load_data_tokenizer(data_folder))
    assert all(torch.equal(tensor, llama.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert (model.config.topk_k, model.config.n_nontopk) == (7, 1)

    train(config)
    assert read_metrics(tmp_path / "run")[0]["k"] == 48
    train(TrainConfig(run=tmp_path / "run", steps=3))
    trained, _ = load_model(tmp_path / "run" / "final", device="cpu")
    assert trained.config.topk_layers == [0]


def test_a_start_that_does_not_fit_is_refused(data_folder: Path, books: Path, tmp_path: Path) -> None:
    save_llama(tmp_path / "llama", data_folder)
    options = {"run": tmp_path / "run", "init_from": tmp_path / "llama"}
    with pytest.raises(ValueError, match=r"hidden_size is 64, but .* has 48"):
        settle(TrainConfig(data=data_folder, hidden_size=64, **options))
    with pytest.raises(ValueError, match=r"context is 512, must be at most init_from's \(128\)"):
        settle(TrainConfig(data=data_folder, **options))
    other, borrowed = tmp_path / "other", tmp_path / "borrowed"
    prepare(DataConfig(source=books, output=other, vocab_size=310))
    config = settle(TrainConfig(data=other, context=96, n_nontopk=1, **options))
    with pytest.raises(ValueError, match="another tokenizer"):
        build_model(config, load_data_tokenizer(other))
    prepare(DataConfig(source=books, output=borrowed, tokenizer=tmp_path / "llama"))
    build_model(config, load_data_tokenizer(borrowed))


def test_every_epoch_reads_each_window_at_most_once_and_in_another_order() -> None:
    order = Order(num_windows=10, per_step=3, seed=0)
    first = np.concatenate([order.windows(step) for step in range(3)])
    second = np.concatenate([order.windows(step) for step in range(3, 6)])
    assert len(set(first)) == len(set(second)) == 9
    assert first.tolist() != second.tolist()
    assert order.windows(1).tolist() == first[3:6].tolist()
    with pytest.raises(ValueError, match="fewer than"):
        Order(num_windows=2, per_step=3, seed=0)


def test_windows_start_at_paragraphs_and_skip_nothing() -> None:
    starts = np.array([0, 7, 14, 40, 41])
    offsets = windows(starts, 60, 10)
    assert offsets.tolist() == [0, 7, 14, 24, 34, 41]
    assert max(np.diff(offsets)) <= 10


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"author": "A", "title": "T", "text": "x"}\n{"author": "A"}\n', "line 2 of .* Field required"),
        ("a.jsonl", b'{"author": "A", "title": "T", "text": 5}\n', "line 1 of .* valid string"),
        ("a.jsonl", b"[]\n", "line 1 of .* not an object with the strings author, title and text"),
        ("a.jsonl", b'{"author": "\xff"}\n', "line 1 of .* not an object"),
        ("a.jsonl.xz", b"no archive", "is not a complete xz file"),
        ("a.jsonl.xz", lzma.compress(b"{}\n" * 100_000)[:60], "line 1 of|is not a complete xz file"),
    ],
)
def test_a_source_that_cannot_be_read_is_told(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        prepare(DataConfig(source=tmp_path / name, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_data_is_replaced_whole_and_nothing_else_is(data_folder: Path, books: Path, tmp_path: Path) -> None:
    data = shutil.copytree(data_folder, tmp_path / "data")
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    save_llama(tmp_path / "llama", data_folder)
    path = tmp_path / "llama" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": None}))
    with pytest.raises(ValueError, match="has no bos_token"):
        prepare(DataConfig(source=books, output=data, tokenizer=tmp_path / "llama"))
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    with pytest.raises(ValueError, match="was not made by topk data"):
        prepare(DataConfig(source=books, output=tmp_path / "mine"))


def test_data_holds_out_passages_and_records_its_sources(data_folder: Path, books: Path, tmp_path: Path) -> None:
    sources = json.loads((data_folder / "sources.json").read_text())
    assert "public domain" in sources["licence"]
    assert len(sources["books"]) == 288
    tokenizer = load_data_tokenizer(data_folder)
    held_out = tokenizer.decode(np.load(data_folder / "validation.npy"))
    trained = tokenizer.decode(np.load(data_folder / "train.npy"))
    passages = [row["text"] for row in map(json.loads, books.read_text().splitlines())]
    assert all((passage in held_out) != (passage in trained) for passage in passages)
    rows = TokenWindows.load(data_folder, "train", 96, tokenizer.bos_token_id).rows(np.arange(2))
    assert rows.shape == (2, 97)
    assert set(rows[:, 0]) == {tokenizer.bos_token_id}
    prepare(DataConfig(source=books, output=tmp_path, vocab_size=320, topic_passes=0))
    for name in ("train.npy", "validation.npy", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (data_folder / name).read_bytes()
