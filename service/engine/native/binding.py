"""The C interface of the compiled step, for Python: structures, statuses, and `NativeEngine`, which calls it.

ctypes releases the interpreter while a call runs. Knows no requests and no sequences.
"""

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ABI = 3
STORAGES = {"float32": 0, "bfloat16": 1, "int8": 2}
WEIGHTS = {
    name: number
    for number, name in enumerate(
        ("embedding", "unembedding", "final_norm", "norm1", "q", "k", "v", "o", "norm2", "gate", "up", "down")
    )
}
STATUSES = {
    1: "the library and its binding have different versions",
    2: "an argument is missing or does not fit",
    3: "there is not enough memory, or no thread can be started",
    4: "weights, tables or rotary angles are missing",
    5: "a piece's slot, positions, rows or flags do not fit",
    6: "a token is not in the vocabulary",
    7: "a block table names a block that does not exist",
    8: "a table of edits has an invalid entry",
    9: "a sampling rule is invalid",
    10: "a requested log-probability does not exist",
    11: "an output array is too small",
    12: "a weight is not finite, which the storage type cannot represent",
    13: "a state that a step is to begin with does not fit",
}
#: Flags of a piece.
DRAWS, COUNTS, SCORES = 1, 2, 4
#: Columns of the tables of pieces and scores.
PIECE_COLUMNS = ("slot", "start", "count", "flags", "num_drawn", "num_top", "trace_start", "trace_count")
SCORE_COLUMNS = ("row", "target", "num_top")


