"""The gRPC API as clients see it: through Ray Serve and its proxies, with a channel of gRPC's own."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from service.client.client import CallError, Client, texts, trace_from_pb
from service.errors import ServiceError
from service.grpc_api.conversion import trace_parts, trace_to_pb
from service.grpc_api.edge import is_of_this_machine
from service.pb import topk_pb2 as pb
from service.pb import topk_pb2_grpc
from service.requests.schema import ActivationsStreamRequest
from service.serving.bulk import answer_each
from tests.service.test_bad_requests import BAD_REQUESTS, COMPLETIONS, BadRequest
from tests.support.rpc_pairs import METHODS, InexpressibleError, as_json, pair, random_request, without_names
from tests.support.running import Running, topk_serve
from tests.support.served import MODEL_ID, save_tiny_model, serve_app, wait_until
from topk_model.catalogue.file import weights_digest
from topk_model.traces import Trace, TraceSpec, join, select_entries

ROOT = Path(__file__).parent.parent.parent
KEY = "a-key-for-tests"
SMALL_CAP = 2**16
HTTP = httpx.Client(timeout=60)
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
LONG = {"model": MODEL_ID, "prompt": pb.Prompt(text="Once"), "n": 16, "max_tokens": 200, "ignore_eos": True}


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[Client]:
    with Client(running.target) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Behind Serve's Python proxy, with an API key, a low cap on messages and a model that chats."""
    folder = tmp_path_factory.mktemp("guarded")
    model = save_tiny_model(folder / "model", chat_template=TEMPLATE)
    (folder / "keys").write_text(KEY)
    options = ["--proxy", "python", "--api-key-file", str(folder / "keys"), "--grpc-max-message-bytes", str(SMALL_CAP)]
    with topk_serve(model, folder, *options) as service:
        yield service


def stub_of(running: Running) -> tuple[grpc.Channel, Any]:
    channel = grpc.insecure_channel(running.target)
    return channel, topk_pb2_grpc.TopKServiceStub(channel)


def refused(call: Any, *arguments: Any, **options: Any) -> Any:
    """The error that a call ends with."""
    try:
        result = call(*arguments, **options)
        list(result if hasattr(result, "__next__") else ())
    except grpc.RpcError as error:
        return error
    pytest.fail(f"{arguments} was not refused")


def over_http(running: Running, path: str, fields: dict[str, Any], **headers: str) -> httpx.Response:
    content = json.dumps(fields).encode()
    return HTTP.post(running.url + path, content=content, headers={"Content-Type": "application/json"} | headers)


def assert_same(running: Running, stub: Any, path: str, fields: dict[str, Any], message: Any) -> int:
    """Send a request both ways and compare; the status over HTTP."""
    reply = over_http(running, path, fields)
    call = getattr(stub, METHODS[path])
    if reply.status_code == 200:
        assert as_json(path, call(message)) == without_names(reply.json()), fields
    else:
        same_error(reply, refused(call, message))
    return reply.status_code


def same_error(reply: httpx.Response, error: Any) -> None:
    expected = reply.json()["error"]
    told = dict(error.trailing_metadata())
    assert {"message": error.details()} | {n: told.get(n) for n in ("type", "param", "code")} == expected
    kinds = {kind.status: kind.grpc_code for kind in ServiceError.__subclasses__()}
    assert error.code().name == kinds[reply.status_code]
    assert told["x-request-id"]


def test_the_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "service/pb=protos/topk/v1", *outputs]
    subprocess.run([*command, "service/pb/topk.proto"], cwd=ROOT, check=True)
    for name in ("topk_pb2.py", "topk_pb2.pyi", "topk_pb2_grpc.py"):
        fresh = (tmp_path / "service" / "pb" / name).read_text()
        assert fresh == (ROOT / "service" / "pb" / name).read_text(), f"{name} is old: run make proto"


@pytest.mark.ray
def test_random_requests_get_the_same_over_http_and_grpc(running: Running) -> None:
    rng = random.Random(0)
    channel, stub = stub_of(running)
    statuses = []
    with channel:
        while len(statuses) < 220:
            path, fields = random_request(rng, MODEL_ID)
            try:
                fields, message = pair(path, fields)
            except InexpressibleError:
                continue
            statuses.append(assert_same(running, stub, path, fields, message))
    assert 60 < statuses.count(200) < 180


