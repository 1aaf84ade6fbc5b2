"""Traces over gRPC: a stream of many texts, and how a trace is packed and cut into parts."""

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest

from service.client.client import CallError, Client, texts, trace_from_pb
from service.grpc_api.conversion import trace_parts, trace_to_pb
from service.pb import topk_pb2 as pb
from service.requests.schema import ActivationsStreamRequest
from service.serving.bulk import answer_each
from tests.support.served import MODEL_ID, serve_app
from topk_model.traces import Trace, TraceSpec, join, select_entries


def test_many_texts_come_back_each_with_its_own_trace(client: Client) -> None:
    prompts = [f"the king {i} and the war" for i in range(80)]
    prompts[7] = "word " * 1000
    request = pb.ActivationsStreamRequest(model=MODEL_ID, input=texts(prompts))
    results = dict(client.traces(request))
    assert sorted(results) == list(range(80))
    error = results.pop(7)
    assert isinstance(error, pb.Error)
    assert (error.param, error.code) == ("input", "context_length_exceeded")
    for index, trace in results.items():
        assert isinstance(trace, Trace)
        if index % 20 == 0:
            alone = client.activations(pb.ActivationsRequest(model=MODEL_ID, input=texts([prompts[index]])))
            assert trace_to_pb(trace, "float32") == alone.data[0].trace
    with pytest.raises(CallError, match=r"trace\.layers") as caught:
        list(client.traces(pb.ActivationsStreamRequest(model=MODEL_ID, input=texts("ab"), trace={"layers": [3]})))
    assert (caught.value.code, caught.value.param) == (grpc.StatusCode.INVALID_ARGUMENT, "trace.layers")
    with pytest.raises(CallError, match="at most 4096"):
        list(client.traces(pb.ActivationsStreamRequest(model=MODEL_ID, input=texts(["a"] * 4097))))


def test_a_text_that_the_request_does_not_fit_ends_no_other(client: Client) -> None:
    prompts = ["the king and the war"] * 5 + ["a"] + ["the queen and the sea"] * 5
    options = pb.TraceOptions(positions=pb.Positions(range=pb.PositionRange(start=3)))
    results = dict(client.traces(pb.ActivationsStreamRequest(model=MODEL_ID, input=texts(prompts), trace=options)))
    error = results.pop(5)
    assert (error.param, error.code) == ("trace.positions.start", "invalid_value")
    assert len(results) == 10
    assert all(isinstance(trace, Trace) for trace in results.values())


def test_a_stream_of_texts_waits_where_another_has_taken_the_room(tiny_model_path: Path) -> None:
    names = [f"the king {i}" for i in range(30)]
    body = ActivationsStreamRequest(model=MODEL_ID, input=names)
    with serve_app(tiny_model_path, max_num_seqs=4, max_backlog=1) as small:

        async def indices() -> list[int]:
            return sorted([index async for index, _ in answer_each(small.model, body, "a")])

        async def two_at_once() -> None:
            assert await asyncio.gather(indices(), indices()) == [list(range(30))] * 2

        small.run(two_at_once())


def wide_trace(num_tokens: int = 128, num_layers: int = 16, k: int = 64, hidden_size: int = 1024) -> Trace:
    rng = np.random.default_rng(0)
    rows = num_tokens * num_layers
    indices = np.sort(rng.random((rows, hidden_size)).argsort(axis=1)[:, :k], axis=1).astype(np.int32)
    values = rng.standard_normal(rows * k).astype(np.float32)
    spec = TraceSpec(layers=tuple(range(num_layers)))
    counts = np.full((num_tokens, num_layers), k, dtype=np.int64)
    return Trace(
        model="m",
        checkpoint="step-64",
        k=k,
        hidden_size=hidden_size,
        layers=spec.layers,
        token_ids=tuple(range(num_tokens)),
        tokens=("token",) * num_tokens,
        phases=("prompt",) * num_tokens,
        is_special=(False,) * num_tokens,
        chunk=select_entries(spec, 0, num_layers, counts, indices.ravel(), values),
    )


def test_a_packed_trace_is_small_and_becomes_matrices_to_the_bit() -> None:
    torch = pytest.importorskip("torch")
    trace = wide_trace()
    half = trace_to_pb(trace, "float16")
    assert half.ByteSize() <= 4.5 * trace.chunk.num_entries
    read = trace_from_pb(pb.Trace.FromString(trace_to_pb(trace, "float32").SerializeToString()))
    assert read.header() == trace.header()
    dense = trace.dense().reshape(-1, trace.hidden_size)
    np.testing.assert_array_equal(read.csr().toarray(), dense)
    np.testing.assert_array_equal(read.torch_csr().to_dense().numpy(), dense)
    np.testing.assert_array_equal(trace_from_pb(half).dense(), trace.dense().astype(np.float16))
    assert torch.equal(read.torch_csr().sum(), torch.from_numpy(read.chunk.values).sum())


@pytest.mark.parametrize("max_bytes", [5_000, 50_000, 10**7])
def test_parts_of_a_trace_are_small_enough_and_whole_together(max_bytes: int) -> None:
    trace = wide_trace(num_tokens=40, num_layers=2)
    parts = list(trace_parts(trace, "float32", max_bytes))
    assert all(trace_to_pb(part, "float32").ByteSize() <= max_bytes for part in parts)
    assert trace_to_pb(join(parts), "float32") == trace_to_pb(trace, "float32")
    assert (len(parts) == 1) == (max_bytes > 40_000)
