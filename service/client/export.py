"""Bulk export: a file of texts through a running service into one file of traces, in order and resumable.

Texts go in batches; each batch's traces are kept as one part beside the output until all are there, so that memory
does not grow with the input and a run that is killed goes on where it was. Knows how files are read and kept; the
client knows the service, `service.client.trace_files` the formats.
"""

import json
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, Literal

import grpc
from pydantic_core import PydanticCustomError
from tqdm import tqdm

from service.client.client import CallError, Client, texts
from service.client.trace_files import TraceRow, write_output, write_part
from service.pb import topk_pb2 as pb
from service.requests.validators import check_text
from topk_model.traces import PackedType, Trace

#: Requests that are under way at once: while one is written, the next is computed.
NUM_REQUESTS = 2
#: How often a batch is tried again when the service is full or being replaced, and how long it waits before the first.
MAX_RETRIES = 6
FIRST_RETRY_S = 0.5
#: The service drops a batch that takes longer.
BATCH_TIMEOUT_S = 3600.0

MANIFEST = "manifest.json"
#: What a replica that is replaced, or that died, may give; the last behind HAProxy.
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is to be exported, and how."""

    input: Path  # one JSON object a line
    output: Path  # .parquet or .safetensors
    target: str
    model_id: str | None = None  # None: the only one that is served
    api_key: str | None = None
    text_field: str = "text"
    batch_size: int = 64
    top_n: int | None = None
    dtype: PackedType = "float32"
    on_error: Literal["stop", "skip"] = "stop"

    @property
    def parts(self) -> Path:
        """Folder of what has been fetched so far."""
        return self.output.with_name(self.output.name + ".parts")


def export(job: Export, *, show_progress: bool = True) -> int:
    """Write `job.output` and return the number of texts. Called again after an end half-way, it goes on.

    Raises:
        ValueError: a line is no text, the service refuses one, the parts beside the output are of another job or of
            other weights, or the model is replaced meanwhile.
        OSError: a file cannot be read or written.
        CallError: the service cannot be reached or fails.
    """
    if job.output.suffix not in (".parquet", ".safetensors"):
        raise ValueError(f"output must end in .parquet or .safetensors, got {str(job.output)!r}")
    if job.output.exists():
        raise ValueError(f"output {job.output} exists already")
    num_texts, fingerprint = measure(job.input)
    with Client(job.target, api_key=job.api_key) as client:
        model = choose_model(client, job.model_id)
        open_parts(job, fingerprint, model)
        numbers = range(-(-num_texts // job.batch_size))
        missing = [number for number in numbers if not part_path(job, number).exists()]
        with tqdm(
            total=num_texts, initial=num_done(job, num_texts, missing), unit="text", disable=not show_progress
        ) as bar:
            for number, rows in fetched(client, job, model, set(missing)):
                write_part(part_path(job, number), rows, job.dtype)
                bar.update(len(rows))
    write_output(job.output, [part_path(job, number) for number in numbers])
    shutil.rmtree(job.parts)
    return num_texts


def measure(path: Path) -> tuple[int, str]:
    """Number of lines of a file, and a hash of its content.

    Raises:
        ValueError: it is empty.
    """
    digest, num_lines = sha256(), 0
    with path.open("rb") as file:
        for line in file:
            digest.update(line)
            num_lines += 1
    if not num_lines:
        raise ValueError(f"input {path} is empty")
    return num_lines, digest.hexdigest()


def read_batches(job: Export) -> Iterator[tuple[int, list[str]]]:
    """(number, texts) of every batch of the input.

    Raises:
        ValueError: a line is no JSON object with a text.
    """
    with job.input.open("rb") as file:  # as `measure` counts lines
        lines = enumerate(file, start=1)
        number = 0
        while batch := [read_text(job, line, at) for at, line in islice(lines, job.batch_size)]:
            yield number, batch
            number += 1


def read_text(job: Export, line: bytes, number: int) -> str:
    where = f"line {number} of {job.input}"
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None
    text = row.get(job.text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{where} must be an object with a string in {job.text_field!r}")
    return text


def choose_model(client: Client, wanted: str | None) -> pb.Model:
    """The model of that name; the service's only one, if none is wanted.

    Kept states of its training are not among them: one that is to be exported is served as a model of its own.
    """
    served = {model.id: model for model in client.models()}
    if wanted is None and len(served) == 1:
        (wanted,) = served
    if wanted not in served:
        raise ValueError(f"model_id must be one of {', '.join(served)}, got {wanted!r}")
    return served[wanted]


def check_weights(client: Client, job: Export, model: pb.Model) -> None:
    """Raises ValueError where the service has replaced the model by another one of its name."""
    before, now = (one.topk.weights_sha256 for one in (model, choose_model(client, model.id)))
    if now != before:
        raise ValueError(
            f"model {model.id!r} was replaced while it was exported: its weights had the SHA-256 {before[:12]}…, now "
            f"they have {now[:12]}…; {job.parts} holds traces of the former: remove the folder, or serve that one again"
        )


def open_parts(job: Export, fingerprint: str, model: pb.Model) -> None:
    """Begin the folder of parts, or see that it is this job's."""
    mine = {"input_sha256": fingerprint, "model_id": model.id, "weights_sha256": model.topk.weights_sha256} | {
        name: getattr(job, name) for name in ("text_field", "batch_size", "top_n", "dtype", "on_error")
    }
    path = job.parts / MANIFEST
    if not path.exists():
        job.parts.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: a part is only trusted beside a manifest.
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(mine))
        temporary.replace(path)
        return
    theirs = json.loads(path.read_text())
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"{job.parts} holds an export with {name} {theirs.get(name)!r}, this one has {value!r}: "
                "remove the folder, or finish that export first"
            )


