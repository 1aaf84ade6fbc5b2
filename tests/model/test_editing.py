"""Edits as tensors against edits as plain Python: one position, one edit at a time, straight from the definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.engine.random_requests import interventions
from tests.support.tiny import tiny_config
from topk_model.editing import EditedTopK, EditTables
from topk_model.interventions import Condition, Intervention, Receipt

CONFIG = tiny_config(hidden_size=16, num_attention_heads=2, num_hidden_layers=4, n_nontopk=1, topk_k=4)
ABS_CONFIG = tiny_config(
    hidden_size=16, num_attention_heads=2, num_hidden_layers=4, n_nontopk=1, topk_k=4, topk_select="abs"
)
NUM_LAYERS = 3


def kept_neurons(values, config):
    strength = [abs(v) if config.topk_select == "abs" else v for v in values]
    return sorted(sorted(range(len(values)), key=lambda i: (-strength[i], i))[: config.topk_k])


def sparse(values, config):
    kept = set(kept_neurons(values, config))
    return [v if i in kept else np.float32(0) for i, v in enumerate(values)]


def edited_value(edit, place, before, kth):
    """The neuron's value after one edit, in float32."""
    unit = np.float32(edit.unit_values[place]) if edit.unit_values is not None else kth
    match edit.op:
        case "set":
            return np.float32(edit.value) * unit
        case "add":
            return before + np.float32(edit.value) * unit
        case "scale":
            return before * np.float32(edit.value)
        case "ablate":
            return np.float32(0)
        case "clamp":
            low = -np.inf if edit.min is None else np.float32(edit.min) * unit
            high = np.inf if edit.max is None else np.float32(edit.max) * unit
            low, high = min(low, high), max(low, high)  # multiples of a negative k-th value
            return np.float32(min(max(before, low), high))


def holds(edit, layer, position, is_special, readable):
    """Whether an edit acts at a layer of a position; `readable` are the states that its conditions may look at."""
    if layer not in edit.layers or not edit.start <= position < (math.inf if edit.end is None else edit.end):
        return False
    if is_special and not edit.include_special:
        return False
    for condition in edit.conditions:
        value = readable[condition.layer][condition.neuron]
        above = value > np.float32(condition.value)
        if not {"active": value != 0, "inactive": value == 0, "above": above}[condition.test]:
            return False
    return True


def reference(vectors, edits, position, is_special, config, tallies):
    """States that the TopK layers of one position hand on; `vectors` are the blocks' outputs, one a layer."""
    states = []
    for layer, vector in enumerate(vectors):
        base, kept = sparse(vector, config), kept_neurons(vector, config)
        kth = min(abs(vector[i]) if config.topk_select == "abs" else vector[i] for i in kept)
        acting = [
            (edit, tally)
            for edit, tally in zip(edits, tallies, strict=True)
            if holds(edit, layer, position, is_special, [*states, base])
        ]
        raw, state = list(vector), None
        for site in ("pre_topk", "post_topk"):
            target = raw if site == "pre_topk" else state
            for edit, tally in acting:
                if edit.site != site:
                    continue
                before = target[edit.neuron]
                after = target[edit.neuron] = edited_value(edit, edit.layers.index(layer), before, kth)
                tally["positions"].add(position)
                tally["active"] += (edit.neuron in kept) if site == "pre_topk" else bool(before != 0)
                tally["before"].append(float(before))
                tally["after"].append(float(after))
                tally["changed"] += bool(before != after)
            if site == "pre_topk":
                state = sparse(raw, config)
        for edit, tally in acting:
            if edit.site == "pre_topk":
                tally["evicted"] += edit.neuron not in kept and edit.neuron in kept_neurons(raw, config)
        states.append(state)
    return states


def to_receipt(tally):
    positions, count = tally["positions"], len(tally["before"])
    return Receipt(
        positions_applied=len(positions),
        first=min(positions, default=None),
        last=max(positions, default=None),
        active_before=tally["active"],
        mean_before=math.fsum(tally["before"]) / count if count else None,
        mean_after=math.fsum(tally["after"]) / count if count else None,
        evicted=tally["evicted"],
        num_applications=count,
        num_changed=tally["changed"],
    )


