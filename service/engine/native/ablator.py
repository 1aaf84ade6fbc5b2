"""Ablations by the compiled step: a second engine over the same weights, in which every run is a row of pieces that
begins at its own layer and position on the blocks of the prompt that was read. Bit-equal to a request that ablates the
same. Knows no queue, and no thread but those that it starts.
"""

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.engine.ablation import (
    EVERY_NEURON,
    Ablations,
    Outcome,
    OverflowedError,
    Reading,
    Rows,
    Watched,
    batches_of,
    value_of,
)
from service.engine.native import binding
from service.engine.native.binding import NativeEngine, Step
from topk_model.editing import EditTables
from topk_model.interventions import Intervention
from topk_model.traces import TraceChunk

if TYPE_CHECKING:
    from service.engine.native.runner import CompiledRunner

#: Runs and rows of a step. A step of so many rows takes some 20 ms on the default model, on one thread.
NUM_SLOTS, NUM_ROWS = 64, 512
_BLOCK_SIZE = 16
_COUNTS = binding.COUNTS
Ints = NDArray[np.int64]


class CompiledAblator:
    """See `service.engine.ablation.Ablator`.

    Args:
        layers: TopK layers, ascending, that ablations through all layers ablate.
    """

    def __init__(
        self,
        runner: "CompiledRunner",
        prompt_ids: Sequence[int],
        interventions: Sequence[Intervention],
        layers: Sequence[int],
        num_threads: int,
    ) -> None:
        self.shape = runner.shape
        self.length = len(prompt_ids)
        self.num_layers = runner.num_topk_layers
        self._ids = np.array(prompt_ids, dtype=np.int32)
        self._interventions = tuple(interventions)
        self._is_through = np.isin(np.arange(self.num_layers), list(layers))
        self._num_rows = max(NUM_ROWS, self.length)
        self._num_base_blocks = -(-self.length // _BLOCK_SIZE)
        # Beside the prompt's own: those of a step's rows, and for each run one that is begun and one that is not full.
        num_blocks = self._num_base_blocks + self._num_rows // _BLOCK_SIZE + 2 * NUM_SLOTS
        self._engine: NativeEngine = runner.engine.beside(
            **runner.sizes()
            | {
                "num_blocks": num_blocks,
                "block_size": _BLOCK_SIZE,
                "max_rows": self._num_rows,
                "num_slots": NUM_SLOTS,
                "num_threads": num_threads,
            }
        )
        self._edits = EditTables(self.shape, NUM_SLOTS, runner.edits.ints.device)
        for slot in range(NUM_SLOTS if interventions else 0):
            self._edits.load(slot, interventions)
        self._block_tables = np.zeros((NUM_SLOTS, num_blocks), dtype=np.int32)
        self._base_blocks = np.arange(1, self._num_base_blocks + 1, dtype=np.int32)
        # Nothing is drawn, so that nobody reads the tables of sampling.
        unused = {
            name: np.zeros(NUM_SLOTS, dtype=kind)
            for name, kind in binding.TABLES.items()
            if name in runner.sampling_tables()
        }
        self._engine.bind(
            unused
            | runner.edit_tables(self._edits)
            | {"is_special": runner.is_special.numpy(), "block_tables": self._block_tables}
        )
        self._engine.set_rope(*runner.angles(self.length))
        self._trace_room = self._num_rows * self.num_layers * self._engine.trace_width

    def close(self) -> None:
        self._engine.close()

    def read(self, targets: Sequence[int] = (), num_top: int = 0) -> Reading:
        """Read the whole prompt. See `Ablator.read`."""
        length, last = self.length, self.length - 1
        self._block_tables[0, : self._num_base_blocks] = self._base_blocks
        if self._interventions:
            self._edits.load(0, self._interventions)
        pieces = np.array([[0, 0, length, _COUNTS, 0, 0, 0, length]], dtype=np.int32)
        scores = [(last, target, 0) for target in targets] + [(last, 0, num_top)] * (num_top > 0)
        done = self._step(pieces, self._ids, scores, num_top=num_top)
        if not done.is_finite.all():
            raise OverflowedError
        self._base = TraceChunk(
            first_position=0,
            num_tokens=length,
            offsets=done.trace_offsets,
            indices=done.trace_indices.copy(),
            values=done.trace_values.copy(),
        )
        return Reading(
            trace=self._base,
            logprobs=tuple(done.logprobs[: len(targets)].tolist()),
            top=tuple(zip(done.top_ids.tolist(), done.top_logprobs.tolist(), strict=True)),
            receipts=self._edits.receipts(0),
        )

    def batches(self, ablations: Ablations) -> list[Ints]:
        """See `Ablator.batches`."""
        return batches_of(ablations, self.length, NUM_SLOTS, self._num_rows)

    def run(self, batch: Ablations, targets: Sequence[int], watched: Sequence[Watched] = ()) -> Outcome:
        """See `Ablator.run`; the runs are one of `batches`."""
        num_runs, first_layer = len(batch), int(batch.layers[0]) + 1
        assert (batch.layers == batch.layers[0]).all(), "the rows of a step begin at one layer"
        self._lay_blocks(batch.starts)
        rows, sizes = Rows.of(batch, self.length), self.length - batch.starts
        first_watched = min((one.position for one in watched), default=self.length)
        traced = np.maximum(0, first_watched - batch.starts)
        pieces = np.zeros((num_runs, len(binding.PIECE_COLUMNS)), dtype=np.int32)
        pieces[:, 0], pieces[:, 1], pieces[:, 2] = np.arange(num_runs), batch.starts, sizes
        pieces[:, 6], pieces[:, 7] = traced, np.maximum(0, sizes - traced)
        scores = [(int(end) - 1, target, 0) for end in rows.ends for target in targets]
        done = self._step(
            pieces,
            self._ids[rows.positions],
            scores,
            first_layer=first_layer,
            start=self._start(batch, rows, first_layer - 1),
            wiped=self._wiped(batch, rows, first_layer),
        )
        logprobs = done.logprobs.astype(np.float64).reshape(num_runs, len(targets))
        logprobs[~done.is_finite] = np.nan
        values = self._values(batch, watched, np.maximum(batch.starts, first_watched), done)
        return Outcome(logprobs=logprobs, values=values)

    def _lay_blocks(self, starts: Ints) -> None:
        """Give each run the prompt's blocks up to its start, and its own from there on; the first begins as a copy."""
        free = self._num_base_blocks + 1
        for slot, start in enumerate(starts.tolist()):
            kept = start // _BLOCK_SIZE
            count = self._num_base_blocks - kept
            table = self._block_tables[slot]
            table[:kept] = self._base_blocks[:kept]
            table[kept : kept + count] = np.arange(free, free + count)
            if start % _BLOCK_SIZE:
                self._engine.copy_block(kept + 1, free)
            free += count

    def _start(self, batch: Ablations, rows: Rows, layer: int) -> tuple[NDArray[Any], ...]:
        """What the rows' states are up to `layer`, in which their ablations begin: counts, indices, values."""
        base, num_layers = self._base, layer + 1
        # Earlier layers are only looked at by the conditions of edits.
        first = 0 if any(edit.conditions for edit in self._interventions) else layer
        states = rows.positions[:, None] * self.num_layers + np.arange(first, num_layers)  # [rows, layers]
        begins, ends = base.offsets[states].ravel(), base.offsets[states + 1].ravel()
        sizes = ends - begins
        of_state = np.repeat(np.arange(len(sizes)), sizes)
        entries = np.arange(len(of_state)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + begins[of_state]
        of_row, of_layer = np.divmod(of_state, num_layers - first)
        neurons = batch.neurons[rows.runs[of_row]]
        is_ablated = (of_layer == layer - first) & rows.is_inside[of_row]
        is_ablated &= (neurons == EVERY_NEURON) | (neurons == base.indices[entries])
        kept = entries[~is_ablated]
        counts = np.zeros((len(rows.positions), num_layers), dtype=np.int32)
        counts[:, first:] = np.bincount(of_state[~is_ablated], minlength=len(sizes)).reshape(len(counts), -1)
        return counts, base.indices[kept].astype(np.int32), base.values[kept].astype(np.float32)

    def _wiped(self, batch: Ablations, rows: Rows, first_layer: int) -> NDArray[np.uint8] | None:
        """Which states of later layers are ablated as a whole, `[rows, topk layers]`."""
        if not batch.is_through.any():
            return None
        is_later = self._is_through & (np.arange(self.num_layers) >= first_layer)
        return ((batch.is_through[rows.runs] & rows.is_inside)[:, None] & is_later).astype(np.uint8)

    def _values(
        self, batch: Ablations, watched: Sequence[Watched], first_traced: Ints, done: "_Done"
    ) -> NDArray[np.float32]:
        """The watched neurons' values in each run: as they were read where the ablation cannot reach them."""
        offsets = done.trace_offsets
        sizes = self.length - first_traced
        first_states = (np.cumsum(sizes) - sizes) * self.num_layers
        values = np.empty((len(batch), len(watched)), dtype=np.float32)
        for column, one in enumerate(watched):
            base = value_of(one, self._base, self.num_layers)
            for run in range(len(batch)):
                if one.position < batch.starts[run] or one.layer < batch.layers[run]:
                    values[run, column] = base
                    continue
                if one.layer == batch.layers[run]:
                    is_own = batch.starts[run] <= one.position < batch.ends[run]
                    is_own = is_own and batch.neurons[run] in (EVERY_NEURON, one.neuron)
                    values[run, column] = 0.0 if is_own else base
                    continue
                state = int(first_states[run] + (one.position - first_traced[run]) * self.num_layers + one.layer)
                entries = slice(offsets[state], offsets[state + 1])
                found = np.flatnonzero(done.trace_indices[entries] == one.neuron)
                values[run, column] = done.trace_values[entries][found[0]] if len(found) else 0.0
        return values

    def _step(
        self,
        pieces: NDArray[np.int32],
        token_ids: NDArray[np.int32],
        scores: list[tuple[int, int, int]],
        *,
        num_top: int = 0,
        first_layer: int = 0,
        start: tuple[NDArray[Any], ...] | None = None,
        wiped: NDArray[np.uint8] | None = None,
    ) -> "_Done":
        done = _Done(len(pieces), len(scores), num_top, int(pieces[:, 7].sum()) * self.num_layers, self._engine)
        table = np.array(scores, dtype=np.int32).reshape(-1, 3)
        drawn = np.empty(len(pieces), dtype=np.int32)
        step = Step(
            struct_bytes=ctypes.sizeof(Step),
            num_pieces=len(pieces),
            num_rows=len(token_ids),
            num_scores=len(scores),
            pieces=pieces.ctypes.data,
            token_ids=token_ids.ctypes.data,
            scores=table.ctypes.data,
            drawn_ids=drawn.ctypes.data,
            is_finite=done.finite.ctypes.data,
            logprobs=done.all_logprobs.ctypes.data,
            top_room=num_top,
            top_ids=done.top_ids.ctypes.data,
            top_logprobs=done.top_logprobs.ctypes.data,
            trace_room=len(done.all_indices),
            trace_offsets=done.trace_offsets.ctypes.data,
            trace_indices=done.all_indices.ctypes.data,
            trace_values=done.all_values.ctypes.data,
            first_layer=first_layer,
            wiped=None if wiped is None else wiped.ctypes.data,
        )
        if start is not None:
            counts, indices, values = start
            step.num_start, step.start_counts = len(indices), counts.ctypes.data
            step.start_indices, step.start_values = indices.ctypes.data, values.ctypes.data
        self._engine.run(step)
        done.num_traced = step.num_traced
        return done


class _Done:
    """What a step writes."""

    def __init__(self, num_pieces: int, num_scores: int, num_top: int, num_states: int, engine: NativeEngine) -> None:
        self.num_pieces, self.num_traced = num_pieces, 0
        self.finite = np.zeros(num_pieces, dtype=np.uint8)
        self.all_logprobs = np.zeros(num_pieces + num_scores, dtype=np.float32)
        self.top_ids = np.zeros(num_top, dtype=np.int32)
        self.top_logprobs = np.zeros(num_top, dtype=np.float32)
        self.trace_offsets = np.zeros(num_states + 1, dtype=np.int64)
        self.all_indices = np.zeros(num_states * engine.trace_width, dtype=np.int32)
        self.all_values = np.zeros(num_states * engine.trace_width, dtype=np.float32)

    @property
    def is_finite(self) -> NDArray[np.bool_]:
        return self.finite.astype(bool)

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """Of the scores, in their order."""
        return self.all_logprobs[self.num_pieces :]

    @property
    def trace_indices(self) -> NDArray[np.int32]:
        return self.all_indices[: self.num_traced]

    @property
    def trace_values(self) -> NDArray[np.float32]:
        return self.all_values[: self.num_traced]
