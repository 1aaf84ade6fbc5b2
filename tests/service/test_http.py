"""What clients of the HTTP application see, over a real socket, a real replica and a tiny model."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest

from service.http_api import shapes
from service.requests.schema import MAX_BODY_BYTES, CompletionRequest
from service.serving import dispatch
from tests.service.test_bad_requests import BAD_REQUESTS, BadRequest
from tests.support.served import MODEL_ID, Served, save_tiny_model, serve_app, wait_until
from topk_model.traces import Trace

GREEDY = {"temperature": 0.0, "ignore_eos": True}
EDIT = {"layer": [0, 1], "neuron": 3, "op": "set", "value": 9.0}
LONG = GREEDY | {"prompt": "Once upon a time", "max_tokens": 200}


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


def joined(chunks: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index)


# Completions


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


# Streams


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


def test_a_stream_starts_before_it_ends(served: Served) -> None:
    body = {"model": MODEL_ID, "stream": True} | LONG
    arrivals = []
    with served.client.stream("POST", "/v1/completions", json=body) as reply:
        for line in reply.iter_lines():
            if line:
                arrivals.append(time.monotonic())
    assert arrivals[-1] - arrivals[0] > 0.1
    assert len(arrivals) > 20


# Interventions and traces


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


# Models, tokens and the service itself


def test_models_tell_where_they_are_sparse(served: Served) -> None:
    listed = served.client.get("/v1/models")
    shapes.ModelList.model_validate_json(listed.content)
    (model,) = listed.json()["data"]
    assert model["topk"]["topk_layers"] == [0, 1]
    assert served.client.get(f"/v1/models/{MODEL_ID}").json() == model
    assert_error(served.client.get("/v1/models/some/other"), 404, "model_not_found")


def test_detokenize_undoes_tokenize(served: Served) -> None:
    text = "Die schöne Müllerin saß am Fluß. 🙂"
    fields = served.post("/v1/tokenize", prompt=text, add_special_tokens=False).json()
    shapes.Tokenization.model_validate_json(json.dumps(fields))
    assert fields["count"] == len(fields["tokens"]) == len(fields["token_strs"])
    assert served.post("/v1/detokenize", tokens=fields["tokens"]).json() == {"prompt": text}


def test_health_and_version_answer(served: Served) -> None:
    for path in ("/health/live", "/health/ready"):
        assert served.client.get(path).json() == {"status": "ok"}
    assert set(served.client.get("/version").json()) == {"version", "grpc_port"}


def metric(served: Served, name: str, labels: str = "") -> float:
    """A metric's value, 0 where it has not been counted yet."""
    for line in served.client.get("/metrics").text.splitlines():
        series, _, value = line.rpartition(" ")
        if series.startswith(name + "{") and labels in series:
            return float(value)
    return 0.0


def test_metrics_count_what_was_done(served: Served) -> None:
    names = {
        "topk_prompt_tokens_total": ("", 6),
        "topk_generation_tokens_total": ("", 4),
        "topk_request_success_total": ('finished_reason="length"', 1),
        "topk_interventions_total": ('op="set"', 1),
        "topk_time_to_first_token_seconds_count": ("", 1),
        "topk_inter_token_latency_seconds_count": ("", 3),
        "topk_e2e_request_latency_seconds_count": ("", 1),
        "topk_request_queue_time_seconds_count": ("", 1),
    }
    before = {name: metric(served, name, labels) for name, (labels, _) in names.items()}
    reply = served.complete(max_tokens=4, interventions=[EDIT], trace={}, **GREEDY)
    for name, (labels, expected) in names.items():
        assert metric(served, name, labels) - before[name] == expected, name
    assert metric(served, "topk_trace_bytes_total") >= len(
        json.dumps(reply["choices"][0]["trace"], separators=(",", ":"))
    )
    assert metric(served, "topk_kv_cache_usage_ratio") == 0
    assert 'replica="0"' in served.client.get("/metrics").text


