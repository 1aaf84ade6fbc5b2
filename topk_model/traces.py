"""Sparse activation traces: which neurons were active at which token of which layer, and how strongly.

A trace is stored in compressed sparse rows, row = token * len(layers) + index of the layer in `layers`, ascending
neuron indices within a row. Knows no requests and no transport.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    import scipy.sparse
    import torch

TRACE_VERSION = 1
#: Indices below this fit into two bytes, such as those of neurons in a packed trace.
MAX_UINT16_WIDTH = 65_536
PackedType = Literal["float16", "float32"]
ARRAYS = ("offsets", "indices", "values")


def index_type(width: int) -> type[np.unsignedinteger[Any]]:
    """The smallest unsigned integer type for indices below `width`."""
    return np.uint16 if width <= MAX_UINT16_WIDTH else np.uint32


@dataclass(frozen=True, kw_only=True)
class TraceSpec:
    """Which of a sequence's states to keep.

    Positions are half-open and absolute, counted from the first prompt token; `end` None runs to the last token.
    """

    layers: tuple[int, ...]  # TopK layers, in the order of the rows
    start: int = 0
    end: int | None = None
    neurons: tuple[int, ...] | None = None  # None: all
    top_n: int | None = None  # only the n largest of each row
    min_value: float | None = None  # only entries of at least this value (by magnitude in an "abs" model)
    by_magnitude: bool = False  # the model selects by "abs"

    def covers(self, position: int) -> bool:
        return self.start <= position and (self.end is None or position < self.end)

    def keeps_all(self, num_layers: int) -> bool:
        """Whether the rows of a model with `num_layers` TopK layers stay unchanged."""
        is_unfiltered = self.neurons is None and self.min_value is None and self.top_n is None
        return is_unfiltered and len(self.layers) == num_layers and self.layers == tuple(range(num_layers))


# One for each traced token that is generated: a frozen class would take three times as long to make.
@dataclass(slots=True, kw_only=True)
class TraceChunk:
    """Rows of consecutive tokens: `offsets` `[tokens * layers + 1]`, `indices` and `values` `[entries]`."""

    first_position: int
    num_tokens: int
    offsets: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    is_complete: bool = True  # no filter cut an entry of these rows

    @property
    def num_entries(self) -> int:
        return len(self.indices)


def select_entries(
    spec: TraceSpec,
    first_position: int,
    num_layers: int,
    counts: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: NDArray[np.float32],
) -> TraceChunk:
    """What `spec` selects from the complete rows of consecutive tokens, all of them inside its positions.

    Args:
        num_layers: TopK layers of the model.
        counts: entries of each row `[tokens, num_layers]`.
        indices: ascending within a row `[entries]`.
        values: `[entries]`.
    """
    num_tokens, places = len(counts), len(spec.layers)
    if spec.layers != tuple(range(num_layers)):
        place_of = np.full(num_layers, -1, dtype=np.int64)
        place_of[list(spec.layers)] = np.arange(places)
        row_of = np.repeat(np.arange(num_tokens * num_layers), counts.ravel())
        token, place = row_of // num_layers, place_of[row_of % num_layers]
        order = np.argsort(token * places + place, kind="stable")
        order = order[place[order] >= 0]
        indices, values = indices[order], values[order]
        counts = counts[:, list(spec.layers)]
    num_entries = len(indices)
    if spec.neurons is not None or spec.min_value is not None or spec.top_n is not None:
        strength = np.abs(values) if spec.by_magnitude else values
        row_of = np.repeat(np.arange(counts.size), counts.ravel())
        keep = np.ones(num_entries, dtype=bool)
        if spec.neurons is not None:
            keep &= np.isin(indices, spec.neurons)
        if spec.min_value is not None:
            keep &= strength >= spec.min_value
        if spec.top_n is not None:
            keep &= rank_in_row(row_of, np.where(keep, strength, -np.inf)) < spec.top_n
        indices, values = indices[keep], values[keep]
        counts = np.bincount(row_of[keep], minlength=counts.size)
    offsets = np.zeros(num_tokens * places + 1, dtype=np.int64)
    np.cumsum(counts.ravel(), out=offsets[1:])
    return TraceChunk(
        first_position=first_position,
        num_tokens=num_tokens,
        offsets=offsets,
        indices=indices,
        values=values,
        is_complete=len(indices) == num_entries,
    )


def rank_in_row(row_of: NDArray[np.int64], strength: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rank of each entry by descending strength within its row, ties to the earlier entry; 0 is the strongest."""
    order = np.lexsort((-strength, row_of))
    first = np.searchsorted(row_of, row_of)  # of each entry's row; row_of ascends
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - first
    return rank


