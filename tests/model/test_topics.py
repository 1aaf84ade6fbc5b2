"""Which topic a paragraph is about, and what of it comes into the training set."""

import json
from pathlib import Path

import numpy as np

from topk_model.catalogue.build.texts import book_titles
from topk_model.training.data import DataConfig, load_data_tokenizer, passages, prepare, read_books
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
    expected = ["".join(f"{p}\n\n" for p in paragraphs) for paragraphs in topics.values()] * 2
    tokenizer = load_data_tokenizer(data_folder)
    behind = tokenizer.decode(train[len(plain) :]).split(tokenizer.eos_token)
    assert behind == [*expected, ""]

    assert json.loads((data_folder / "sources.json").read_text())["topics"] == []
    recorded = json.loads((tmp_path / "sources.json").read_text())["topics"]
    assert [(row["topic"], row["paragraphs"]) for row in recorded] == [(t, len(found)) for t, found in topics.items()]
    ends = np.flatnonzero(train == tokenizer.eos_token_id)
    titles = book_titles(tmp_path, train, tokenizer.eos_token_id, ends[-len(topics) :])
    assert titles == [f"paragraphs on {topic}" for topic in topics]
