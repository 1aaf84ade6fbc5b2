"""Bulk export through a running service: in order, resumable to the same bytes, and readable by others' tools."""

import copy
import json
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from service.client import export as export_module
from service.client.client import CallError, Client, texts, trace_from_pb
from service.client.export import NUM_REQUESTS, Export, choose_model, export, fetched, missing_batches
from service.client.input_lines import Lines
from service.client.trace_files import read_traces
from service.pb import topk_pb2 as pb
from tests.support.running import Running
from tests.support.served import MODEL_ID, free_port, wait_until
from topk_model.traces import Trace

pytestmark = pytest.mark.ray

NUM_TEXTS = 150


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of many lengths, with all that JSON escapes."""
    rng = random.Random(0)
    words = ("Once", "the king", "war", "été", '"stop"', "🙂", "a\nline")
    rows = [{"id": i, "text": " ".join(rng.choices(words, k=rng.randrange(1, 25)))} for i in range(NUM_TEXTS)]
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def job(running: Running, sentences: Path, tmp_path: Path) -> Export:
    return Export(input=sentences, output=tmp_path / "traces.parquet", target=running.target, batch_size=16)


@pytest.fixture
def replace_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, the service seems to have other weights under the model's name."""
    models = Client.models

    def replaced(client: Client) -> list[pb.Model]:
        (model,) = models(client)
        model.topk.weights_sha256 = "f" * 64
        return [model]

    return lambda: monkeypatch.setattr(Client, "models", replaced)


def run(job: Export) -> Path:
    assert export(job, show_progress=False).num_texts > 0
    assert not job.parts.exists()
    return job.output


def everything(job: Export) -> tuple[Lines, list[range]]:
    """The lines of a job's input, and all of its batches."""
    lines = Lines.read(job.input, job.text_field, may_have_faults=True)
    return lines, missing_batches(len(lines), [], job.batch_size)


def bad_line(job: Export, tmp_path: Path, line: str) -> Export:
    """The job with a 21st line in front of the rest."""
    lines = job.input.read_text().splitlines()
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([*lines[:20], line, *lines[20:]]) + "\n")
    return replace(job, input=path)


def test_a_row_holds_the_trace_of_its_line(job: Export) -> None:
    traces = list(read_traces(run(job)))
    lines = [json.loads(line)["text"] for line in job.input.read_text().splitlines()]
    assert len(traces) == len(lines) == NUM_TEXTS
    with Client(job.target) as client:
        for number in range(0, NUM_TEXTS, 13):
            reply = client.activations(pb.ActivationsRequest(model=MODEL_ID, input=texts([lines[number]])))
            assert_equal(traces[number], trace_from_pb(reply.data[0].trace))
    table = pq.read_table(job.output)
    assert table["index"].to_pylist() == list(range(NUM_TEXTS))
    assert json.loads(table.schema.metadata[b"trace"])["layers"] == [0, 1]


def assert_equal(first: Trace | None, second: Trace) -> None:
    assert first is not None
    assert first.header() == second.header()
    for name in ("offsets", "indices", "values"):
        np.testing.assert_array_equal(getattr(first.chunk, name), getattr(second.chunk, name))


def test_safetensors_holds_the_same_numbers(job: Export, tmp_path: Path) -> None:
    job = bad_line(replace(job, on_error="skip", dtype="float16"), tmp_path, json.dumps({"text": "word " * 2000}))
    traces = list(read_traces(run(job)))
    tensors = load_file(run(replace(job, output=tmp_path / "traces.safetensors")))
    assert traces[20] is None
    assert tensors["failed"].nonzero()[0].tolist() == [20]
    assert tensors["values"].dtype == np.float16
    ends, rows = tensors["num_tokens"].cumsum(), tensors["num_entries"].cumsum()
    assert rows[-1] == len(tensors["indices"]) == len(tensors["values"])
    for number in (0, 19, 21, NUM_TEXTS):
        trace = traces[number]
        assert trace is not None
        stop = ends[number]
        start = stop - tensors["num_tokens"][number]
        assert tensors["token_ids"][start:stop].tolist() == list(trace.token_ids)
        entries = slice(rows[start * 2 - 1] if start else 0, rows[stop * 2 - 1])
        np.testing.assert_array_equal(tensors["indices"][entries], trace.chunk.indices)
        np.testing.assert_array_equal(tensors["values"][entries].astype(np.float32), trace.chunk.values)


