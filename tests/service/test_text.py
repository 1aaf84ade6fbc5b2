"""Text from tokens: nothing is shown too early, nothing too late, nothing twice."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from service.engine.request import PromptEvent, TokenEvent, TokenLogprobs
from service.text import Detokenizer, StopChecker, StreamedToken, TextStream, TextTokenizer
from tests.support.small_vocabulary import TEXTS, small_tokenizer

ANY_IDS = st.lists(st.integers(0, len(small_tokenizer()) - 1), max_size=40)
#: Few letters, so that stop strings occur, begin to occur, and overlap.
WORDS = st.text(alphabet="ab é😀", max_size=24)


def some_logprobs(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(logprob=-float(token_id), top=((token_id, -float(token_id)),))


def stream(
    ids: list[int], stop: tuple[str, ...] = (), prompt_ids: tuple[int, ...] = (0,), echo: bool = False
) -> tuple[list[str], list[StreamedToken]]:
    """Deltas of text, and all tokens, of a sequence whose tokens the engine ends at a stop string."""
    tokenizer = small_tokenizer()
    text_stream = TextStream(tokenizer, prompt_ids=prompt_ids, echo=echo, stop=stop)
    is_stop = StopChecker(tokenizer, stop)
    logprobs = (None, *map(some_logprobs, prompt_ids[1:]))
    deltas = [text_stream.prompt(PromptEvent(num_tokens=len(prompt_ids), logprobs=logprobs))]
    for token_id in ids:
        deltas.append(text_stream.generated([TokenEvent(token_id=token_id, logprobs=some_logprobs(token_id))]))
        if is_stop(token_id):
            break
    deltas.append(text_stream.finish())
    return [delta.text for delta in deltas], [token for delta in deltas for token in delta.tokens]


def byte_ids(text: str) -> list[int]:
    """`text` as one token a byte, so that every border falls inside characters and stop strings."""
    tokenizer = small_tokenizer()
    of_byte = {data: i for i, data in enumerate(tokenizer.token_bytes) if len(data) == 1}
    return [of_byte[bytes([byte])] for byte in text.encode()]


def cut_at_stop(ids: list[int], stop: tuple[str, ...]) -> tuple[str, int]:
    """The reference: the text before the first stop string, and how many tokens it took to see that."""
    tokenizer = small_tokenizer()
    for num in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:num], skip_special=True)
        found = [text.find(string) for string in stop if string in text]
        if found:
            return text[: min(found)], num
    return tokenizer.decode(ids, skip_special=True), len(ids)


@given(ANY_IDS, st.lists(st.integers(0, 40), max_size=6), st.sampled_from([(), ("ab",), ("b a", "é")]))
def test_tokens_that_come_together_say_what_they_say_one_by_one(
    ids: list[int], cuts: list[int], stop: tuple[str, ...]
) -> None:
    texts, tokens = stream(ids, stop)
    events = [TokenEvent(token_id=token_id, logprobs=some_logprobs(token_id)) for token_id in ids]
    events = events[: len(events) if not stop else cut_at_stop(ids, stop)[1]]
    borders = [0, *sorted(min(cut, len(events)) for cut in cuts), len(events)]
    for keeps_tokens in (True, False):
        text_stream = TextStream(small_tokenizer(), prompt_ids=(0,), stop=stop, keeps_tokens=keeps_tokens)
        deltas = [text_stream.prompt(PromptEvent(num_tokens=1))]
        deltas += [text_stream.generated(events[start:end]) for start, end in pairwise(borders)]
        deltas.append(text_stream.finish())
        assert "".join(delta.text for delta in deltas) == "".join(texts)
        assert text_stream.num_generated == len(events)
        if keeps_tokens:
            assert [token for delta in deltas for token in delta.tokens] == tokens


@given(ANY_IDS)
def test_detokenizing_bit_by_bit_equals_decoding_the_whole(ids: list[int]) -> None:
    tokenizer = small_tokenizer()
    detokenizer = Detokenizer(tokenizer)
    text = "".join(map(detokenizer.feed, ids)) + detokenizer.flush()
    assert text == tokenizer.tokenizer.decode(ids, skip_special_tokens=True)
    assert text == tokenizer.decode(ids, skip_special=True)
    assert tokenizer.decode(ids) == tokenizer.tokenizer.decode(ids)


@given(st.text(max_size=40))
def test_encoding_and_decoding_give_the_text_back_after_one_bos(text: str) -> None:
    tokenizer = small_tokenizer()
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_id
    assert ids[1:] == tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.bos_id not in ids[1:]
    assert tokenizer.decode(ids, skip_special=True) == text


def test_half_a_character_waits_for_its_rest() -> None:
    detokenizer = Detokenizer(small_tokenizer())
    assert [detokenizer.feed(i) for i in byte_ids("é😀")] == ["", "é", "", "", "", "😀"]


def test_a_character_cut_off_by_the_end_becomes_one_replacement() -> None:
    texts, _ = stream(byte_ids("a😀")[:-1])
    assert "".join(texts) == "a\ufffd"


@given(ANY_IDS)
def test_a_stream_without_stop_strings_holds_every_token_and_all_text(ids: list[int]) -> None:
    texts, tokens = stream(ids)
    assert "".join(texts) == small_tokenizer().decode(ids, skip_special=True)
    assert [token.token_id for token in tokens] == ids
    assert all(token.logprobs == some_logprobs(token.token_id) for token in tokens)


@given(WORDS, st.lists(st.text(alphabet="ab é", min_size=1, max_size=5), min_size=1, max_size=4), st.booleans())
def test_a_stop_string_never_shows_wherever_the_token_borders_fall(text: str, stop: list[str], in_bytes: bool) -> None:
    tokenizer = small_tokenizer()
    ids = byte_ids(text) if in_bytes else list(tokenizer.encode(text, add_special_tokens=False))
    expected, num_fed = cut_at_stop(ids, tuple(stop))
    texts, tokens = stream(ids, tuple(stop))
    assert "".join(texts) == expected
    kept = [token.token_id for token in tokens]
    assert kept == ids[: len(kept)]
    if num_fed == len(ids) and not any(string in text for string in stop):
        assert len(kept) == len(ids)
    else:
        assert all(token.text_offset < len(expected) for token in tokens)
        following = tokenizer.decode(ids[: len(kept)], skip_special=True).rstrip("\ufffd")
        assert len(following) >= len(expected)  # the next token would begin at the cut or after it


@given(WORDS, st.text(alphabet="ab", min_size=1, max_size=4))
def test_the_engine_is_stopped_by_the_token_that_completes_a_stop_string(text: str, stop: str) -> None:
    is_stop = StopChecker(small_tokenizer(), (stop,))
    ids = byte_ids(text)
    stopped = next((i + 1 for i, token_id in enumerate(ids) if is_stop(token_id)), None)
    end = text.find(stop)
    assert stopped == (None if end < 0 else len((text[:end] + stop).encode()))


def test_text_that_cannot_become_a_stop_string_is_shown_at_once() -> None:
    texts, _ = stream(byte_ids("xab abc"), stop=("abc",))
    assert texts == ["", "x", "", "", "ab ", "", "", "", ""]


def test_held_back_text_is_shown_at_the_end() -> None:
    texts, tokens = stream(byte_ids("xab"), stop=("abc",))
    assert texts == ["", "x", "", "", "ab"]
    assert [token.text_offset for token in tokens] == [0, 1, 2]


def test_of_several_stop_strings_in_one_token_the_earliest_cuts() -> None:
    tokenizer = small_tokenizer()
    ids = tokenizer.encode("the project", add_special_tokens=False)
    (whole,) = (i for i in ids if tokenizer.token_text(i) == " project")
    texts, tokens = stream([ids[0], whole, whole], stop=("ject", "ro"))
    assert "".join(texts) == "".join(map(tokenizer.token_text, ids[:1])) + " p"
    assert [token.token_id for token in tokens] == [ids[0], whole]


@given(ANY_IDS, ANY_IDS)
def test_echo_puts_the_prompt_before_the_same_text(prompt_ids: list[int], ids: list[int]) -> None:
    prompt = (0, *prompt_ids)
    texts, tokens = stream(ids, prompt_ids=prompt, echo=True)
    plain_texts, plain_tokens = stream(ids, prompt_ids=prompt)
    before = small_tokenizer().decode(prompt_ids)  # other special tokens than the first BOS were sent, and are shown
    assert "".join(texts) == before + "".join(plain_texts)
    assert [token.token_id for token in tokens] == [*prompt, *ids]
    assert tokens[0].logprobs is None
    assert [t.text_offset for t in tokens[len(prompt) :]] == [t.text_offset + len(before) for t in plain_tokens]


def test_echo_waits_until_the_whole_prompt_was_read() -> None:
    text_stream = TextStream(small_tokenizer(), prompt_ids=(0, *byte_ids("ab")), echo=True)
    assert not text_stream.prompt(PromptEvent(num_tokens=2))
    assert text_stream.prompt(PromptEvent(num_tokens=1)).text == "ab"


def test_offsets_of_tokens_that_share_a_character_are_that_characters() -> None:
    _, tokens = stream(byte_ids("aé b"))
    assert [token.text_offset for token in tokens] == [0, 1, 1, 2, 3]


def test_every_token_has_a_name_of_its_own() -> None:
    tokenizer = small_tokenizer()
    names = [tokenizer.token_text(i) for i in range(len(tokenizer) + 3)]
    assert len(set(names)) == len(names)
    json.dumps(names).encode()
    assert tokenizer.token_text(byte_ids("é")[0]) == "bytes:\\xc3"


def test_specials_have_no_text_and_keep_their_place() -> None:
    tokenizer = small_tokenizer()
    a, b = byte_ids("ab")
    texts, tokens = stream([a, tokenizer.eos_id, b])
    assert "".join(texts) == "ab"
    assert [token.text_offset for token in tokens] == [0, 1, 1]


def test_a_long_text_survives_a_stream_that_nearly_stops_often() -> None:
    text = " ".join(TEXTS)
    texts, _ = stream(
        list(small_tokenizer().encode(text, add_special_tokens=False)), stop=("the kingdom", "sons and daughters")
    )
    assert "".join(texts) == text


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="byte-level"):
        TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
