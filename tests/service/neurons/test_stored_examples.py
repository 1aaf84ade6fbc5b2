"""Examples of steering: `topk examples` finds those that hold, and the service writes the same texts again."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.grpc_api.conversion import model_to_pb
from service.serving.find_examples import Trial, Written, candidates, chosen, stammers
from service.serving.loading import load
from service.settings import Settings
from tests.support.presets import preset
from tests.support.served import MODEL_ID, Served, serve_app
from tests.support.service.planted import PLANTED, VALUE, make_examples, save_planted_model
from topk_model.steering.examples import SteeringExample, read_examples, write_examples
from topk_model.steering.options import ExamplesConfig
from topk_model.steering.presets import words_in

SEA = preset("sea", words=("ship", "sea"), neuron=3)
CONFIG = ExamplesConfig()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_planted_model(tmp_path_factory.mktemp("planted") / "model")
    assert make_examples(folder) == 0
    return folder


@pytest.fixture(scope="module")
def service(planted: Path) -> Iterator[Served]:
    with serve_app(planted) as running:
        yield running


def card(service: Served) -> dict:
    return service.client.get(f"/v1/models/{MODEL_ID}").json()


def trial(plain: str, steered: str, *, loss: float = 2.0, cost: float = 0.1, **fields: object) -> Trial:
    texts = {"plain": Written(text=plain, loss=loss), "steered": Written(text=steered, loss=loss + cost)}
    return Trial(**({"preset": SEA, "prompt": "Once", "seed": 1} | texts | fields))


def example(name: str = "sea", **fields: object) -> SteeringExample:
    defaults = {"prompt": "Once", "max_tokens": 8, "temperature": 0.7, "seed": 1, "layer": 1, "neuron": 3, "value": 2.5}
    texts = {"words": ("ship", "sea"), "default": "a dog", "steered": "the ship at sea", "cost": 0.1}
    return SteeringExample(name=name, **(defaults | texts | fields))


def test_the_planted_words_are_found_and_stand_in_the_steered_text_alone(service: Served) -> None:
    found = card(service)["topk"]["examples"]
    assert {one["name"] for one in found} == set(PLANTED)
    for one in found:
        neuron, words = PLANTED[one["name"]]
        assert (one["layer"], one["neuron"], one["value"]) == (1, neuron, VALUE)
        assert len(one["words"]) >= 2
        for word in one["words"]:
            assert word in words
            assert re.search(rf"\b{word}\b", one["steered"])
            assert not re.search(rf"\b{word}\b", one["default"])


def test_the_same_request_writes_the_stored_texts_and_costs_what_is_said(service: Served) -> None:
    for one in card(service)["topk"]["examples"]:
        edit = {name: one[name] for name in ("layer", "neuron", "value")} | {"op": "add", "positions": "continuation"}
        sampling = {name: one[name] for name in ("prompt", "max_tokens", "temperature", "seed")}
        reply = service.complete(**sampling, interventions=[edit], compare=True, trace={})
        default, steered = reply["choices"]
        assert (default["text"], steered["text"]) == (one["default"], one["steered"])
        losses = []
        for choice in (default, steered):
            ids = choice["trace"]["token_ids"]
            read = service.complete(prompt=ids, max_tokens=0, echo=True, logprobs=0)
            start = choice["trace"]["phases"].index("generated")
            values = read["choices"][0]["logprobs"]["token_logprobs"][start:]
            losses.append(-sum(values) / len(values))
        assert losses[1] - losses[0] == pytest.approx(one["cost"], abs=1e-3)


def test_both_transports_list_them(service: Served) -> None:
    fields = card(service)
    message = model_to_pb(fields)
    assert [one.steered for one in message.topk.examples] == [one["steered"] for one in fields["topk"]["examples"]]
    assert message.topk.examples[0].value == VALUE
    document = service.client.get("/openapi.json").json()["components"]["schemas"]
    assert set(document["SteeringExample"]["properties"]) == set(fields["topk"]["examples"][0])


def test_a_model_without_them_lists_none(served: Served) -> None:
    assert card(served)["topk"]["examples"] == []


def test_examples_of_other_weights_are_refused_until_they_are_made_again(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"other weights; make it again with: topk examples --model"):
        read_examples(planted, "abc")
    stale = json.loads((planted / "examples.json").read_text()) | {"weights": "abc"}
    folder = save_planted_model(tmp_path / "model")
    (folder / "examples.json").write_text(json.dumps(stale))
    with pytest.raises(ValueError, match="other weights"):
        load(Settings(model=folder), model_id=MODEL_ID, folder=folder)
    assert make_examples(folder, "--count", "1") == 0
    with serve_app(folder) as again:
        assert len(card(again)["topk"]["examples"]) == 1


@pytest.mark.parametrize("damage", ["[", "{}", '{"format_version": 1, "weights": "abc", "examples": [{}]}'])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "examples.json").write_text(damage)
    with pytest.raises(ValueError, match="not a file of examples"):
        read_examples(tmp_path, "abc")


def test_examples_are_read_as_written_and_a_later_format_is_refused(tmp_path: Path) -> None:
    assert read_examples(tmp_path, "abc") == ()
    both = (example(), example("war", neuron=9, default="„ünicode“\n"))
    write_examples(tmp_path, "abc", both)
    assert read_examples(tmp_path, "abc") == both
    path = tmp_path / "examples.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ValueError, match="format version 2, but this program reads 1"):
        read_examples(tmp_path, "abc")


def test_a_model_without_presets_is_told_how_to_get_them(tiny_model_path: Path, capsys) -> None:
    assert make_examples(tiny_model_path) == 2
    assert "has no presets; make them with: topk presets --model" in capsys.readouterr().err
    assert not (tiny_model_path / "examples.json").exists()


def test_an_example_has_words_of_its_own_at_a_low_cost_and_does_not_stammer() -> None:
    good = trial("a dog ran", "The Ship put to sea")
    assert [one.words for _, one in candidates([good], CONFIG)] == [("ship", "sea")]
    for bad in (
        trial("a dog ran", "the ship is gone"),  # one word
        trial("the sea", "the ship on the sea"),  # the default text has one
        trial("a dog ran", "the ship at sea", cost=0.7),
        trial("a dog ran", "the ship at sea the ship at sea"),
        trial("he saw a dog and he saw a cat", "the ship at sea"),
    ):
        assert candidates([bad, good, good], CONFIG) == candidates([good, good], CONFIG)
    assert candidates([good, trial("a", "b"), trial("a", "b")], CONFIG) == []  # most texts do not show it


def test_each_example_is_of_another_neuron_and_the_best_come_first() -> None:
    two, three = ("ship", "sea"), ("ship", "sea", "sail")
    found = [
        (2.0, example("a", words=two, prompt="x", neuron=1)),
        (1.0, example("a", words=two, prompt="y", neuron=1)),
        (3.0, example("b", words=three, prompt="x", neuron=2)),
        (1.5, example("c", words=two, prompt="y", neuron=3)),
        (1.8, example("c", words=two, prompt="x", neuron=3)),
        (0.1, example("d", words=two, prompt="y", neuron=2)),  # b's neuron, in another layer perhaps
    ]
    picked = [(one.name, one.prompt) for one in chosen(found, 3)]
    assert picked == [("b", "x"), ("a", "y"), ("c", "y")]
    assert [one.name for one in chosen(found, 1)] == ["b"]
    assert chosen([], 3) == []


def test_words_are_whole_and_in_any_case() -> None:
    assert words_in("Seas, ships; the SEA, a Ship, the sea", ("ship", "sea")) == ("sea", "ship")
    assert not stammers("one two three four one two")
    assert stammers("one, two three. One two three")
