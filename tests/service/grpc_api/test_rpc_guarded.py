"""gRPC behind Serve's Python proxy, with a key and a low cap on messages."""

import time
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from service.client.client import CallError, Client
from service.pb import topk_pb2 as pb
from service.pb import topk_pb2_grpc
from tests.support.running import Running
from tests.support.served import MODEL_ID, wait_until
from tests.support.service.rpc import KEY, LONG, SMALL_CAP, over_http, refused, stub_of
from topk_model.traces import Trace


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


def test_behind_the_python_proxy_calls_can_be_dropped(guarded: Running) -> None:
    aborted = "topk_request_failure_total"

    def metric(name: str) -> float:
        page = httpx.get(f"{guarded.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
        return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name + "{"))

    channel, stub = stub_of(guarded)
    key = [("authorization", f"Bearer {KEY}")]
    with channel, guarded.slowed():
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
    with grpc.insecure_channel(guarded.target, options=list(small.items())) as channel, guarded.slowed():
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


@pytest.mark.stops
def test_behind_the_python_proxy_answers_under_way_outlive_a_stop(guarded: Running) -> None:
    create = guarded.openai.with_options(api_key=KEY).completions.create
    fields: dict[str, Any] = {"model": MODEL_ID, "prompt": "Once", "seed": 1, "extra_body": {"ignore_eos": True}}
    whole = create(**fields, max_tokens=240, n=16)
    guarded.slow_down(0.01)
    stream = create(**fields, max_tokens=240, n=16, stream=True)
    chunks = [next(stream)]
    guarded.ask_to_stop()
    time.sleep(0.2)
    chunks += stream
    for index, choice in enumerate(whole.choices):
        text = "".join(c.text for chunk in chunks for c in chunk.choices if c.index == index)
        assert text == choice.text
