"""Bulk export: a file of texts through a running service into one file of traces, in order and resumable.

Texts go in batches; each batch's traces are kept as one part beside the output until all are there, so that memory
does not grow with the input and a run that is killed goes on where it was, also after a line has been mended, or with
other batches. Knows what is kept; the client knows the service, `service.client.trace_files` the formats.
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

#: Requests that are under way at once: while one is written, the next is computed.
NUM_REQUESTS = 2
#: How often a batch is tried again when the service is full or being replaced, and how long it waits before the first.
MAX_RETRIES = 6
FIRST_RETRY_S = 0.5
#: The service drops a batch that takes longer.
BATCH_TIMEOUT_S = 3600.0

MANIFEST = "manifest.json"
#: A part's name: the numbers of its first and last line, and `Lines.key` of them.
PART = re.compile(r"part-(\d{10})-(\d{10})-([0-9a-f]{16})\.arrow")
#: Lines without a trace that a summary names.
MAX_FAILED_SHOWN = 10
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


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export came to."""

    num_texts: int
    failed: list[int]  # numbers of the lines that have no trace, counted from 0

    def summary(self, output: Path) -> str:
        if not self.failed:
            return f"{self.num_texts} texts in {output}"
        shown = ", ".join(str(number + 1) for number in self.failed[:MAX_FAILED_SHOWN])
        more = "" if len(self.failed) <= MAX_FAILED_SHOWN else ", …"
        return f"{self.num_texts} texts in {output}, {len(self.failed)} of them without a trace: lines {shown}{more}"


def export(job: Export, *, show_progress: bool = True) -> Exported:
    """Write `job.output`. Called again after an end half-way, it goes on.

    Raises:
        ValueError: a line is no text, the service refuses one, the parts beside the output are of another job or of
            other weights, or the model or the input is replaced meanwhile.
        OSError: a file cannot be read or written.
        CallError: the service cannot be reached or fails.
    """
    if job.output.suffix not in (".parquet", ".safetensors"):
        raise ValueError(f"output must end in .parquet or .safetensors, got {str(job.output)!r}")
    if job.output.exists():
        raise ValueError(f"output {job.output} exists already")
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
    """The parts that hold the traces of rows as they are now, none of them twice, in order."""
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
    """The rows that are not kept, cut at multiples of `batch_size`."""
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
        ValueError: the input is no longer what it was.
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
        raise ValueError(f"input {job.input} was changed while it was exported; run the same command again")


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
    """Raises ValueError if the service has replaced the model by another one of its name."""
    before, now = (one.topk.weights_sha256 for one in (model, choose_model(client, model.id)))
    if now != before:
        raise ValueError(
            f"model {model.id!r} was replaced while it was exported: its weights had the SHA-256 {before[:12]}…, now "
            f"they have {now[:12]}…; {job.parts} holds traces of the former: remove the folder, or serve that one again"
        )


def open_parts(job: Export, model: pb.Model) -> None:
    """Begin the folder of parts, or see that it is of the same model and options."""
    mine = {"model_id": model.id, "weights_sha256": model.topk.weights_sha256} | {
        name: getattr(job, name) for name in ("text_field", "top_n", "dtype")
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
    """The rows of one batch; given up where nobody waits for it any more.

    Raises:
        ValueError: the service refuses a text, and `on_error` is "stop"; the texts are too large together; or the model
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
            check_weights(client, job, model)  # afterwards: so the rows are of the weights that the job began with
            return [row_of(line, result) for line, result in zip(batch, results, strict=True)]
        except CallError as error:
            if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.kind is None:  # of gRPC itself
                where = f"lines {batch[0].number + 1} to {batch[-1].number + 1} of {job.input}"
                raise ValueError(f"{where} are too much for one request; set a smaller batch_size") from error
            if error.code not in _PASSING or attempt == MAX_RETRIES or is_over.is_set():
                raise
            is_over.wait(FIRST_RETRY_S * 2**attempt)
    raise AssertionError("unreachable")


def fault_of(line: Line) -> str | None:
    """What stands in the output in place of the trace of a line that cannot be sent."""
    return None if line.fault is None else line.fault.removeprefix(": ").strip()


def row_of(line: Line, result: Trace | str | None) -> TraceRow:
    assert result is not None, "a stream that ends well has answered every input"
    if isinstance(result, Trace):
        return TraceRow(index=line.number, trace=result)
    return TraceRow(index=line.number, trace=None, error=result)