@pytest.mark.parametrize("text", ["", "half \ud800"])
def test_a_text_that_no_request_can_hold_can_be_skipped(job: Export, tmp_path: Path, text: str) -> None:
    job = bad_line(replace(job, on_error="skip"), tmp_path, json.dumps({"text": text}))
    traces = list(read_traces(run(job)))
    assert [number for number, trace in enumerate(traces) if trace is None] == [20]


def command(job: Export) -> list[str]:
    options = {"input": job.input, "output": job.output, "target": job.target, "batch-size": job.batch_size}
    return [sys.executable, "-m", "service.cli", "trace", *(f"--{name}={value}" for name, value in options.items())]


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
def test_a_killed_export_goes_on_to_the_same_file(job: Export, tmp_path: Path, suffix: str) -> None:
    job = replace(job, batch_size=1, output=tmp_path / f"killed{suffix}")
    with (tmp_path / "err.txt").open("w") as stderr:
        process = subprocess.Popen(command(job), stderr=stderr)
        assert wait_until(lambda: len(list(job.parts.glob("*.arrow"))) > 2 or process.poll() is not None, 60)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    num_parts = len(list(job.parts.glob("*.arrow")))
    assert 3 <= num_parts < NUM_TEXTS
    assert not job.output.exists()
    finished = subprocess.run(command(job), capture_output=True, text=True, check=True)
    assert finished.stdout == f"{NUM_TEXTS} texts in {job.output}\n"
    assert f"{NUM_TEXTS}/{NUM_TEXTS}" in finished.stderr  # the progress bar
    whole = run(replace(job, output=tmp_path / f"whole{suffix}"))
    assert job.output.read_bytes() == whole.read_bytes()


def test_little_is_fetched_ahead_of_what_is_written(job: Export) -> None:
    job = replace(job, batch_size=2)
    with Client(job.target) as client:
        num_requests = 0
        stream = client.activations_stream

        def counted(request: Any) -> Any:
            nonlocal num_requests
            num_requests += 1
            return stream(request)

        client.activations_stream = counted  # type: ignore[method-assign]
        batches = fetched(client, job, choose_model(client, MODEL_ID), *everything(job))
        for num_written, (rows, _) in enumerate(batches):
            assert rows == range(2 * num_written, 2 * num_written + 2)
            assert num_requests <= num_written + 1 + NUM_REQUESTS
        assert num_requests == NUM_TEXTS // 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"line 21 of .* is not valid JSON"),
        ('{"txt": "a"}', r"line 21 of .* must be an object with a string in 'text'"),
        ('["a"]', r"line 21 of .* must be an object"),
        ('{"text": "a", "m": ' + "[" * 100_000, r"line 21 of .* is not valid JSON"),
        ('{"text": ""}', r"line 21 of .*: input must not be empty"),
        ('{"text": "half \\ud800"}', r"line 21 of .*: input must be valid Unicode"),
        (json.dumps({"text": "word " * 2000}), r"line 21 of .*: input is too long: .* context is 256"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(job: Export, tmp_path: Path, line: str, says: str) -> None:
    job = bad_line(job, tmp_path, line)
    with pytest.raises(ValueError, match=says):
        export(job, show_progress=False)
    assert not job.output.exists()


def test_all_of_the_input_is_read_before_anything_is_fetched(job: Export, tmp_path: Path) -> None:
    path = tmp_path / "late.jsonl"
    path.write_text(job.input.read_text() + "{\n[]\n\n{}\n3\n")
    job = replace(job, input=path)
    says = (
        r"line 151 of .* not valid JSON.*; line 152 of .* must be an object.*; line 154 of .*; and 1 more "
        r"\(with --on-error skip"
    )
    with pytest.raises(ValueError, match=says):
        export(job, show_progress=False)
    assert not job.parts.exists()


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
def test_blank_lines_and_a_byte_order_mark_are_no_texts(job: Export, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "blank.jsonl"
    lines = job.input.read_text().splitlines()
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines[:20], "", " \t", *lines[20:], "", ""]).encode())
    job = replace(job, input=path, output=tmp_path / f"blank{suffix}")
    exported = export(job, show_progress=False)
    assert (exported.num_texts, exported.failed) == (NUM_TEXTS, [])
    if suffix == ".parquet":
        indices = pq.read_table(job.output)["index"].to_pylist()
        assert indices == [*range(20), *range(22, NUM_TEXTS + 2)]
        assert all(trace is not None for trace in read_traces(job.output))


