"""How clients write what they ask for: routes that every tool expects, and bytes that some readers split."""

import gzip
import json
import zlib
from typing import Any

import httpx
import pytest
from openai import OpenAI

from service.http_api.addresses import nearest, plain_path
from service.http_api.wire import event, to_json
from service.requests.limits import MAX_BODY_BYTES
from tests.support.served import MODEL_ID, Served
from tests.support.service.http_replies import GREEDY, assert_error

BODY = {"model": MODEL_ID, "prompt": "Once upon", "max_tokens": 2} | GREEDY
GETS = ["/", "/health", "/health/live", "/health/ready", "/v1/models", f"/v1/models/{MODEL_ID}", "/version", "/metrics"]
GETS += ["/openapi.json", "/web/main.js", f"/v1/neurons?model={MODEL_ID}"]
#: Every character at which `str.splitlines` ends a line.
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("path", GETS)
def test_head_says_what_get_says_without_the_body(served: Served, path: str) -> None:
    get, head = served.client.get(path), served.client.head(path)
    assert (get.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert_error(served.client.get("/v1/nowhere"), 404)
    assert served.client.head("/v1/nowhere").status_code == 404
    assert served.client.head("/v1/completions").headers["allow"] == "POST, OPTIONS"


@pytest.mark.parametrize(
    ("path", "allow"),
    [("/v1/models", "GET, HEAD, OPTIONS"), ("/v1/completions", "POST, OPTIONS"), ("/health/", "GET, HEAD, OPTIONS")],
)
def test_options_tells_what_is_allowed(served: Served, path: str, allow: str) -> None:
    reply = served.client.options(path)
    assert (reply.status_code, reply.headers["allow"], reply.content) == (204, allow, b"")
    assert_error(served.client.options("/v1/nowhere"), 404)


@pytest.mark.parametrize("path", ["/v1/completions/", "//v1/completions", "/v1//completions", "//v1///completions//"])
def test_slashes_too_many_are_no_fault(served: Served, path: str) -> None:
    reply = httpx.post(served.url + path, json=BODY)
    assert reply.status_code == 200, reply.text
    for get in ("/v1/models/", f"//v1/models/{MODEL_ID}/", "/health/", "//", "/web//main.js"):
        assert httpx.get(served.url + get).status_code == 200, get


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/complete", "POST /v1/completions"),
        ("/completions", "POST /v1/completions"),
        ("/chat/completions", "POST /v1/chat/completions"),
        ("/v1/v1/chat/completions", "POST /v1/chat/completions"),
        ("/openai/v1/models", "GET /v1/models"),
        ("/V1/Models", "GET /v1/models"),
        ("/healthz", "GET /health/live"),
        ("/ready", "GET /health/ready"),
        ("/healthcheck", "GET /health"),
        ("/search", "POST /v1/neurons/search"),
        ("/v1", "GET /v1/models"),
        ("/index.html", "GET /"),
        ("/ping", "GET /health"),
        ("/v1/neuron/1/2", "GET /v1/neurons/{layer}/{neuron}"),
    ],
)
def test_an_unknown_path_is_told_the_nearest_route(served: Served, path: str, hint: str) -> None:
    error = assert_error(served.client.get(path), 404, "unknown_route")
    assert path in error["message"]
    assert error["message"].endswith(f"did you mean {hint}?")


def test_a_path_near_nothing_is_told_where_the_routes_are(served: Served) -> None:
    for path in ("/v1/embeddings", "/favicon.ico", "/" + "x" * 5000):
        message = assert_error(served.client.get(path), 404, "unknown_route")["message"]
        assert message.endswith("/openapi.json lists all routes")
        assert len(message) < 200
    assert nearest("/x", []) is None
    assert plain_path("") == "/"


