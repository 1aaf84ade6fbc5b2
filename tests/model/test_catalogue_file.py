"""Catalogues as files: how they are made, listed and compared, and which are refused."""

import json
import shutil
import sqlite3
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from service.cli import main
from tests.support.catalogued import build, catalogue_arguments
from topk_model.catalogue.file import CATALOGUE_FILE, FORMAT_VERSION, Row, pack, unpack, write_catalogue
from topk_model.catalogue.history import RunCatalogues, history, jaccard
from topk_model.catalogue.reader import ORDERS, Catalogue, NeuronQuery
from topk_model.checkpoints import load_model
from topk_model.model_folder import weights_digest

LAYERS, HIDDEN, K = 2, 32, 6


@pytest.fixture(scope="module")
def catalogue(catalogued_model: Path) -> Catalogue:
    return Catalogue.open(catalogued_model)


def test_a_catalogue_depends_on_its_options_alone(catalogued_model: Path, data_folder: Path, tmp_path: Path) -> None:
    build(catalogued_model, data=data_folder, output=tmp_path / "again", steps="64")
    again = tmp_path / "again" / "checkpoints" / "step-64" / CATALOGUE_FILE
    assert again.read_bytes() == (catalogued_model / "checkpoints" / "step-64" / CATALOGUE_FILE).read_bytes()


def test_a_catalogue_names_what_it_was_made_from(catalogue: Catalogue, catalogued_model: Path) -> None:
    facts = catalogue.facts
    assert (facts.k, facts.select, facts.hidden_size, facts.layers) == (K, "signed", HIDDEN, (0, 1))
    assert (facts.step, facts.format_version) == (140, FORMAT_VERSION)
    early = Catalogue.open(catalogued_model / "checkpoints" / "step-64")
    assert early.facts.step == 64
    assert early.facts.texts == facts.texts
    assert early.facts.weights != facts.weights
    fields = set(asdict(catalogue.neuron(0, 0))) - {"layer", "neuron"}
    assert fields <= facts.definitions.keys()
    assert "log2" in facts.definitions["token_entropy"]
    assert "Z(w, v)" in facts.definitions["semantic_entropy"]


@pytest.fixture
def copy(catalogued_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(catalogued_model, tmp_path / "copy"))


def test_a_model_without_a_catalogue_is_told_how_to_get_one(copy: Path) -> None:
    (copy / CATALOGUE_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="topk catalogue"):
        Catalogue.open(copy)


def test_a_catalogue_of_other_weights_is_refused(copy: Path) -> None:
    shutil.copy(copy / "checkpoints" / "step-64" / CATALOGUE_FILE, copy / CATALOGUE_FILE)
    with pytest.raises(ValueError, match="other weights"):
        Catalogue.open(copy)


def test_a_catalogue_of_another_format_is_refused(copy: Path) -> None:
    with sqlite3.connect(copy / CATALOGUE_FILE) as database:
        [blob] = database.execute("SELECT value FROM facts WHERE name = 'facts'").fetchone()
        other = pack(unpack(blob) | {"format_version": FORMAT_VERSION + 1})
        database.execute("UPDATE facts SET value = ? WHERE name = 'facts'", (other,))
    with pytest.raises(ValueError, match=f"format {FORMAT_VERSION + 1}"):
        Catalogue.open(copy)


def test_a_catalogue_of_the_format_before_is_read(copy: Path) -> None:
    before = Catalogue.open(copy)
    with sqlite3.connect(copy / CATALOGUE_FILE) as database:
        [blob] = database.execute("SELECT value FROM facts WHERE name = 'facts'").fetchone()
        database.execute(
            "UPDATE facts SET value = ?  WHERE name = 'facts'", (pack(unpack(blob) | {"format_version": 3}),)
        )
        for number, page in database.execute("SELECT id, page FROM neurons").fetchall():
            kept = {name: value for name, value in unpack(page).items() if name != "steering"}
            database.execute("UPDATE neurons SET page = ? WHERE id = ?", (pack(kept), number))
        database.execute("ALTER TABLE neurons DROP COLUMN also_in")
    after = Catalogue.open(copy)
    query = NeuronQuery(order="-score", limit=5)
    summaries = [replace(one, also_in=()) for one in before.neurons(query)[0]]
    assert after.neurons(query)[0] == summaries
    place = summaries[0].layer, summaries[0].neuron
    assert after.neuron(*place) == replace(before.neuron(*place), steering=None, also_in=())