def test_lines_without_a_text_are_skipped_and_reported(job: Export, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = job.input.read_text().splitlines()
    bad = ["{", '{"txt": "a"}', '"a"', '{"text": 3}', '{"text": ""}', json.dumps({"text": "word " * 2000})]
    path.write_text("\n".join([*lines[:30], *bad, *lines[30:]]))
    done = subprocess.run([*command(replace(job, input=path)), "--on-error=skip"], capture_output=True, text=True)
    assert done.stdout == (
        f"{NUM_TEXTS + 6} texts in {job.output}, 6 of them without a trace: lines 31, 32, 33, 34, 35, 36\n"
    )
    errors = pq.read_table(job.output)["error"].to_pylist()
    assert [number for number, error in enumerate(errors) if error is not None] == list(range(30, 36))
    assert errors[31] == "must be an object with a string in 'text'"


@pytest.mark.parametrize("cure", ["mend", "remove", "skip", "smaller batches"])
def test_what_was_fetched_before_a_fault_is_kept(
    job: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cure: str
) -> None:
    lines = job.input.read_text().splitlines()
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join([*lines[:100], json.dumps({"text": "word " * 2000}), *lines[100:]]))
    job = replace(job, input=path)
    with pytest.raises(ValueError, match=r"line 101 of .* input is too long"):
        export(job, show_progress=False)
    kept = {part.name for part in job.parts.glob("*.arrow")}
    assert len(kept) >= 4
    if cure in ("mend", "remove"):
        path.write_text("\n".join([*lines[:100], *(['{"text": "short"}'] if cure == "mend" else []), *lines[100:]]))
    job = replace(
        job, **{"skip": {"on_error": "skip"}, "smaller batches": {"on_error": "skip", "batch_size": 3}}.get(cure, {})
    )
    written: list[str] = []
    write_part = export_module.write_part

    def noted(path: Path, *arguments: Any) -> None:
        written.append(path.name)
        write_part(path, *arguments)

    monkeypatch.setattr(export_module, "write_part", noted)
    run(job)
    assert not kept & set(written)
    whole = run(replace(job, output=tmp_path / "whole.parquet", batch_size=16))
    assert pq.read_table(job.output).equals(pq.read_table(whole))


