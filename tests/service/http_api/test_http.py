"""What the HTTP application says of its models and of itself, and what it makes of a request's id."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import jsonschema

from service.http_api import shapes
from tests.support.served import MODEL_ID, Served
from tests.support.service.http_replies import EDIT, GREEDY, assert_error, metric


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
    assert 'serve_replica="0"' in served.client.get("/metrics").text


def test_a_prompt_that_is_read_again_is_counted_as_taken_from_the_cache(served: Served) -> None:
    names = ("topk_prefix_cache_queries_total", "topk_prefix_cache_hits_total", "topk_prompt_tokens_total")
    prompt = [5 + i * 7 % 200 for i in range(80)]
    before = [metric(served, name) for name in names]
    first = served.complete(prompt=prompt, max_tokens=3, seed=1, n=2)
    assert served.complete(prompt=prompt, max_tokens=3, seed=1, n=2)["choices"] == first["choices"]
    queries, hits, num_prompt = (metric(served, name) - count for name, count in zip(names, before, strict=True))
    assert (queries, num_prompt) == (320, 320)
    assert hits == 3 * 64  # whole blocks before the last token, as of 80 whole pieces are


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
