"""Ablations in torch, where there is no compiled step. Equal to a request that ablates the same but for rounding, which
can swap two neurons that are all but equal. Knows no queue and no thread.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.ablation import (
    EVERY_NEURON,
    Ablations,
    Outcome,
    OverflowedError,
    Reading,
    Rows,
    Watched,
    batches_of,
)
from topk_model.ablating.window import AblatedWindow
from topk_model.editing import EditedTopK, EditTables
from topk_model.interventions import Intervention
from topk_model.traces import TraceChunk
from topk_model.transfer import to_device, to_host

if TYPE_CHECKING:
    from service.engine.runner import Runner

#: Rows of a batch: each may look at every other, so that attention costs their square.
NUM_ROWS = 256


class TorchAblator:
    """See `service.engine.ablation.Ablator`.

    Args:
        layers: TopK layers, ascending, that ablations through all layers ablate.
    """

    def __init__(
        self,
        runner: "Runner",
        prompt_ids: Sequence[int],
        interventions: Sequence[Intervention],
        layers: Sequence[int],
    ) -> None:
        self._model, self._shape, self._device = runner.model, runner.shape, runner.device
        self._ids = to_device(np.array(prompt_ids), self._device)
        self._is_special = runner.is_special[self._ids]
        self._interventions, self._layers = tuple(interventions), frozenset(layers)
        self._edits = EditTables(self._shape, 1, self._device)

    def close(self) -> None:
        """Nothing is held that is not freed by itself."""

    @torch.inference_mode()
    def read(self, targets: Sequence[int] = (), num_top: int = 0) -> Reading:
        """Read the whole prompt. See `Ablator.read`."""
        self._edits.load(0, self._interventions)
        positions = torch.arange(len(self._ids), device=self._device)
        sparsify = self._sparsify(positions, self._states(len(self._ids)), is_counted=True)
        self._window = AblatedWindow(self._model, self._ids, sparsify)
        sparsify.finish()
        log_probs = self._log_probs(self._window.hidden[-1:])[0]
        if not log_probs.isfinite().all() or (sparsify.is_edited and not sparsify.is_finite.all()):
            raise OverflowedError
        top = log_probs.topk(num_top)
        return Reading(
            trace=chunk_of(self._window.states),
            logprobs=tuple(log_probs[list(targets)].tolist()),
            top=tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
            receipts=self._edits.receipts(0),
        )

    def batches(self, ablations: Ablations) -> list[NDArray[np.int64]]:
        """See `Ablator.batches`."""
        return batches_of(ablations, len(self._ids), NUM_ROWS, max(NUM_ROWS, len(self._ids)))

    @torch.inference_mode()
    def run(self, batch: Ablations, targets: Sequence[int], watched: Sequence[Watched] = ()) -> Outcome:
        """See `Ablator.run`; the runs are one of `batches`."""
        rows, layer = Rows.of(batch, len(self._ids)), int(batch.layers[0])
        runs, positions, is_inside, is_through = (
            to_device(values, self._device)
            for values in (rows.runs, rows.positions, rows.is_inside, batch.is_through[rows.runs])
        )
        states = self._states(len(runs))
        states[: layer + 1] = self._window.states[: layer + 1, positions]
        neurons = to_device(batch.neurons, self._device)[runs]
        hidden = states[layer]
        hidden[is_inside & (neurons == EVERY_NEURON)] = 0
        one = (is_inside & (neurons != EVERY_NEURON)).nonzero()[:, 0]
        hidden[one, neurons[one]] = 0
        wiped = is_inside & is_through
        edited = self._sparsify(positions, states, is_counted=False)

        def sparsify(at: int, hidden: Tensor) -> Tensor:
            hidden = edited(at, hidden)
            if at in self._layers:
                hidden = torch.where(wiped[:, None], 0.0, hidden)
                states[at] = hidden
            return hidden

        starts = to_device(batch.starts, self._device)[runs]
        out = self._window.run(hidden.clone(), positions, runs, starts, layer + 1, sparsify)
        log_probs = self._log_probs(out[to_device(rows.ends - 1, self._device)])
        log_probs[~log_probs.isfinite().all(-1)] = torch.nan
        if edited.is_edited:
            log_probs[runs[~edited.is_finite]] = torch.nan
        chosen, values = to_host([log_probs[:, list(targets)], self._values(batch, rows, states, watched)])
        return Outcome(logprobs=chosen.astype(np.float64), values=values)

    def _values(self, batch: Ablations, rows: Rows, states: Tensor, watched: Sequence[Watched]) -> Tensor:
        """The watched neurons' values `[runs, watched]`: as they were read where the run has no row."""
        length, columns = len(self._ids), []
        for one in watched:
            at = rows.ends - (length - one.position)
            is_own = one.position >= batch.starts
            own = states[one.layer, to_device(np.where(is_own, at, 0), self._device), one.neuron]
            read = self._window.states[one.layer, one.position, one.neuron]
            columns.append(torch.where(to_device(is_own, self._device), own, read).float())
        return torch.stack(columns, dim=1) if columns else torch.empty(len(batch), 0)

    def _states(self, num_rows: int) -> Tensor:
        shape = (self._shape.num_topk_layers, num_rows, self._shape.hidden_size)
        return torch.zeros(shape, device=self._device, dtype=self._model.dtype)

    def _sparsify(self, positions: Tensor, states: Tensor, *, is_counted: bool) -> EditedTopK:
        slots = np.zeros(len(positions), dtype=np.int64)
        counted = torch.full_like(positions, is_counted, dtype=torch.bool)
        return EditedTopK(self._edits, self._shape, slots, positions, self._is_special[positions], counted, states)

    def _log_probs(self, hidden: Tensor) -> Tensor:
        return self._model.lm_head(hidden).float().log_softmax(-1)


def chunk_of(states: Tensor) -> TraceChunk:
    """The trace of dense states `[topk layers, positions, hidden_size]`."""
    by_position = states.transpose(0, 1)
    where = by_position.nonzero()
    counts, indices, values = to_host(
        [(by_position != 0).sum(-1).flatten(), where[:, 2].int(), by_position[by_position != 0].float()]
    )
    return TraceChunk(
        first_position=0,
        num_tokens=len(by_position),
        offsets=np.concatenate(([0], np.cumsum(counts))),
        indices=indices,
        values=values,
    )