def test_an_export_with_gaps_is_not_taken_for_one_without(
    job: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was skipped is asked for again where nothing may be."""
    job = replace(bad_line(job, tmp_path, json.dumps({"text": "word " * 2000})), on_error="skip")
    monkeypatch.setattr(export_module, "write_output", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="full"):
        export(job, show_progress=False)
    with pytest.raises(ValueError, match=r"line 21 of .* too long"):
        export(replace(job, on_error="stop"), show_progress=False)


def test_lines_end_with_a_line_feed_and_are_utf_8(job: Export, tmp_path: Path) -> None:
    for name, content, says in (
        ("cr", b'{"text": "a"}\r' * 40, "line 1 of .*cr is not valid JSON"),
        ("latin", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2 of .*latin is not valid JSON"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=says):
            export(replace(job, input=tmp_path / name, output=tmp_path / f"{name}.parquet"), show_progress=False)


def test_texts_that_are_too_large_together_are_named_at_once(job: Export, tmp_path: Path) -> None:
    job = bad_line(replace(job, on_error="skip"), tmp_path, json.dumps({"text": "word " * 1_000_000}))
    with pytest.raises(ValueError, match=r"lines 17 to 32 of .* are too much for one request"):
        export(job, show_progress=False)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_a_batch_whose_replica_dies_is_asked_for_again(job: Export, code: grpc.StatusCode) -> None:
    with Client(job.target) as client:
        stream, failures = client.activations_stream, [code]

        def failing(request: Any) -> Any:
            if failures:
                raise CallError("gone", code=failures.pop())
            return stream(request)

        client.activations_stream = failing  # type: ignore[method-assign]
        lines, batches = everything(job)
        [(rows, traces), *_] = fetched(client, job, choose_model(client, MODEL_ID), lines, batches[3:4])
    assert (rows, len(traces), failures) == (batches[3], job.batch_size, [])


def test_an_error_tells_the_same_in_another_process() -> None:
    error = CallError("no", code=grpc.StatusCode.NOT_FOUND, param="model", kind="a", reason="b", request_id="c")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert vars(other) == vars(error)
        assert str(other) == "no"


def test_what_was_begun_otherwise_is_not_mixed(job: Export, tmp_path: Path) -> None:
    begun = bad_line(job, tmp_path, json.dumps({"text": "word " * 2000}))
    with pytest.raises(ValueError, match="too long"):
        export(begun, show_progress=False)
    with pytest.raises(ValueError, match=r"dtype 'float32', but this one has 'float16'"):
        export(replace(begun, dtype="float16"), show_progress=False)


def test_an_export_does_not_go_on_over_other_weights(
    job: Export, tmp_path: Path, replace_model: Callable[[], None]
) -> None:
    job = bad_line(job, tmp_path, json.dumps({"text": "word " * 2000}))
    with pytest.raises(ValueError, match="too long"):
        export(job, show_progress=False)
    replace_model()
    with pytest.raises(ValueError, match=r"weights_sha256 '[0-9a-f]{64}', but this one has 'f{64}': remove the folder"):
        export(job, show_progress=False)


def test_a_model_that_is_replaced_meanwhile_ends_the_export(
    job: Export, monkeypatch: pytest.MonkeyPatch, replace_model: Callable[[], None]
) -> None:
    write_part, num_written = export_module.write_part, 0

    def write_two(*arguments: Any) -> None:
        nonlocal num_written
        write_part(*arguments)
        num_written += 1
        if num_written == 2:
            replace_model()

    monkeypatch.setattr(export_module, "write_part", write_two)
    with pytest.raises(ValueError, match=r"'tiny' was replaced during the export: .* now they have f{12}…"):
        export(job, show_progress=False)
    assert not job.output.exists()
    assert 2 <= len(list(job.parts.glob("*.arrow"))) <= 2 + NUM_REQUESTS
    monkeypatch.undo()  # the former is served again
    assert sum(trace is not None for trace in read_traces(run(job))) == NUM_TEXTS


def test_a_batch_that_was_asked_for_again_of_other_weights_is_not_kept(
    job: Export, replace_model: Callable[[], None]
) -> None:
    with Client(job.target) as client:
        stream, model = client.activations_stream, choose_model(client, MODEL_ID)

        def failing(request: Any) -> Any:
            client.activations_stream = stream  # type: ignore[method-assign]
            replace_model()
            raise CallError("gone", code=grpc.StatusCode.UNAVAILABLE)

        client.activations_stream = failing  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="was replaced during the export"):
            list(fetched(client, job, model, *everything(job)))


def test_what_cannot_be_done_is_told_before_anything_is_fetched(job: Export, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.parquet or \.safetensors, got '.*traces\.csv'"):
        export(replace(job, output=tmp_path / "traces.csv"))
    with pytest.raises(ValueError, match="model_id must be one of tiny, got 'other'"):
        export(replace(job, model_id="other"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="is empty"):
        export(replace(job, input=tmp_path / "empty.jsonl"))
    with pytest.raises(CallError, match="connect"):
        export(replace(job, target=f"127.0.0.1:{free_port()}"))
    job.output.write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        export(job)
    assert job.output.read_text() == "mine"
