"""What is in the training set: short stories as documents of their own, easy books, and paragraphs by topic."""

import json
import lzma
import random
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import story as easy_text
from topk_model.catalogue.build.texts import document_names
from topk_model.training.books import passages, read_books
from topk_model.training.data import DataConfig, TokenWindows, load_data_tokenizer, prepare
from topk_model.training.stories import Story, common_share, common_words, read_stories, story_sets
from topk_model.training.topics import MAX_CHARS, MIN_WORDS, by_topic, topic_of, topic_words

WAR = "The soldiers fired their guns, and the enemy fell back from the fort."
SEA = "They hauled up the anchor, set the sails and left the harbour behind."


def test_the_list_has_war_and_no_word_that_cannot_be_met() -> None:
    topics = topic_words()
    assert {"war", "sea", "food", "money", "music", "illness"} <= set(topics)
    assert all(len(words) > MIN_WORDS for words in topics.values())
    assert all(
        word.isascii() and word.isalpha() and word == word.lower() for words in topics.values() for word in words
    )


def test_a_paragraph_is_about_the_topic_of_most_different_words() -> None:
    topics = topic_words()
    assert topic_of(WAR, topics) == "war"
    assert topic_of(SEA.upper(), topics) == "sea"
    assert topic_of(f"{WAR} They had come in a ship.", topics) == "war"
    assert topic_of("Guns and guns and guns and guns.", topics) is None  # a single word of it
    assert topic_of("", topics) is None
    assert topic_of(f"{WAR} {'Nobody knew why. ' * 80}", topics) is None  # too thin


def test_paragraphs_are_sorted_by_topic_the_same_way_every_time() -> None:
    given = [f"{text} {number}" for number in range(20) for text in (WAR, SEA, "Nobody came.")]
    found = by_topic([*given, f"{WAR} " * (MAX_CHARS // len(WAR) + 1)])
    assert list(found) == ["war", "sea"]
    assert sorted(found["war"]) == sorted(f"{WAR} {number}" for number in range(20))
    assert found["war"] != [f"{WAR} {number}" for number in range(20)]
    assert by_topic(given) == found


def test_they_come_behind_the_books_and_none_of_them_is_held_out(
    books: Path, data_folder: Path, tmp_path: Path
) -> None:
    prepare(DataConfig(source=books, output=tmp_path, tokenizer=data_folder, topic_passes=2))
    plain, train = np.load(data_folder / "train.npy"), np.load(tmp_path / "train.npy")
    assert train[: len(plain)].tolist() == plain.tolist()
    assert np.load(tmp_path / "validation.npy").tolist() == np.load(data_folder / "validation.npy").tolist()

    kept = [p for book in read_books(books) for held_out, run in passages(book) if not held_out for p in run]
    topics = by_topic(kept)
    expected = ["\n\n".join(paragraphs) for paragraphs in topics.values()] * 2
    tokenizer = load_data_tokenizer(data_folder)
    behind = tokenizer.decode(train[len(plain) :]).split(tokenizer.eos_token + tokenizer.bos_token)
    assert behind == [*expected, ""]

    assert json.loads((data_folder / "sources.json").read_text())["topics"] == []
    recorded = json.loads((tmp_path / "sources.json").read_text())["topics"]
    assert [(row["topic"], row["paragraphs"]) for row in recorded] == [(t, len(found)) for t, found in topics.items()]
    ends = np.flatnonzero(train == tokenizer.eos_token_id)
    names = document_names(tmp_path, "train", train, tokenizer.eos_token_id, ends[-len(topics) :])
    assert names == [f"paragraphs on {topic}" for topic in topics]


def as_story(text: str, set_key: str = "tinystories") -> Story:
    return Story.model_validate({"set": set_key, "text": text})


def write_stories(path: Path, rows: list[tuple[str, str]]) -> Path:
    """A file of stories, each with the key of its set."""
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"set": key, "source": "here", "text": text}) + "\n" for key, text in rows)
    return path


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with thirty stories of each set."""
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("stories") / "stories.jsonl.xz"
    return write_stories(path, [(one.key, easy_text(rng)) for one in story_sets() for _ in range(30)])


@pytest.fixture(scope="module")
def mixed(books: Path, stories: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of the stories and the books."""
    folder = tmp_path_factory.mktemp("mixed")
    prepare(DataConfig(source=books, stories=stories, output=folder, tokenizer=data_folder, topic_passes=0))
    return folder