def expressible() -> Iterator[tuple[BadRequest, dict[str, Any], Any]]:
    for bad in BAD_REQUESTS:
        try:
            if not bad.is_http_only and isinstance(fields := json.loads(bad.body), dict):
                yield bad, *pair(bad.path, fields)
        except (ValueError, RecursionError, InexpressibleError):
            continue


@pytest.mark.ray
def test_bad_requests_are_refused_alike(running: Running) -> None:
    channel, stub = stub_of(running)
    with channel:
        table = list(expressible())
        assert len(table) > 75
        for bad, fields, message in table:
            assert assert_same(running, stub, bad.path, fields, message) == 400, bad.name
        unknown, message = pair(COMPLETIONS, {"model": "gpt-x", "prompt": "a"})
        assert assert_same(running, stub, COMPLETIONS, unknown, message) == 404
    assert wait_until(running.is_idle, 1.0)


@pytest.mark.ray
def test_what_a_message_alone_can_get_wrong_is_refused(running: Running) -> None:
    channel, stub = stub_of(running)
    edit = pb.Intervention(layer=[0], all_layers=True, neuron=1, op=pb.OP_ABLATE)
    generate = {"model": MODEL_ID, "prompt": pb.Prompt(text="a")}
    cases = {
        "interventions[0].layer": pb.GenerateRequest(**generate, interventions=[edit]),
        "interventions[0].op": pb.GenerateRequest(**generate, interventions=[pb.Intervention(layer=[0], neuron=1)]),
        "prompt": pb.GenerateRequest(model=MODEL_ID),
        "logprobs": pb.GenerateRequest(model=MODEL_ID, messages=[pb.ChatMessage(role=2, content="a")], logprobs=1),
        "top_logprobs": pb.GenerateRequest(**generate, top_logprobs=1),
        "trace.dtype": pb.GenerateRequest(**generate, trace=pb.TraceOptions(dtype=9)),
    }
    with channel:
        for param, message in cases.items():
            error = refused(stub.Generate, message)
            assert (error.code(), dict(error.trailing_metadata())["param"]) == (
                grpc.StatusCode.INVALID_ARGUMENT, param
            ), error.details()  # fmt: skip
        newer = pb.TokenizeRequest.FromString(
            pb.TokenizeRequest(model=MODEL_ID, prompt="a").SerializeToString() + b"\xf8\x7f\x01"
        )
        assert "number 2047" in refused(stub.Tokenize, newer).details()


@pytest.mark.ray
def test_a_stream_says_what_the_whole_says(running: Running, client: Client) -> None:
    request = pb.GenerateRequest(
        model=MODEL_ID,
        prompt=pb.Prompt(texts=pb.TextList(texts=["Once upon", "the war"])),
        max_tokens=12,
        n=2,
        seed=3,
        logprobs=2,
        echo=True,
        ignore_eos=True,
        compare=True,
        interventions=[pb.Intervention(all_layers=True, neuron=5, op=pb.OP_SET, value=6)],
        trace=pb.TraceOptions(),
    )
    whole = client.generate(request)
    messages = list(client.generate_stream(request))
    assert [message.HasField("usage") for message in messages] == [False] * (len(messages) - 1) + [True]
    assert messages[-1].usage == whole.usage
    assert {message.id for message in messages} == {messages[0].id}
    for expected in whole.choices:
        pieces = [c for message in messages for c in message.choices if c.index == expected.index]
        assert len(pieces) > 3
        assert "".join(piece.text for piece in pieces) == expected.text
        assert [entry for piece in pieces for entry in piece.logprobs] == list(expected.logprobs)
        assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [expected.finish_reason]
        assert list(pieces[-1].interventions) == list(expected.interventions)
        joined = join([trace_from_pb(piece.trace) for piece in pieces if piece.HasField("trace")])
        assert trace_to_pb(joined, "float32") == expected.trace
        # Each token's trace stands with the token.
        for piece in pieces:
            generated = [t for t, phase in zip(piece.trace.token_ids, piece.trace.phases, strict=True) if phase == 2]
            assert [entry.token_id for entry in piece.logprobs][-len(generated) :] == generated or not generated


