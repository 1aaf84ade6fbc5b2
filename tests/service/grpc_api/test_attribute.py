"""Attributions and differences over gRPC, as over HTTP: through Ray Serve and its proxies."""

import json
from typing import Any

import httpx
import pytest
from google.protobuf.json_format import MessageToDict

from service.cli import main
from service.client.client import CallError, Client
from service.pb import topk_pb2 as pb
from tests.support.running import Running
from tests.support.served import MODEL_ID, wait_until
from tests.support.service.rpc import over_http, refused, same_error, stub_of

PATH = "/v1/attributions"
PROMPT = "Once upon a time there was a dog"
Fields = dict[str, Any]


def as_fields(message: Any) -> Fields:
    fields: Fields = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return fields


def without_nulls(value: Any) -> Any:
    """Absent and null are one in messages."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None and name != "object"}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


EDIT = {"layer": [0], "neuron": 5, "op": pb.OP_SET, "value": 1.0}
REQUESTS: list[tuple[Fields, Fields]] = [
    ({"prompt": PROMPT}, {"prompt": pb.Prompt(text=PROMPT)}),
    (
        {"prompt": [0, 5, 6, 7, 8], "target": {"position": 3}, "graph": True, "max_nodes": 5, "layers": [1]},
        {
            "prompt": pb.Prompt(token_ids=pb.TokenIds(ids=[0, 5, 6, 7, 8])),
            "target": pb.AttributionTargetSpec(position=3),
            "graph": True,
            "max_nodes": 5,
            "layers": [1],
        },
    ),
    (
        {
            "prompt": PROMPT,
            "target": {"token": 17},
            "against": 9,
            "positions": {"start": -3},
            "min_effect": 0.01,
            "interventions": [{"layer": 0, "neuron": 5, "op": "set", "value": 1.0}],
        },
        {
            "prompt": pb.Prompt(text=PROMPT),
            "target": pb.AttributionTargetSpec(token=pb.Token(id=17)),
            "against": pb.Token(id=9),
            "positions": pb.Positions(range=pb.PositionRange(start=-3)),
            "min_effect": 0.01,
            "interventions": [pb.Intervention(**EDIT)],
        },
    ),
    (
        {"prompt": PROMPT, "target": {"layer": 1, "neuron": 3}},
        {"prompt": pb.Prompt(text=PROMPT), "target": pb.AttributionTargetSpec(layer=1, neuron=3)},
    ),
]


@pytest.mark.parametrize(("fields", "message"), REQUESTS, ids=["text", "graph", "edited", "neuron"])
def test_an_attribution_is_the_same_over_http_and_grpc(running: Running, fields: Fields, message: Fields) -> None:
    expected = over_http(running, PATH, {"model": MODEL_ID} | fields).json()
    told: list[pb.Progress] = []
    with Client(running.target) as client:
        found = as_fields(client.attribute(pb.AttributeRequest(model=MODEL_ID, **message), told.append))
    found["target"]["unit"] = found["target"]["unit"].removeprefix("EFFECT_UNIT_").lower()
    found["usage"] = {name: int(count) for name, count in found["usage"].items()}  # 64 bits are text in JSON
    assert found == without_nulls(expected)
    assert told[0].stage == "waiting"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": {"position": 99}}, {"target": pb.AttributionTargetSpec(position=99)}),
        ({"target": {"token": "two words"}}, {"target": pb.AttributionTargetSpec(token=pb.Token(text="two words"))}),
        ({"against": -1}, {"against": pb.Token(id=-1)}),
        ({"layers": [3]}, {"layers": [3]}),
        ({"top_n": 501}, {"top_n": 501}),
        ({"model": "other"}, {"model": "other"}),
    ],
)
def test_an_error_is_the_same_over_http_and_grpc(running: Running, fields: Fields, message: Fields) -> None:
    channel, stub = stub_of(running)
    with channel:
        reply = over_http(running, PATH, {"model": MODEL_ID, "prompt": PROMPT} | fields)
        asked = {"model": MODEL_ID, "prompt": pb.Prompt(text=PROMPT)} | message
        same_error(reply, refused(stub.Attribute, pb.AttributeRequest(**asked)))


def test_a_call_that_is_cancelled_ends_its_job(running: Running) -> None:
    name, ended = "topk_side_jobs_total", 'kind="attribution",outcome="cancelled"'
    before = running.metric(name, ended)
    ids = [0, *(3 + i % 90 for i in range(250))]
    channel, stub = stub_of(running)
    with channel:
        call = stub.Attribute(pb.AttributeRequest(model=MODEL_ID, prompt=pb.Prompt(token_ids=pb.TokenIds(ids=ids))))
        next(message for message in call if message.progress.stage == "neurons")
        call.cancel()
        assert wait_until(lambda: running.metric(name, ended) == before + 1, 5)
    assert running.metric("topk_side_jobs_running") == 0


def test_a_client_with_a_wrong_model_is_told(running: Running) -> None:
    with Client(running.target) as client, pytest.raises(CallError, match="not served here"):
        client.attribute(pb.AttributeRequest(model="other", prompt=pb.Prompt(text=PROMPT)))


def test_differences_are_the_same_over_http_and_grpc(running: Running) -> None:
    body: Fields = {
        "model": MODEL_ID, "prompt": PROMPT, "max_tokens": 8, "temperature": 0.0, "compare": True, "differences": 4,
    }  # fmt: skip
    edits = [{"layer": 0, "neuron": 5, "op": "set", "value": 3.0}]
    expected = httpx.post(running.url + "/v1/completions", json=body | {"interventions": edits}).json()["differences"]
    intervention = pb.Intervention(layer=[0], neuron=5, op=pb.OP_SET, value=3.0)
    request = pb.GenerateRequest(**body | {"prompt": pb.Prompt(text=PROMPT)}, interventions=[intervention])
    with Client(running.target) as client:
        found = [as_fields(one) for one in client.generate(request).differences]
        streamed = [as_fields(one) for message in client.generate_stream(request) for one in message.differences]
    assert found == streamed == without_nulls(expected)


def test_the_command_prints_a_table_and_draws_a_picture(
    running: Running, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    picture = tmp_path / "why.png"
    arguments = ["why", "--text", PROMPT, "--target", running.target, "--top-n", "4"]
    assert main([*arguments, "--plot", str(picture), "--graph"]) == 0
    shown = capsys.readouterr().out
    reply = over_http(running, PATH, {"model": MODEL_ID, "prompt": PROMPT, "top_n": 4, "graph": True}).json()
    for neuron in reply["neurons"]:
        assert f"{neuron['effect']:+.3f}" in shown
    assert f"{reply['sums']['everything']:+.2f}" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--json-output"]) == 0
    assert '"attribution_version": 1' in capsys.readouterr().out
    edits: list[Fields] = [
        {"layer": 0, "neuron": 5, "op": "set", "value": 2.0, "unit": "kth", "positions": {"start": 1, "end": -2}},
        {"layer": "all", "neuron": 7, "op": "ablate", "positions": "prompt", "site": "post_topk"},
        {"layer": [1], "neuron": 3, "op": "clamp", "min": 0.5, "when": [{"layer": 0, "neuron": 5, "is": "active"}]},
    ]
    assert main([*arguments, "--interventions", json.dumps(edits), "--layers", "1", "--min-effect", "0.01"]) == 0
    shown = capsys.readouterr().out
    body = {"model": MODEL_ID, "prompt": PROMPT, "interventions": edits, "layers": [1], "min_effect": 0.01, "top_n": 4}
    for neuron in over_http(running, PATH, body).json()["neurons"]:
        assert f"{neuron['effect']:+.3f}" in shown
    for text, says in (
        ("5", "must be a list of objects"),
        ("[{", "Expecting"),
        ('[{"op": "fly"}]', "OP_FLY"),
        ('[{"layer": 0, "neuron": 1, "op": "set"}]', "interventions[0].value is required"),
        ('[{"layer": "some"}]', "--interventions"),
        ('[{"when": [5]}]', "--interventions"),
    ):
        assert main([*arguments, "--interventions", text]) == 2, text
        assert says in capsys.readouterr().err
    assert main([*arguments, "--token", "two words"]) == 2
    assert "target.token must be one token" in capsys.readouterr().err
    assert main([*arguments, "--layer", "1"]) == 2
    assert "--layer and --neuron are given together" in capsys.readouterr().err
