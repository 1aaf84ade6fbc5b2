"""Traces: selecting entries, joining rows, and writing them so that they read back the same."""

import json

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topk_model.traces import Trace, TraceSpec, concatenate, select_entries

NUM_LAYERS, WIDTH = 3, 20


def random_rows(rng, num_tokens):
    """(counts, indices, values) and the same as a list of rows of (index, value)."""
    rows = [
        [
            (int(i), np.float32(rng.choice([-2.0, -0.5, 0.1, 1.0, 3.0])))
            for i in sorted(rng.choice(WIDTH, n, replace=False))
        ]
        for n in rng.integers(0, 6, num_tokens * NUM_LAYERS)
    ]
    counts = np.array([len(row) for row in rows]).reshape(num_tokens, NUM_LAYERS)
    indices = np.array([i for row in rows for i, _ in row], dtype=np.int32)
    values = np.array([v for row in rows for _, v in row], dtype=np.float32)
    return counts, indices, values, rows


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    layers=st.permutations(range(NUM_LAYERS)).flatmap(lambda p: st.integers(1, 3).map(lambda n: tuple(p[:n]))),
    neurons=st.none() | st.sets(st.integers(0, WIDTH - 1)).map(lambda s: tuple(sorted(s))),
    top_n=st.none() | st.integers(1, 4),
    min_value=st.none() | st.sampled_from([-1.0, 0.0, 1.0]),
    by_magnitude=st.booleans(),
)
def test_selection_matches_its_definition(seed, layers, neurons, top_n, min_value, by_magnitude):
    rng = np.random.default_rng(seed)
    num_tokens = int(rng.integers(1, 5))
    counts, indices, values, rows = random_rows(rng, num_tokens)
    spec = TraceSpec(layers=layers, neurons=neurons, top_n=top_n, min_value=min_value, by_magnitude=by_magnitude)
    chunk = select_entries(spec, 7, NUM_LAYERS, counts, indices, values)
    strength = abs if by_magnitude else float
    expected, cut = [], False
    for token in range(num_tokens):
        for layer in layers:
            full = rows[token * NUM_LAYERS + layer]
            row = [(i, v) for i, v in full if neurons is None or i in neurons]
            row = [(i, v) for i, v in row if min_value is None or strength(v) >= min_value]
            row = sorted(row, key=lambda entry: (-strength(entry[1]), entry[0]))[:top_n]
            expected.append(sorted(row))
            cut |= len(row) < len(full)
    got = [
        list(zip(chunk.indices[a:b].tolist(), chunk.values[a:b], strict=True))
        for a, b in zip(chunk.offsets, chunk.offsets[1:], strict=False)
    ]
    assert got == expected
    assert chunk.is_complete == (not cut)
    assert (chunk.first_position, chunk.num_tokens) == (7, num_tokens)


def make_trace(num_tokens=5, hidden_size=WIDTH, seed=0):
    rng = np.random.default_rng(seed)
    spec = TraceSpec(layers=(0, 1, 2))
    pieces = []
    for first in range(num_tokens):
        counts, indices, values, _ = random_rows(rng, 1)
        values = rng.standard_normal(len(values)).astype(np.float32)
        pieces.append(select_entries(spec, first, NUM_LAYERS, counts, indices, values))
    return Trace(
        model="m",
        checkpoint=None,
        k=4,
        hidden_size=hidden_size,
        layers=spec.layers,
        token_ids=tuple(range(num_tokens)),
        tokens=tuple("abcde"[:num_tokens]),
        phases=("prompt",) * num_tokens,
        is_special=(False,) * num_tokens,
        chunk=concatenate(pieces),
    )


def test_joined_rows_are_the_rows():
    trace = make_trace()
    assert trace.chunk.num_tokens == 5
    assert len(trace.chunk.offsets) == 16
    assert trace.chunk.offsets[-1] == trace.chunk.num_entries == len(trace.chunk.values)


def test_json_reads_back_to_the_bit():
    trace = make_trace()
    fields = json.loads(orjson.dumps(trace.to_json(), option=orjson.OPT_SERIALIZE_NUMPY))
    np.testing.assert_array_equal(Trace.read(fields).dense(), trace.dense())


@pytest.mark.parametrize(("hidden_size", "index_dtype"), [(WIDTH, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_packed_reads_back_to_the_bit(hidden_size, index_dtype):
    trace = make_trace(hidden_size=hidden_size)
    fields = json.loads(json.dumps(trace.to_packed()))
    assert fields["index_dtype"] == index_dtype
    np.testing.assert_array_equal(Trace.read(fields).dense(), trace.dense())
    half = Trace.read(json.loads(json.dumps(trace.to_packed("float16"))))
    np.testing.assert_allclose(half.dense(), trace.dense(), rtol=1e-3, atol=1e-6)


def test_the_fields_are_those_of_the_documentation():
    assert list(make_trace().to_json()) == [
        "trace_version", "model", "checkpoint", "k", "hidden_size", "layers", "token_ids", "tokens", "phases",
        "is_special", "complete", "offsets", "indices", "values",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("offsets", [0]), ("values", []), ("trace_version", 2), ("tokens", ["a"]), ("phases", []),
        ("is_special", [True]), ("hidden_size", 2),
    ],
)  # fmt: skip
def test_a_trace_that_does_not_fit_is_refused(field, value):
    fields = make_trace().to_json() | {field: value}
    with pytest.raises(ValueError, match=r"fit|trace_version"):
        Trace.read(fields)


@pytest.mark.parametrize("change", [lambda ends: ends[::-1] - ends[0], lambda ends: np.r_[1, ends[1:]]])
def test_rows_of_a_trace_follow_each_other(change):
    fields = make_trace().to_json()
    ends = np.array(fields["offsets"])
    ends[1:-1] = change(ends)[1:-1]
    ends[0] = change(ends)[0]
    with pytest.raises(ValueError, match="fit"):
        Trace.read(fields | {"offsets": ends.tolist()})
