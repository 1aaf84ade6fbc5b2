"""What tests of HTTP send again and again, and how they read what comes back."""

import json
from typing import Any

import httpx

from service.http_api import shapes
from tests.support.served import MODEL_ID, Served

GREEDY = {"temperature": 0.0, "ignore_eos": True}
EDIT = {"layer": [0, 1], "neuron": 3, "op": "set", "value": 9.0}
LONG = GREEDY | {"prompt": "Once upon a time", "max_tokens": 200}
BODY = {"model": MODEL_ID} | LONG


def assert_error(reply: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The reply is the one error body."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    shapes.ErrorResponse.model_validate_json(reply.content)
    error: dict[str, Any] = reply.json()["error"]
    assert code is None or error["code"] == code
    assert "Traceback" not in reply.text
    return error


def events(served: Served, path: str = "/v1/completions", **body: Any) -> list[dict[str, Any]]:
    """The chunks of a stream that ends as it should."""
    reply = served.post(path, **({"stream": True} | body))
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    return parse_events(reply.text)


def parse_events(text: str) -> list[dict[str, Any]]:
    lines = text.split("\n\n")
    assert lines[-1] == ""
    assert lines[-2] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines[:-1])
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def metric(served: Served, name: str, labels: str = "") -> float:
    """A metric's value, 0 if it has not been counted yet."""
    for line in served.client.get("/metrics").text.splitlines():
        series, _, value = line.rpartition(" ")
        if series.startswith(name + "{") and labels in series:
            return float(value)
    return 0.0
