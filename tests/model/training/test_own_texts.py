"""Training data from anybody's texts: folders and files of several kinds, and their licence on the card."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import story
from tests.support.tiny_run import train_config
from topk_model.release.ship import ShipConfig, ship
from topk_model.training.data import DataConfig, load_data_tokenizer, prepare
from topk_model.training.own_texts import OwnText, paragraphs_of, read_texts, split
from topk_model.training.train import train

RNG = random.Random(1)
STORIES = [story(RNG) for _ in range(30)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with each kind of file."""
    folder = tmp_path / "texts"
    (folder / "below").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbf" + STORIES[0].replace("\n", "\r\n").encode())
    (folder / "below" / "b.md").write_text(STORIES[1])
    (folder / "c.jsonl").write_text(
        "\n".join([json.dumps({"title": f"Story {i}", "text": STORIES[i]}) for i in range(2, 16)] + ["", "  "]) + "\n"
    )
    rows = {"text": [*STORIES[16:], None, " "], "n": list(range(16))}
    pq.write_table(pa.table(rows), folder / "d.parquet")
    (folder / ".hidden.txt").write_text("not to be read")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


def test_every_kind_of_file_is_read(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(read_texts(texts, "text"))
    assert "1 files in" in capsys.readouterr().out  # the picture
    assert [one.title for one in found] == [
        "a.txt", "below/b.md", *(f"Story {i}" for i in range(2, 16)), *["d.parquet"] * 14
    ]  # fmt: skip
    assert found[0].text.replace("\r\n", "\n") == STORIES[0]
    assert [one.text for one in found[1:]] == STORIES[1:]


@pytest.mark.parametrize("name", ["a.txt", "below/b.md", "c.jsonl", "d.parquet"])
def test_one_file_is_enough(texts: Path, name: str, tmp_path: Path) -> None:
    config = DataConfig(texts=texts / name, licence="CC0", output=tmp_path / "data", vocab_size=300)
    prepare(config)
    tokenizer = load_data_tokenizer(tmp_path / "data")
    for part in ("train", "validation"):
        text = tokenizer.decode(np.load(tmp_path / "data" / f"{part}.npy"), skip_special_tokens=True)
        assert "\r" not in text
        assert len(text) > 50


def test_a_model_of_own_texts_says_so_on_its_card(texts: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare(DataConfig(texts=texts, licence="CC-BY-4.0, by me", output=data, vocab_size=320))
    train(train_config(data, tmp_path / "run", steps=3))
    ship(ShipConfig(run=tmp_path / "run", device="cpu", samples=0))
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "30 documents of `texts`" in card
    assert "Licence: CC-BY-4.0, by me." in card
    assert "license: other" in card
    assert "held out of the same texts" in card
    assert "book" not in card.split("## Training")[0]
    sources = json.loads((data / "sources.json").read_text())
    assert {row["licence"] for split in sources["documents"].values() for row in split} == {"CC-BY-4.0, by me"}


def test_what_is_held_out_follows_from_the_texts_alone_and_holds_a_share() -> None:
    texts = list(map(_text, STORIES))
    runs, again = split(texts), split(texts[::-1])[::-1]
    assert runs == again
    held_out = sum(len("".join(run)) for document in runs for is_held, run in document if is_held)
    total = sum(map(len, STORIES))
    assert 0.05 < held_out / total < 0.2  # of few texts a tenth
    assert all("\n\n".join(p for _, run in runs[i] for p in run) == STORIES[i] for i in range(30))


def _text(text: str) -> OwnText:
    return OwnText(title="", text=text)


def test_lines_are_paragraphs_where_nothing_is_blank_and_long_ones_are_cut() -> None:
    assert paragraphs_of("a\nb\n\n\nc\n", 100) == ["a\nb", "c"]
    assert paragraphs_of("a\nb\n", 100) == ["a", "b"]
    cut = paragraphs_of("word " * 1000, 100)
    assert all(len(piece) <= 200 for piece in cut)
    assert " ".join(cut).split() == ["word"] * 1000
    assert max(map(len, paragraphs_of("x" * 1000, 100))) == 200


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.pdf", b"", r"must be a folder or end in one of \.txt, \.md, \.jsonl, \.parquet"),
        ("a.txt", b"\xff\xfe", "a.txt is not UTF-8"),
        ("a.txt", b"  \n ", "too few to hold some out"),
        ("a.jsonl", b'{"text": "a"}\n{\n', "line 2 of .*a.jsonl is not valid JSON"),
        ("a.jsonl", b'{"body": "a"}\n', "line 1 of .* must be an object with a string in 'text'"),
        ("a.jsonl", b'{"text": "half \\ud800"}\n', "line 1 of .* is not valid Unicode"),
        ("a.parquet", b"PAR1", "a.parquet is not a Parquet file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        prepare(DataConfig(texts=tmp_path / name, licence="CC0", output=tmp_path / "data", vocab_size=300))
    assert not (tmp_path / "data").exists()


def test_a_missing_column_is_named_beside_those_that_are_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has no column 'text'; it has body, n"):
        list(read_texts(tmp_path / "a.parquet", "text"))
    assert [one.text for one in read_texts(tmp_path / "a.parquet", "body")] == ["a"]
    with pytest.raises(ValueError, match=r"row 1 of .* has no string in 'n'"):
        list(read_texts(tmp_path / "a.parquet", "n"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="contains no file that ends in one of"):
        list(read_texts(tmp_path / "empty", "text"))
