"""Files of traces: parts as Arrow, complete exports as Parquet or safetensors, all readable without this package.

A row is a text. What all texts share (model, k, layers …) is in the file's metadata under "trace". Nothing here
has more than one part in memory.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from topk_model.traces import PackedType, Trace, packed_types

#: Texts per row group of a Parquet file.
GROUP_TEXTS = 1024
METADATA_KEY = b"trace"
_SHARED = ("trace_version", "model", "checkpoint", "k", "hidden_size", "layers")


@dataclass(frozen=True, kw_only=True)
class TraceRow:
    """One text of an export."""

    index: int  # number of its line in the input, counted from 0
    trace: Trace | None  # None: the service refused it
    error: str | None = None


def write_part(path: Path, rows: Sequence[TraceRow], dtype: PackedType) -> None:
    """Write rows as an Arrow file, completely or not at all."""
    table = table_of(rows, dtype)
    temporary = path.with_suffix(".tmp")
    with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    keep(temporary, path)


def table_of(rows: Sequence[TraceRow], dtype: PackedType) -> pa.Table:
    """Columns `index`, `error`, `complete`, `token_ids`, `tokens`, `is_special`, and `offsets`, `indices`, `values` as
    in a trace; null if a text has no trace."""
    traces = [row.trace for row in rows]
    first = next((trace for trace in traces if trace is not None), None)
    types = packed_types(np.uint16 if first is None else first.index_type, dtype)

    def lists(kind: pa.DataType, values: Sequence[Any]) -> pa.Array:
        """A list for each text, from arrays that are joined without reading their items."""
        sizes = [0 if value is None else len(value) for value in values]
        ends = np.cumsum([0, *sizes]).astype(np.int32)
        present = [value for value in values if value is not None]
        flat: Any = (
            np.concatenate(present)
            if present and isinstance(present[0], np.ndarray)
            else tuple(chain.from_iterable(present))
        )
        missing = pa.array([value is None for value in values])
        return pa.ListArray.from_arrays(pa.array(ends), pa.array(flat, type=kind), mask=missing)

    def arrays(name: str) -> list[Any]:
        return [None if trace is None else getattr(trace.chunk, name).astype(types[name]) for trace in traces]

    def fields(name: str) -> list[Any]:
        return [None if trace is None else getattr(trace, name) for trace in traces]

    columns = {
        "index": pa.array([row.index for row in rows], pa.int64()),
        "error": pa.array([row.error for row in rows], pa.string()),
        "complete": pa.array([None if trace is None else trace.chunk.is_complete for trace in traces], pa.bool_()),
        "token_ids": lists(pa.uint32(), fields("token_ids")),
        "tokens": lists(pa.string(), fields("tokens")),
        "is_special": lists(pa.bool_(), fields("is_special")),
        **{name: lists(pa.from_numpy_dtype(types[name]), arrays(name)) for name in types},
    }
    shared = {} if first is None else {name: value for name, value in first.header().items() if name in _SHARED}
    metadata = {METADATA_KEY: json.dumps(shared | {"dtype": dtype}).encode()}
    return pa.table(columns).replace_schema_metadata(metadata)


def write_output(path: Path, parts: Sequence[Path]) -> None:
    """Join parts, in order, into one Parquet or safetensors file, completely or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    shared = next((found for found in map(shared_of, parts) if "k" in found), shared_of(parts[0]))
    (write_parquet if path.suffix == ".parquet" else write_safetensors)(temporary, parts, shared)
    keep(temporary, path)


