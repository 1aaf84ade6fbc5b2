"""`topk lever`, as a person runs it."""

from pathlib import Path

import pytest
from matplotlib import image

from service.cli import main
from topk_model.catalogue.reader import Catalogue

pytestmark = pytest.mark.long

FEW = ("--max-cost", 0.5, "--limit", 2, "--device", "cpu")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["lever", *map(str, arguments)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["lever", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_levers_are_shown_with_labels_texts_and_a_picture(
    capsys: pytest.CaptureFixture[str], tiny_model_path: Path, tmp_path: Path
) -> None:
    picture, model = tmp_path / "levers.png", ("--model", tiny_model_path)
    shown = run(capsys, *model, *FEW, "--words", "war,soldier", "--prompt", "Once upon", "--plot", picture)
    plain, head, *rows = shown.splitlines()
    assert plain.startswith("plain model: log-odds -")
    assert head.split()[:4] == ["layer", "neuron", "value", "x"]
    layer, neuron, value, multiple = rows[0].split()[:4]
    catalogue = Catalogue.open(tiny_model_path)
    largest = catalogue.maximum(int(layer), int(neuron))
    assert multiple == ("-" if largest is None else f"{float(value) / largest:.2f}")
    assert rows[0].endswith(catalogue.labels([(int(layer), int(neuron))])[0] or "-")
    assert "\nplain     Once upon" in shown
    assert f"\n{layer}/{neuron}".ljust(11) + "Once upon" in shown
    pixels = image.imread(picture)
    assert pixels.shape[0] > 300
    assert pixels.std() > 0.05  # not a blank sheet


def test_words_that_nothing_moves_show_what_was_tried(
    capsys: pytest.CaptureFixture[str], tiny_model_path: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "levers.png"
    shown = run(capsys, "--model", tiny_model_path, "--words", "qzxjkvwqqzx", "--max-cost", 0.01, "--plot", picture)
    assert "No neuron moves this; 12 were tried" in shown
    assert len(shown.splitlines()) == 3 + 12
    assert not picture.exists()


def test_texts_come_from_files(capsys: pytest.CaptureFixture[str], tiny_model_path: Path, tmp_path: Path) -> None:
    towards, away = tmp_path / "towards.txt", tmp_path / "away.txt"
    towards.write_text("the war the war the war\n\nwar and war and war\n")
    away.write_text("Once upon a time\nthe king said\n")
    shown = run(capsys, "--model", tiny_model_path, *FEW, "--towards", towards, "--away", away)
    assert shown.startswith("plain model: log-odds")
    away.write_text("a")
    refused = refusal(capsys, "--model", tiny_model_path, "--towards", towards, "--away", away)
    assert f"line 1 of {away}: 2 tokens, must be between 3 and 256" in refused


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "either --words or --towards"),
        (("--words", "war", "--towards", "x", "--away", "y"), "either --words or --towards"),
        (("--towards", "x"), "go together"),
        (("--words", "war, "), "blank word"),
        (("--words", "war", "--plot", "levers.pdf"), "must end in .png"),
        (("--words", "war", "--max-cost", "0"), "--max-cost"),
        (("--words", "war" * 300), "must be at most 128"),
    ],
)
def test_what_cannot_be_done_is_refused(
    capsys: pytest.CaptureFixture[str], tiny_model_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert says in refusal(capsys, "--model", tiny_model_path, *arguments)
