"""Everyday topics, and the paragraphs of books that are about one of them. Knows no model.

In prose, a topic such as war is rare: one word in ten thousand. Paragraphs on one topic from all books, one after the
other, form a text in which the topic lasts long enough for a neuron that stands for it to be useful to a model.
"""

import csv
import random
import re
from collections.abc import Iterable
from importlib.resources import files

#: A paragraph is about a topic if it contains this many different words of it, more than of any other topic,
MIN_WORDS = 3
#: and at least one of them per this many of its words.
WORDS_PER_TOPIC_WORD = 40
#: Longer paragraphs are about more than one thing.
MAX_CHARS = 1200


def topic_words() -> dict[str, frozenset[str]]:
    """The words of each topic, from `topics.tsv`."""
    lines = files("topk_model.training").joinpath("topics.tsv").read_text(encoding="utf-8").splitlines()
    return {row["topic"]: frozenset(row["words"].split()) for row in csv.DictReader(lines, delimiter="\t")}


def topic_of(paragraph: str, topics: dict[str, frozenset[str]]) -> str | None:
    """The topic of a paragraph: the one of which it contains the most different words, or None."""
    words = re.findall(r"[a-z]+", paragraph.lower())
    distinct = set(words)
    topic = max(topics, key=lambda name: len(distinct & topics[name]))
    count = len(distinct & topics[topic])
    return topic if count >= MIN_WORDS and count * WORDS_PER_TOPIC_WORD >= len(words) else None


def by_topic(paragraphs: Iterable[str]) -> dict[str, list[str]]:
    """The paragraphs that are about a topic, by topic, each topic's in an order that depends only on them.

    A topic without paragraphs is left out.
    """
    topics = topic_words()
    found: dict[str, list[str]] = {topic: [] for topic in topics}
    for paragraph in paragraphs:
        if len(paragraph) <= MAX_CHARS and (topic := topic_of(paragraph, topics)):
            found[topic].append(paragraph)
    for chosen in found.values():
        random.Random(0).shuffle(chosen)
    return {topic: chosen for topic, chosen in found.items() if chosen}
