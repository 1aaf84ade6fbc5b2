"""Levers over gRPC: the same as over HTTP, with the search's progress."""

from typing import Any

import pytest

from service.client.client import CallError, Client
from service.pb import topk_pb2 as pb
from tests.support.running import Running
from tests.support.served import MODEL_ID
from tests.support.service.rpc import over_http

SEARCHES = (
    {"words": ["war", "soldier", "queenly"], "max_cost": 0.5, "prompt": "Once upon a time", "limit": 2, "seed": -3},
    {"words": ["qzxjkvwqqzx"], "max_cost": 0.01, "max_tokens": 0},
    {"texts": {"towards": ["the war the war", "war and war"], "away": ["Once upon a time", "the king"]}},
)
NAMES = {"held_out": pb.LEVER_TEXT_SOURCE_HELD_OUT, "written": pb.LEVER_TEXT_SOURCE_WRITTEN, "add": pb.OP_ADD}


def assert_says(message: Any, fields: dict[str, Any]) -> None:
    """The message says what the object in JSON says; null is absent."""
    for name, value in fields.items():
        if name == "object":
            continue
        if value is None:
            assert not getattr(message, name) if name == "words" else not message.HasField(name)
            continue
        assert_same(getattr(message, name), value)


def assert_same(told: Any, value: Any) -> None:
    if isinstance(value, dict):
        assert_says(told, value)
    elif isinstance(value, list):
        assert len(told) == len(value)
        for one, other in zip(told, value, strict=True):
            assert_same(one, other)
    elif value in NAMES:
        assert told == NAMES[value]
    else:
        assert (list(told) if isinstance(told, list) else told) == value


@pytest.mark.parametrize("fields", SEARCHES, ids=str)
def test_levers_are_the_same_over_http_and_grpc(running: Running, client: Client, fields: dict[str, Any]) -> None:
    reply = over_http(running, "/v1/levers", {"model": MODEL_ID, **fields})
    assert reply.status_code == 200, reply.text
    stages: list[str] = []
    levers = client.levers(
        pb.FindLeversRequest(model=MODEL_ID, **fields), on_progress=lambda progress: stages.append(progress.stage)
    )
    expected = reply.json()
    for lever in expected["levers"]:  # in a message the layers of an edit are a list
        lever["intervention"]["layer"] = [lever["intervention"]["layer"]]
    assert_says(levers, expected)
    assert stages[0] == "waiting"
    assert stages[-1] == "continuing"


def test_a_message_without_words_or_texts_is_refused(client: Client) -> None:
    with pytest.raises(CallError) as failed:
        client.levers(pb.FindLeversRequest(model=MODEL_ID))
    assert failed.value.param == "words"
    assert "is required, or texts" in failed.value.message


def test_the_intervention_of_a_lever_can_be_sent_as_it_is(client: Client) -> None:
    levers = client.levers(pb.FindLeversRequest(model=MODEL_ID, **SEARCHES[0]))
    prompt = levers.prompt
    steered = client.generate(
        pb.GenerateRequest(
            model=MODEL_ID,
            prompt=pb.Prompt(text=prompt.text),
            max_tokens=prompt.max_tokens,
            temperature=prompt.temperature,
            seed=prompt.seed,
            interventions=[levers.levers[0].intervention],
        )
    )
    assert steered.choices[0].text == levers.levers[0].continuation
