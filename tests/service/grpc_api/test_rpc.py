"""The gRPC API as clients see it: through Ray Serve and its proxies, with a channel of gRPC's own."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from service.client.client import CallError, Client, texts, trace_from_pb
from service.grpc_api.conversion import trace_to_pb
from service.grpc_api.edge import is_of_this_machine
from service.pb import topk_pb2 as pb
from tests.support.running import Running
from tests.support.served import MODEL_ID, wait_until
from tests.support.service.bad_requests import BAD_REQUESTS, COMPLETIONS, BadRequest
from tests.support.service.rpc import LONG, assert_same, refused, stub_of
from tests.support.service.rpc_pairs import InexpressibleError, pair, random_request
from tests.support.tools import ROOT
from topk_model.model_folder import weights_digest
from topk_model.traces import join


def test_the_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "service/pb=protos/topk/v1", *outputs]
    subprocess.run([*command, "service/pb/topk.proto"], cwd=ROOT, check=True)
    for name in ("topk_pb2.py", "topk_pb2.pyi", "topk_pb2_grpc.py"):
        fresh = (tmp_path / "service" / "pb" / name).read_text()
        assert fresh == (ROOT / "service" / "pb" / name).read_text(), f"{name} is old: run make proto"


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
    with running.slowed():
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


def test_a_deadline_drops_the_request(running: Running) -> None:
    channel, stub = stub_of(running)
    aborted = ("topk_request_failure_total", 'reason="abort"')
    num_aborted = running.metric(*aborted)
    with channel, running.slowed():
        stub.ListModels(pb.ListModelsRequest())  # the channel is up
        error = refused(stub.Generate, pb.GenerateRequest(**LONG), timeout=0.5)  # time for all to be admitted
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert wait_until(running.is_idle, 1.0)
        assert running.metric(*aborted) == num_aborted + 16
        error = refused(stub.Generate, pb.GenerateRequest(**LONG, timeout_s=0.05))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "time ran out" in error.details()
        assert wait_until(running.is_idle, 1.0)


def test_a_cancelled_stream_leaves_nothing(running: Running) -> None:
    channel, stub = stub_of(running)
    with channel, running.slowed():
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


def test_requests_over_the_cap_are_refused_in_clear_words(running: Running) -> None:
    channel, stub = stub_of(running)
    with channel:
        error = refused(stub.Tokenize, pb.TokenizeRequest(model=MODEL_ID, prompt="a" * (4 * 2**20)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in error.details()
    assert str(4 * 2**20) in error.details()


def test_the_services_are_listed_and_healthy(running: Running) -> None:
    channel, stub = stub_of(running)
    with channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        expected = {"topk.v1.TopKService", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        assert set(database.get_services()) == expected
        described = database.FindFileContainingSymbol("topk.v1.TopKService")
        assert len(described.service[0].method) == 13
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