@pytest.mark.parametrize("is_long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data)[2:-4]),
        ("identity", bytes),
        ("", bytes),
    ],
)
def test_a_compressed_body_is_read(served: Served, coding: str, pack: Any, is_long: bool) -> None:
    body = json.dumps(BODY | {"user": "x" * 100}).encode() + b" " * (2**20 if is_long else 0)
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    reply = served.client.post("/v1/completions", content=pack(body), headers=headers)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("coding", "content", "status", "says"),
    [
        ("br", b"x", 415, "must be gzip, deflate or identity, got 'br'"),
        ("gzip, gzip", b"x", 415, "got 'gzip, gzip'"),
        ("zstd", b"x", 415, "got 'zstd'"),
        ("gzip", b"{}", 400, "not valid gzip"),
        ("deflate", b"\xff" * 9, 400, "not valid deflate"),
        ("gzip", gzip.compress(b"{}" * 99)[:-9], 400, "incomplete gzip data"),
        (
            "gzip",
            gzip.compress(b" " * (MAX_BODY_BYTES + 1)),
            413,
            f"limit of {MAX_BODY_BYTES} bytes after decompression",
        ),
        ("gzip", gzip.compress(b" " * 2**28), 413, f"limit of {MAX_BODY_BYTES} bytes after decompression"),
    ],
    ids=["br", "twice", "zstd", "no gzip", "no deflate", "cut off", "large", "bomb"],
)
def test_a_compressed_body_that_cannot_be_read_is_refused(
    served: Served, coding: str, content: bytes, status: int, says: str
) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    error = assert_error(served.client.post("/v1/completions", content=content, headers=headers), status)
    assert says in error["message"]


def test_a_byte_order_mark_is_passed_over(served: Served) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    content = b"\xef\xbb\xbf" + json.dumps(BODY).encode()
    assert served.client.post("/v1/completions", content=content, headers=headers).status_code == 200


def test_json_is_one_line_for_every_reader() -> None:
    body = {"text": f"a{LINE_ENDS}b", "raw": "\\u2028"}
    assert len(to_json(body).decode().splitlines()) == 1
    assert json.loads(to_json(body)) == body
    assert len(event(body).decode().splitlines()) == 2


def test_a_stream_with_every_kind_of_line_end_reads_alike_everywhere(served: Served) -> None:
    """The prompt comes back in the echo, so the stream holds what it holds."""
    prompt = f"Once{LINE_ENDS}upon"
    body = BODY | {"prompt": prompt, "echo": True, "stream": True, "trace": {}}
    with served.client.stream("POST", "/v1/completions", json=body) as reply:
        lines = [line for line in reply.iter_lines() if line]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert lines[-1] == "data: [DONE]"
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert text.startswith(prompt)
    client = OpenAI(base_url=f"{served.url}/v1", api_key="none")
    more = GREEDY | {"echo": True}
    stream = client.completions.create(model=MODEL_ID, prompt=prompt, max_tokens=2, stream=True, extra_body=more)
    assert "".join(chunk.choices[0].text for chunk in stream) == text
    assert served.post("/v1/tokenize", prompt=prompt).text.splitlines()[0].endswith("}")


def test_the_end_token_has_its_entry(served: Served) -> None:
    """The harness of EleutherAI drops the last entry of each list: it must be that of the token it did not send."""
    eos = served.model.tokenizer.eos_id
    body = {"prompt": [0, 40, 50], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    with_end = served.complete(**body, logit_bias={str(eos): 100})
    without = served.complete(**body, logit_bias={str(eos): 100}, ignore_eos=True)
    choice = with_end["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert {len(column) for column in choice["logprobs"].values()} == {4}
    assert choice["logprobs"]["token_logprobs"] == without["choices"][0]["logprobs"]["token_logprobs"]
    assert with_end["usage"]["completion_tokens"] == 1
    assert choice["text"] == served.post("/v1/detokenize", tokens=[40, 50]).json()["prompt"]
    reply = served.complete(**body | {"echo": False}, logit_bias={str(eos): 100}, trace={})["choices"][0]
    assert reply["trace"]["token_ids"] == [0, 40, 50, eos]
    assert reply["trace"]["is_special"] == [True, False, False, True]
    assert (reply["text"], len(reply["logprobs"]["tokens"])) == ("", 1)