def part_path(job: Export, number: int) -> Path:
    return job.parts / f"part-{number:08d}.arrow"


def num_done(job: Export, num_texts: int, missing: list[int]) -> int:
    """Texts whose parts are there already."""
    sizes = (min(job.batch_size, num_texts - number * job.batch_size) for number in missing)
    return num_texts - sum(sizes)


def fetched(client: Client, job: Export, model: pb.Model, missing: set[int]) -> Iterator[tuple[int, list[TraceRow]]]:
    """(number, rows) of every missing batch, in order; never more than `NUM_REQUESTS` batches ahead of the caller."""
    waiting: deque[tuple[int, Future[list[TraceRow]]]] = deque()
    is_over = Event()
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        try:
            for number, batch in read_batches(job):
                if number not in missing:
                    continue
                if len(waiting) == NUM_REQUESTS:
                    done, future = waiting.popleft()
                    yield done, future.result()
                first = number * job.batch_size
                waiting.append((number, pool.submit(fetch, client, job, model, batch, first, is_over)))
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            is_over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()


def fetch(client: Client, job: Export, model: pb.Model, batch: list[str], first: int, is_over: Event) -> list[TraceRow]:
    """The rows of one batch, whose first text has the number `first`; given up where nobody waits for it any more.

    Raises:
        ValueError: the service refuses a text, and `on_error` is "stop"; the texts are too large together; or the model
            was replaced.
        CallError: the service cannot be reached or fails.
    """
    options: dict[str, Any] = {"dtype": f"VALUE_TYPE_{job.dtype.upper()}"}
    if job.top_n is not None:
        options["top_n"] = job.top_n
    results: list[Trace | pb.Error | None] = [unsendable(text) for text in batch]
    sent = [index for index, error in enumerate(results) if error is None]
    request = pb.ActivationsStreamRequest(
        model=model.id,
        input=texts(batch[index] for index in sent),
        trace=pb.TraceOptions(**options),
        timeout_s=BATCH_TIMEOUT_S,
    )
    check_errors(job, results, first)
    for attempt in range(MAX_RETRIES + 1):
        try:
            for place, result in client.traces(request) if sent else ():
                results[sent[place]] = result
                check_errors(job, [result], first + sent[place])
            check_weights(client, job, model)  # afterwards: so the rows are of the weights that the job began with
            return [row_of(first + index, result) for index, result in enumerate(results)]
        except CallError as error:
            if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.kind is None:  # of gRPC itself
                lines = f"lines {first + 1} to {first + len(batch)} of {job.input}"
                raise ValueError(f"{lines} are too much for one request; set a smaller batch_size") from error
            if error.code not in _PASSING or attempt == MAX_RETRIES or is_over.is_set():
                raise
            is_over.wait(FIRST_RETRY_S * 2**attempt)
    raise AssertionError("unreachable")


def unsendable(text: str) -> pb.Error | None:
    """Why the service would refuse a whole request with this text in it, or none could hold it."""
    try:
        check_text(text)
    except PydanticCustomError as error:
        return pb.Error(message=f"input {error.message()}")
    return None


def check_errors(job: Export, results: Sequence[Trace | pb.Error | None], first: int) -> None:
    """Raises ValueError for the first error, where `on_error` is "stop"; the first result is of text `first`."""
    if job.on_error == "skip":
        return
    for index, result in enumerate(results):
        if isinstance(result, pb.Error):
            raise ValueError(f"line {first + index + 1} of {job.input}: {result.message}")


def row_of(index: int, result: Trace | pb.Error | None) -> TraceRow:
    assert result is not None, "a stream that ends well has answered every input"
    if isinstance(result, Trace):
        return TraceRow(index=index, trace=result)
    return TraceRow(index=index, trace=None, error=result.message)
