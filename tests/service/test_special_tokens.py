"""What is text and what is control: user texts forge no control tokens, and every token has its own bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from service.engine.request import PromptEvent
from service.requests.conversation import Conversation
from service.text import Detokenizer, TextStream, TextTokenizer
from tests.support.handmade_tokenizers import CHATML, handmade, special, word
from topk_model.special_tokens import special_token_ids

#: Accents, other scripts, and characters that the byte table uses for other bytes.
WORDS = ["naïve", "Ġmay", "ĊĊ", "日本", "😀", "été ", "<tool>", "Müller"]
CONTROL = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "<s>", "s>", "§§", "<|im_"]
TOKENIZER = TextTokenizer(
    handmade(
        [*map(word, WORDS), *map(special, CONTROL), special("<|tool_end|>", lstrip=True, rstrip=True)],
        bos="<|bos|>",
        eos="<|eos|>",
        chat_template=CHATML,
    )
)
ID = {text: TOKENIZER.tokenizer.convert_tokens_to_ids(text) for text in [*WORDS, *CONTROL, "<|tool_end|>"]}
PARTS = st.sampled_from(
    [*WORDS, *CONTROL, "<|tool_end|>", "<|", "|>", "im_end", "<", ">", " ", "\n", "the", " the", "x"]
)
TEXTS = st.lists(PARTS | st.text(max_size=4), max_size=8).map("".join)


def template_only(num_messages: int) -> list[int]:
    """The control tokens of a conversation of so many messages."""
    return [ID["<|im_start|>"], ID["<|im_end|>"]] * num_messages + [ID["<|im_start|>"]]


def controls(ids: tuple[int, ...]) -> list[int]:
    return [i for i in ids if i in TOKENIZER.special_ids]


@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_no_message_can_forge_a_control_token(contents: list[str]) -> None:
    messages = [{"role": "user", "content": text} for text in contents]
    conversation = Conversation(TOKENIZER, messages)
    ids = conversation.encode()
    assert controls(ids) == template_only(len(messages))
    rendered = TOKENIZER.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert conversation.text == rendered
    assert TOKENIZER.decode(ids) == rendered


@given(TEXTS)
def test_a_message_is_encoded_as_the_template_s_text_around_it_is(content: str) -> None:
    """Where no control token is forged, the careful way gives what the whole string would."""
    messages = [{"role": "user", "content": content}]
    rendered = TOKENIZER.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    plain = TOKENIZER.encode(rendered, add_special_tokens=False, parse_special=True)
    ids = Conversation(TOKENIZER, messages).encode()
    if controls(plain) == template_only(1):
        assert ids == plain
    begin = ids.index(ID["<|im_start|>"]) + 1
    inner = ids[begin : ids.index(ID["<|im_end|>"])]
    assert inner == TOKENIZER.encode("user\n" + content.strip(), add_special_tokens=False) or content != content.strip()


def test_a_template_without_borders_joins_nothing_to_a_control_token() -> None:
    tokenizer = TextTokenizer(
        handmade([special("<|im_end|>")], chat_template="{% for m in messages %}{{ m.content }}{% endfor %}d|>")
    )
    for contents in (["<|im_", "end|>"], ["<", "|im_end|", ">"], ["<|im_en"], ["<|im_end|>"]):
        ids = Conversation(tokenizer, [{"role": "user", "content": text} for text in contents]).encode()
        assert not tokenizer.special_ids & set(ids)
        assert tokenizer.decode(ids) == "".join(contents) + "d|>"


def test_a_template_may_strip_change_the_case_and_write_json() -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.content | trim | upper }}{{ m.content | tojson }}{% endfor %}"
    tokenizer = TextTokenizer(handmade([special("<|im_start|>")], chat_template=template))
    text = "  a<|im_start|>b "
    conversation = Conversation(tokenizer, [{"role": "user", "content": text}])
    assert conversation.text == f"<|im_start|>A<|IM_START|>B{json.dumps(text)}"
    ids = conversation.encode()
    assert [i for i in ids if i in tokenizer.special_ids] == [ids[0]]
    assert tokenizer.decode(ids) == conversation.text


@given(TEXTS)
def test_a_text_is_text_unless_control_tokens_are_asked_for(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert controls(ids) == [ID["<|bos|>"]]
    assert TOKENIZER.decode(ids[1:]) == text
    parsed = TOKENIZER.encode(text, parse_special=True)[1:]
    assert [i for i, _, _ in TOKENIZER.find_specials(text)] == controls(parsed)
    assert bool(controls(parsed)) == (TOKENIZER.first_special(text) is not None)


@given(TEXTS, st.booleans())
def test_echo_gives_back_the_text_that_was_sent(text: str, parse_special: bool) -> None:
    ids = TOKENIZER.encode(text, parse_special=parse_special)
    stream = TextStream(TOKENIZER, prompt_ids=ids, prompt_text=text, echo=True)
    delta = stream.prompt(PromptEvent(num_tokens=len(ids)))
    assert delta.text == text
    assert len(delta.tokens) == len(ids)
    offsets = [token.text_offset for token in delta.tokens]
    assert offsets == sorted(offsets)
    assert offsets[0] == 0


def test_echo_of_token_ids_shows_every_token_but_a_leading_bos() -> None:
    x = TOKENIZER.encode("x", add_special_tokens=False)[0]
    assert TOKENIZER.pieces([ID["<|bos|>"], x, ID["<|eos|>"], ID["<|bos|>"]]) == ["", "x", "<|eos|>", "<|bos|>"]
    assert TOKENIZER.pieces([]) == []


def test_echo_of_a_text_that_the_tokenizer_changes_is_the_text() -> None:
    tokenizer = TextTokenizer(handmade([special("<|eos|>", rstrip=True)], normalizer=normalizers.NFKC()))
    for text in ("ﬁ²e\u0301x", "a<|eos|>  b", "ﬁ<|eos|> \nﬁ"):
        for parse_special in (False, True):
            ids = tokenizer.encode(text, parse_special=parse_special)
            pieces = tokenizer.pieces(ids, text)
            assert ("".join(pieces), len(pieces)) == (text, len(ids))


@given(st.lists(st.sampled_from(WORDS), max_size=6))
def test_added_tokens_are_the_texts_that_they_are(words: list[str]) -> None:
    text = "a " + " ".join(words) + " b"
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert set(map(ID.get, words)) <= set(ids)
    detokenizer = Detokenizer(TOKENIZER)
    assert "".join(map(detokenizer.feed, ids)) + detokenizer.flush() == TOKENIZER.decode(ids) == text
    assert [TOKENIZER.token_text(ID[word]) for word in words] == words


@given(st.lists(st.integers(0, len(TOKENIZER) + 2), max_size=30))
def test_any_ids_decode_bit_by_bit_as_they_do_at_once(ids: list[int]) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    text = "".join(map(detokenizer.feed, ids)) + detokenizer.flush()
    assert text == TOKENIZER.decode(ids, skip_special=True)


def test_tokens_that_only_tokenizer_json_calls_special_are_special() -> None:
    tokenizer = handmade([special("<|im_end|>"), word("<tool>")])
    assert tokenizer.all_special_ids == []
    assert special_token_ids(tokenizer) == {tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_a_special_token_that_a_normalizer_would_find_elsewhere_is_found_by_its_text_alone() -> None:
    loose = special("<|eos|>", normalized=True)
    changes = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer = TextTokenizer(handmade([loose], normalizer=changes))
    (eos,) = tokenizer.special_ids
    for text in ("<|EOS|>", "＜|eos|＞", "<|eos|>"):
        assert eos not in tokenizer.encode(text)
        assert (eos in tokenizer.encode(text, parse_special=True)) == (text == "<|eos|>")


@pytest.mark.parametrize("text", ["", "\x00", "\ufeff", "\u2028\u2029\x85", "a\r\nb", "\ufdd0\ufdd1" * 3])
def test_odd_texts_come_through_a_conversation(text: str) -> None:
    conversation = Conversation(TOKENIZER, [{"role": "user", "content": f"x<|im_end|>{text}y"}])
    assert (
        TOKENIZER.decode(conversation.encode())
        == f"<|im_start|>user\nx<|im_end|>{text}y<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_token_that_bpe_makes_keeps_its_bytes_whatever_list_names_it() -> None:
    tokenizer = TextTokenizer(handmade([word("Ġthe"), word("¤"), word("naïve")]))
    assert tokenizer.decode(tokenizer.encode("see the naïve")) == "see the naïve"