@pytest.mark.ray
def test_a_deadline_drops_the_request(running: Running) -> None:
    channel, stub = stub_of(running)
    aborted = ("topk_request_failure_total", 'reason="abort"')
    num_aborted = running.metric(*aborted)
    with channel:
        stub.ListModels(pb.ListModelsRequest())  # the channel is up
        error = refused(stub.Generate, pb.GenerateRequest(**LONG), timeout=0.05)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert wait_until(running.is_idle, 1.0)
        assert running.metric(*aborted) == num_aborted + 16
        error = refused(stub.Generate, pb.GenerateRequest(**LONG, timeout_s=0.05))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "time was up" in error.details()
        assert wait_until(running.is_idle, 1.0)


@pytest.mark.ray
def test_a_cancelled_stream_leaves_nothing(running: Running) -> None:
    channel, stub = stub_of(running)
    with channel:
        request = pb.GenerateStreamRequest(request=pb.GenerateRequest(**LONG))
        calls = [stub.GenerateStream(request) for _ in range(4)]
        for call in calls:
            assert next(call).choices
            call.cancel()
        assert wait_until(running.is_idle, 1.0)
        many = pb.ActivationsStreamRequest(model=MODEL_ID, input=texts(["the king and the war " * 8] * 2000))
        call = stub.ActivationsStream(many)
        assert next(call).trace.tokens
        call.cancel()
        assert wait_until(running.is_idle, 1.0)


