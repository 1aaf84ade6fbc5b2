"""Bulk export: a file of texts through a running service into one file of traces, in order and resumable.

Texts are sent in batches; each batch's traces are stored as one part next to the output until all are complete, so that
memory does not grow with the input and a killed run continues where it was, even after a line has been corrected or
with another batch size. Knows the parts; the client knows the service, `service.client.trace_files` the formats.
"""

import json
import re
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal

import grpc
from tqdm import tqdm

from service.client.client import CallError, Client, texts
from service.client.input_lines import Line, Lines, read_lines
from service.client.trace_files import TraceRow, failed_rows, write_output, write_part
from service.pb import topk_pb2 as pb
from topk_model.traces import PackedType, Trace

#: Number of ongoing requests: while the results of one are written, the next is computed.
NUM_REQUESTS = 2
#: How often a batch is retried if the service is full or being replaced, and the wait before the first retry.
MAX_RETRIES = 6
FIRST_RETRY_S = 0.5
#: The service cancels a batch that takes longer.
BATCH_TIMEOUT_S = 3600.0

MANIFEST = "manifest.json"
#: A part's name: the numbers of its first and last line, and `Lines.key` of them.
PART = re.compile(r"part-(\d{10})-(\d{10})-([0-9a-f]{16})\.arrow")
#: Maximum number of lines without a trace that a summary lists.
MAX_FAILED_SHOWN = 10
#: Codes from a replica that is being replaced or has died; the last one behind HAProxy.
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class Export:
    """What to export, and how."""

    input: Path  # one JSON object per line
    output: Path  # .parquet or .safetensors
    target: str
    model_id: str | None = None  # None: the only served model
    api_key: str | None = None
    text_field: str = "text"
    batch_size: int = 64
    top_n: int | None = None
    dtype: PackedType = "float32"
    on_error: Literal["stop", "skip"] = "stop"

    @property
    def parts(self) -> Path:
        """Folder of the parts fetched so far."""
        return self.output.with_name(self.output.name + ".parts")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of an export."""

    num_texts: int
    failed: list[int]  # numbers of the lines that have no trace, counted from 0

    def summary(self, output: Path) -> str:
        if not self.failed:
            return f"{self.num_texts} texts in {output}"
        shown = ", ".join(str(number + 1) for number in self.failed[:MAX_FAILED_SHOWN])
        more = "" if len(self.failed) <= MAX_FAILED_SHOWN else ", …"
        return f"{self.num_texts} texts in {output}, {len(self.failed)} of them without a trace: lines {shown}{more}"


def export(job: Export, *, show_progress: bool = True) -> Exported:
    """Write `job.output`. If an earlier call ended early, continue it.

    Raises:
        ValueError: a line has no valid text, the service refuses one, the parts next to the output belong to another
            job or other weights, or the model or the input is replaced in the meantime.
        OSError: a file cannot be read or written.
        CallError: the service cannot be reached or fails.
    """
    if job.output.suffix not in (".parquet", ".safetensors"):
        raise ValueError(f"output must end in .parquet or .safetensors, got {str(job.output)!r}")
    if job.output.exists():
        raise ValueError(f"output {job.output} already exists")
    lines = Lines.read(job.input, job.text_field, may_have_faults=job.on_error == "skip")
    with Client(job.target, api_key=job.api_key) as client:
        model = choose_model(client, job.model_id)
        open_parts(job, model)
        parts = kept_parts(job, lines)
        batches = missing_batches(len(lines), [rows for rows, _ in parts], job.batch_size)
        num_done = len(lines) - sum(map(len, batches))
        with tqdm(total=len(lines), initial=num_done, unit="text", disable=not show_progress) as bar:
            for batch, rows in fetched(client, job, model, lines, batches):
                write_part(part_path(job, lines, batch), rows, job.dtype)
                parts.append((batch, part_path(job, lines, batch)))
                bar.update(len(rows))
    paths = [path for _, path in sorted(parts, key=lambda part: part[0].start)]
    failed = [number for path in paths for number in failed_rows(path)]
    write_output(job.output, paths)
    shutil.rmtree(job.parts)
    return Exported(num_texts=len(lines), failed=failed)


def kept_parts(job: Export, lines: Lines) -> list[tuple[range, Path]]:
    """The parts with the traces of rows as they are now, without duplicates, in order."""
    kept: list[tuple[range, Path]] = []
    for path in sorted(job.parts.glob("part-*.arrow")):
        found = PART.fullmatch(path.name)
        if found is None:
            continue
        rows = lines.rows_between(int(found[1]), int(found[2]))
        is_known = bool(rows) and lines.key(rows) == found[3] and (not kept or kept[-1][0].stop <= rows.start)
        if is_known and not (job.on_error == "stop" and failed_rows(path)):
            kept.append((rows, path))
    return kept


def missing_batches(num_rows: int, kept: Sequence[range], batch_size: int) -> list[range]:
    """The rows that are not in any part, cut at multiples of `batch_size`."""
    batches = []
    start = 0
    for rows in (*kept, range(num_rows, num_rows)):
        while start < rows.start:
            stop = min(rows.start, start - start % batch_size + batch_size)
            batches.append(range(start, stop))
            start = stop
        start = rows.stop
    return batches


def read_batches(job: Export, lines: Lines, batches: Sequence[range]) -> Iterator[tuple[range, list[Line]]]:
    """The lines of each batch.

    Raises:
        ValueError: the input has changed.
    """
    again = Lines(path=job.input)
    waiting = iter(batches)
    batch: list[Line] = []
    rows = next(waiting, None)
    for row, line in enumerate(read_lines(job.input, job.text_field)):
        if rows is None:
            return
        again.numbers.append(line.number)
        again.digests.append(line.digest())
        if row in rows:
            batch.append(line)
        if row == rows.stop - 1:
            if again.key(rows) != lines.key(rows):
                break
            yield rows, batch
            rows, batch = next(waiting, None), []
    if rows is not None:
        raise ValueError(f"input {job.input} changed during the export; run the same command again")


def choose_model(client: Client, wanted: str | None) -> pb.Model:
    """The model of that name; without a name, the service's only model.

    Training checkpoints are not included: to export one, serve it as a model of its own.
    """
    served = {model.id: model for model in client.models()}
    if wanted is None and len(served) == 1:
        (wanted,) = served
    if wanted not in served:
        raise ValueError(f"model_id must be one of {', '.join(served)}, got {wanted!r}")
    return served[wanted]


def check_weights(client: Client, job: Export, model: pb.Model) -> None:
    """Raises ValueError if the service has replaced the model by another one of the same name."""
    before, now = (one.topk.weights_sha256 for one in (model, choose_model(client, model.id)))
    if now != before:
        raise ValueError(
            f"model {model.id!r} was replaced during the export: its weights had the SHA-256 {before[:12]}…, now "
            f"they have {now[:12]}…; {job.parts} has traces of the former: remove the folder, or serve that model again"
        )


def open_parts(job: Export, model: pb.Model) -> None:
    """Create the folder of parts, or check that it has the same model and options."""
    mine = {"model_id": model.id, "weights_sha256": model.topk.weights_sha256} | {
        name: getattr(job, name) for name in ("text_field", "top_n", "dtype")
    }
    path = job.parts / MANIFEST
    if not path.exists():
        job.parts.mkdir(parents=True, exist_ok=True)
        # Completely or not at all: a part is trusted only if there is a manifest.
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(mine))
        temporary.replace(path)
        return
    theirs = json.loads(path.read_text())
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"{job.parts} contains an export with {name} {theirs.get(name)!r}, but this one has {value!r}: "
                "remove the folder, or finish that export first"
            )


def part_path(job: Export, lines: Lines, rows: range) -> Path:
    first, last = lines.numbers[rows.start], lines.numbers[rows.stop - 1]
    return job.parts / f"part-{first:010d}-{last:010d}-{lines.key(rows)}.arrow"


def fetched(
    client: Client, job: Export, model: pb.Model, lines: Lines, batches: Sequence[range]
) -> Iterator[tuple[range, list[TraceRow]]]:
    """(batch, rows) of every batch, in order; never more than `NUM_REQUESTS` batches ahead of the caller."""
    waiting: deque[tuple[range, Future[list[TraceRow]]]] = deque()
    is_over = Event()
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        try:
            for rows, batch in read_batches(job, lines, batches):
                if len(waiting) == NUM_REQUESTS:
                    done, future = waiting.popleft()
                    yield done, future.result()
                waiting.append((rows, pool.submit(fetch, client, job, model, batch, is_over)))
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            is_over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()


def fetch(client: Client, job: Export, model: pb.Model, batch: Sequence[Line], is_over: Event) -> list[TraceRow]:
    """The rows of one batch; abandoned if nothing waits for it any more.

    Raises:
        ValueError: the service refuses a text and `on_error` is "stop"; the texts together are too large; or the model
            was replaced.
        CallError: the service cannot be reached or fails.
    """
    options: dict[str, Any] = {"dtype": f"VALUE_TYPE_{job.dtype.upper()}"}
    if job.top_n is not None:
        options["top_n"] = job.top_n
    results: list[Trace | str | None] = [fault_of(line) for line in batch]
    sent = [index for index, fault in enumerate(results) if fault is None]
    request = pb.ActivationsStreamRequest(
        model=model.id,
        input=texts(batch[index].text for index in sent),
        trace=pb.TraceOptions(**options),
        timeout_s=BATCH_TIMEOUT_S,
    )
    for attempt in range(MAX_RETRIES + 1):
        try:
            for place, result in client.traces(request) if sent else ():
                if isinstance(result, pb.Error) and job.on_error == "stop":
                    raise ValueError(f"line {batch[sent[place]].number + 1} of {job.input}: {result.message}")
                results[sent[place]] = result.message if isinstance(result, pb.Error) else result
            check_weights(client, job, model)  # afterwards: then the rows come from the weights that the job began with
            return [row_of(line, result) for line, result in zip(batch, results, strict=True)]
        except CallError as error:
            if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.kind is None:  # from gRPC itself
                where = f"lines {batch[0].number + 1} to {batch[-1].number + 1} of {job.input}"
                raise ValueError(f"{where} are too much for one request; set a smaller batch_size") from error
            if error.code not in _PASSING or attempt == MAX_RETRIES or is_over.is_set():
                raise
            is_over.wait(FIRST_RETRY_S * 2**attempt)
    raise AssertionError("unreachable")


def fault_of(line: Line) -> str | None:
    """What the output has in place of the trace of a line that cannot be sent."""
    return None if line.fault is None else line.fault.removeprefix(": ").strip()


def row_of(line: Line, result: Trace | str | None) -> TraceRow:
    assert result is not None, "a stream that ends well has answered every input"
    if isinstance(result, Trace):
        return TraceRow(index=line.number, trace=result)
    return TraceRow(index=line.number, trace=None, error=result)
