"""Steering presets in requests, over HTTP and gRPC: the edit that the recipe is, by name."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.grpc_api.conversion import generation_from_pb, model_to_pb
from service.pb import topk_pb2 as pb
from tests.support.presets import preset
from tests.support.served import MODEL_ID, Served, serve_app
from topk_model.model_folder import weights_digest
from topk_model.steering.presets import write_presets

SEA, SEA_2, WAR = preset("sea", value=2.5), preset("sea", version=2, value=4.0), preset("war", neuron=9)
MUCH = preset("much", value=2000.0)
BODY = {"prompt": "Once upon a time", "max_tokens": 8, "seed": 1}


@pytest.fixture(scope="module")
def steered(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("presets") / "model"
    shutil.copytree(tiny_model_path, folder)
    write_presets(folder, weights_digest(folder), 0.2, [SEA, SEA_2, WAR, MUCH])
    with serve_app(folder) as service:
        yield service


def complete(service: Served, *interventions: dict, **fields: object):
    return service.post("/v1/completions", **(BODY | {"interventions": list(interventions)} | fields))


def edit(value: float, neuron: int = 3, **fields: object) -> dict:
    return {"layer": 1, "neuron": neuron, "op": "add", "value": value} | fields


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ({"preset": "sea@1"}, edit(2.5)),
        ({"preset": "sea"}, edit(4.0)),
        ({"preset": "sea@2", "strength": 0.5}, edit(2.0)),
        ({"preset": "war", "positions": "generated"}, edit(2.5, neuron=9, positions="generated")),
        ({"preset": "war", "positions": {"start": -1}}, edit(2.5, neuron=9, positions={"start": -1})),
        ({"preset": "war", "positions": {"end": 4}}, edit(2.5, neuron=9, positions={"end": 4})),
    ],
)
def test_a_preset_is_the_edit_that_its_recipe_is(steered: Served, named: dict, meant: dict) -> None:
    replies = [complete(steered, spec, trace={}).json() for spec in (named, meant)]
    choices = [reply["choices"][0] for reply in replies]
    assert choices[0] == choices[1]
    assert choices[0]["interventions"][0]["positions_applied"] > 0


def test_presets_and_edits_keep_their_order_and_have_a_receipt_each(steered: Served) -> None:
    specs = [{"preset": "sea"}, edit(1.0), {"preset": "war"}]
    receipts = complete(steered, *specs).json()["choices"][0]["interventions"]
    assert len(receipts) == 3
    assert receipts[1]["mean_before"] == pytest.approx(receipts[0]["mean_after"])


@pytest.mark.parametrize(
    ("spec", "param", "says"),
    [
        ({"preset": "see"}, "interventions[0].preset", "must be one of much, sea, war"),
        ({"preset": "sea@3"}, "interventions[0].preset", "must be one of sea@1, sea@2"),
        ({"preset": "sea@"}, "interventions[0].preset", "must be one of sea@1, sea@2"),
        ({"preset": ""}, "interventions[0].preset", "at least 1 character"),
        ({"preset": 3}, "interventions[0].preset", "string"),
        ({"preset": "sea", "strength": 11}, "interventions[0].strength", "10"),
        ({"preset": "sea", "strength": -1}, "interventions[0].strength", "0"),
        ({"preset": "much", "strength": 6}, "interventions[0].strength", "at most 5 for much, got 6"),
        ({"preset": "sea", "neuron": 3}, "interventions[0].neuron", "not a known field"),
        ({"preset": "sea", "positions": "some"}, "interventions[0].positions", "must be"),
    ],
)
def test_what_is_wrong_with_a_preset_is_named(steered: Served, spec: dict, param: str, says: str) -> None:
    reply = complete(steered, spec)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == param
    assert says in error["message"]


def test_a_model_without_presets_says_so(served: Served) -> None:
    reply = complete(served, {"preset": "sea"})
    assert reply.status_code == 400
    assert "has no presets" in reply.json()["error"]["message"]


def test_the_models_card_lists_them_over_both_transports(steered: Served) -> None:
    card = steered.client.get(f"/v1/models/{MODEL_ID}").json()
    assert [(one["name"], one["version"]) for one in card["topk"]["presets"]] == [
        ("sea", 1),
        ("sea", 2),
        ("war", 1),
        ("much", 1),
    ]
    message = model_to_pb(card)
    assert [one.value for one in message.topk.presets] == [2.5, 4.0, 2.5, 2000.0]
    assert message.topk.presets[0].found.log_odds == 1.2


def test_a_preset_over_grpc_is_the_same_request() -> None:
    message = pb.GenerateRequest(
        model=MODEL_ID,
        prompt=pb.Prompt(text="Once"),
        interventions=[pb.Intervention(preset="sea@1", strength=2.0)],
    )
    request = generation_from_pb(message)
    (spec,) = request.interventions
    assert (spec.preset, spec.strength, spec.positions) == ("sea@1", 2.0, "all")
