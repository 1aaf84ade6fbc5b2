"""The neuron API, over HTTP and gRPC, from catalogues made by the real builder."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.json_format import MessageToDict

from service.client.client import CallError, Client
from service.errors import ServiceError
from service.http_api.neuron_shapes import shape_of
from service.pb import topk_pb2 as pb
from service.serving.neurons import NeuronHistoryReply, NeuronList, NeuronMatches, NeuronPage
from service.serving.replica import Replica
from service.settings import Settings
from tests.support.running import Running
from tests.support.served import MODEL_ID, Served, build_tiny_catalogues, save_tiny_model, serve_app
from topk_model.catalogue.history import history
from topk_model.catalogue.reader import Catalogue, NeuronQuery
from topk_model.checkpoints import load_model
from topk_model.generate import trace_text

WAR = "The soldier said that he would not go back to the war"


@pytest.fixture(scope="module")
def catalogue(tiny_model_path: Path) -> Catalogue:
    return Catalogue.open(tiny_model_path)


def get(served: Served, path: str, **query: Any) -> Any:
    reply = served.client.get(f"/v1/neurons{path}", params={"model": MODEL_ID} | query)
    assert reply.status_code == 200, reply.text
    return reply.json()


def refusal(served: Served, path: str, **query: Any) -> tuple[int, dict[str, Any]]:
    reply = served.client.get(f"/v1/neurons{path}", params={"model": MODEL_ID} | query)
    return reply.status_code, reply.json()["error"]


def test_a_page_is_all_that_the_catalogue_knows(served: Served, catalogue: Catalogue) -> None:
    for layer, neuron in ((0, 3), (1, 60)):
        page = shape_of(NeuronPage).model_validate_json(json.dumps(get(served, f"/{layer}/{neuron}")))
        known = catalogue.neuron(layer, neuron)
        assert (page.model, page.checkpoint, page.layer, page.neuron) == (MODEL_ID, None, layer, neuron)
        assert (page.density, page.max, page.token_entropy) == (known.density, known.max, known.token_entropy)
        assert [example.text for example in page.top_examples] == [example.text for example in known.top_examples]
        strongest = [example.max for example in page.strongest_firings]
        assert strongest == [example.max for example in known.strongest_firings] == sorted(strongest, reverse=True)
        assert page.top_examples[0].activations[page.top_examples[0].peak] == page.top_examples[0].max
        assert set(page.quantiles) == {"0.5", "0.9", "0.99", "0.999"}
        assert [(near.layer, near.neuron) for near in page.related] == [(n.layer, n.neuron) for n in known.related]


def test_every_page_and_row_keeps_to_its_documented_shape(served: Served) -> None:
    for neuron in range(0, 64, 9):
        shape_of(NeuronPage).model_validate_json(json.dumps(get(served, f"/1/{neuron}")))
    shape_of(NeuronList).model_validate_json(json.dumps(get(served, "", limit=500)))
    shape_of(NeuronHistoryReply).model_validate_json(json.dumps(get(served, "/0/3/history")))
    shape_of(NeuronMatches).model_validate_json(served.post("/v1/neurons/search", text=WAR).content)


def test_a_page_of_a_checkpoint_needs_no_weights_of_it(served: Served, tiny_model_path: Path) -> None:
    page = get(served, "/0/3", model=f"{MODEL_ID}@step-64")
    assert (page["model"], page["checkpoint"]) == (f"{MODEL_ID}@step-64", "step-64")
    assert page["max"] == Catalogue.open(tiny_model_path / "checkpoints" / "step-64").neuron(0, 3).max
    assert f"{MODEL_ID}@step-64" not in [model.facts.id for model in served.replica.registry.running]


def test_lists_are_filtered_ordered_and_cut_into_pages(served: Served, catalogue: Catalogue) -> None:
    everything = get(served, "", limit=500)
    assert everything["total"] == len(everything["data"]) == 128
    dense = get(served, "", layer=1, min_density=0.1, order="-density", limit=3)
    densities = [row["density"] for row in dense["data"]]
    assert densities == sorted(densities, reverse=True)
    assert {row["layer"] for row in dense["data"]} == {1}
    assert dense["total"] == catalogue.neurons(NeuronQuery(layer=1, min_density=0.1))[1] > 3
    rest = get(served, "", layer=1, min_density=0.1, order="-density", limit=500, offset=3)
    assert len(rest["data"]) == dense["total"] - 3
    assert (rest["limit"], rest["offset"]) == (500, 3)
    sharp = get(served, "", max_token_entropy=4.0, is_dead="false")
    assert all(row["token_entropy"] <= 4.0 for row in sharp["data"])


def test_labels_are_searched_as_text_and_never_as_syntax(served: Served, catalogue: Catalogue) -> None:
    found = get(served, "", label="soldiers", limit=500)
    rows, total = catalogue.neurons(NeuronQuery(label="soldier", limit=500))  # by stems of words
    assert [(row["layer"], row["neuron"]) for row in found["data"]] == [(row.layer, row.neuron) for row in rows]
    assert 0 < found["total"] == total < 128
    for text in ('"', "a OR", "NEAR(", "label:king", "*", "'; DROP TABLE neurons; --", "\x00", "🙂"):
        assert get(served, "", label=text)["total"] >= 0


def test_a_search_finds_what_fires_on_the_text(served: Served, tiny_model_path: Path) -> None:
    reply = served.post("/v1/neurons/search", text=WAR, limit=5).json()
    assert len(reply["data"]) == 5
    scores = [match["score"] for match in reply["data"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0
    model, tokenizer = load_model(tiny_model_path, device="cpu")
    trace = trace_text(model, tokenizer, WAR, name="", step=None)
    assert reply["num_tokens"] == len(trace.token_ids) - 1  # BOS
    best = reply["data"][0]
    rows = [
        row for row in range(len(trace.token_ids) * 2) if row % 2 == best["layer"] and not trace.is_special[row // 2]
    ]
    chunk = trace.chunk
    active = sum(best["neuron"] in chunk.indices[chunk.offsets[row] : chunk.offsets[row + 1]] for row in rows)
    assert best["active"] == active
    assert active / len(rows) > best["density"]


def test_a_contrast_turned_round_finds_the_other_side(served: Served) -> None:
    sides = {"positive": [WAR, "the war and the soldier"], "negative": ["abab abba aabb"]}
    turned = {"positive": sides["negative"], "negative": sides["positive"]}
    one, other = (served.post("/v1/neurons/search", contrast=contrast, limit=10).json() for contrast in (sides, turned))
    neurons = lambda reply: {(match["layer"], match["neuron"]) for match in reply["data"]}  # noqa: E731
    assert not neurons(one) & neurons(other)
    assert (one["num_tokens"], one["num_tokens_negative"]) == (other["num_tokens_negative"], other["num_tokens"])
    assert all(match["active_negative"] is not None for match in one["data"])


def test_a_search_keeps_to_its_layers_and_runs_on_a_checkpoint(served: Served) -> None:
    reply = served.post("/v1/neurons/search", text=WAR, layers=[1], limit=3, model=f"{MODEL_ID}@step-64").json()
    assert reply["model"] == f"{MODEL_ID}@step-64"
    assert {match["layer"] for match in reply["data"]} == {1}
    assert f"{MODEL_ID}@step-64" in [model.facts.id for model in served.replica.registry.running]


def test_searches_do_not_disturb_each_other(served: Served) -> None:
    texts = [WAR, "the king had three sons", "stop the project", "Es war einmal"] * 3
    ask = lambda text: served.post("/v1/neurons/search", text=text).json()  # noqa: E731
    alone = [ask(text) for text in texts]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, texts)) == alone
    assert served.wait_idle()


def test_a_history_runs_from_the_first_checkpoint_to_the_model(served: Served, tiny_model_path: Path) -> None:
    reply = get(served, "/0/3/history")
    known = history(tiny_model_path, 0, 3)
    assert [stage["step"] for stage in reply["checkpoints"]] == [64, None]  # the others have no catalogue
    assert [stage["density"] for stage in reply["checkpoints"]] == [stage.density for stage in known.checkpoints]
    assert reply["checkpoints"][-1]["token_overlap"] == reply["checkpoints"][-1]["example_overlap"] == 1.0
    assert [stage["layer"] for stage in reply["layers"]] == [0, 1]
    status, error = refusal(served, "/0/3/history", model=f"{MODEL_ID}@step-64")
    assert (status, error["param"]) == (400, "model")


def test_a_model_without_a_catalogue_says_how_to_get_one(served: Served) -> None:
    for path in ("", "/0/3"):
        status, error = refusal(served, path, model=f"{MODEL_ID}@step-128")
        assert (status, error["code"], error["param"]) == (404, "no_catalogue", "model")
        assert "topk catalogue --model" in error["message"]
    reply = served.post("/v1/neurons/search", text=WAR, model=f"{MODEL_ID}@step-128")
    assert reply.json()["error"]["code"] == "no_catalogue"
    cards = {name: served.client.get(f"/v1/models/{MODEL_ID}{name}").json() for name in ("", "@step-64", "@step-128")}
    assert {name: card["topk"]["has_catalogue"] for name, card in cards.items()} == {
        "": True,
        "@step-64": True,
        "@step-128": False,
    }


def test_the_unit_max_is_the_catalogue_s_maximum(served: Served, catalogue: Catalogue) -> None:
    edit = {"layer": 0, "neuron": 3, "op": "set", "value": 2, "unit": "max"}
    receipt = served.complete(interventions=[edit])["choices"][0]["interventions"][0]
    largest = catalogue.maximum(0, 3)
    assert largest is not None
    assert receipt["mean_after"] == pytest.approx(2 * largest, rel=1e-6)
    reply = served.post("/v1/completions", prompt="a", interventions=[edit], model=f"{MODEL_ID}@step-128")
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "interventions[0].unit")
    assert "catalogue" in error["message"]


@pytest.mark.long
def test_a_catalogue_of_other_weights_stops_the_start(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "one")
    build_tiny_catalogues(path)
    other = save_tiny_model(tmp_path / "other", seed=5)
    shutil.copy(path / "catalogue.sqlite", other)
    with pytest.raises(ValueError, match="other weights"):
        Replica.load(Settings(model=other))


def test_a_damaged_catalogue_of_a_checkpoint_hurts_no_other(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path, steps=(64, 128))
    (path / "checkpoints" / "step-64" / "catalogue.sqlite").write_bytes(b"SQLite format 3\x00 and no more")
    with serve_app(path) as service:
        status, error = refusal(service, "/0/3", model=f"{MODEL_ID}@step-64")
        assert (status, error["code"]) == (500, "catalogue_unreadable")
        assert str(path) not in error["message"]
        reply = service.post("/v1/completions", prompt="a", model=f"{MODEL_ID}@step-64")
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "checkpoint_unreadable")
        assert service.post("/v1/completions", prompt="a", model=f"{MODEL_ID}@step-128").status_code == 200


CALLS: dict[str, Callable[[Client, Any], Any]] = {
    "GetNeuron": Client.neuron,
    "ListNeurons": Client.neurons,
    "GetNeuronHistory": Client.neuron_history,
}
QUERIES: list[tuple[str, dict[str, Any]]] = [
    ("GetNeuron", {"layer": 0, "neuron": 3}),
    ("GetNeuron", {"layer": 1, "neuron": 63, "model": f"{MODEL_ID}@step-64"}),
    ("GetNeuron", {"layer": 1, "neuron": 64}),
    ("GetNeuron", {"layer": 3, "neuron": 1}),
    ("GetNeuron", {"layer": -1, "neuron": 1}),
    ("GetNeuron", {"layer": 0, "neuron": 1, "model": "gpt-x"}),
    ("GetNeuron", {"layer": 0, "neuron": 1, "model": f"{MODEL_ID}@step-128"}),
    ("GetNeuronHistory", {"layer": 0, "neuron": 3}),
    ("GetNeuronHistory", {"layer": 0, "neuron": 3, "model": f"{MODEL_ID}@step-64"}),
    ("ListNeurons", {}),
    ("ListNeurons", {"layer": 1, "min_density": 0.05, "max_density": 0.5, "order": "-token_entropy", "limit": 7}),
    ("ListNeurons", {"label": "king", "is_dead": False, "offset": 2, "max_token_entropy": 6.0}),
    ("ListNeurons", {"order": "size"}),
    ("ListNeurons", {"limit": 0}),
    ("ListNeurons", {"min_density": 1.5}),
    ("ListNeurons", {"layer": 2}),
]


def by_json(message: Any) -> Any:
    """A message's fields, those that are there."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None and name != "object"}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("method", "fields"), QUERIES, ids=lambda part: json.dumps(part))