def texts(folder: Path, split: str) -> list[str]:
    """The documents of a split, as the model reads them."""
    tokenizer = load_data_tokenizer(folder)
    joined = tokenizer.decode(np.load(folder / f"{split}.npy"))
    *documents, rest = joined.split(tokenizer.eos_token + tokenizer.bos_token)
    assert rest == ""
    return documents


def test_the_list_names_a_licence_and_an_address_for_every_set() -> None:
    sets = story_sets()
    assert len({one.key for one in sets}) == len(sets)
    assert all(one.licence and one.name and one.url.startswith("https://") and one.passes >= 0 for one in sets)
    assert sets[0].passes == max(one.passes for one in sets)


def test_stories_come_first_and_as_often_as_the_list_says(mixed: Path, stories: Path) -> None:
    found = read_stories(stories)
    expected = {
        split: [
            "\n\n".join(story.paragraphs)
            for one in story_sets()
            for _ in range(min(one.passes, 1) if is_held_out else one.passes)
            for story in found[one.key]
            if story.is_held_out == is_held_out
        ]
        for split, is_held_out in (("train", False), ("validation", True))
    }
    assert expected["validation"]
    for split, documents in expected.items():
        assert texts(mixed, split)[: len(documents)] == documents
    assert not set(expected["train"]) & set(expected["validation"])


def test_a_window_begins_where_a_story_does_or_where_the_last_window_ended(mixed: Path) -> None:
    tokenizer = load_data_tokenizer(mixed)
    num_stories = sum(
        row["passes"] * row["stories"] for row in json.loads((mixed / "sources.json").read_text())["stories"]
    )
    data = TokenWindows.load(mixed, "train", 96, tokenizer.bos_token_id)
    ends = np.flatnonzero(np.asarray(data.tokens) == tokenizer.eos_token_id)
    begins = {0, *(ends + 2).tolist()}
    in_stories = [at for at in data.offsets.tolist() if at < ends[num_stories * 9 // 10]]
    gaps = dict(zip(in_stories[1:], np.diff(in_stories).tolist(), strict=True))
    assert all(at in begins or gap == data.length for at, gap in gaps.items())
    assert any(at in begins for at in in_stories[1:])


def test_every_document_has_its_name_and_its_licence(mixed: Path, books: Path) -> None:
    tokenizer = load_data_tokenizer(mixed)
    titles = {book.title for book in read_books(books)}
    licensed = {f"{one.name}, {one.licence}" for one in story_sets() if one.passes}
    for split in ("train", "validation"):
        tokens = np.load(mixed / f"{split}.npy")
        ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
        names = document_names(mixed, split, tokens, tokenizer.eos_token_id, ends)
        assert set(names) <= titles | licensed
        assert names[0] == f"{story_sets()[0].name}, {story_sets()[0].licence}"
        assert names[-1] in titles


def test_paragraphs_are_lines_that_hold_something() -> None:
    assert as_story(" One day,\n\n\n  it  rained. \n").paragraphs == ["One day,", "it rained."]


def test_books_of_too_few_common_words_are_left_out(books: Path, tmp_path: Path) -> None:
    path = write_stories(tmp_path / "stories.jsonl.xz", [(one.key, "A cat sat.") for one in story_sets()])
    options = {"source": books, "stories": path, "output": tmp_path / "data", "min_reading_ease": 0.0}
    with pytest.raises(ValueError, match=r"a share of common words of 0\.5 or more"):
        prepare(DataConfig.model_validate(options | {"min_common_share": 0.5}))


def test_common_words_are_those_used_most() -> None:
    common = common_words([as_story("The cat sat. The cat's hat!")])
    assert common == {"the", "cat", "sat", "cat's", "hat"}
    assert common_share("THE dog sat", common) == pytest.approx(2 / 3)
    assert common_share("", common) == 0.0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"set": "tinystories"}\n', "line 1 of .* Field required"),
        (b'{"set": "tinystories", "text": 5}\n', "line 1 of .* valid string"),
        (b'{"set": "mine", "text": "x"}\n', "line 1 of .* has the set 'mine', must have one of tinystories, "),
        (b'{"set": "tinystories", "text": "x"}\n', "has no stories of the sets african_storybook, "),
    ],
)
def test_a_file_that_is_none_of_stories_is_told(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_stories(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(content)[:30])
    with pytest.raises(ValueError, match=r"a\.jsonl"):
        read_stories(tmp_path / "a.jsonl.xz")


def test_a_source_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_stories(tmp_path / "none.jsonl")