@pytest.mark.ray
def test_requests_over_the_cap_are_refused_in_clear_words(running: Running) -> None:
    channel, stub = stub_of(running)
    with channel:
        error = refused(stub.Tokenize, pb.TokenizeRequest(model=MODEL_ID, prompt="a" * (4 * 2**20)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in error.details()
    assert str(4 * 2**20) in error.details()


@pytest.mark.ray
def test_the_services_are_listed_and_healthy(running: Running) -> None:
    channel, stub = stub_of(running)
    with channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        expected = {"topk.v1.TopKService", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        assert set(database.get_services()) == expected
        described = database.FindFileContainingSymbol("topk.v1.TopKService")
        assert len(described.service[0].method) == 11
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", "topk.v1.TopKService"):
            request = health_pb2.HealthCheckRequest(service=name)
            assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
            watch = health.Watch(request)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
        unknown = health_pb2.HealthCheckRequest(service="nothing")
        assert refused(health.Check, unknown).code() is grpc.StatusCode.NOT_FOUND
        assert next(health.Watch(unknown)).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        _, call = stub.ListModels.with_call(pb.ListModelsRequest(), metadata=[("x-request-id", "abc")])
        assert dict(call.trailing_metadata())["x-request-id"] == "abc"


@pytest.mark.ray
def test_the_models_are_those_of_http(running: Running, client: Client, tiny_model_path: Path) -> None:
    (card,) = httpx.get(f"{running.url}/v1/models").json()["data"]
    (model,) = client.models()
    assert (model.id, model.created, model.owned_by) == (card["id"], card["created"], card["owned_by"])
    assert pb.Select.Name(model.topk.select) == f"SELECT_{card['topk'].pop('select').upper()}"
    assert card["topk"].pop("checkpoint") is None
    assert not model.topk.HasField("checkpoint")
    for name, value in card["topk"].items():
        assert getattr(model.topk, name) == value
    assert model.topk.weights_sha256 == weights_digest(tiny_model_path)


@pytest.mark.ray
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


def test_a_call_of_a_closed_client_fails_as_calls_do() -> None:
    client = Client("127.0.0.1:1")
    begun = client.generate_stream(pb.GenerateRequest(**LONG))  # not yet asked for its first message
    client.close()
    many = pb.ActivationsStreamRequest(model=MODEL_ID, input=texts(["a"]))
    for call in (
        client.models,
        lambda: client.generate(pb.GenerateRequest(**LONG)),
        lambda: next(begun),
        lambda: list(client.traces(many)),
    ):
        with pytest.raises(CallError, match="the client is closed") as caught:
            call()
        assert caught.value.code is grpc.StatusCode.CANCELLED


@pytest.mark.ray
def test_a_text_that_the_request_does_not_fit_ends_no_other(client: Client) -> None:
    prompts = ["the king and the war"] * 5 + ["a"] + ["the queen and the sea"] * 5
    options = pb.TraceOptions(positions=pb.Positions(range=pb.PositionRange(start=3)))
    results = dict(client.traces(pb.ActivationsStreamRequest(model=MODEL_ID, input=texts(prompts), trace=options)))
    error = results.pop(5)
    assert (error.param, error.code) == ("trace.positions.start", "invalid_value")
    assert len(results) == 10
    assert all(isinstance(trace, Trace) for trace in results.values())


@pytest.mark.ray
def test_behind_the_python_proxy_a_key_is_needed(guarded: Running) -> None:
    channel, stub = stub_of(guarded)
    with channel:
        for metadata in ([], [("authorization", "Bearer wrong-key")]):
            error = refused(stub.ListModels, pb.ListModelsRequest(), metadata=metadata)
            reply = httpx.get(f"{guarded.url}/v1/models", headers=dict(metadata))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            assert dict(error.trailing_metadata())["code"] == reply.json()["error"]["code"]
        error = refused(stub.GenerateStream, pb.GenerateStreamRequest(request=pb.GenerateRequest(**LONG)))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        assert "topk.v1.TopKService" in ProtoReflectionDescriptorDatabase(channel).get_services()


@pytest.mark.ray
def test_behind_the_python_proxy_answers_and_errors_are_the_same(guarded: Running) -> None:
    with Client(guarded.target, api_key=KEY) as client:
        turns = [pb.ChatMessage(role=pb.ROLE_SYSTEM, content="Be short."), pb.ChatMessage(role=2, content="Hello")]
        request = pb.GenerateRequest(model=MODEL_ID, messages=turns, max_tokens=6, seed=1, top_logprobs=2)
        answer = client.generate(request)
        words = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}]
        fields = {"model": MODEL_ID, "messages": words, "max_tokens": 6, "seed": 1, "logprobs": True, "top_logprobs": 2}
        reply = over_http(guarded, "/v1/chat/completions", fields, Authorization=f"Bearer {KEY}").json()
        expected = reply["choices"][0]
        assert answer.choices[0].text == expected["message"]["content"]
        assert [t.logprob for t in answer.choices[0].logprobs] == [
            t["logprob"] for t in expected["logprobs"]["content"]
        ]
        assert answer.usage.total_tokens == reply["usage"]["total_tokens"]
        streamed = client.generate_stream(request)
        assert "".join(c.text for message in streamed for c in message.choices) == answer.choices[0].text
        request.n = 99
        for call in (lambda: client.generate(request), lambda: list(client.generate_stream(request))):
            with pytest.raises(CallError, match="at most 16") as caught:
                call()
            assert (caught.value.code, caught.value.param) == (grpc.StatusCode.INVALID_ARGUMENT, "n")
            assert caught.value.request_id


@pytest.mark.ray
def test_behind_the_python_proxy_calls_can_be_dropped(guarded: Running) -> None:
    aborted = "topk_request_failure_total"

    def metric(name: str) -> float:
        page = httpx.get(f"{guarded.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
        return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name + "{"))

    channel, stub = stub_of(guarded)
    key = [("authorization", f"Bearer {KEY}")]
    with channel:
        stub.ListModels(pb.ListModelsRequest(), metadata=key)
        error = refused(stub.Generate, pb.GenerateRequest(**LONG), timeout=0.3, metadata=key)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert wait_until(lambda: metric("topk_kv_cache_usage_ratio") == 0, 1.0)
        assert metric(aborted) == 16
        call = stub.GenerateStream(pb.GenerateStreamRequest(request=pb.GenerateRequest(**LONG)), metadata=key)
        assert next(call).choices
        call.cancel()
        assert wait_until(lambda: metric("topk_kv_cache_usage_ratio") == 0, 1.0)
        assert metric(aborted) == 32

    # A client that does not read: it leaves while the proxy is writing to it, where Serve by itself does not notice.
    small = {"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 1024}
    with grpc.insecure_channel(guarded.target, options=list(small.items())) as channel:
        request = pb.GenerateRequest(**LONG, trace=pb.TraceOptions())
        call = topk_pb2_grpc.TopKServiceStub(channel).GenerateStream(
            pb.GenerateStreamRequest(request=request), metadata=key
        )
        assert next(call).choices
        time.sleep(1.0)
        assert metric("topk_kv_cache_usage_ratio") > 0
        call.cancel()
        assert wait_until(lambda: metric("topk_kv_cache_usage_ratio") == 0, 1.0)
        assert metric(aborted) == 48


def test_a_stream_of_texts_waits_where_another_has_taken_the_room(tiny_model_path: Path) -> None:
    names = [f"the king {i}" for i in range(30)]
    body = ActivationsStreamRequest(model=MODEL_ID, input=names)
    with serve_app(tiny_model_path, max_num_seqs=4, max_backlog=1) as small:

        async def indices() -> list[int]:
            return sorted([index async for index, _ in answer_each(small.model, body, "a")])

        async def two_at_once() -> None:
            assert await asyncio.gather(indices(), indices()) == [list(range(30))] * 2

        small.run(two_at_once())


@pytest.mark.ray
def test_no_message_is_over_the_cap(guarded: Running) -> None:
    channel, stub = stub_of(guarded)
    key = [("authorization", f"Bearer {KEY}")]
    with channel, Client(guarded.target, api_key=KEY, max_message_bytes=SMALL_CAP) as client:
        error = refused(stub.Tokenize, pb.TokenizeRequest(model=MODEL_ID, prompt="a" * SMALL_CAP), metadata=key)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        long = [[5 + i % 200 for i in range(250)]] * 8
        lists = pb.Prompt(token_ids_list=pb.TokenIdsList(lists=[pb.TokenIds(ids=ids) for ids in long]))
        error = refused(stub.Activations, pb.ActivationsRequest(model=MODEL_ID, input=lists), metadata=key)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(SMALL_CAP) in error.details()
        assert "stream" in error.details()
        assert dict(error.trailing_metadata())["code"] == "reply_too_large"
        traces = dict(client.traces(pb.ActivationsStreamRequest(model=MODEL_ID, input=lists)))
        assert all(isinstance(t, Trace) and len(t.token_ids) == 250 for t in traces.values())
        # One text with its log-probabilities goes over the cap with its trace: the trace follows in parts.
        request = pb.GenerateRequest(
            model=MODEL_ID, prompt=pb.Prompt(token_ids=pb.TokenIds(ids=long[0])), max_tokens=2, seed=1, ignore_eos=True,
            logprobs=6, echo=True, trace=pb.TraceOptions(),
        )  # fmt: skip
        messages = list(client.generate_stream(request))
        sizes = [message.ByteSize() for message in messages]
        assert max(sizes) <= SMALL_CAP < sum(sizes)
        pieces = [choice for message in messages for choice in message.choices]
        assert sum(len(piece.trace.token_ids) for piece in pieces) == 252
        assert [piece.finish_reason for piece in pieces].count(pb.FINISH_REASON_LENGTH) == 1


@pytest.mark.ray
def test_behind_the_python_proxy_answers_under_way_outlive_a_stop(guarded: Running) -> None:
    """The last test of this service."""
    create = guarded.openai.with_options(api_key=KEY).completions.create
    fields: dict[str, Any] = {"model": MODEL_ID, "prompt": "Once", "seed": 1, "extra_body": {"ignore_eos": True}}
    whole = create(**fields, max_tokens=240, n=16)
    stream = create(**fields, max_tokens=240, n=16, stream=True)
    chunks = [next(stream)]
    guarded.ask_to_stop()
    time.sleep(0.2)
    chunks += stream
    for index, choice in enumerate(whole.choices):
        text = "".join(c.text for chunk in chunks for c in chunk.choices if c.index == index)
        assert text == choice.text


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


@pytest.mark.parametrize(
    ("peer", "is_local"),
    [
        ("ipv4:127.0.0.1:4711", True),
        ("ipv6:%5B::1%5D:4711", True),
        ("ipv6:[::ffff:127.0.0.1]:4711", True),
        ("unix:/tmp/socket", True),
        ("ipv4:203.0.113.7:4711", False),
        ("ipv6:%5B2001:db8::1%5D:4711", False),
        ("", False),
    ],
)
def test_a_caller_from_elsewhere_is_told_from_one_of_this_machine(peer: str, is_local: bool) -> None:
    assert is_of_this_machine(peer) is is_local