class NativeError(Exception):
    """The library rejected a call; nothing was changed."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the compiled step: {STATUSES.get(status, 'unknown error')} (status {status})")
        self.status = status


class Sizes(ctypes.Structure):
    _fields_ = [
        (name, c_int32)
        for name in (
            "struct_bytes", "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
            "num_kv_heads", "head_dim", "num_topk_layers", "topk_k", "select_abs", "is_tied", "num_blocks",
            "block_size", "max_rows", "num_slots", "max_edits", "max_conditions", "num_threads", "storage",
        )
    ] + [("rms_norm_eps", c_float)]  # fmt: skip


#: Tables of the caller and the types of their entries.
TABLES: dict[str, Any] = {
    "edit_ints": np.int64, "edit_floats": np.float32, "conditions": np.int64, "thresholds": np.float32,
    "num_edits": np.int64, "num_conditions": np.int64, "num_interventions": np.int64, "tally": np.float64,
    "num_positions": np.int64, "first": np.int64, "last": np.int64, "temperature": np.float32, "top_p": np.float32,
    "min_p": np.float32, "presence": np.float32, "frequency": np.float32, "top_k": np.int64, "seed": np.int64,
    "has_bias": np.bool_, "bias": np.float32, "counts": np.float32, "is_special": np.bool_, "block_tables": np.int32,
}  # fmt: skip


class Tables(ctypes.Structure):
    _fields_ = [("struct_bytes", c_int64), *((name, c_void_p) for name in TABLES)]


class Step(ctypes.Structure):
    _fields_ = [
        ("struct_bytes", c_int64),
        ("num_pieces", c_int64),
        ("num_rows", c_int64),
        ("num_scores", c_int64),
        ("pieces", c_void_p),
        ("token_ids", c_void_p),
        ("scores", c_void_p),
        ("drawn_ids", c_void_p),
        ("is_finite", c_void_p),
        ("logprobs", c_void_p),
        ("top_room", c_int64),
        ("top_ids", c_void_p),
        ("top_logprobs", c_void_p),
        ("trace_room", c_int64),
        ("num_traced", c_int64),
        ("trace_offsets", c_void_p),
        ("trace_indices", c_void_p),
        ("trace_values", c_void_p),
        ("first_layer", c_int64),
        ("num_start", c_int64),
        ("start_counts", c_void_p),
        ("start_indices", c_void_p),
        ("start_values", c_void_p),
        ("wiped", c_void_p),
    ]


def load_library(path: Path) -> ctypes.CDLL:
    """Raises OSError if the file is not a library, NativeError if the library has another version."""
    library = ctypes.CDLL(str(path))
    library.topk_isa.restype = c_char_p
    library.topk_create.argtypes = [POINTER(Sizes), POINTER(c_void_p)]
    library.topk_create_beside.argtypes = [c_void_p, POINTER(Sizes), POINTER(c_void_p)]
    library.topk_copy_block.argtypes = [c_void_p, c_int32, c_int32]
    library.topk_destroy.argtypes = [c_void_p]
    library.topk_destroy.restype = None
    library.topk_load.argtypes = [c_void_p, c_int, c_int, c_void_p, c_int64, c_int64]
    library.topk_bind.argtypes = [c_void_p, POINTER(Tables)]
    library.topk_rope.argtypes = [c_void_p, c_void_p, c_void_p, c_int64]
    library.topk_trace_width.argtypes = [c_void_p]
    library.topk_trace_width.restype = c_int64
    library.topk_run.argtypes = [c_void_p, POINTER(Step)]
    library.topk_prefer_sparse.argtypes = [c_void_p, c_int]
    if library.topk_abi() != ABI:
        raise NativeError(1)
    return library


class NativeEngine:
    """One engine of the library: weights, cache and threads. For one thread at a time."""

    def __init__(self, library: ctypes.CDLL, *, beside: "NativeEngine | None" = None, **sizes: Any) -> None:
        """With weights to be loaded, or with those of the engine that it is to run beside, in whatever thread.

        Raises:
            NativeError: a size does not fit, or there is too little memory.
        """
        self._library = library
        self._handle = c_void_p()
        self._held: tuple[object, ...] = ()  # arrays that the library reads
        given = Sizes(struct_bytes=ctypes.sizeof(Sizes), **sizes)
        if beside is None:
            status = library.topk_create(ctypes.byref(given), ctypes.byref(self._handle))
        else:
            status = library.topk_create_beside(beside._handle, ctypes.byref(given), ctypes.byref(self._handle))
        self._check(status)

    def close(self) -> None:
        """Free everything and end the threads; the engine cannot be used afterwards."""
        if self._handle:
            self._library.topk_destroy(self._handle)
            self._handle = c_void_p()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    @property
    def isa(self) -> str:
        return str(self._library.topk_isa().decode())

    @property
    def trace_width(self) -> int:
        """Maximum number of entries of one state after a TopK layer and its edits."""
        return int(self._library.topk_trace_width(self._handle))

    def load(self, name: str, weight: NDArray[np.float32], layer: int = 0) -> None:
        """Pack a weight `[outputs, inputs]` or `[width]`; the array may be freed afterwards."""
        data = np.ascontiguousarray(weight, dtype=np.float32)
        rows, columns = data.shape if data.ndim == 2 else (1, len(data))
        status = self._library.topk_load(self._handle, WEIGHTS[name], layer, data.ctypes.data, rows, columns)
        self._check(status)

    def bind(self, tables: Mapping[str, NDArray[Any]]) -> None:
        """Set the tables that steps read and update; they belong to the caller and must not move."""
        pointers = {}
        for name, kind in TABLES.items():
            table = tables[name]
            assert table.dtype == kind, f"{name} is {table.dtype}"
            assert table.flags.c_contiguous, name
            pointers[name] = table.ctypes.data
        self._held = tuple(tables.values())
        self._check(
            self._library.topk_bind(self._handle, ctypes.byref(Tables(struct_bytes=ctypes.sizeof(Tables), **pointers)))
        )

    def set_rope(self, cosines: NDArray[np.float32], sines: NDArray[np.float32]) -> None:
        """Set the rotary angles `[positions, head_dim / 2]`, which limit the length of sequences."""
        status = self._library.topk_rope(self._handle, cosines.ctypes.data, sines.ctypes.data, len(cosines))
        self._check(status)

    def beside(self, **sizes: Any) -> "NativeEngine":
        """An engine of other sizes over the same weights, with a cache, tables and threads of its own."""
        return NativeEngine(self._library, beside=self, **sizes)

    def copy_block(self, source: int, target: int) -> None:
        """Copy the keys and values of a block of the cache to another."""
        self._check(self._library.topk_copy_block(self._handle, source, target))

    def run(self, step: Step) -> None:
        """Raises NativeError if something in the step or in the tables does not fit."""
        self._check(self._library.topk_run(self._handle, ctypes.byref(step)))

    def prefer_sparse(self, how: int) -> None:
        """For tests: 0 the engine decides, 1 always, 2 never; the numbers are the same."""
        self._check(self._library.topk_prefer_sparse(self._handle, how))

    @staticmethod
    def _check(status: int) -> None:
        if status:
            raise NativeError(status)
