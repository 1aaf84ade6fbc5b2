"""The words that a label may name, how it writes them, and the texts as the rules see them. Knows no neuron."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topk_model.catalogue.build.kinds import (
    FUNCTION_WORDS,
    KINDS,
    Layout,
    is_name,
    kinds_of_places,
    kinds_of_words,
)
from topk_model.catalogue.build.rules import Passage
from topk_model.catalogue.build.texts import Texts
from topk_model.catalogue.build.words import Vocabulary

#: A rarer word is no candidate.
MIN_COUNT = 5
#: What the information of a piece of a longer word is worth: a rare piece says less than a word as rare.
PIECE_INFORMATION = 0.5
NAMES = KINDS.index("names")
#: Where a capital says nothing of a word.
STARTS = [KINDS.index(kind) for kind in ("sentence starts", "starts of speech", "starts of paragraphs")]


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """The vocabulary, as labels know it."""

    written: tuple[str, ...]  # [words]: as each mostly stands inside sentences
    is_content: NDArray[np.bool_]  # [words]: words that say something by themselves
    is_function: NDArray[np.bool_]  # [words]: those of which a label puts each in quotes
    pieces: tuple[str, ...]  # [pieces]: of longer words, with dashes where the word goes on


@dataclass(frozen=True, kw_only=True)
class SplitText:
    """A text with its words."""

    texts: Texts
    words: NDArray[np.int32]  # number of the word at each position; -1: not in the vocabulary
    begins: NDArray[np.int64]  # where that word begins
    information: NDArray[np.float64]  # of each position's token; 0 if it is not counted


def prepare(
    vocabulary: Vocabulary, tokens: Sequence[str], shown: SplitText, held_out: SplitText
) -> tuple[Lexicon, Passage, Passage]:
    """The lexicon of the text that is shown, and both texts as passages.

    Args:
        tokens: the text of every token id.
    """
    of_words = kinds_of_words(vocabulary.names)
    passages = [passage(one, tokens, of_words) for one in (shown, held_out)]
    first = shown.begins == np.arange(len(shown.words))
    usable = first & (shown.words >= 0) & shown.texts.is_counted
    inside = usable & ~passages[0].kinds[:, STARTS].any(1)
    ids = shown.texts.ids.tolist()
    is_word = np.array([name.replace("'", "").isalpha() and len(name) > 1 for name in vocabulary.names], dtype=bool)
    named = is_word & is_name([tokens[i].strip() for i in ids], inside, shown.words, len(vocabulary.names))
    for one in passages:
        one.kinds[:, NAMES] = np.where(one.words >= 0, named[one.words], False) & (one.information > 0)

    forms: dict[int, Counter[str]] = defaultdict(Counter)
    starts = np.flatnonzero(first)
    for begin, end in zip(starts.tolist(), [*starts[1:].tolist(), len(ids)], strict=True):
        if inside[begin]:
            forms[int(shown.words[begin])]["".join(tokens[i] for i in ids[begin:end]).strip()] += 1
    written = [forms[i].most_common(1)[0][0] if i in forms else name for i, name in enumerate(vocabulary.names)]
    is_known = np.bincount(shown.words[usable], minlength=len(vocabulary.names)) >= MIN_COUNT
    function = {word for listed in FUNCTION_WORDS.values() for word in listed.split()}
    is_function = np.array([name in function for name in vocabulary.names], dtype=bool)
    return (
        Lexicon(
            written=tuple(written),
            is_content=is_word & is_known & ~is_function,
            is_function=is_function & is_known,
            pieces=tuple(written_piece(token, is_first=i < len(tokens)) for i, token in enumerate([*tokens, *tokens])),
        ),
        passages[0],
        passages[1],
    )


def passage(text: SplitText, tokens: Sequence[str], of_words: NDArray[np.bool_]) -> Passage:
    layout = Layout.of(text.texts, text.begins)
    kinds = kinds_of_places(text.texts, layout, tokens, text.words, of_words)
    is_first, is_last = first_and_last(text.begins)
    is_piece = (
        ~(is_first & is_last) & np.array([token.strip().isalpha() for token in tokens], dtype=bool)[text.texts.ids]
    )
    information = np.where(is_piece, PIECE_INFORMATION, 1) * text.information
    pieces = np.where(is_piece & text.texts.is_counted, text.texts.ids + len(tokens) * ~is_first, -1)
    return Passage(
        words=text.words,
        pieces=pieces.astype(np.int32),
        layout=layout,
        kinds=kinds,
        information=information,
    )


def first_and_last(begins: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which positions are the first and the last token of their word."""
    is_first = begins == np.arange(len(begins))
    return is_first, np.append(is_first[1:], True)[: len(begins)]


def written_piece(token: str, *, is_first: bool) -> str:
    """As a label writes a piece: with a dash where more of the word stands."""
    return f"{token.strip()}-" if is_first else f"-{token.strip()}"