def concatenate(chunks: Sequence[TraceChunk]) -> TraceChunk:
    """One chunk from consecutive chunks, of which there is at least one."""
    if len(chunks) == 1:
        return chunks[0]
    sizes = np.cumsum([0, *(chunk.num_entries for chunk in chunks)])
    offsets = [chunk.offsets[1:] + size for chunk, size in zip(chunks, sizes, strict=False)]
    return TraceChunk(
        first_position=chunks[0].first_position,
        num_tokens=sum(chunk.num_tokens for chunk in chunks),
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), *offsets]),
        indices=np.concatenate([chunk.indices for chunk in chunks]),
        values=np.concatenate([chunk.values for chunk in chunks]),
        is_complete=all(chunk.is_complete for chunk in chunks),
    )


def packed_types(index_type: DTypeLike, value_type: DTypeLike) -> dict[str, np.dtype[Any]]:
    """Little-endian types of a packed trace's arrays."""
    types = {"offsets": np.uint32, "indices": index_type, "values": value_type}
    return {name: np.dtype(kind).newbyteorder("<") for name, kind in types.items()}


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A trace as it is returned: rows, and the tokens they belong to. Token lists have one entry per traced token."""

    model: str
    checkpoint: str | None
    k: int
    hidden_size: int
    layers: tuple[int, ...]
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    phases: tuple[Literal["prompt", "generated"], ...]
    is_special: tuple[bool, ...]
    chunk: TraceChunk

    @property
    def index_type(self) -> type[np.unsignedinteger[Any]]:
        """Type of the indices in a packed trace."""
        return index_type(self.hidden_size)

    def to_json(self) -> dict[str, Any]:
        """The trace as plain fields; `offsets`, `indices` and `values` are NumPy arrays, for a JSON writer that
        accepts them (and writes the shortest text that reads back to the same float32)."""
        return {
            **self.header(),
            "offsets": self.chunk.offsets,
            "indices": self.chunk.indices,
            "values": self.chunk.values,
        }

    def to_packed(self, dtype: PackedType = "float32") -> dict[str, Any]:
        """The trace with its arrays as base64 of little-endian bytes: offsets uint32, indices `index_type`, values
        `dtype`."""
        return {
            **self.header(),
            "dtype": dtype,
            "index_dtype": np.dtype(self.index_type).name,
            **{name: base64.b64encode(data).decode() for name, data in self.to_bytes(dtype).items()},
        }

    def to_bytes(self, dtype: PackedType = "float32") -> dict[str, bytes]:
        """`offsets`, `indices` and `values` as little-endian bytes."""
        types = packed_types(self.index_type, dtype)
        return {name: getattr(self.chunk, name).astype(kind).tobytes() for name, kind in types.items()}

    def header(self) -> dict[str, Any]:
        return {
            "trace_version": TRACE_VERSION,
            "model": self.model,
            "checkpoint": self.checkpoint,
            "k": self.k,
            "hidden_size": self.hidden_size,
            "layers": list(self.layers),
            "token_ids": list(self.token_ids),
            "tokens": list(self.tokens),
            "phases": list(self.phases),
            "is_special": list(self.is_special),
            "complete": self.chunk.is_complete,
        }

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "Trace":
        """The trace of a parsed response, plain or packed.

        Raises:
            ValueError: the trace has another version, or its arrays do not fit together.
        """
        if "dtype" in fields:
            packed = {name: base64.b64decode(fields[name]) for name in ARRAYS}
            return cls.from_bytes(fields, packed, index_dtype=fields["index_dtype"], dtype=fields["dtype"])
        return cls._from_arrays(fields, {name: np.asarray(fields[name]) for name in ARRAYS})

    @classmethod
    def from_bytes(
        cls, header: Mapping[str, Any], arrays: Mapping[str, bytes], *, index_dtype: str, dtype: str
    ) -> "Trace":
        """The trace from its header and its three arrays as little-endian bytes, as `to_bytes` returns them.

        Raises:
            ValueError: the trace has another version, or its arrays do not fit together.
        """
        types = packed_types(index_dtype, dtype)
        return cls._from_arrays(header, {name: np.frombuffer(arrays[name], dtype=types[name]) for name in ARRAYS})

    @classmethod
    def _from_arrays(cls, fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> "Trace":
        if fields["trace_version"] != TRACE_VERSION:
            raise ValueError(f"trace_version is {fields['trace_version']}, but this reader supports {TRACE_VERSION}")
        num_tokens, num_rows = len(fields["token_ids"]), len(fields["token_ids"]) * len(fields["layers"])
        sizes = len(arrays["offsets"]), len(arrays["indices"]), len(arrays["values"])
        if sizes[0] != num_rows + 1 or not sizes[1] == sizes[2] == arrays["offsets"][-1]:
            raise ValueError(f"{num_rows} rows do not fit {sizes[0]} offsets, {sizes[1]} indices and {sizes[2]} values")
        ends, indices, width = arrays["offsets"], arrays["indices"], fields["hidden_size"]
        if ends[0] != 0 or (np.diff(ends.astype(np.int64)) < 0).any():
            raise ValueError("the offsets do not fit together: they must begin with 0 and never decrease")
        if len(indices) and not 0 <= indices.min() <= indices.max() < width:
            raise ValueError(
                f"the indices do not fit hidden_size {width}: they range from {indices.min()} to {indices.max()}"
            )
        for name in ("tokens", "phases", "is_special"):
            if len(fields[name]) != num_tokens:
                raise ValueError(f"{num_tokens} token_ids do not fit {len(fields[name])} {name}")
        return cls(
            model=fields["model"],
            checkpoint=fields["checkpoint"],
            k=fields["k"],
            hidden_size=fields["hidden_size"],
            layers=tuple(fields["layers"]),
            token_ids=tuple(fields["token_ids"]),
            tokens=tuple(fields["tokens"]),
            phases=tuple(fields["phases"]),
            is_special=tuple(fields["is_special"]),
            chunk=TraceChunk(
                first_position=0,
                num_tokens=num_tokens,
                offsets=arrays["offsets"].astype(np.int64),
                indices=arrays["indices"].astype(np.int32),
                values=arrays["values"].astype(np.float32),
                is_complete=fields["complete"],
            ),
        )

    def part(self, start: int, stop: int) -> "Trace":
        """The trace of tokens `start` to `stop`, half-open, counted in traced tokens."""
        chunk = self.chunk
        rows = chunk.offsets[start * len(self.layers) : stop * len(self.layers) + 1]
        return replace(
            self,
            **{name: getattr(self, name)[start:stop] for name in ("token_ids", "tokens", "phases", "is_special")},
            chunk=replace(
                chunk,
                first_position=chunk.first_position + start,
                num_tokens=stop - start,
                offsets=rows - rows[0],
                indices=chunk.indices[rows[0] : rows[-1]],
                values=chunk.values[rows[0] : rows[-1]],
            ),
        )

    # SciPy and torch are imported on demand: a client that reads traces needs neither.

    def csr(self) -> "scipy.sparse.csr_array":
        """A SciPy matrix `[tokens * layers, hidden_size]`; shares the values. Needs SciPy."""
        from scipy.sparse import csr_array

        shape = (len(self.chunk.offsets) - 1, self.hidden_size)
        return csr_array((self.chunk.values, self.chunk.indices, self.chunk.offsets), shape=shape)

    def torch_csr(self) -> "torch.Tensor":
        """A torch sparse CSR tensor `[tokens * layers, hidden_size]`; shares the values. Needs torch."""
        import torch

        return torch.sparse_csr_tensor(
            torch.from_numpy(self.chunk.offsets),
            torch.from_numpy(self.chunk.indices.astype(np.int64)),
            torch.from_numpy(self.chunk.values),
            size=(len(self.chunk.offsets) - 1, self.hidden_size),
            check_invariants=True,
        )

    def dense(self) -> NDArray[np.float32]:
        """The traced states `[tokens, layers, hidden_size]`, zero where nothing was active."""
        rows = np.repeat(np.arange(len(self.chunk.offsets) - 1), np.diff(self.chunk.offsets))
        out = np.zeros((len(self.chunk.offsets) - 1, self.hidden_size), dtype=np.float32)
        out[rows, self.chunk.indices] = self.chunk.values
        return out.reshape(len(self.token_ids), len(self.layers), self.hidden_size)


def join(traces: Sequence[Trace]) -> Trace:
    """One trace from consecutive traces, as a stream sends them; at least one."""
    fields: dict[str, Any] = {
        name: tuple(item for trace in traces for item in getattr(trace, name))
        for name in ("token_ids", "tokens", "phases", "is_special")
    }
    return replace(traces[0], **fields, chunk=concatenate([trace.chunk for trace in traces]))