@pytest.mark.parametrize("damage", ["cut", "zeroed", "text", "empty", "no facts"])
def test_a_damaged_catalogue_is_refused(copy: Path, damage: str) -> None:
    path = copy / CATALOGUE_FILE
    content = path.read_bytes()
    if damage == "no facts":
        with sqlite3.connect(path) as database:
            database.execute("DELETE FROM facts")
    else:
        middle = len(content) // 2
        path.write_bytes(
            {
                "cut": content[:middle],
                "zeroed": content[:40_000] + bytes(60_000) + content[100_000:],
                "text": b"this is no catalogue",
                "empty": b"",
            }[damage]
        )
    with pytest.raises(ValueError, match="is damaged"):
        Catalogue.open(copy)


def test_a_folder_with_any_name_can_be_opened(copy: Path) -> None:
    odd = copy.rename(copy.parent / "100% odd?#&=;name")
    assert Catalogue.open(odd).facts.step == 140


def test_a_failed_build_leaves_what_was_there(
    copy: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copy / CATALOGUE_FILE).read_bytes()
    weights = copy / "model.safetensors"
    tensors = load_model(copy, device="cpu")[0]
    with torch.no_grad():
        tensors.model.layers[0].mlp.down_proj.weight.fill_(1e30)
        tensors.model.layers[0].mlp.up_proj.weight.fill_(1e30)
    weights.unlink()
    tensors.save_pretrained(copy)
    assert main(catalogue_arguments(copy, data=data_folder)) == 2
    assert "has activations that are not finite" in capsys.readouterr().err
    assert (copy / CATALOGUE_FILE).read_bytes() == before
    assert list(copy.glob("*.new")) == []


def everything(catalogue: Catalogue, **query: object) -> list[tuple[int, int]]:
    found, total = catalogue.neurons(NeuronQuery(limit=1000, **query))
    assert total == len(found)
    return [(summary.layer, summary.neuron) for summary in found]


def test_a_list_shows_what_the_pages_show(catalogue: Catalogue) -> None:
    summaries, total = catalogue.neurons(NeuronQuery(limit=1000))
    assert total == len(summaries) == LAYERS * HIDDEN
    for summary in summaries:
        page = catalogue.neuron(summary.layer, summary.neuron)
        for name in ("density", "max", "mean", "token_entropy", "semantic_entropy", "is_dead"):
            assert getattr(summary, name) == getattr(page, name)
        assert summary.label == (page.label and page.label.text)
        assert summary.score == (page.label and page.label.score)
        assert summary.top_tokens == tuple(top.token for top in page.top_tokens[:5])


def test_a_list_is_filtered(catalogue: Catalogue) -> None:
    pages = [catalogue.neuron(layer, neuron) for layer in range(LAYERS) for neuron in range(HIDDEN)]
    where = lambda test: [(page.layer, page.neuron) for page in pages if test(page)]  # noqa: E731
    assert everything(catalogue, layer=1) == where(lambda page: page.layer == 1)
    assert everything(catalogue, min_density=0.1) == where(lambda page: page.density >= 0.1)
    assert everything(catalogue, max_density=0.1) == where(lambda page: page.density <= 0.1)
    assert everything(catalogue, is_dead=True) == where(lambda page: page.is_dead)
    assert everything(catalogue, is_dead=False, layer=0) == where(lambda page: not page.is_dead and page.layer == 0)
    low = everything(catalogue, max_token_entropy=3.0)
    assert low == where(lambda page: page.token_entropy is not None and page.token_entropy <= 3)
    assert 0 < len(low) < len(pages)
    high = everything(catalogue, min_token_entropy=3.0)
    assert high == where(lambda page: page.token_entropy is not None and page.token_entropy >= 3)


@pytest.mark.parametrize("order", ORDERS)
def test_a_list_is_ordered_either_way_with_the_unknown_last(catalogue: Catalogue, order: str) -> None:
    for name, is_falling in ((order, False), (f"-{order}", True)):
        found, _ = catalogue.neurons(NeuronQuery(limit=1000, order=name))
        values = [getattr(summary, order) for summary in found]
        known = [value for value in values if value is not None]
        assert known == sorted(known, reverse=is_falling)
        assert values[len(known) :] == [None] * (len(values) - len(known))


def test_pages_of_a_list_make_up_the_whole(catalogue: Catalogue) -> None:
    whole, _ = catalogue.neurons(NeuronQuery(limit=1000, order="-density"))
    parts = []
    for offset in range(0, 70, 7):
        found, total = catalogue.neurons(NeuronQuery(limit=7, offset=offset, order="-density"))
        assert total == len(whole)
        parts += found
    assert parts == whole


