"""Completions, chats and activations over a real socket: whole, streamed, steered and traced."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.http_api import shapes
from tests.support.served import MODEL_ID, Served, save_tiny_model, serve_app
from tests.support.service.http_replies import EDIT, GREEDY, LONG, assert_error, events
from topk_model.traces import Trace


def joined(chunks: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index)


def test_a_completion_has_openai_s_shape(served: Served) -> None:
    reply = served.complete(max_tokens=5, **GREEDY)
    shapes.Completion.model_validate_json(json.dumps(reply))
    assert reply["id"].startswith("cmpl-")
    assert reply["object"] == "text_completion"
    assert reply["model"] == MODEL_ID
    assert [choice["finish_reason"] for choice in reply["choices"]] == ["length"]
    assert reply["usage"] == {"prompt_tokens": 6, "completion_tokens": 5, "total_tokens": 11}
    assert abs(reply["created"] - time.time()) < 60


def test_usage_counts_each_prompt_once(served: Served) -> None:
    reply = served.complete(prompt=[[0, 5, 6], [0, 7]], n=2, max_tokens=4, **GREEDY)
    assert reply["usage"] == {"prompt_tokens": 5, "completion_tokens": 16, "total_tokens": 21}
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in reply["choices"]]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]


def test_a_text_and_its_tokens_give_the_same_completion(served: Served) -> None:
    ids = served.post("/v1/tokenize", prompt="Once upon a time").json()["tokens"]
    text, tokens = (served.complete(prompt=p, max_tokens=6, **GREEDY) for p in ("Once upon a time", ids))
    assert text["choices"] == tokens["choices"]


def test_a_seed_repeats_and_its_choices_differ(served: Served) -> None:
    first, second = (served.complete(n=3, seed=7, max_tokens=12) for _ in range(2))
    assert first["choices"] == second["choices"]
    assert len({choice["text"] for choice in first["choices"]}) > 1
    assert served.complete(n=3, seed=8, max_tokens=12)["choices"] != first["choices"]


def test_echo_begins_with_the_prompt_and_logprobs_cover_both(served: Served) -> None:
    plain = served.complete(max_tokens=4, **GREEDY)["choices"][0]
    choice = served.complete(max_tokens=4, echo=True, logprobs=3, **GREEDY)["choices"][0]
    assert choice["text"] == "Once upon a time" + plain["text"]
    logprobs = choice["logprobs"]
    assert {len(column) for column in logprobs.values()} == {10}
    assert logprobs["token_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    assert all(len(top) in (3, 4) for top in logprobs["top_logprobs"][1:])
    for name, value, top in list(zip(*list(logprobs.values())[:3], strict=True))[6:]:
        assert top[name] == value == max(top.values())  # greedy
    assert served.complete(max_tokens=0, echo=True)["choices"][0]["text"] == "Once upon a time"


def test_text_ends_before_a_stop_string(served: Served) -> None:
    text = served.complete(max_tokens=20, **GREEDY)["choices"][0]["text"]
    stop = text[8:11]
    choice = served.complete(max_tokens=20, stop=["never this", stop], **GREEDY)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == text[: text.index(stop)]
    assert joined(events(served, prompt="Once upon a time", max_tokens=20, stop=stop, **GREEDY)) == choice["text"]


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": 0.5, "seed": 1},
        {"top_p": 0.3, "seed": 1},
        {"top_k": 1},
        {"min_p": 0.9, "seed": 1},
        {"presence_penalty": 2.0, "temperature": 0.0},
        {"frequency_penalty": 2.0, "temperature": 0.0},
        {"logit_bias": {"20": 100}},
    ],
    ids=lambda field: next(iter(field)),
)
def test_each_sampling_field_is_heard(served: Served, field: dict[str, Any]) -> None:
    base = {"max_tokens": 24, "ignore_eos": True, "seed": 1, "prompt": "a a a a"}
    neutral = {name: value for name, value in field.items() if name in ("temperature", "seed")}
    changed = served.complete(**(base | field))["choices"][0]["text"]
    if "top_k" in field:
        assert changed == served.complete(**(base | {"temperature": 0.0}))["choices"][0]["text"]
    elif "logit_bias" in field:
        assert changed == served.post("/v1/detokenize", tokens=[20] * 24).json()["prompt"]
    else:
        rest = {} if "temperature" in list(field)[:1] else neutral
        assert changed != served.complete(**(base | rest))["choices"][0]["text"]


def test_a_stream_says_what_the_whole_reply_says(served: Served) -> None:
    body = {"prompt": ["Once upon", "The soldier"], "n": 2, "seed": 5, "max_tokens": 20, "logprobs": 2, "echo": True}
    whole = served.complete(**body)
    chunks = events(served, **body)
    for choice in whole["choices"]:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        for name, column in choice["logprobs"].items():
            assert [entry for part in parts for entry in part["logprobs"][name]] == column
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    for chunk in chunks:
        shapes.Completion.model_validate_json(json.dumps(chunk))


def test_a_stream_ends_with_its_usage_where_asked(served: Served) -> None:
    chunks = events(served, prompt="Once", max_tokens=5, stream_options={"include_usage": True}, **GREEDY)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}


@pytest.mark.usefixtures("slow_engine")
def test_a_stream_starts_before_it_ends(served: Served) -> None:
    body = {"model": MODEL_ID, "stream": True} | LONG
    arrivals = []
    with served.client.stream("POST", "/v1/completions", json=body) as reply:
        for line in reply.iter_lines():
            if line:
                arrivals.append(time.monotonic())
    assert arrivals[-1] - arrivals[0] > 1.0
    assert len(arrivals) > 20


def test_compare_gives_defaults_first_and_receipts(served: Served) -> None:
    reply = served.complete(interventions=[EDIT], compare=True, max_tokens=12, n=2, seed=3)
    assert [choice["variant"] for choice in reply["choices"]] == ["default", "default", "steered", "steered"]
    plain = served.complete(max_tokens=12, n=2, seed=3)
    assert [c["text"] for c in reply["choices"][:2]] == [c["text"] for c in plain["choices"]]
    assert [c["text"] for c in reply["choices"][2:]] != [c["text"] for c in plain["choices"]]
    assert all("interventions" not in choice for choice in reply["choices"][:2])
    for choice in reply["choices"][2:]:
        (receipt,) = choice["interventions"]
        assert receipt["positions_applied"] > 0
        assert receipt["mean_after"] == 9.0


def test_an_edit_that_does_nothing_is_warned_of(served: Served) -> None:
    never = EDIT | {"when": [{"layer": 0, "neuron": 5, "is": "above", "value": 9999.0}]}
    reply = served.complete(interventions=[EDIT, never], max_tokens=3, **GREEDY)
    assert [r["positions_applied"] for r in reply["choices"][0]["interventions"]][1] == 0
    (warning,) = reply["warnings"]
    assert "choices[0].interventions[1]" in warning
    chunks = events(served, prompt="Once upon a time", interventions=[EDIT, never], max_tokens=3, **GREEDY)
    assert [chunk["warnings"] for chunk in chunks if "warnings" in chunk] == [reply["warnings"]]
    assert chunks[-1]["choices"][0]["interventions"] == reply["choices"][0]["interventions"]


def test_a_trace_is_complete_and_packs_to_the_same_numbers(served: Served) -> None:
    body = GREEDY | {"prompt": "Once upon a time", "max_tokens": 5}
    plain = served.complete(**body, trace={})["choices"][0]["trace"]
    packed = served.complete(**body, trace={"encoding": "packed"})["choices"][0]["trace"]
    assert plain["complete"] is True
    assert plain["layers"] == [0, 1]
    assert plain["phases"] == ["prompt"] * 6 + ["generated"] * 5
    assert plain["is_special"] == [True] + [False] * 10
    assert plain["offsets"] == list(range(0, 8 * 22 + 1, 8))
    values = np.frombuffer(base64.b64decode(packed["values"]), dtype="<f4")
    assert [float(v) for v in values] == [float(np.float32(v)) for v in plain["values"]]
    assert np.frombuffer(base64.b64decode(packed["indices"]), dtype="<u2").tolist() == plain["indices"]
    assert np.frombuffer(base64.b64decode(packed["offsets"]), dtype="<u4").tolist() == plain["offsets"]
    for fields in (plain, packed):
        shapes.TraceFields.model_validate_json(json.dumps(fields))
        assert Trace.read(fields).chunk.num_entries == 8 * 22


@pytest.mark.usefixtures("slow_engine")
def test_streamed_traces_join_to_the_whole_one(served: Served) -> None:
    body = GREEDY | {"prompt": "Once upon a time", "max_tokens": 30, "trace": {"layers": [1, 0]}}
    whole = served.complete(**body)["choices"][0]["trace"]
    parts = [c["trace"] for chunk in events(served, **body) for c in chunk["choices"] if "trace" in c]
    assert len(parts) > 1
    for name in ("token_ids", "tokens", "phases", "is_special", "indices", "values"):
        assert [entry for part in parts for entry in part[name]] == whole[name]


def test_a_trace_shows_the_edit(served: Served) -> None:
    trace = {"layers": [1], "neurons": [3], "positions": "generated"}
    reply = served.complete(interventions=[EDIT], trace=trace, max_tokens=4, **GREEDY)
    fields = reply["choices"][0]["trace"]
    assert fields["indices"] == [3] * 4
    assert fields["values"] == [9.0] * 4
    assert fields["complete"] is False


def test_activations_are_the_prompt_s_part_of_a_trace(served: Served) -> None:
    reply = served.post("/v1/activations", input=["Once upon a time", "The war"], trace={"layers": [0]})
    assert reply.status_code == 200
    fields = reply.json()
    shapes.Activations.model_validate_json(reply.content)
    assert [item["index"] for item in fields["data"]] == [0, 1]
    assert fields["usage"]["completion_tokens"] == 0
    traced = served.complete(trace={"layers": [0], "positions": "prompt"}, max_tokens=1)["choices"][0]["trace"]
    assert fields["data"][0]["trace"] == traced
    edited = served.post("/v1/activations", input="Once upon a time", interventions=[EDIT]).json()["data"][0]
    assert edited["interventions"][0]["positions_applied"] == 5


def test_chat_needs_a_template_and_works_with_one(served: Served, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Once upon a time"}]
    assert_error(served.post("/v1/chat/completions", messages=messages), 400)
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    with serve_app(save_tiny_model(tmp_path, chat_template=template)) as chat:
        body = {"messages": messages, "max_tokens": 6, "logprobs": True, "top_logprobs": 2} | GREEDY
        reply = chat.post("/v1/chat/completions", **body)
        assert reply.status_code == 200, reply.text
        shapes.ChatCompletion.model_validate_json(reply.content)
        choice = reply.json()["choices"][0]
        assert choice["message"]["role"] == "assistant"
        assert len(choice["logprobs"]["content"]) == 6
        chunks = events(chat, "/v1/chat/completions", **body)
        for chunk in chunks:
            shapes.ChatCompletionChunk.model_validate_json(json.dumps(chunk))
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
        assert "".join(delta["content"] for delta in deltas) == choice["message"]["content"]
