"""`topk neurons`, as a person runs it."""

import json
from pathlib import Path

import pytest
from matplotlib import image

from service.cli import main
from topk_model.catalogue.reader import Catalogue
from topk_model.catalogue.show import example_line, texts_in


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["neurons", *map(str, arguments)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_page_shows_what_the_catalogue_knows(capsys: pytest.CaptureFixture[str], tiny_model_path: Path) -> None:
    page = shown(capsys, "--model", tiny_model_path, "--layer", 0, "--neuron", 3)
    known = Catalogue.open(tiny_model_path).neuron(0, 3)
    assert page.startswith("layer 0, neuron 3\n")
    assert f"{known.density:.2%} of positions" in page
    assert f"max {known.max:.2f}" in page
    for title, examples in (("fires most in", known.top_examples), ("strongest at", known.strongest_firings)):
        lines = page[page.index(f"{title}\n") :].splitlines()[1:]
        for line, example in zip(lines, examples, strict=False):
            assert line.startswith(f"{example.max:12.2f}  ")
            peak = example.tokens[example.peak].strip().replace("\n", "⏎")
            assert f"«{peak}»" in line


def test_a_page_shows_what_raising_the_neuron_brings(capsys: pytest.CaptureFixture[str], tiny_model_path: Path) -> None:
    catalogue = Catalogue.open(tiny_model_path)
    pages = (catalogue.neuron(0, neuron) for neuron in range(catalogue.facts.hidden_size))
    known = next(page for page in pages if page.steering is not None)
    assert known.steering is not None
    page = shown(capsys, "--model", tiny_model_path, "--layer", 0, "--neuron", known.neuron)
    assert f"best at {known.steering.in_units_of_max:g} x max, which adds {known.steering.value:.2f}" in page
    assert page.count(" x max: ") == len(known.steering.curve)
    assert page.index("raised ") < page.index("writes ")


def test_neurons_are_drawn_to_be_judged(
    capsys: pytest.CaptureFixture[str], tiny_model_path: Path, tmp_path: Path
) -> None:
    arguments = "--model", tiny_model_path, "--sample", 10, "--seed", 3
    said = shown(capsys, *arguments, "--output", tmp_path / "one")
    assert said.startswith("10 neurons: ")
    shown(capsys, *arguments, "--output", tmp_path / "again")
    for name in ("passages.json", "labels.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    passages, labels = (json.loads((tmp_path / "one" / name).read_text()) for name in ("passages.json", "labels.json"))
    assert [row["number"] for row in passages] == [row["number"] for row in labels] == list(range(1, 11))
    catalogue = Catalogue.open(tiny_model_path)
    for shown_of, row in zip(passages, labels, strict=True):
        known = catalogue.neuron(row["layer"], row["neuron"])
        assert set(shown_of) == {"number", "passages"}  # no label, and nothing to look it up by
        assert row["label"] == (known.label and known.label.text)
        assert len(shown_of["passages"]) == min(5, len(known.top_examples))
        for text, example in zip(shown_of["passages"], known.top_examples, strict=False):
            assert text.replace("«", "").replace("»", "") == "".join(example.tokens)
            assert f"«{example.tokens[example.peak].removeprefix(' ')}»" in text


def test_a_history_is_drawn(capsys: pytest.CaptureFixture[str], tiny_model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "history.png"
    shown(capsys, "--model", tiny_model_path, "--layer", 0, "--neuron", 3, "--plot", path)
    pixels = image.imread(path)
    assert pixels.shape[0] > 500
    assert pixels.std() > 0.05  # not a blank sheet


def test_a_list_is_filtered_and_ordered(capsys: pytest.CaptureFixture[str], tiny_model_path: Path) -> None:
    options = ("--model", tiny_model_path, "--layer", 1, "--order=-density", "--limit", 5)
    _, *rows, total = shown(capsys, *options).splitlines()
    assert total == "5 of 64 neurons"
    densities = [float(row.split()[2].rstrip("%")) for row in rows]
    assert densities == sorted(densities, reverse=True)
    assert {row.split()[0] for row in rows} == {"1"}
    assert shown(capsys, *options, "--step", 64).splitlines()[1:-1] != rows


def test_a_search_ranks_neurons_by_score(
    capsys: pytest.CaptureFixture[str], tiny_model_path: Path, tmp_path: Path
) -> None:
    for name, text in (("a", "The soldier went to the war\n\nthe war\n"), ("b", "abab abba\n")):
        (tmp_path / name).write_text(text)
    sides = ("--positive", tmp_path / "a", "--negative", tmp_path / "b")
    for task in (("--text", "The soldier went to the war"), sides):
        _, *rows = shown(capsys, "--model", tiny_model_path, *task, "--layer", 1, "--limit", 4).splitlines()
        assert len(rows) == 4
        scores = [float(row.split()[2]) for row in rows]
        assert scores == sorted(scores, reverse=True)
        assert {row.split()[0] for row in rows} == {"1"}
    known = Catalogue.open(tiny_model_path)
    options = ("--text", "The soldier went to the war", "--limit", 2, "--examples", 1)
    _, *rows = shown(capsys, "--model", tiny_model_path, *options).splitlines()
    for row, example in zip(rows[::2], rows[1::2], strict=True):
        layer, neuron = map(int, row.split()[:2])
        assert example == example_line(known.neuron(layer, neuron).top_examples[0])


def test_a_text_that_cannot_be_read_is_named_by_its_line(
    capsys: pytest.CaptureFixture[str], tiny_model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "good").write_text("war\n\npeace\u2028and war\r\n")
    (tmp_path / "long").write_text("war\n" + "war " * 2000)
    (tmp_path / "bytes").write_bytes(b"war \xff")
    options = ("neurons", "--model", str(tiny_model_path), "--positive", str(tmp_path / "good"), "--negative")
    assert texts_in(tmp_path / "good")[1] == (f"line 3 of {tmp_path / 'good'}: ", "peace\u2028and war")
    for name, says in (("long", f"line 2 of {tmp_path / 'long'}: text is "), ("bytes", "bytes is not UTF-8")):
        assert main([*options, str(tmp_path / name)]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--neuron", "3"), "--neuron needs --layer"),
        (("--layer", "9", "--neuron", "3"), "is not a TopK layer"),
        (("--layer", "9"), "is not a TopK layer"),
        (("--layer", "0", "--neuron", "64"), "0 to 63"),
        (("--layer", "0", "--neuron", "1", "--plot", "x"), "--plot must end in .png, not 'x'"),
        (("--limit", "1" + "0" * 22), "--limit: Input should be less than"),
        (("--plot", "x.png"), "--plot needs"),
        (("--positive", "x"), "must be given together"),
        (("--text", "a", "--label", "b"), "--label cannot be used with --text"),
        (("--examples", "2", "--label", "a"), "--examples needs"),
        (("--order", "size"), "token_entropy"),
        (("--step", "128"), "topk catalogue"),
        (("--positive", "/dev/null", "--negative", "/dev/null"), "contains no text"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], tiny_model_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert main(["neurons", "--model", str(tiny_model_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