def test_a_request_id_is_kept_if_sane_and_made_otherwise(served: Served) -> None:
    kept = served.client.get("/version", headers={"X-Request-Id": "abc-123"})
    assert kept.headers["x-request-id"] == "abc-123"
    for odd in ("a" * 65, "a b", "ä".encode("latin-1")):
        made = served.client.get("/version", headers={"X-Request-Id": odd}).headers["x-request-id"]
        assert len(made) == 32
    reply = served.client.post(
        "/v1/completions", json={"model": MODEL_ID, "prompt": "a", "max_tokens": 1}, headers={"X-Request-Id": "mine"}
    )
    assert reply.json()["id"] == "cmpl-mine"


def test_one_request_id_sent_twice_at_once_is_served_twice(served: Served) -> None:
    def one(_: int) -> int:
        body = {"model": MODEL_ID, "prompt": "a", "max_tokens": 30, "ignore_eos": True}
        return httpx.post(f"{served.url}/v1/completions", json=body, headers={"X-Request-Id": "twin"}).status_code

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [200] * 4


# Refusals


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
def test_a_bad_request_is_refused_over_http(served: Served, bad: BadRequest) -> None:
    reply = served.client.request(bad.method, bad.path, content=bad.body, headers={"Content-Type": bad.content_type})
    error = assert_error(reply, bad.status)
    assert error["param"] == bad.param
    assert bad.says in error["message"]
    assert served.is_idle()


def test_the_service_serves_on_after_all_of_them(served: Served) -> None:
    assert served.complete(max_tokens=2, **GREEDY)["choices"][0]["finish_reason"] == "length"
    assert served.wait_idle()


def test_a_body_without_a_length_is_cut_off_at_the_limit(served: Served) -> None:
    num_sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal num_sent
        while num_sent < 50 * MAX_BODY_BYTES:
            num_sent += 65536
            yield b" " * 65536

    try:
        reply = httpx.post(
            f"{served.url}/v1/completions", content=endless(), headers={"Content-Type": "application/json"}, timeout=30
        )
    except httpx.WriteError:
        reply = None  # the reply came and the connection was closed while we still wrote
    assert reply is None or assert_error(reply, 413, "body_too_large")
    assert num_sent < 20 * MAX_BODY_BYTES


def test_a_wrong_method_names_the_right_one(served: Served) -> None:
    reply = served.client.delete("/v1/completions")
    assert_error(reply, 405)
    assert reply.headers["allow"] == "POST"


def test_a_deadline_ends_a_request_with_408_and_frees_it(served: Served) -> None:
    error = assert_error(served.post("/v1/completions", timeout_s=0.05, **LONG), 408, "deadline_exceeded")
    assert error["type"] == "timeout_error"
    assert served.wait_idle()


def test_a_deadline_inside_a_stream_is_an_error_event(served: Served) -> None:
    reply = served.post("/v1/completions", stream=True, timeout_s=0.15, n=4, **LONG)
    if reply.status_code == 200:
        *chunks, last = parse_events(reply.text)
        assert chunks
        assert last["error"]["code"] == "deadline_exceeded"
    else:  # a machine too busy for a first token in that time
        assert_error(reply, 408)
    assert served.wait_idle()


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_goes_frees_its_sequences(served: Served, is_stream: bool) -> None:
    num_aborted = metric(served, "topk_request_failure_total", 'reason="abort"')
    data = json.dumps({"model": MODEL_ID, "n": 16, "stream": is_stream} | LONG).encode()
    with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1]))) as client:
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        assert wait_until(lambda: served.model.stats().num_running == 16, 5)
    assert served.wait_idle(2.0)
    assert metric(served, "topk_request_failure_total", 'reason="abort"') - num_aborted == 16


