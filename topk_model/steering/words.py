"""What a lever is asked for, as token ids: words, each of them whole, or one set of texts against another.

Needs no torch and knows no model.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Scripts that are written without spaces between words, as the names of their letters begin.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
#: Shortest text that an edit can change the probability of: the first token of three is never edited, and what it
#: predicts is not changed.
MIN_TEXT_TOKENS = 3
#: What a word is read after, to see which tokens it has inside a sentence.
ANCHOR = "a"


def word_ids(encode: Callable[[str], Sequence[int]], word: str) -> tuple[int, ...]:
    """The tokens of a word inside a sentence.

    Args:
        encode: token ids of a text, without special ones.
    """
    written, anchor = as_written(word), tuple(encode(ANCHOR))
    # Some tokenizers put a space of their own before a text, so the word is read after something.
    after = tuple(encode(ANCHOR + written))
    return after[len(anchor) :] if after[: len(anchor)] == anchor else tuple(encode(written))


def as_written(word: str) -> str:
    """A word as it stands inside a sentence: after a space, unless it begins with no letter or digit, or its script
    has no spaces."""
    first = word[:1]
    is_unspaced = unicodedata.name(first, "").startswith(UNSPACED)
    return f" {word}" if first.isalnum() and not is_unspaced else word


@dataclass(frozen=True, kw_only=True)
class WordTree:
    """Words as token ids, and a node for each beginning of a word of several tokens that must be read to predict on."""

    words: tuple[tuple[int, ...], ...]
    nodes: tuple[tuple[int, int], ...]  #: (parent or -1, token id)
    paths: tuple[tuple[int, ...], ...]  #: of each word: the node that predicts each of its tokens, -1 for the text

    @classmethod
    def of(cls, words: Sequence[Sequence[int]]) -> "WordTree":
        """A word that begins with another one of them is counted with that one, once.

        Raises:
            ValueError: a word has no token.
        """
        if not all(words):
            raise ValueError("a word has no token")
        distinct = sorted({tuple(word) for word in words})
        kept = [w for w in distinct if not any(w[:n] in distinct for n in range(1, len(w)))]
        index: dict[tuple[int, ...], int] = {}
        nodes: list[tuple[int, int]] = []
        paths = []
        for word in kept:
            path = [-1]
            for n in range(1, len(word)):
                beginning = word[:n]
                if beginning not in index:
                    index[beginning] = len(nodes)
                    nodes.append((path[-1], word[n - 1]))
                path.append(index[beginning])
            paths.append(tuple(path))
        return cls(words=tuple(kept), nodes=tuple(nodes), paths=tuple(paths))

    @property
    def depth(self) -> int:
        """Tokens of the longest word but its last."""
        return max(map(len, self.words)) - 1


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Token ids of texts that are to become likelier, and of others that are to become less likely."""

    towards: Sequence[Sequence[int]]  #: each with the beginning-of-text token, and two more at least
    away: Sequence[Sequence[int]]

    @property
    def can_be_held_out(self) -> bool:
        """Whether there are texts enough to find on some and measure on others."""
        return min(len(self.towards), len(self.away)) > 1

    def half(self, which: int) -> "Contrast":
        """Every second text: half 0 for finding, half 1 for measuring; all of them if there are too few."""
        if not self.can_be_held_out:
            return self
        return Contrast(towards=self.towards[which::2], away=self.away[which::2])
