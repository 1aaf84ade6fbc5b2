"""The service as it is run: `topk serve` in a process of its own, Ray Serve and a proxy in front, unchanged clients."""

import json
import re
import select
import socket
import subprocess
from typing import Any

import httpx
import openai
import pytest

from service.http_api import shapes
from tests.support.running import Running
from tests.support.served import MODEL_ID, wait_until

pytestmark = pytest.mark.ray

EDIT = {"layer": 0, "neuron": 3, "op": "set", "value": 9.0}


def test_the_printed_command_works_as_it_stands(running: Running) -> None:
    found = re.search(r"^  (curl .*)$", running.text, re.MULTILINE)
    assert found is not None, running.text
    reply = subprocess.run(["bash", "-c", found[1]], capture_output=True, timeout=60, check=True)
    completion = shapes.Completion.model_validate_json(reply.stdout)
    assert completion.usage is not None
    assert completion.usage.completion_tokens > 0


def test_openai_completes(running: Running) -> None:
    create = running.openai.completions.create
    reply = create(model=MODEL_ID, prompt="Once upon a time", max_tokens=8, logprobs=2, echo=True, temperature=0)
    choice = reply.choices[0]
    assert choice.text.startswith("Once upon a time")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert len(choice.logprobs.tokens) == len(choice.logprobs.top_logprobs or []) >= 7
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_openai_repeats_a_seed_for_each_of_n(running: Running) -> None:
    create = running.openai.completions.create
    first, second = (create(model=MODEL_ID, prompt="Once", max_tokens=12, n=3, seed=11) for _ in range(2))
    assert [choice.text for choice in first.choices] == [choice.text for choice in second.choices]
    assert len({choice.text for choice in first.choices}) > 1


def test_openai_streams_with_usage(running: Running) -> None:
    create = running.openai.completions.create
    fields: dict[str, Any] = {"model": MODEL_ID, "prompt": "Once", "max_tokens": 20, "seed": 1}
    whole = create(**fields)
    chunks = list(create(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_openai_stops(running: Running) -> None:
    create = running.openai.completions.create
    text = create(model=MODEL_ID, prompt="Once", max_tokens=24, temperature=0).choices[0].text
    reply = create(model=MODEL_ID, prompt="Once", max_tokens=24, temperature=0, stop=[text[5:8]])
    assert reply.choices[0].text == text[: text.index(text[5:8])]
    assert reply.choices[0].finish_reason == "stop"


def test_openai_steers_and_traces_by_extra_body(running: Running) -> None:
    extra = {"interventions": [EDIT], "compare": True, "trace": {"layers": [0], "positions": "generated"}}
    reply = running.openai.completions.create(
        model=MODEL_ID, prompt="Once upon a time", max_tokens=6, temperature=0, extra_body=extra | {"ignore_eos": True}
    )
    default, steered = (choice.model_dump() for choice in reply.choices)
    assert (default["variant"], steered["variant"]) == ("default", "steered")
    assert steered["interventions"][0]["mean_after"] == 9.0
    assert steered["trace"]["offsets"][-1] >= 8 * 6
    assert reply.model_dump()["warnings"] == []


def test_openai_raises_its_own_errors(running: Running) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        running.openai.completions.create(
            model=MODEL_ID, prompt="a", extra_body={"interventions": [EDIT | {"layer": 3}]}
        )
    assert bad.value.param == "interventions[0].layer"
    with pytest.raises(openai.NotFoundError) as unknown:
        running.openai.completions.create(model="gpt-x", prompt="a")
    assert unknown.value.code == "model_not_found"
    long: dict[str, Any] = {"max_tokens": 200, "extra_body": {"timeout_s": 0.05, "ignore_eos": True}}
    with running.slowed(), pytest.raises(openai.APIError, match="time"):
        list(running.openai.completions.create(model=MODEL_ID, prompt="a", n=16, stream=True, **long))


def test_openai_lists_models(running: Running) -> None:
    (model,) = running.openai.models.list().data
    assert model.id == running.openai.models.retrieve(MODEL_ID).id == MODEL_ID


def test_a_request_id_comes_back_once(running: Running) -> None:
    reply = httpx.get(f"{running.url}/version", headers={"X-Request-Id": "abc"})
    assert reply.headers.get_list("x-request-id") == ["abc"]


def test_errors_keep_their_one_body_behind_the_proxy(running: Running) -> None:
    json_type = {"Content-Type": "application/json"}
    cases = {
        404: httpx.get(f"{running.url}/nowhere"),
        405: httpx.delete(f"{running.url}/v1/completions"),
        400: httpx.post(f"{running.url}/v1/completions", content=b"{", headers=json_type),
        413: httpx.post(f"{running.url}/v1/completions", content=b" " * 2**23, headers=json_type),
        415: httpx.post(f"{running.url}/v1/completions", content=b"{}"),
    }
    for status, reply in cases.items():
        assert reply.status_code == status, reply.text
        shapes.ErrorResponse.model_validate_json(reply.content)


def test_200_clients_that_vanish_leave_nothing(running: Running) -> None:
    aborted = ("topk_request_failure_total", 'reason="abort"')
    num_aborted = running.metric(*aborted)
    body = {"model": MODEL_ID, "prompt": "Once upon", "max_tokens": 240, "stream": True, "ignore_eos": True}
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
    clients = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(200)]
    with running.slowed():
        for client in clients:
            client.sendall(request)
        answered, _, _ = select.select(clients, [], [], 10)  # whichever comes in first
        assert b"200 OK" in answered[0].recv(4096)
        for client in clients:
            client.close()
        assert wait_until(running.is_idle, 2.0)
    assert running.metric(*aborted) - num_aborted > 100  # the others had not come in
    completion = running.openai.completions.create(model=MODEL_ID, prompt="Once", max_tokens=2)
    assert completion.choices[0].finish_reason == "length"
