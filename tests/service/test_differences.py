"""Where two variants of an answer first differ, and by which neurons, held against their full traces."""

import json
from typing import Any

import numpy as np
import pytest

from tests.support.served import MODEL_ID, Served

EDIT = {"layer": 0, "neuron": 5, "op": "add", "value": 2.0, "positions": {"start": 2}}
BODY: dict[str, Any] = {
    "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "compare": True, "interventions": [EDIT],
    "ignore_eos": True,
}  # fmt: skip


def dense(trace: dict[str, Any]) -> np.ndarray:
    """`[positions, layers, hidden_size]`"""
    out = np.zeros((len(trace["offsets"]) - 1, trace["hidden_size"]))
    for row, (start, end) in enumerate(zip(trace["offsets"], trace["offsets"][1:], strict=False)):
        out[row, trace["indices"][start:end]] = trace["values"][start:end]
    return out.reshape(-1, len(trace["layers"]), trace["hidden_size"])


def test_differences_are_those_of_the_traces(served: Served) -> None:
    reply = served.complete(**BODY, trace={}, differences=5)
    traces = [choice["trace"] for choice in reply["choices"]]
    [found] = reply["differences"]
    assert (found["default_choice"], found["steered_choice"]) == (0, 1)
    ids = [trace["token_ids"] for trace in traces]
    shared = next(i for i in range(99) if ids[0][i] != ids[1][i])
    assert found["num_shared_tokens"] == found["token"]["position"] == shared
    assert (found["token"]["default_token_id"], found["token"]["steered_token_id"]) == (ids[0][shared], ids[1][shared])
    assert found["token"]["steered_token"] == traces[1]["tokens"][shared]
    default, steered = map(dense, traces)
    places = np.argwhere((default != steered).any(-1))
    assert (found["state"]["position"], found["state"]["layer"]) == tuple(places[0]) == (2, 0)
    [first] = found["state"]["neurons"]
    assert first["neuron"] == 5
    assert first["difference"] == pytest.approx(2.0)
    change = steered[:shared].mean(0) - default[:shared].mean(0)
    assert len(found["neurons"]) == 5
    for neuron in found["neurons"]:
        assert neuron["difference"] == pytest.approx(change[neuron["layer"], neuron["neuron"]], abs=1e-6)
        assert neuron["default"] == pytest.approx(default[:shared, neuron["layer"], neuron["neuron"]].mean(), abs=1e-6)
    sizes = [abs(neuron["difference"]) for neuron in found["neurons"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == pytest.approx(np.sort(np.abs(change), axis=None)[-5], abs=1e-6)


def test_they_need_no_trace_in_the_reply_and_are_the_same_without(served: Served) -> None:
    traced, plain = served.complete(**BODY, trace={}, differences=5), served.complete(**BODY, differences=5)
    assert plain["differences"] == traced["differences"]
    assert all("trace" not in choice for choice in plain["choices"])
    assert "differences" not in served.complete(**BODY)


def test_a_stream_ends_with_them(served: Served) -> None:
    body = {"model": MODEL_ID, **BODY, "differences": 5, "stream": True, "n": 2, "temperature": 1, "seed": 1}
    lines = served.client.post("/v1/completions", json=body).text.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert chunks[-1]["choices"] == []
    whole = served.complete(**{k: v for k, v in body.items() if k not in ("stream", "model")})
    assert chunks[-1]["differences"] == whole["differences"]
    assert [(one["default_choice"], one["steered_choice"]) for one in whole["differences"]] == [(0, 2), (1, 3)]
    assert all("differences" not in chunk for chunk in chunks[:-1])


def test_variants_that_do_not_differ_say_so(served: Served) -> None:
    nothing = {**EDIT, "op": "scale", "value": 1.0}
    del nothing["positions"]
    [found] = served.complete(**{**BODY, "interventions": [nothing]}, differences=5)["differences"]
    assert found["token"] is None is found["state"]
    assert found["neurons"] == []


def test_only_what_a_trace_covers_is_compared(served: Served) -> None:
    [found] = served.complete(**BODY, trace={"layers": [1], "positions": {"start": 0, "end": 2}}, differences=5)[
        "differences"
    ]
    assert (found["state"], found["neurons"]) == (None, [])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"differences": 101}, "must be at most 100"),
        ({"differences": 0}, "must be at least 1"),
        ({"differences": 3, "compare": False}, "only if compare is true"),
    ],
)
def test_bad_requests_are_refused(served: Served, fields: dict[str, Any], says: str) -> None:
    reply = served.post("/v1/completions", **(BODY | fields))
    assert reply.status_code == 400
    assert (reply.json()["error"]["param"], says in reply.json()["error"]["message"]) == ("differences", True)