def test_neurons_are_the_same_over_http_and_grpc(running: Running, method: str, fields: dict[str, Any]) -> None:
    fields = {"model": MODEL_ID} | fields
    message = getattr(pb, f"{method}Request")(**fields)
    if method == "ListNeurons":
        path, query = "", fields
    else:
        history = "/history" if method == "GetNeuronHistory" else ""
        path, query = f"/{fields['layer']}/{fields['neuron']}{history}", {"model": fields["model"]}
    reply = httpx.get(f"{running.url}/v1/neurons{path}", params=query)
    with Client(running.target) as client:
        if reply.status_code == 200:
            told = by_json(CALLS[method](client, message))
            expected = without_nulls(reply.json())
            if method == "GetNeuron":
                told = {**told.pop("neuron"), **told}
            assert_close(told, expected)
            return
        with pytest.raises(CallError) as failed:
            CALLS[method](client, message)
    error = reply.json()["error"]
    assert (failed.value.message, failed.value.param, failed.value.reason) == (
        error["message"],
        error["param"],
        error["code"],
    )
    kinds = {kind.status: kind.grpc_code for kind in ServiceError.__subclasses__()}
    assert failed.value.code == grpc.StatusCode[kinds[reply.status_code]]


def assert_close(told: Any, expected: Any) -> None:
    """Equal, but for 64-bit integers, which JSON's form of a message writes as text."""
    if isinstance(expected, dict):
        assert {**dict.fromkeys(expected), **told}.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(told[name], value)
    elif isinstance(expected, list):
        assert len(told) == len(expected)
        for one, other in zip(told, expected, strict=True):
            assert_close(one, other)
    else:
        assert (type(expected)(told) if isinstance(told, str) else told) == expected
