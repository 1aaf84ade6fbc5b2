"""Calls over gRPC as tests make them, and how they compare with the same request over HTTP."""

import json
from typing import Any

import grpc
import httpx
import pytest

from service.errors import ServiceError
from service.pb import topk_pb2 as pb
from service.pb import topk_pb2_grpc
from tests.support.running import Running
from tests.support.served import MODEL_ID
from tests.support.service.rpc_pairs import METHODS, as_json, without_names

KEY = "a-key-for-tests"
SMALL_CAP = 2**16
HTTP = httpx.Client(timeout=60)
LONG = {"model": MODEL_ID, "prompt": pb.Prompt(text="Once"), "n": 16, "max_tokens": 200, "ignore_eos": True}


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
