"""From two finished runs to an evaluation, by the real commands: ship, catalogue, presets, evaluate."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from service.cli import main
from tests.support.catalogued import build
from tests.support.tiny_run import train_config
from topk_model.checkpoints import load_model
from topk_model.modeling import topk
from topk_model.release.emergence import steps
from topk_model.release.evaluate import at_cost, neuron_figures
from topk_model.release.ship import ShipConfig, ship
from topk_model.steering import find_presets
from topk_model.steering.concepts import CONCEPTS, MIN_WORDS, Concept
from topk_model.steering.held_out import held_out_texts
from topk_model.steering.presets import words_in
from topk_model.training.data import TokenWindows
from topk_model.training.train import train

THINGS = Concept(name="things", words=("ship", "rope", "dog", "bread", "lamp", "coat", "map"))


@pytest.fixture(scope="module")
def evaluated(finished_run: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    train(train_config(data_folder, folder / "dense", steps=140, n_nontopk=3))
    model = folder / "model"
    ship(ShipConfig(run=finished_run, twin=folder / "dense", checkpoints=2, output=model, device="cpu", samples=0))
    build(model, data=data_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find_presets, "CONCEPTS", (THINGS,))
        few = ["--texts", "4", "--max-cost", "3", "--threads", "1", "--device", "cpu"]
        assert main(["presets", "--model", str(model), *few]) == 0
        twin = ["--model", str(model / "dense_twin"), "--held-out", str(model / "held_out")]
        assert main(["presets", *twin, *few]) == 0
    assert evaluate(model) == 0
    return model


def evaluate(model: Path, *more: str) -> int:
    few = ["--texts", "4", "--prompts", "6", "--threads", "1", "--device", "cpu"]
    return main(["evaluate", "--model", str(model), *few, *more])


def record_of(model: Path) -> dict:
    return json.loads((model / "evaluation.json").read_text())


def test_both_losses_are_those_of_all_held_out_text(evaluated: Path) -> None:
    record = record_of(evaluated)
    assert record["val_loss"] == json.loads((evaluated / "training.json").read_text())["validation_loss"]
    twin, tokenizer = load_model(evaluated / "dense_twin", device="cpu")
    windows = TokenWindows.load(evaluated / "held_out", "validation", 96, tokenizer.bos_token_id)
    ids = torch.from_numpy(windows.rows(np.arange(len(windows))))
    with torch.inference_mode():
        logits = twin(input_ids=ids[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    assert record["dense_val_loss"] == pytest.approx(loss, abs=2e-4)


@pytest.mark.parametrize(("folder", "k"), [(".", None), ("dense_twin", None), ("dense_twin", 5)])
def test_token_entropy_and_dead_neurons_are_what_counting_says(evaluated: Path, folder: str, k: int | None) -> None:
    model, tokenizer = load_model(evaluated / folder, device="cpu")
    texts = held_out_texts(evaluated / "held_out", tokenizer, 96, half=0)[:6]
    states: dict[int, torch.Tensor] = {}

    def keep(layer: int, hidden: torch.Tensor) -> torch.Tensor:
        hidden = model.model.sparsify(layer, hidden)
        states[layer] = hidden if k is None else topk(hidden, k, "signed")
        return hidden

    with torch.inference_mode():
        model(input_ids=texts, sparsify=keep)
    bits, dead = [], 0
    for neuron in range(model.config.hidden_size):
        weights: dict[int, float] = {}
        for row, ids in enumerate(texts.tolist()):
            for place, token in list(enumerate(ids))[1:]:
                if value := abs(states[0][row, place, neuron].item()):
                    weights[token] = weights.get(token, 0.0) + value
        total = sum(weights.values())
        dead += not total
        if total:
            bits.append(-sum(w / total * math.log2(w / total) for w in weights.values()))
    figures = neuron_figures(model, texts, [0], k)
    assert figures["median_token_entropy"] == pytest.approx(float(np.median(bits)), abs=2e-3)
    assert figures["dead_neuron_share"] == pytest.approx(dead / model.config.hidden_size, abs=1e-4)


def test_a_preset_is_measured_on_texts_that_it_was_not_found_on(evaluated: Path) -> None:
    _, tokenizer = load_model(evaluated, device="cpu")
    finding, measuring = (held_out_texts(evaluated / "held_out", tokenizer, 96, half) for half in (0, 1))
    runs = [{tuple(row[i : i + 24]) for row in half.tolist() for i in range(1, 73)} for half in (finding, measuring)]
    assert not runs[0] & runs[1]
    (row,) = record_of(evaluated)["topk"]["steering"]
    (preset,) = json.loads((evaluated / "presets.json").read_text())["presets"]
    assert (row["layer"], row["neuron"], row["value"]) == (preset["layer"], preset["neuron"], preset["value"])
    assert preset["found"]["cost"] <= 3
    assert preset["found"]["log_odds"] > 0
    at_its_strength = [p for p in row["curve"] if p["strength"] == row["strength"]]
    assert at_its_strength[0]["log_odds"] == pytest.approx(row["log_odds"], abs=0.01)
    assert row["steers"] == (row["log_odds_at_cost"] >= 1)
    assert row["log_odds_at_cost"] == pytest.approx(at_cost(row["curve"], 0.3), abs=1e-3)


def test_the_rise_at_a_cost_is_on_the_curve() -> None:
    points = [{"log_odds": 0.5, "cost": 0.1}, {"log_odds": 1.0, "cost": 0.3}, {"log_odds": 1.2, "cost": 0.7}]
    assert [at_cost(points, cost) for cost in (0.05, 0.1, 0.2, 0.3, 0.5, 2.0)] == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 1.1, 1.2]
    )


def test_one_click_is_counted_text_by_text(evaluated: Path) -> None:
    clicks = record_of(evaluated)["topk"]["clicks"]
    assert clicks["texts"] == len(clicks["prompts"]) * len(clicks["seeds"]) * len(clicks["presets"])
    for parts in (clicks["seeds"], clicks["presets"]):
        assert sum(part["texts"] for part in parts) == clicks["texts"]
        for name in ("plain", "steered", "cost"):
            mean = sum(part["texts"] * part[name] for part in parts) / clicks["texts"]
            assert clicks[name] == pytest.approx(mean, abs=2e-3)
    assert clicks["first"]["texts"] == sum(part["texts"] for part in clicks["presets"][:10])
    row = f"| all presets | {clicks['texts']} | {clicks['plain']:.0%} | {clicks['steered']:.0%} |"
    assert row in (evaluated / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "is_held"), [("The Dog ran.", True), ("dogs and a hotdog", False), ("a dog", True), ("", False)]
)
def test_a_word_is_held_as_a_whole_word(text: str, is_held: bool) -> None:
    assert bool(words_in(text, ("cat", "dog"))) == is_held


def test_the_card_has_the_figures_beside_the_twins(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, card = record_of(evaluated), (evaluated / "README.md").read_text()
    assert f"| loss, nats per token | {record['val_loss']} | {record['dense_val_loss']} |" in card
    assert f"| {record['median_token_entropy']} | {record['dense_median_token_entropy_at_k']} |" in card
    assert "things" in card
    assert "steering.png" in card
    for name in ("steering.png", "emergence.png"):
        assert (evaluated / name).read_bytes().startswith(b"\x89PNG")
    before = {path.name: path.read_bytes() for path in (evaluated / "evaluation.json", evaluated / "README.md")}
    assert evaluate(evaluated) == 0
    assert f"{record['dense_val_loss']:.4f}" in capsys.readouterr().out
    assert {name: (evaluated / name).read_bytes() for name in before} == before


def test_without_a_twin_the_model_stands_alone(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(evaluated, alone, ignore=shutil.ignore_patterns("dense_twin", "evaluation.json"))
    assert evaluate(alone) == 0
    beside, record = record_of(evaluated), record_of(alone)
    assert record["dense"] is None
    assert record == {name: value for name, value in beside.items() if "dense" not in name} | {"dense": None}
    assert f"| loss, nats per token | {record['val_loss']} |\n" in (alone / "README.md").read_text()
    assert "twin" not in capsys.readouterr().out


def test_what_was_never_made_is_left_out_and_not_called_none(evaluated: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(evaluated, bare, ignore=shutil.ignore_patterns("catalogue.sqlite", "presets.json", "*.png"))
    assert evaluate(bare) == 0
    record, card = record_of(bare), (bare / "README.md").read_text()
    assert (record["emergence"], record["num_concepts_steered"], record["topk"]["steering"]) == (None, None, None)
    assert "| concepts that one neuron steers | – | – |" in card
    assert "Emergence" not in card
    assert not list(bare.glob("*.png"))


@pytest.mark.parametrize("name", ["training.json", "sources.json", "samples.json"])
def test_what_the_card_needs_is_looked_for_first(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(evaluated, tmp_path / "model", ignore=shutil.ignore_patterns(name))
    monkeypatch.setattr("topk_model.release.evaluate.measure", lambda *_: pytest.fail("measured before it looked"))
    assert evaluate(tmp_path / "model") == 2
    assert name in capsys.readouterr().err


def test_what_is_missing_is_named(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(evaluated, "--twin", str(tmp_path)) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_twin_must_be_one(finished_run: Path, evaluated: Path, data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a dense twin"):
        ship(ShipConfig(run=finished_run, twin=finished_run, output=tmp_path / "out", device="cpu", samples=0))
    train(train_config(data_folder, tmp_path / "other", steps=2, n_nontopk=3))
    with pytest.raises(ValueError, match="not a twin of the model: its steps is 2, not 140"):
        ship(ShipConfig(run=finished_run, twin=tmp_path / "other", output=tmp_path / "out", device="cpu", samples=0))


def test_a_neuron_has_become_what_it_is_once_it_stays_so() -> None:
    overlaps = np.array([[0.6, 0.1], [0.2, 0.5], [0.7, 0.9], [1.0, 1.0]])
    assert [row["share_become"] for row in steps([1, 2, 3, None], overlaps)] == [0.0, 0.5, 1.0, 1.0]
    assert [row["median_overlap"] for row in steps([1, 2, 3, None], overlaps)] == [0.35, 0.35, 0.8, 1.0]


def test_the_default_tokenizer_knows_enough_words_of_most_concepts() -> None:
    _, tokenizer = load_model("topk_model/default", device="cpu")
    known = [concept for concept in CONCEPTS if len(concept.token_ids(tokenizer)) >= MIN_WORDS]
    assert len(known) >= 40
    assert len({concept.name for concept in CONCEPTS}) == len(CONCEPTS)
