"""The console command: its options, its help, its errors."""

import json
import os
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from service.cli import COMMANDS, load, main, parse
from tests.support.tiny_run import as_arguments
from topk_model.generate import GenerateConfig
from topk_model.training.options import TrainConfig

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def topk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run `topk` with arguments in an empty folder: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:  # argparse's own: help and unknown options
            status = ended.code if isinstance(ended.code, int) else 1
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_help_names_every_command_without_loading_one() -> None:
    code = (
        "import sys, service.cli\n"
        "status = service.cli.main(['--help'])\n"
        "print(status, 'torch' in sys.modules, 'ray' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 False False"
    assert all(name in result.stdout for name in COMMANDS)


def test_the_installed_command_answers() -> None:
    command = Path(sys.executable).with_name("topk")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("topk 0.")


@pytest.mark.long
def test_a_reader_that_has_enough_is_no_mistake(tiny_model_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does
    command = [sys.executable, "-m", "service.cli", "neurons", "--model", str(tiny_model_path)]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_its_options_and_exists(name: str, topk: Run) -> None:
    status, out, _ = topk(name, "--help")
    assert status == 0
    assert COMMANDS[name].summary in " ".join(out.split())
    assert f"  {COMMANDS[name].example}\n" in out
    assert max(map(len, out.splitlines())) <= 110
    fields = load(COMMANDS[name].config).model_fields
    assert [field for field, info in fields.items() if not info.description] == []
    assert all(f"--{field.replace('_', '-')}" in out for field in fields)
    assert callable(load(COMMANDS[name].function))


def test_help_of_a_command_is_quick_grouped_and_has_an_example_that_works() -> None:
    """Each command's in a process of its own, forked from one that has what all of them need."""
    code = """
import os, resource, sys, service.cli
heavy = {"torch", "transformers", "ray", "grpc", "pyarrow", "scipy", "tokenizers", "fastapi", "matplotlib"}
shared = resource.getrusage(resource.RUSAGE_SELF).ru_utime
for name in sys.argv[1:]:
    if not os.fork():
        service.cli.main([name, "--help"])
        seconds = shared + resource.getrusage(resource.RUSAGE_SELF).ru_utime
        print(sorted(heavy & sys.modules.keys()), seconds, sep=";", end="\\f", flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, name
"""
    result = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True, check=True)
    for (name, command), told in zip(COMMANDS.items(), result.stdout.split("\f")[:-1], strict=True):
        heavy, seconds = told.splitlines()[-1].split(";")
        assert heavy == "[]", name
        assert float(seconds) < 1.0, name  # of its own, however busy the machine is
        assert all(f"\n{heading}:\n  --{first.replace('_', '-')}" in told for heading, first in command.groups.items())
        words = shlex.split(command.example)
        assert words[:2] == ["topk", name]
        parse(load(command.config), "topk", "", words[2:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a command is required"),
        (["fly"], "'fly' is not a command"),
        (["train", "--stepz", "3"], "unrecognized arguments: --stepz 3"),
        (["train", "--step", "3"], "unrecognized arguments: --step 3"),
        (["train", "extra"], "unrecognized arguments: extra"),
        (["train", "--steps", "0"], "--steps: Input should be greater than or equal to 1, not '0'"),
        (["train", "--learning-rate", "fast"], "--learning-rate: Input should be a valid number"),
        (["train", "--topk-select", "x"], "--topk-select: Input should be 'signed' or 'abs', not 'x'"),
        (["train", "--data", "nowhere"], "nowhere/tokenizer.json does not exist; make it with: topk data"),
        (["train", "--init-from", "nowhere"], "nowhere is not a folder"),
        (["data"], "either --source or --texts is required, but not both"),
        (["data", "--texts", "x"], "--licence is required with --texts"),
        (["data", "--texts", "x", "--licence", "a", "--stories", "b"], "--stories cannot be used with --texts"),
        (["data", "--texts", "nowhere", "--licence", "a"], "nowhere does not exist"),
        (["data", "--source", "nowhere"], "nowhere does not exist; get the books with: git clone"),
        (["ship", "--run", "nowhere"], "nowhere is not finished"),
        (["generate"], "the following arguments are required: --prompt"),
        (["generate", "--model", "nowhere", "--prompt", "x"], "nowhere is not a folder"),
        (["generate", "--prompt", "x", "--temperature", "-1"], "--temperature: Input should be greater"),
        (["generate", "--prompt", "x", "--temperature", "nan"], "--temperature: Input should be"),
        (["generate", "--prompt", "\udcff"], "--prompt: Input should be a valid string"),
        (["neurons", "--text", "\udcff"], "--text: Input should be a valid string"),
        (["trace", "--text", ""], "--text: String should have at least 1 character"),
        (["trace"], "either --text or --input is required, but not both"),
        (["trace", "--input", "a.jsonl"], "--output is required with --input"),
        (["trace", "--text", "a", "--dtype", "float16"], "--dtype cannot be used with --text"),
        (["trace", "--input", "nowhere", "--output", "a.csv"], "output must end in .parquet or .safetensors"),
        (["trace", "--input", "nowhere", "--output", "a.parquet"], "No such file or directory: 'nowhere'"),
        (["serve", "--http-port", "0"], "--http-port: Input should be greater than or equal to 1, not '0'"),
        (["serve", "--host", "0.0.0.0"], "there is no API key"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], message: str, topk: Run) -> None:
    status, out, err = topk(*arguments)
    assert status == 2
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith(
        "topk" + (f" {arguments[0]}" if arguments[:1] != ["fly"] and arguments else "") + ": error: "
    )
    assert message in last
    assert "Traceback" not in err


def test_an_impossible_shape_is_told_in_one_line(data_folder: Path, topk: Run) -> None:
    status, _, err = topk("train", "--data", data_folder, "--topk-k", 999, "--threads", 1)
    assert (status, err) == (
        2,
        "topk train: error: the model's shape: topk_k is 999, must be between 1 and hidden_size (384)\n",
    )


def test_two_mistakes_are_both_told(topk: Run) -> None:
    _, _, err = topk("train", "--steps", "0", "--seed", "-1")
    assert "--steps: " in err
    assert "--seed: " in err


def test_only_what_was_given_counts_as_given() -> None:
    config = parse(TrainConfig, "topk train", "", ["--steps", "5", "--min-lr-share", "0.5"])
    assert type(config) is TrainConfig
    assert config.model_fields_set == {"steps", "min_lr_share"}
    assert (config.steps, config.min_lr_share) == (5, 0.5)


def test_a_program_run_by_hand_reads_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("steps", "7")
    monkeypatch.setenv("STEPS", "7")
    assert parse(TrainConfig, "topk train", "", []).steps == TrainConfig().steps
    assert parse(GenerateConfig, "topk generate", "", ["--prompt", "None"]).prompt == "None"


def test_the_service_reads_variables_and_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load("service.settings:Settings")
    monkeypatch.setenv("TOPK_HTTP_PORT", "8123")
    monkeypatch.setenv("TOPK_GRPC_PORT", "9123")
    parsed = parse(settings, "topk serve", "", ["--http-port", "8124"])
    assert (parsed.http_port, parsed.grpc_port) == (8124, 9123)


def test_data_train_ship_generate_trace_in_a_row(books: Path, topk: Run) -> None:
    here = Path(os.getcwd())
    assert topk("data", "--source", books, "--output", "data/small", "--vocab-size", 320)[0] == 0
    assert topk("train", *as_arguments(Path("data/small"), Path("runs/small"), steps=70))[0] == 0
    status, out, err = topk("ship", "--run", "runs/small", "--output", "model", "--checkpoints", 1)
    assert (status, "bits per byte" in out) == (0, True), err
    assert sorted(p.name for p in here.iterdir()) == ["data", "model", "runs"]

    write = ("generate", "--model", "model", "--prompt", "Tom saw", "--max-tokens", 10)
    first, again, other = (topk(*write, "--seed", seed)[1] for seed in (1, 1, 2))
    assert first.startswith("Tom saw")
    assert first == again != other
    assert topk(*write, "--step", 64)[0] == 0
    assert "has no checkpoint of step 65" in topk(*write, "--step", 65)[2]

    trace = ("trace", "--model", "model", "--text", "Tom saw a ship.")
    status, out, _ = topk(*trace, "--json-output")
    fields = json.loads(out)
    assert fields["k"] == 6
    assert fields["offsets"] == list(range(0, 6 * 2 * len(fields["tokens"]) + 1, 6))
    status, out, _ = topk(*trace, "--top-n", 2)
    lines = out.splitlines()[1:]
    assert len(lines) == 2 * len(fields["tokens"])
    strongest = max(range(6), key=lambda i: fields["values"][i])
    assert f"layer  0  {fields['indices'][strongest]}={fields['values'][strongest]:.2f}  " in lines[0]
    assert lines[0].count("=") == 2


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left"),
        (sqlite3.OperationalError("database or disk is full"), "database or disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598"), "the disk is full"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
            "not enough memory",
        ),
        (MemoryError(), "there is not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "CUDA out of memory"),
        (OSError(28, "No space left on device", "a/b"), "No space left on device: 'a/b'"),
    ],
)
def test_what_a_library_says_is_told_in_one_line(
    topk: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("topk_model.generate.generate", fail)
    status, _, err = topk("generate", "--prompt", "x")
    assert (status, len(err.splitlines())) == (2, 1)
    assert err.startswith("topk generate: error: ")
    assert says in err


def test_a_bug_of_ours_is_not_dressed_up(topk: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topk_model.generate.generate", lambda _: {}["no such key"])
    with pytest.raises(KeyError):
        topk("generate", "--prompt", "x")


def test_a_full_disk_ends_training_in_one_line(data_folder: Path, tmp_path: Path) -> None:
    """A file may have no more than 30 kB: the state's is larger."""
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)); "
    code = f"{limit}import service.cli; sys.exit(service.cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", *as_arguments(data_folder, tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("topk train: error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_terminal_of_another_encoding_shows_what_it_can(tiny_model_path: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "neurons", "--model", str(tiny_model_path)]
    command += ["--layer", "0", "--neuron", "1"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