def test_a_sequence_whose_task_has_ended_is_reaped(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the close of an abandoned iterator had been lost."""
    monkeypatch.setattr(dispatch, "REAPER_PERIOD_S", 0.01)
    with serve_app(tiny_model_path) as careless:
        request = CompletionRequest(model=MODEL_ID, n=16, **LONG)
        model = careless.model
        kept: list[object] = []

        async def abandon() -> None:
            plan = model.planner.completion(request, "abandoned")
            kept.append(model._dispatcher.submit([row.request for row in plan.rows]))

        careless.run(abandon())
        assert kept
        assert careless.wait_idle()
        assert metric(careless, "topk_reaped_sequences_total") == 16
        assert metric(careless, "topk_request_failure_total", 'reason="abort"') == 16


def test_an_engine_that_hangs_or_dies_turns_health_red(tiny_model_path: Path) -> None:
    with serve_app(tiny_model_path, max_heartbeat_age_s=0.8) as service:
        engine = service.model._engine
        going_on = threading.Event()
        step = engine._core.step
        engine._core.step = lambda now: (going_on.wait(10), step(now))  # type: ignore[method-assign, func-returns-value]
        assert wait_until(lambda: service.client.get("/health/live").status_code == 503, 3)
        assert_error(service.client.get("/health/ready"), 503, "engine_hung")
        going_on.set()
        assert wait_until(lambda: service.client.get("/health/ready").status_code == 200, 3)
        engine.stop()
        assert_error(service.client.get("/health/live"), 503, "engine_dead")
        assert_error(service.post("/v1/completions", prompt="a"), 503, "engine_dead")


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


def test_a_full_queue_gets_429_and_retry_after_at_once(tiny_model_path: Path) -> None:
    with serve_app(tiny_model_path, max_num_seqs=1, max_waiting=2, retry_after_s=3) as small:
        with ThreadPoolExecutor(8) as pool:
            replies = list(
                pool.map(lambda _: httpx.post(f"{small.url}/v1/completions", json=BODY, timeout=60), range(8))
            )
        assert {reply.status_code for reply in replies} == {200, 429}
        for reply in replies:
            if reply.status_code == 429:
                assert_error(reply, 429, "queue_full")
                assert reply.headers["retry-after"] == "3"
        assert metric(small, "topk_request_rejections_total", 'reason="queue_full"') >= 1
        assert small.wait_idle()


def test_too_many_requests_at_once_get_429(tiny_model_path: Path) -> None:
    with serve_app(tiny_model_path, max_ongoing_requests=2) as small, ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(httpx.post, f"{small.url}/v1/completions", json=BODY, timeout=60) for _ in range(6)]
        assert small.client.get("/health/ready").status_code == 200
        replies = [future.result() for future in waiting]
        refused = [reply for reply in replies if reply.status_code != 200]
        assert refused
        for reply in refused:
            assert_error(reply, 429, "too_many_requests")


def test_with_keys_only_their_bearers_come_in(tiny_model_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst-key-1\n\nsecond-key-2\n")
    with serve_app(tiny_model_path, api_key_file=file) as guarded:
        get = guarded.client.get
        for header in (None, "Bearer", "Bearer wrong-key-0", "Basic first-key-1", "Bearer first-key-1x", "first-key-1"):
            reply = get("/v1/models", headers={} if header is None else {"Authorization": header})
            assert_error(reply, 401, "invalid_api_key")
            assert reply.headers["www-authenticate"] == "Bearer"
        for key in ("first-key-1", "second-key-2"):
            assert get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert get("/health/live").status_code == get("/health/ready").status_code == get("/").status_code == 200
        assert_error(get("/metrics"), 401)
        assert_error(get("/v1/nowhere"), 401)


BODY = {"model": MODEL_ID} | LONG


def test_replies_keep_to_the_openapi_document(served: Served) -> None:
    document = served.client.get("/openapi.json").json()
    assert set(document["paths"]) >= {"/v1/completions", "/v1/activations", "/v1/models/{model_id}", "/metrics"}
    calls = {
        "/v1/completions": {"prompt": "Once", "max_tokens": 3, "logprobs": 1, "trace": {}, "interventions": [EDIT]},
        "/v1/activations": {"input": "Once", "interventions": [EDIT]},
        "/v1/tokenize": {"prompt": "Once"},
        "/v1/detokenize": {"tokens": [5]},
    }
    for path, body in calls.items():
        described = document["paths"][path]["post"]
        bound = {"components": document["components"]}
        request = described["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.validate({"model": MODEL_ID} | body, request | bound)
        reply = described["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(served.post(path, **body).json(), reply | bound)
        for status in ("400", "401", "404", "408", "413", "415", "429", "500", "503"):
            assert described["responses"][status]["content"]["application/json"]["schema"]["$ref"].endswith(
                "ErrorResponse"
            )