@pytest.mark.parametrize("fields", [{"order": "page"}, {"order": "density; DROP TABLE neurons"}, {"limit": -1}])
def test_an_impossible_query_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is"):
        NeuronQuery(**fields)


@pytest.mark.parametrize(("layer", "neuron"), [(2, 0), (-1, 0), (0, 32), (0, -1)])
def test_a_neuron_that_is_not_there_is_named(catalogue: Catalogue, layer: int, neuron: int) -> None:
    for ask in (catalogue.neuron, catalogue.maximum, catalogue.top_positions):
        with pytest.raises(IndexError, match=r"^(layer|neuron) -?\d+ is"):
            ask(layer, neuron)


def test_words_are_found_in_labels_and_in_what_neurons_fire_on(catalogue: Catalogue) -> None:
    summaries, _ = catalogue.neurons(NeuronQuery(limit=1000))
    labelled = next(
        summary for summary in summaries if summary.label and any(map(str.isalpha, summary.label.split(", ")))
    )
    word = next(part for part in labelled.label.split(", ") if part.isalpha())
    assert (labelled.layer, labelled.neuron) in everything(catalogue, label=word)
    assert (labelled.layer, labelled.neuron) in everything(catalogue, label=word.upper())
    assert everything(catalogue, label=f"{word} xyzzyx") == []
    ships = everything(catalogue, label="ships")  # the stem
    assert ships == everything(catalogue, label="ship")
    assert ships


QUERIES = (
    '"',
    "'",
    "AND",
    "NOT ship",
    "ship*",
    "label:ship",
    "(ship",
    "ship OR",
    "NEAR(a b)",
    "-",
    "",
    "!?",
    "\x00",
    "é\u2028",
)


@pytest.mark.parametrize("text", QUERIES)
def test_nothing_in_a_search_is_syntax(catalogue: Catalogue, text: str) -> None:
    found, total = catalogue.neurons(NeuronQuery(label=text))
    assert len(found) <= total <= LAYERS * HIDDEN


HOSTILE = (
    "'; DROP TABLE neurons; --",
    '"quoted" AND',
    "line\nbreak",
    "\u2028",
    "<script>",
    "\x00",
    "€😀",
    "\ufffd",
    "",
)