@pytest.mark.long
@settings(max_examples=80, deadline=None)
@given(
    requests=st.lists(st.lists(interventions(), max_size=5), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    config=st.sampled_from([CONFIG, ABS_CONFIG]),
)
def test_edits_of_any_mixture_match_the_definition(requests, seed, config):
    tables = EditTables(config, len(requests), torch.device("cpu"))
    for slot, edits in enumerate(requests):
        tables.load(slot, edits)
    tallies = [
        [{"positions": set(), "active": 0, "before": [], "after": [], "changed": 0, "evicted": 0} for _ in edits]
        for edits in requests
    ]
    generator = torch.Generator().manual_seed(seed)
    for first_position in (0, 3):  # two passes, as a prompt read in two pieces
        rows = [(slot, first_position + i) for slot in range(len(requests)) for i in range(3)]
        hidden = torch.randn(NUM_LAYERS, len(rows), 16, generator=generator).round(decimals=1)  # with ties
        slots = np.array([slot for slot, _ in rows])
        positions = torch.tensor([position for _, position in rows])
        states = torch.zeros(NUM_LAYERS, len(rows), 16)
        pass_ = EditedTopK(
            tables, config, slots, positions, positions == 0, torch.ones(len(rows), dtype=torch.bool), states
        )
        for layer in range(NUM_LAYERS):
            pass_(layer, hidden[layer])
        pass_.finish()
        for row, (slot, position) in enumerate(rows):
            vectors = hidden[:, row].numpy()
            expected = reference(vectors, requests[slot], position, position == 0, config, tallies[slot])
            np.testing.assert_array_equal(states[:, row].numpy(), np.array(expected, dtype=np.float32))
    for slot, slot_tallies in enumerate(tallies):
        for got, tally in zip(tables.receipts(slot), slot_tallies, strict=True):
            expected = to_receipt(tally)
            assert got.mean_before == pytest.approx(expected.mean_before)
            assert got.mean_after == pytest.approx(expected.mean_after)
            assert {**vars(got), "mean_before": 0, "mean_after": 0} == {
                **vars(expected),
                "mean_before": 0,
                "mean_after": 0,
            }


def test_the_dense_layers_are_left_alone():
    tables = EditTables(CONFIG, 1, torch.device("cpu"))
    tables.load(0, [Intervention(layers=(0, 1, 2), neuron=1, op="set", value=9.0, unit_values=(1.0,) * 3)])
    ones = torch.ones(1, dtype=torch.bool)
    pass_ = EditedTopK(tables, CONFIG, np.array([0]), torch.tensor([5]), ~ones, ones, None)
    hidden = torch.randn(1, 16)
    assert pass_(3, hidden) is hidden


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"layers": (3,)}, "layer 3 is not a TopK layer"),
        ({"layers": (-1,)}, "layer -1"),
        ({"neuron": 16}, "neuron 16 is out of range"),
        ({"conditions": (Condition(layer=2, neuron=0, test="active"),)}, "condition's layer"),
        ({"conditions": (Condition(layer=0, neuron=0, test="active"),) * 9}, "9 conditions, but at most 8"),
    ],
)
def test_an_edit_that_does_not_fit_the_model_is_refused(fields, says):
    tables = EditTables(CONFIG, 1, torch.device("cpu"))
    edit = Intervention(**({"layers": (0,), "neuron": 0, "op": "ablate"} | fields))
    with pytest.raises(ValueError, match=says):
        tables.load(0, [edit])


def test_too_many_edits_are_refused():
    tables = EditTables(CONFIG, 1, torch.device("cpu"))
    with pytest.raises(ValueError, match="65 interventions, but at most 64"):
        tables.load(0, [Intervention(layers=(0,), neuron=0, op="ablate")] * 65)


def test_a_slot_forgets_its_last_owner():
    tables = EditTables(CONFIG, 1, torch.device("cpu"))
    tables.load(0, [Intervention(layers=(0,), neuron=1, op="set", value=9.0, unit_values=(1.0,))] * 3)
    tables.load(0, [])
    ones = torch.ones(1, dtype=torch.bool)
    pass_ = EditedTopK(tables, CONFIG, np.array([0]), torch.tensor([5]), ~ones, ones, None)
    hidden = torch.randn(1, 16)
    assert (pass_(0, hidden) != 0).sum() == CONFIG.topk_k
    assert tables.receipts(0) == ()
