"""Kinds of words and places that a label can name where a list of words would say little: names, quotation marks, …

Of English. A text of another language has the kinds that its signs, capitals and breaks show, and labels made of words.
Knows no model and no neuron.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topk_model.catalogue.build.texts import Texts

#: Words that a list of content words leaves out, by the kind that names them.
FUNCTION_WORDS = {
    "pronouns": "i you he she it we they me him them us myself yourself himself herself itself ourselves themselves "
    "everyone someone everybody somebody anyone nobody something nothing everything anything who",
    "possessives": "my your his her its our their mine yours hers ours theirs 's whose",
    "articles": "a an the",
    "pointing words": "this that these those here there",
    "words of amount": "all some any every each both many much more most few little other another several enough no "
    "lots only just even such own same",
    "joining words": "and but or so because if when while as than until though although since nor whether then yet",
    "prepositions": "in on at to from with of for by into onto over under up down out off about around through after "
    "before behind beside between near along across against above below inside outside without upon toward towards "
    "away back",
    "forms of ‘be’": "is was are were be been being am 'm 're isn't wasn't aren't weren't",
    "helping verbs": "have has had do does did can could will would shall should must may might cannot 've 'll 'd "
    "haven't hasn't hadn't don't doesn't didn't can't couldn't won't wouldn't shouldn't let ought",
    "negations": "not no never don't didn't doesn't can't couldn't won't wouldn't isn't wasn't aren't weren't haven't "
    "hadn't nothing nobody none neither nor cannot without",
    "question words": "what why who how where when which whose",
    "words of degree": "very so too quite really rather almost even still also again always never ever",
}
WORDS = FUNCTION_WORDS | {
    "words of saying": "said say says saying asked ask asks replied reply answered answer cried cry shouted shout "
    "whispered whisper told tell called call yelled exclaimed spoke speak",
    "numbers": "one two three four five six seven eight nine ten eleven twelve twenty thirty fifty hundred thousand "
    "first second third once twice",
    "words of time": "day days night morning evening afternoon today tomorrow yesterday now then soon later week year "
    "years hour hours minute minutes moment time once suddenly finally always never before after again when while",
    "colours": "red blue green yellow brown black white pink purple orange gray grey golden silver",
    "animals": "animal animals dog dogs puppy cat cats kitten bird birds bear bears rabbit bunny fox mouse mice horse "
    "cow pig duck frog fish lion tiger elephant monkey squirrel owl bee butterfly sheep goat chicken hen wolf turtle "
    "snake ant spider deer dinosaur crocodile giraffe hippo worm donkey rat rats bat dragon",
    "family": "mom mommy mum mother mama dad daddy father papa parents brother sister son daughter grandma grandpa "
    "grandmother grandfather family baby aunt uncle child children wife husband",
    "feelings": "happy sad angry scared afraid excited proud surprised worried tired lonely glad sorry brave curious "
    "upset mad nervous bored shy jealous happily sadly angrily joy fear love",
    "parts of the body": "hand hands head face eyes eye nose mouth ear ears arm arms leg legs foot feet hair tail wing "
    "wings teeth tooth finger fingers paw paws back heart tummy belly",
    "food": "food eat ate cake cookie cookies bread apple apples banana fruit soup milk cheese ice cream candy sweet "
    "dinner lunch breakfast juice carrot carrots egg eggs honey pie sandwich rice meat vegetables chocolate berries",
}
IRREGULAR_PAST = (
    "was were had did said went came saw took got made gave found thought told knew felt ran sat stood heard kept left "
    "held brought began fell flew grew threw caught put let met lost won ate drank sang swam rode wrote read broke "
    "bought built sent spent slept woke wore tore hid bit blew drew drove chose spoke stole taught understood became "
    "forgot forgave fought shone shook rose rang hung dug fed led lay slid stuck struck swung paid sold hurt cut hit "
    "set shut could would"
)
#: Endings count in words of at least so many letters: "red" is not the past of "r", nor "ring" a form of it.
ENDING_LETTERS = 5
#: A word of which this share of the places inside sentences has a capital is a name.
NAME_SHARE = 0.7
#: So many words from the start of a story are its opening.
OPENING_WORDS = 8

SENTENCE_ENDS, QUOTES = ".!?", '"“”'
PLACES = (
    "names", "past-tense verbs", "‘-ing’ words", "‘-ly’ words", "‘-s’ words", "figures",
    "sentence ends", "question marks", "exclamation marks", "commas", "dashes", "other signs",
    "opening quotation marks", "closing quotation marks", "line breaks",
    "sentence starts", "starts of speech", "starts of paragraphs", "quoted speech", "openings of stories",
    "first pieces of longer words", "later pieces of longer words",
)  # fmt: skip
KINDS = (*WORDS, *PLACES)
#: Kinds that a word has wherever it stands: what stands before or after such a word can be named by it.
OF_WORDS = frozenset(KINDS) - {"quoted speech", "openings of stories"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the words of a text begin, and which stand beside each other."""

    begins: NDArray[np.int64]  # [positions]: where the word that each position belongs to begins
    next_at: NDArray[np.int64]  # [positions]: where the next word begins, told of a word's last piece; -1: nowhere
    previous_at: NDArray[np.int64]  # [positions]: where the word before begins, told of a word's first piece
    story: NDArray[np.int64]  # [positions]: number of the stretch without a special token or the end of a window

    @classmethod
    def of(cls, texts: Texts, begins: NDArray[np.int64]) -> "Layout":
        positions = np.arange(len(begins))
        is_border = np.zeros(len(begins), dtype=bool)
        is_border[texts.starts[:-1]] = True
        is_border |= ~texts.is_counted
        is_border[1:] |= ~texts.is_counted[:-1]
        story = np.cumsum(is_border)
        next_at, previous_at = np.full(len(begins), -1), np.full(len(begins), -1)
        is_first = begins == positions
        follows = np.flatnonzero(is_first[1:] & ~is_border[1:])  # the last piece of a word that another follows
        next_at[follows] = follows + 1
        previous_at[follows + 1] = begins[follows]
        return cls(begins=begins, next_at=next_at, previous_at=previous_at, story=story)


