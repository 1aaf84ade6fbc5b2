"""Levers as clients get them: found beside generations, and reproduced by sending what the reply says."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.http_api.neuron_shapes import shape_of
from service.requests.limits import MAX_LEVER_COST
from service.serving.lever_replies import LeverReply
from tests.support.served import MODEL_ID, Served, save_tiny_model, serve_app, wait_until
from tests.support.service.http_replies import GREEDY, assert_error, events, metric
from topk_model.catalogue.reader import Catalogue

pytestmark = pytest.mark.long

WORDS = ["war", "soldier", "king", "queenly"]
#: The small model's states are wild: little costs much.
SEARCH: dict[str, Any] = {"words": WORDS, "max_cost": 0.5, "limit": 3, "prompt": "Once upon a time"}


@pytest.fixture(scope="module")
def found(served: Served) -> dict[str, Any]:
    reply = served.post("/v1/levers", **SEARCH)
    assert reply.status_code == 200, reply.text
    shape_of(LeverReply).model_validate_json(reply.content)
    return reply.json()


def test_levers_are_found_within_the_cost_strongest_first(found: dict[str, Any]) -> None:
    assert found["is_moved"]
    assert 1 <= len(found["levers"]) <= 3 <= len(found["tried"])
    rises = [lever["log_odds"] for lever in found["levers"]]
    assert rises == sorted(rises, reverse=True)
    for lever in found["levers"]:
        assert lever["cost"] <= 0.5
        assert lever["log_odds"] >= max(0.1, 2 * lever["error"] - 1e-3)
        values = [point["value"] for point in lever["curve"]]
        assert [abs(value) for value in values] == sorted(map(abs, values))
        assert lever["value"] in values
        assert {k: lever[k] for k in ("log_odds", "cost")} == next(
            {k: point[k] for k in ("log_odds", "cost")} for point in lever["curve"] if point["value"] == lever["value"]
        )


def test_a_word_is_read_whole(served: Served, found: dict[str, Any]) -> None:
    for word in found["words"]:
        assert "".join(word["tokens"]) == f" {word['word']}"
        assert served.post("/v1/detokenize", tokens=word["token_ids"]).json()["prompt"] == f" {word['word']}"
    assert max(len(word["token_ids"]) for word in found["words"]) > 1


def test_labels_and_multiples_are_the_catalogues(found: dict[str, Any], tiny_model_path: Path) -> None:
    catalogue = Catalogue.open(tiny_model_path)
    for one in (*found["levers"], *found["tried"]):
        place = one["layer"], one["neuron"]
        assert one["label"] == catalogue.labels([place])[0]
        largest = catalogue.maximum(*place)
        assert one["value_in_max"] == (None if not largest else pytest.approx(one["value"] / largest, abs=1e-4))


def test_what_a_lever_writes_is_what_its_intervention_writes(served: Served, found: dict[str, Any]) -> None:
    prompt = found["prompt"]
    sampling = {name: prompt[name] for name in ("max_tokens", "temperature", "seed")}
    same = {"prompt": prompt["token_ids"], **sampling}
    assert served.complete(**same)["choices"][0]["text"] == prompt["continuation"]
    for lever in found["levers"]:
        choice = served.complete(**same, interventions=[lever["intervention"]])["choices"][0]
        assert choice["text"] == lever["continuation"]
        assert choice["interventions"][0]["positions_applied"] > 0
    assert found["usage"]["prompt_tokens"] == len(prompt["token_ids"])


def test_the_same_request_finds_the_same(served: Served, found: dict[str, Any]) -> None:
    assert served.post("/v1/levers", **SEARCH).json() == found


def test_without_a_prompt_an_ordinary_text_is_continued(served: Served) -> None:
    reply = served.post("/v1/levers", words=["war"], max_cost=0.5, limit=1, max_tokens=4).json()
    assert reply["prompt"]["token_ids"][0] == served.model.facts.bos_id
    assert reply["prompt"]["text"]
    assert reply["texts"]["source"] == "written"
    silent = served.post("/v1/levers", words=["war"], max_cost=0.5, limit=1, max_tokens=0).json()
    assert silent["prompt"] is None
    assert [lever["continuation"] for lever in silent["levers"]] == [None] * len(silent["levers"])
    assert silent["usage"]["total_tokens"] == 0


def test_texts_are_set_against_others(served: Served) -> None:
    texts = {
        "towards": ["the war the war the war", "war and war and war"],
        "away": ["Once upon a time", "the king said"],
    }
    reply = served.post("/v1/levers", texts=texts, max_cost=MAX_LEVER_COST, max_tokens=0).json()
    assert reply["words"] is None
    assert reply["per_1000_tokens"] is None
    assert reply["texts"]["is_target_held_out"]
    single = {side: several[:1] for side, several in texts.items()}
    reply = served.post("/v1/levers", texts=single, max_cost=MAX_LEVER_COST, max_tokens=0).json()
    assert not reply["texts"]["is_target_held_out"]


def test_words_that_nothing_moves_are_told_with_what_was_tried(served: Served) -> None:
    reply = served.post("/v1/levers", words=["qzxjkvwqqzx"], max_cost=0.01, max_tokens=2)
    assert reply.status_code == 200
    told = reply.json()
    assert not told["is_moved"]
    assert told["levers"] == []
    assert told["tried"]
    assert "were tried" in told["message"]
    assert "less than once in 100,000 tokens" in told["message"]


def test_a_checkpoint_has_levers_of_its_own(served: Served, found: dict[str, Any]) -> None:
    reply = served.client.post("/v1/levers", json={**SEARCH, "model": f"{MODEL_ID}@step-64"})
    assert reply.status_code == 200, reply.text
    assert reply.json()["tried"] != found["tried"]
    assert reply.json()["model"] == f"{MODEL_ID}@step-64"
    assert served.post("/v1/levers", **SEARCH).json() == found


def test_a_stream_tells_progress_and_ends_with_the_reply(served: Served, found: dict[str, Any]) -> None:
    *progress, last = events(served, "/v1/levers", **SEARCH)
    assert last == found
    assert progress[0] == {"object": "job.progress", "stage": "waiting", "done": 0, "total": 0}
    assert progress[-1]["stage"] == "continuing"
    assert {one["object"] for one in progress} == {"job.progress"}


def num_cancelled(served: Served) -> float:
    return metric(served, "topk_side_jobs_total", 'kind="lever",outcome="cancelled"')


def test_a_client_that_goes_ends_the_search(served: Served) -> None:
    before = num_cancelled(served)
    with (
        httpx.Client(base_url=served.url) as client,
        client.stream("POST", "/v1/levers", json={"model": MODEL_ID, "stream": True, **SEARCH, "limit": 10}) as reply,
    ):
        next(reply.iter_lines())
    assert wait_until(lambda: num_cancelled(served) > before, 5)
    assert wait_until(lambda: served.replica.side_jobs.num_jobs == 0, 5)
    assert served.wait_idle()


def test_a_search_has_a_deadline(served: Served) -> None:
    error = assert_error(served.post("/v1/levers", **SEARCH, timeout_s=0.01), 408)
    assert error["code"] == "deadline_exceeded"
    assert wait_until(lambda: served.replica.side_jobs.num_jobs == 0, 5)


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Served]:
    """A service that takes one search at a time, of a model without a catalogue."""
    with serve_app(save_tiny_model(tmp_path / "model"), max_side_jobs=1) as service:
        yield service


def test_too_many_searches_are_refused_and_generations_go_on(narrow: Served) -> None:
    statuses: list[int] = []

    def search() -> None:
        statuses.append(narrow.post("/v1/levers", **SEARCH).status_code)

    first = threading.Thread(target=search)
    first.start()
    assert wait_until(lambda: narrow.replica.side_jobs.num_jobs == 1, 5)
    reply = narrow.post("/v1/levers", **SEARCH)
    error = assert_error(reply, 429)
    assert error["code"] == "too_many_jobs"
    assert reply.headers["retry-after"]
    began = time.monotonic()
    assert narrow.complete(max_tokens=8, **GREEDY)["choices"][0]["finish_reason"] == "length"
    assert time.monotonic() - began < 5
    first.join(60)
    assert statuses == [200]


def test_without_a_catalogue_there_are_no_labels_and_no_multiples(narrow: Served) -> None:
    told = narrow.post("/v1/levers", **SEARCH).json()
    assert {(one["label"], one["value_in_max"]) for one in told["tried"]} == {(None, None)}
    assert json.dumps(told)
