"""Applies interventions inside a forward pass, each row its own, at a cost that does not depend on how many differ.

`EditTables` stores the edits of many sequences as tensors, one slot per sequence, and counts their effects.
`EditedTopK` is the `Sparsify` of one forward pass: rows of any mixture of sequences, TopK and their edits, no
synchronisation with the device and no loop over rows. Knows no cache and no scheduling.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from topk_model.configuration import TopKLMConfig
from topk_model.interventions import MAX_CONDITIONS, MAX_EDITS, Intervention, Receipt
from topk_model.modeling import topk_mask
from topk_model.transfer import to_device

SET, ADD, SCALE, ABLATE, CLAMP = 1, 2, 3, 4, 5
OPS = {"set": SET, "add": ADD, "scale": SCALE, "ablate": ABLATE, "clamp": CLAMP}
TESTS = {"active": 1, "inactive": 2, "above": 3}
NEVER = np.iinfo(np.int32).max

# Columns of the integer table, of the float table, of the condition table and of the tally.
OP, NEURON, START, END, SPECIAL, PRE, KTH, ROUND, RECEIPT = range(9)
VALUE, LOW, HIGH = range(3)
TEST, COND_LAYER, COND_NEURON = range(3)
ACTIVE, APPLIED, CHANGED, EVICTED, BEFORE, AFTER = range(6)


class EditTables:
    """The edits of up to `num_slots` sequences.

    An edit is stored once for each of its layers, at `[slot, layer, place]`, in the request's order.
    """

    def __init__(self, config: TopKLMConfig, num_slots: int, device: torch.device) -> None:
        self.hidden_size = config.hidden_size
        self.num_layers = config.num_topk_layers
        shape = (num_slots, max(1, self.num_layers), MAX_EDITS)
        self.ints = torch.zeros(*shape, 9, dtype=torch.int64, device=device)
        self.floats = torch.zeros(*shape, 3, device=device)
        self.conditions = torch.zeros(*shape, MAX_CONDITIONS, 3, dtype=torch.int64, device=device)
        self.thresholds = torch.zeros(*shape, MAX_CONDITIONS, device=device)
        self.tally = torch.zeros(num_slots, MAX_EDITS, 6, dtype=torch.float64, device=device)
        self.num_positions = torch.zeros(num_slots, MAX_EDITS, dtype=torch.int64, device=device)
        self.first = torch.zeros(num_slots, MAX_EDITS, dtype=torch.int64, device=device)
        self.last = torch.zeros(num_slots, MAX_EDITS, dtype=torch.int64, device=device)
        # Known on the host, so that a pass can be planned without reading from the device: [slot, layer]
        self.num_edits = np.zeros(shape[:2], dtype=np.int64)
        self.num_rounds = np.zeros((2, *shape[:2]), dtype=np.int64)  # post_topk, pre_topk
        self.num_conditions = np.zeros(shape[:2], dtype=np.int64)
        self.num_interventions = np.zeros(num_slots, dtype=np.int64)

    def load(self, slot: int, interventions: Sequence[Intervention]) -> None:
        """Put a sequence's edits into its slot and reset its tally.

        Raises:
            ValueError: too many edits or conditions, or a layer or neuron that the model does not have.
        """
        self.check(interventions)
        self.num_interventions[slot] = len(interventions)
        self.num_edits[slot] = self.num_conditions[slot] = 0
        self.num_rounds[:, slot] = 0
        if not interventions:
            return  # a slot without interventions is never read, so nothing need be copied to the device
        ints = np.zeros(self.ints.shape[1:], dtype=np.int64)
        floats = np.zeros(self.floats.shape[1:], dtype=np.float32)
        conditions = np.zeros(self.conditions.shape[1:], dtype=np.int64)
        thresholds = np.zeros(self.thresholds.shape[1:], dtype=np.float32)
        places = np.zeros(len(ints), dtype=np.int64)
        seen: Counter[tuple[int, int, bool]] = Counter()
        for number, edit in enumerate(interventions):
            is_pre = edit.site == "pre_topk"
            for i, layer in enumerate(edit.layers):
                unit = 1.0 if edit.unit_values is None or edit.op == "scale" else edit.unit_values[i]
                low = -np.inf if edit.min is None else edit.min * unit
                high = np.inf if edit.max is None else edit.max * unit
                at = layer, places[layer]
                is_kth = edit.unit_values is None and edit.op != "scale"
                end = NEVER if edit.end is None else edit.end
                again = seen[layer, edit.neuron, is_pre]
                ints[at] = (
                    OPS[edit.op], edit.neuron, edit.start, end, edit.include_special, is_pre, is_kth, again, number
                )  # fmt: skip
                floats[at] = edit.value * unit, low, high
                for c, condition in enumerate(edit.conditions):
                    conditions[at][c] = TESTS[condition.test], condition.layer, condition.neuron
                    thresholds[at][c] = condition.value
                seen[layer, edit.neuron, is_pre] += 1
                places[layer] += 1
                self.num_rounds[int(is_pre), slot, layer] = max(self.num_rounds[int(is_pre), slot, layer], again + 1)
                self.num_conditions[slot, layer] = max(self.num_conditions[slot, layer], len(edit.conditions))
        self.num_edits[slot] = places
        for table, values in (
            (self.ints, ints), (self.floats, floats), (self.conditions, conditions), (self.thresholds, thresholds)
        ):  # fmt: skip
            table[slot].copy_(to_device(values, table.device))
        self.tally[slot] = 0
        self.num_positions[slot] = 0
        self.first[slot] = NEVER
        self.last[slot] = -1

    def tally_of(self, slot: int, which: Sequence[int]) -> tuple[Tensor, ...]:
        """The tallies, since `load`, of some of the slot's interventions; for `go_on_from`."""
        return tuple(table[slot, list(which)] for table in self._counts)

    def go_on_from(self, slot: int, which: Sequence[int], tally: tuple[Tensor, ...]) -> None:
        """Continue some of the slot's tallies from those that the same interventions had in another slot."""
        for table, values in zip(self._counts, tally, strict=True):
            table[slot, list(which)] = values

    @property
    def _counts(self) -> tuple[Tensor, ...]:
        return self.tally, self.num_positions, self.first, self.last

    def check(self, interventions: Sequence[Intervention]) -> None:
        """Raises ValueError if a sequence's edits are too many or do not fit the model."""
        if len(interventions) > MAX_EDITS:
            raise ValueError(f"{len(interventions)} interventions, but at most {MAX_EDITS} are allowed")
        for edit in interventions:
            for layer in edit.layers:
                if not 0 <= layer < self.num_layers:
                    raise ValueError(f"layer {layer} is not a TopK layer; those are 0 to {self.num_layers - 1}")
            for neuron in (edit.neuron, *(c.neuron for c in edit.conditions)):
                if not 0 <= neuron < self.hidden_size:
                    raise ValueError(f"neuron {neuron} is out of range; the model has 0 to {self.hidden_size - 1}")
            if any(not 0 <= c.layer <= min(edit.layers) for c in edit.conditions):
                raise ValueError("a condition's layer must not be after the edit's first layer")
            if len(edit.conditions) > MAX_CONDITIONS:
                raise ValueError(f"{len(edit.conditions)} conditions, but at most {MAX_CONDITIONS} are allowed")

    def receipts(self, slot: int) -> tuple[Receipt, ...]:
        """The effects of the slot's edits since `load`."""
        count = int(self.num_interventions[slot])
        if not count:
            return ()
        tally = self.tally[slot, :count].tolist()
        num_positions = self.num_positions[slot, :count].tolist()
        first, last = self.first[slot, :count].tolist(), self.last[slot, :count].tolist()
        return tuple(
            Receipt(
                positions_applied=num_positions[i],
                first=first[i] if num_positions[i] else None,
                last=last[i] if num_positions[i] else None,
                active_before=int(row[ACTIVE]),
                mean_before=row[BEFORE] / row[APPLIED] if row[APPLIED] else None,
                mean_after=row[AFTER] / row[APPLIED] if row[APPLIED] else None,
                evicted=int(row[EVICTED]),
                num_applications=int(row[APPLIED]),
                num_changed=int(row[CHANGED]),
            )
            for i, row in enumerate(tally)
        )