def is_name(surface: Sequence[str], is_inside: NDArray[np.bool_], words: NDArray[np.int32], num_words: int) -> NDArray:
    """Which words of the vocabulary are names `[num_words]`: those with a capital inside sentences too.

    Args:
        surface: the text of each position, as it is written.
        is_inside: positions that begin a word and no sentence.
        words: the number of each position's word; -1: none.
    """
    usable = is_inside & (words >= 0)
    capital = np.array([text[:1].isupper() for text in surface], dtype=bool)
    met = np.bincount(words[usable], minlength=num_words)
    named = np.bincount(words[usable & capital], minlength=num_words)
    return (met > 0) & (named >= NAME_SHARE * met)


def kinds_of_words(names: Sequence[str]) -> NDArray[np.bool_]:
    """Which words have which kind, of those that a word has by its letters `[words, KINDS]`; others are false."""
    out = np.zeros((len(names), len(KINDS)), dtype=bool)
    numbers = {name: number for number, name in enumerate(names)}
    for kind, listed in WORDS.items():
        out[[numbers[word] for word in listed.split() if word in numbers], KINDS.index(kind)] = True
    past, ing, adverb, plural, figures = (
        KINDS.index(kind) for kind in ("past-tense verbs", "‘-ing’ words", "‘-ly’ words", "‘-s’ words", "figures")
    )
    irregular = set(IRREGULAR_PAST.split())
    function = {word for listed in FUNCTION_WORDS.values() for word in listed.split()}
    for number, name in enumerate(names):
        is_long = len(name) >= ENDING_LETTERS and name.isalpha()
        out[number, past] = (is_long and name.endswith("ed")) or name in irregular
        out[number, ing] = is_long and name.endswith("ing")
        out[number, adverb] = is_long and name.endswith("ly")
        out[number, plural] = (
            name.isalpha() and len(name) > 3 and name.endswith("s") and name[:-1] in numbers and name not in function
        )
        out[number, figures] = name.isdecimal()
    return out