def test_hostile_strings_survive(catalogue: Catalogue, catalogued_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(catalogued_model / "model.safetensors", folder)
    pages = {
        "quantiles": {}, "range": [0, 1], "counts": [1], "positions": [0], "related": [], "logits": [[[0, 1.0]], []],
        "ablation": None, "steering": None, "evidence": list(HOSTILE),
        "top_tokens": [[i, 1, 0.1, 1.0] for i in range(len(HOSTILE))],
        "passages": [{"ids": [1, 2], "activations": [0.0, 1.5], "peak": 1, "source": HOSTILE[0], "text": HOSTILE[1]}],
        "strongest": [],
    }  # fmt: skip
    columns = {
        "layer": 0, "density": 0.5, "rate": 0.5, "early_rate": 0.5, "max": 1.0, "mean": 1.0, "token_entropy": 1.0,
        "semantic_entropy": 1.0, "label_source": "automatic", "label_score": 0.5,
        "top_tokens": json.dumps([0, 1]), "also_in": "[]",
    }  # fmt: skip
    rows = [
        Row(columns=columns | {"neuron": neuron, "label": label}, page=pages, words=HOSTILE)
        for neuron, label in enumerate(HOSTILE)
    ]
    facts = asdict(catalogue.facts) | {"layers": [0], "hidden_size": len(HOSTILE), "weights": weights_digest(folder)}
    write_catalogue(folder / CATALOGUE_FILE, facts, HOSTILE, [1] * len(HOSTILE), [], rows)
    read = Catalogue.open(folder)
    assert read.tokens == HOSTILE
    assert read.labels([(0, neuron) for neuron in range(len(HOSTILE))]) == list(HOSTILE)
    for neuron, label in enumerate(HOSTILE):
        page = read.neuron(0, neuron)
        assert page.label is not None
        assert (page.label.text, page.label.evidence) == (label, HOSTILE)
        assert tuple(top.token for top in page.top_tokens) == HOSTILE
        assert page.top_examples[0].tokens == HOSTILE[1:3]
        assert (page.top_examples[0].text, page.top_examples[0].source) == (HOSTILE[1], HOSTILE[0])
    found, _ = read.neurons(NeuronQuery(label="drop table"))
    assert len(found) == len(HOSTILE)


def test_a_history_follows_a_neuron_over_checkpoints_and_layers(catalogued_model: Path, catalogue: Catalogue) -> None:
    layer, neuron = 1, int(catalogue.densities[1].argmax())
    found = history(catalogued_model, layer, neuron)
    assert [stage.step for stage in found.checkpoints] == [64, 128, 140]
    assert [stage.layer for stage in found.layers] == [0, 1]
    final = catalogue.neuron(layer, neuron)
    for stage in (found.checkpoints[-1], found.layers[layer]):
        assert (stage.example_overlap, stage.token_overlap) == (1.0, 1.0)
        assert (stage.density, stage.max, stage.token_entropy) == (final.density, final.max, final.token_entropy)
    early = Catalogue.open(catalogued_model / "checkpoints" / "step-64")
    first = found.checkpoints[0]
    assert first.density == early.neuron(layer, neuron).density
    positions = [c.top_positions(layer, neuron) for c in (early, catalogue)]
    count = min(map(len, positions))
    assert first.example_overlap == jaccard(*(which[:count] for which in positions))
    tokens = [{top.token_id for top in c.neuron(layer, neuron).top_tokens[:10]} for c in (early, catalogue)]
    assert first.token_overlap == len(tokens[0] & tokens[1]) / len(tokens[0] | tokens[1])


def test_a_history_leaves_out_checkpoints_without_a_catalogue(copy: Path) -> None:
    (copy / "checkpoints" / "step-64" / CATALOGUE_FILE).unlink()
    (copy / "training.json").unlink()
    run = RunCatalogues.open(copy)
    steps = [stage.step for stage in run.history(0, 0).checkpoints]
    assert steps == [128, 140]  # the final model's step stands in its catalogue
    with pytest.raises(IndexError, match="layer 5"):
        run.history(5, 0)


def test_examples_of_other_texts_are_not_compared(copy: Path, data_folder: Path) -> None:
    build(copy, data=data_folder, steps="64", seed=1)
    stage = history(copy, 0, 0).checkpoints[0]
    assert stage.example_overlap is None
    assert stage.token_overlap is not None


def story_file(path: Path) -> Path:
    texts = [f"The ship number {i} sailed over the sea. Tom – and Zoë – saw it. " * 12 for i in range(40)]
    rows = [{"text": text, "title": f"Voyage {i}"} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_ones_own_will_do(copy: Path, tmp_path: Path) -> None:
    build(copy, text=story_file(tmp_path / "voyages.jsonl"), tokens=3000, steps="64")
    read = Catalogue.open(copy / "checkpoints" / "step-64")
    assert read.facts.num_held_out_tokens > 0
    examples = [example for neuron in range(HIDDEN) for example in read.neuron(0, neuron).top_examples]
    assert all(example.source.startswith("Voyage") for example in examples)
    dashed = [example.text for example in examples if "Zo" in example.text]
    assert any("Zoë –" in text for text in dashed)  # characters of several tokens are whole


def test_a_model_that_selects_by_magnitude_is_measured_by_it(copy: Path, data_folder: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"topk_select": "abs"}))
    assert main([*catalogue_arguments(copy, data=data_folder), "--no-checkpoints"]) == 0
    read = Catalogue.open(copy)
    assert read.facts.select == "abs"
    pages = [read.neuron(0, neuron) for neuron in range(HIDDEN)]
    assert all(page.is_dead or page.mean > 0 for page in pages)
    assert any(activation < 0 for page in pages for example in page.top_examples for activation in example.activations)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nowhere"}, "nowhere is not a folder"),
        ({"steps": "65"}, "has no checkpoint of step 65"),
        ({"data": "nowhere"}, "make it with: topk data"),
        ({"text": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"tokens": "10"}, "tokens"),
    ],
)
def test_what_cannot_be_built_is_told(
    options: dict[str, object],
    message: str,
    catalogued_model: Path,
    data_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fields = {"data": data_folder} | options
    assert main(catalogue_arguments(Path(str(fields.pop("model", catalogued_model))), **fields)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"too short", "but needs at least 10"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"tex": 1}\n', "line 2"),
        ("a.jsonl", b'{"text": 1}\n', "text must be a string"),
        ("a.jsonl", b"[]\n", "line 1"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(
    name: str, content: bytes, message: str, catalogued_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert main(catalogue_arguments(catalogued_model, text=path)) == 2
    assert message in capsys.readouterr().err


def test_a_dense_model_has_no_neurons_to_list(
    copy: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"n_nontopk": config["num_hidden_layers"]}))
    assert main(catalogue_arguments(copy, data=data_folder)) == 2
    assert "has no TopK layer" in capsys.readouterr().err