class EditedTopK:
    """The `Sparsify` of one forward pass over `[rows, hidden_size]`.

    Args:
        tables: the edits.
        config: the model's k and selection.
        slots: slot of each row, on the host.
        positions: position of each row in its sequence `[rows]`, on the device.
        is_special: rows with a special token `[rows]`.
        is_counted: rows whose edits are counted in the receipts `[rows]`.
        states: `[topk layers, rows, hidden_size]`, filled with each TopK layer's output; needed if an edit has
            conditions or the caller reads it.
    """

    def __init__(
        self,
        tables: EditTables,
        config: TopKLMConfig,
        slots: np.ndarray,
        positions: Tensor,
        is_special: Tensor,
        is_counted: Tensor,
        states: Tensor | None,
    ) -> None:
        self.tables, self.k, self.select = tables, config.topk_k, config.topk_select
        self.num_topk_layers, self.states = config.num_topk_layers, states
        edited = np.flatnonzero(tables.num_interventions[slots])
        self.is_edited = len(edited) > 0
        self.all_edited = len(edited) == len(slots)
        if not self.is_edited:
            return
        device = positions.device
        edited_slots = slots[edited]
        self.num_edits = tables.num_edits[edited_slots].max(0)
        self.num_rounds = tables.num_rounds[:, edited_slots].max(1)
        self.num_conditions = tables.num_conditions[edited_slots].max(0)
        width = int(tables.num_interventions[edited_slots].max())
        self.edited = edited
        self.rows = to_device(edited, device)
        self.where = slice(None) if self.all_edited else self.rows  # the same rows, without a copy if it is all of them
        self.slots = to_device(edited_slots, device)
        self.positions, self.is_special = positions[self.rows, None], is_special[self.rows, None]
        self.is_counted = is_counted[self.rows]
        # One more column than interventions, for writes that belong to none.
        self.tally = torch.zeros(len(edited), width + 1, 6, dtype=torch.float64, device=device)
        self.applied = torch.zeros(len(edited), width + 1, dtype=torch.bool, device=device)
        # A NaN has no rank: TopK would pass on part of a state that has one, and an overflow could look valid.
        self.is_finite = torch.ones(len(edited), dtype=torch.bool, device=device)

    def __call__(self, layer: int, hidden: Tensor) -> Tensor:
        if layer >= self.num_topk_layers:
            return hidden
        mask = topk_mask(hidden, self.k, self.select)
        out = torch.where(mask, hidden, 0.0)
        if self.is_edited:
            self.is_finite &= hidden[self.where].isfinite().all(-1)
            if self.num_edits[layer]:
                out = self.edit(layer, hidden, mask, out)
                self.is_finite &= out[self.where].isfinite().all(-1)
        if self.states is not None:
            self.states[layer].copy_(out)
        return out

    def edit(self, layer: int, hidden: Tensor, mask: Tensor, base: Tensor) -> Tensor:
        """`base`, the layer's unedited output, with this pass's edits at `layer`."""
        count = int(self.num_edits[layer])
        ints = self.tables.ints[self.slots, layer, :count]  # [edited rows, edits, columns]
        floats = self.tables.floats[self.slots, layer, :count]
        holds = (ints[..., OP] > 0) & (self.positions >= ints[..., START]) & (self.positions < ints[..., END])
        holds &= ~self.is_special | (ints[..., SPECIAL] > 0)
        if self.num_conditions[layer]:
            holds &= self.conditions_hold(layer, base, count)
        mask = mask[self.where]
        kept = hidden[self.where].float()
        if self.select == "abs":
            kept = kept.abs()
        kth = torch.where(mask, kept, torch.inf).amin(-1, keepdim=True)
        unit = torch.where(ints[..., KTH] > 0, kth, 1.0)
        low, high = floats[..., LOW], floats[..., HIGH]
        low, high = torch.where(low.isinf(), low, low * unit), torch.where(high.isinf(), high, high * unit)
        low, high = torch.minimum(low, high), torch.maximum(low, high)  # multiples of a negative k-th value swap
        values = torch.stack((floats[..., VALUE] * unit, low, high), -1)
        is_pre = ints[..., PRE] > 0
        was_active = mask.gather(1, ints[..., NEURON])

        state = base[self.where]
        if self.num_rounds[1, layer]:
            raw = self.apply(
                hidden[self.where], ints, values, holds & is_pre, was_active, int(self.num_rounds[1, layer])
            )
            mask_after = topk_mask(raw, self.k, self.select)
            state = torch.where(mask_after, raw, 0.0)
            came_in = holds & is_pre & ~was_active & mask_after.gather(1, ints[..., NEURON])
            self.count(ints, holds & is_pre, EVICTED, came_in)
        if self.num_rounds[0, layer]:
            state = self.apply(state, ints, values, holds & ~is_pre, None, int(self.num_rounds[0, layer]))
        return state if self.all_edited else base.index_copy(0, self.rows, state)

    def conditions_hold(self, layer: int, base: Tensor, count: int) -> Tensor:
        """Which edits have all their conditions true, `[edited rows, edits]`."""
        assert self.states is not None, "conditions read the states of earlier layers"
        self.states[layer].copy_(base)
        width = int(self.num_conditions[layer])
        conditions = self.tables.conditions[self.slots, layer, :count, :width]
        thresholds = self.tables.thresholds[self.slots, layer, :count, :width]
        value = self.states[conditions[..., COND_LAYER], self.rows[:, None, None], conditions[..., COND_NEURON]].float()
        test = conditions[..., TEST]
        true = (test == 0) | ((test == 1) & (value != 0)) | ((test == 2) & (value == 0))
        return (true | ((test == 3) & (value > thresholds))).all(-1)

    def apply(
        self, state: Tensor, ints: Tensor, values: Tensor, holds: Tensor, was_active: Tensor | None, num_rounds: int
    ) -> Tensor:
        """`state` `[edited rows, hidden_size]` after the edits that hold, in their order.

        Edits of different neurons commute, so only edits of the same neuron need an order: the n-th edit of a neuron is
        applied in round n, all rows and neurons at once.
        """
        spare = state.shape[-1]  # a column beyond the state takes the writes of edits that do not hold
        state = F.pad(state, (0, 1))
        for number in range(num_rounds):
            now = holds & (ints[..., ROUND] == number)
            at = torch.where(now, ints[..., NEURON], spare)
            before = state.gather(1, at).float()
            op, value = ints[..., OP], values[..., 0]
            after = torch.minimum(torch.maximum(before, values[..., 1]), values[..., 2])  # clamp
            after = torch.where(op == SET, value, after)
            after = torch.where(op == ADD, before + value, after)
            after = torch.where(op == SCALE, before * value, after)
            after = torch.where(op == ABLATE, 0.0, after).to(state.dtype)
            state.scatter_(1, at, after)
            after = after.float()
            receipt = torch.where(now, ints[..., RECEIPT], self.applied.shape[1] - 1)
            self.applied.scatter_(1, receipt, True)
            self.count(ints, now, ACTIVE, before != 0 if was_active is None else was_active)
            self.count(ints, now, APPLIED, torch.ones_like(before))
            self.count(ints, now, CHANGED, before != after)
            self.count(ints, now, BEFORE, before)
            self.count(ints, now, AFTER, after)
        return state[:, :spare]

    def count(self, ints: Tensor, holds: Tensor, column: int, amounts: Tensor) -> None:
        """Add `amounts` `[edited rows, edits]` of the edits that hold to a column of the tally."""
        receipt = torch.where(holds, ints[..., RECEIPT], self.tally.shape[1] - 1)
        self.tally[..., column].scatter_add_(1, receipt, amounts.double())

    def looks(self) -> list[Tensor]:
        """The tensor that `overflowed_rows` needs from the device, after the last layer."""
        return [self.is_finite] if self.is_edited else []

    def overflowed_rows(self, looks: Sequence[np.ndarray]) -> np.ndarray:
        """Rows whose edits drove a TopK layer's state to infinity or NaN, ascending, by `looks` on the host."""
        return self.edited[~looks[0]] if self.is_edited else np.empty(0, dtype=np.int64)

    def finish(self) -> None:
        """Add this pass to the tables' tally; call it once, after the last layer."""
        if not self.is_edited:
            return
        width = self.tally.shape[1] - 1
        tables, positions = self.tables, self.positions
        applied = self.applied[:, :width] & self.is_counted[:, None]
        tally = torch.where(self.is_counted[:, None, None], self.tally[:, :width], 0.0)
        tables.tally[:, :width].index_add_(0, self.slots, tally)
        tables.num_positions[:, :width].index_add_(0, self.slots, applied.long())
        slots = self.slots[:, None].expand(-1, width)
        tables.first[:, :width].scatter_reduce_(0, slots, torch.where(applied, positions, NEVER), "amin")
        tables.last[:, :width].scatter_reduce_(0, slots, torch.where(applied, positions, -1), "amax")