def kinds_of_places(
    texts: Texts, layout: Layout, tokens: Sequence[str], words: NDArray[np.int32], of_words: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which positions of a text have which kind `[positions, KINDS]`.

    Args:
        tokens: the text of every token id.
        words: the number of each position's word; -1: not in the vocabulary.
        of_words: kinds of the vocabulary's words; see `kinds_of_words`.
    """
    count = len(texts.ids)
    out = np.where(words[:, None] >= 0, of_words[words], False)

    def put(kind: str, where: NDArray[np.bool_]) -> None:
        out[:, KINDS.index(kind)] |= where & texts.is_counted

    def of_tokens(test: Callable[[str], bool]) -> NDArray[np.bool_]:
        known: NDArray[np.bool_] = np.array([test(text) for text in tokens], dtype=np.bool_)
        return known[texts.ids]

    is_sign = of_tokens(lambda text: bool(text.strip()) and not any(map(str.isalnum, text)))
    is_break = of_tokens(lambda text: not text.strip() and "\n" in text)
    ends = is_sign & of_tokens(lambda text: any(sign in text for sign in SENTENCE_ENDS))
    quote = is_sign & of_tokens(is_quote)
    # A quotation mark opens if there is a space, a break or nothing before it.
    opens = quote & of_tokens(lambda text: text.lstrip()[:1] in QUOTES or text.strip() == "'")
    is_spaced = of_tokens(lambda text: text[:1].isspace())
    starts = np.ones(count, dtype=bool)
    starts[1:] = (layout.story[1:] != layout.story[:-1]) | is_break[:-1]
    opens &= is_spaced | starts
    comma = is_sign & of_tokens(lambda text: "," in text)
    dash = is_sign & of_tokens(lambda text: "-" in text or "—" in text or "–" in text)
    put("sentence ends", ends)
    put("question marks", is_sign & of_tokens(lambda text: "?" in text))
    put("exclamation marks", is_sign & of_tokens(lambda text: "!" in text))
    put("commas", comma)
    put("dashes", dash)
    put("opening quotation marks", opens)
    put("closing quotation marks", quote & ~opens)
    put("line breaks", is_break)
    put("other signs", is_sign & ~ends & ~quote & ~comma & ~dash)

    is_first = layout.begins == np.arange(count)
    is_word = of_tokens(lambda text: any(map(str.isalpha, text)))
    is_last = np.append(is_first[1:], True)
    put("first pieces of longer words", is_word & is_first & ~is_last)
    put("later pieces of longer words", is_word & ~is_first)

    after = np.zeros((4, count), dtype=bool)  # what stood before: the start of a story, an end, a quote, a break
    after[0] = starts & ~np.append(False, is_break[:-1])
    after[1, 1:], after[2, 1:], after[3, 1:] = ends[:-1], opens[:-1], is_break[:-1]
    after[1:, starts & ~after[3]] = False
    put("starts of paragraphs", is_word & is_first & after[3])
    put("starts of speech", is_word & is_first & after[2])
    put("sentence starts", is_word & is_first & after.any(0))

    place = np.arange(count) - np.maximum.accumulate(
        np.where(layout.story != np.append(0, layout.story[:-1]), np.arange(count), 0)
    )
    begun = np.zeros(count, dtype=bool)  # stories that begin in the text: after a special token, not after a cut
    begun[1:] = ~texts.is_counted[:-1]
    begun[texts.starts[:-1]] = False
    is_begun = np.zeros(int(layout.story.max(initial=0)) + 1, dtype=bool)
    is_begun[layout.story[begun]] = True
    put("openings of stories", is_begun[layout.story] & (place < OPENING_WORDS))
    put("quoted speech", inside_quotes(layout.story, opens, quote & ~opens, is_break))
    return out & texts.is_counted[:, None]


def is_quote(sign: str) -> bool:
    """Whether a token of signs holds a quotation mark; an apostrophe is one beside a space or another sign."""
    return any(mark in sign for mark in QUOTES) or ("'" in sign and len(sign) > 1)


def inside_quotes(
    story: NDArray[np.int64], opens: NDArray[np.bool_], closes: NDArray[np.bool_], is_break: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Positions between an opening and a closing quotation mark of one story and paragraph."""
    inside = np.zeros(len(story), dtype=bool)
    is_open, before = False, -1
    for at, (number, opened, closed, broken) in enumerate(
        zip(story.tolist(), opens.tolist(), closes.tolist(), is_break.tolist(), strict=True)
    ):
        if number != before or closed or broken:
            is_open = False
        inside[at] = is_open
        if opened:
            is_open = True
        before = number
    return inside