def write_parquet(path: Path, parts: Sequence[Path], shared: dict[str, Any]) -> None:
    """Join parts to row groups of `GROUP_TEXTS` or slightly more: the writer keeps about 20 kB for each group."""
    schema = schema_of(parts).with_metadata({METADATA_KEY: json.dumps(shared).encode()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        group: list[pa.Table] = []
        for i, part in enumerate(parts):
            group.append(read_part(part).cast(schema))
            num_texts = sum(map(len, group))
            if num_texts >= GROUP_TEXTS or i == len(parts) - 1:
                writer.write_table(pa.concat_tables(group), row_group_size=max(1, num_texts))
                group = []


def write_safetensors(path: Path, parts: Sequence[Path], shared: dict[str, Any]) -> None:
    """Each tensor contains the texts' values one after the other: `num_tokens` of each text and `num_entries` of each
    row of a trace give the lengths. The tokens' texts are left out, because the format has only numbers."""
    types: dict[str, np.dtype[Any]] = {}
    sizes = dict.fromkeys(TENSORS, 0)
    for part in parts:
        table = read_part(part)
        for name, tensor in TENSORS.items():
            array = tensor(table)
            sizes[name] += len(array)
            types[name] = array.dtype
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY.decode(): json.dumps(shared)}}
    end = 0
    for name, kind in types.items():
        begin, end = end, end + sizes[name] * kind.itemsize
        header[name] = {"dtype": safetensors_type(kind), "shape": [sizes[name]], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in TENSORS.values():
            for part in parts:
                file.write(tensor(read_part(part)).tobytes())


def safetensors_type(kind: np.dtype[Any]) -> str:
    return {"b": "BOOL", "f": f"F{kind.itemsize * 8}", "i": f"I{kind.itemsize * 8}"}[kind.kind]


def flat(table: pa.Table, name: str) -> NDArray[Any]:
    """The items of all lists of a column, one after the other."""
    return cast(NDArray[Any], table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False))


def lengths(table: pa.Table, name: str) -> NDArray[np.int64]:
    """The length of every list of a column, 0 if there is none."""
    return np.asarray(pc.list_value_length(table[name]).fill_null(0), dtype=np.int64)


def num_entries(table: pa.Table) -> NDArray[np.int64]:
    """Entries of every row of every trace."""
    steps = np.diff(flat(table, "offsets").astype(np.int64))
    ends = lengths(table, "offsets")
    borders = ends[ends > 0].cumsum()[:-1] - 1  # from a text's last offset to the next one's first
    return np.delete(steps, borders)


#: Tensors of a safetensors export: per text, per token, per row of a trace, per entry.
TENSORS: dict[str, Callable[[pa.Table], NDArray[Any]]] = {
    "failed": lambda table: table["error"].is_valid().to_numpy(),
    "complete": lambda table: table["complete"].fill_null(False).to_numpy(),
    "num_tokens": lambda table: lengths(table, "token_ids"),
    "token_ids": lambda table: flat(table, "token_ids").astype(np.int64),
    "is_special": lambda table: flat(table, "is_special"),
    "num_entries": num_entries,
    "indices": lambda table: flat(table, "indices").astype(np.int32),
    "values": lambda table: flat(table, "values"),
}


def read_part(path: Path) -> pa.Table:
    """Mapped, not read: only the columns that are used are loaded into memory."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def failed_rows(part: Path) -> list[int]:
    """`index` of the rows that have no trace."""
    table = read_part(part)
    failed: list[int] = table["index"].filter(table["error"].is_valid()).to_pylist()
    return failed


def schema_of(parts: Sequence[Path]) -> pa.Schema:
    """The schema that all parts can be cast to; a part without traces does not know the width of its indices."""
    schemas = []
    for part in parts:
        with pa.OSFile(str(part)) as file:
            schemas.append(pa.ipc.open_file(file).schema)
    known = [schema for schema in schemas if "k" in json.loads(schema.metadata[METADATA_KEY])]
    return (known or schemas)[0]


def shared_of(part: Path) -> dict[str, Any]:
    with pa.OSFile(str(part)) as file:
        found: dict[str, Any] = json.loads(pa.ipc.open_file(file).schema.metadata[METADATA_KEY])
        return found


def keep(temporary: Path, path: Path) -> None:
    """Give a written file its name once it is on disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def read_traces(path: Path) -> Iterator[Trace | None]:
    """The traces of a Parquet export, text by text; None if the service refused one."""
    with pq.ParquetFile(path) as file:
        shared = json.loads(file.schema_arrow.metadata[METADATA_KEY])
        for batch in file.iter_batches(batch_size=64):
            for row in range(batch.num_rows):
                yield None if batch["error"][row].is_valid else trace_of(batch, row, shared)


def trace_of(batch: pa.RecordBatch, row: int, shared: dict[str, Any]) -> Trace:
    def values(name: str) -> NDArray[Any]:
        return cast(NDArray[Any], batch[name][row].values.to_numpy(zero_copy_only=False))

    tokens = {name: batch[name][row].as_py() for name in ("token_ids", "tokens", "is_special")}
    header = {name: shared[name] for name in _SHARED} | tokens
    header |= {"phases": ["prompt"] * len(tokens["tokens"]), "complete": batch["complete"][row].as_py()}
    return Trace.read(header | {name: values(name) for name in ("offsets", "indices", "values")})
