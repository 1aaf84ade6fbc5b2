"""A conversation as token ids, by a tokenizer's chat template: the template's control tokens are control tokens, and
the content of the messages is text, whatever it looks like.

A template joins both into one string. So wherever a message contains the text of a control token, or a part of one at
its edge, one character of it is written as a code that no client can guess, and read back once the template's own
control tokens are known. Knows no request format and no model.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from functools import partial

from service.text import TextTokenizer

_CODE_DIGITS = 7  # of a character's number
#: Placed around a code, so that it is not part of a word.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


class Conversation:
    """Messages as the template formats them, up to the point where the assistant speaks.

    Raises:
        jinja2.exceptions.TemplateError, ValueError, TypeError: the template rejects the messages or fails on them.
    """

    def __init__(self, tokenizer: TextTokenizer, messages: Sequence[Mapping[str, str]]) -> None:
        self.tokenizer = tokenizer
        # A client cannot send what it cannot know; digits, because templates may change the case.
        self._mark = f"{_OPEN}{secrets.randbelow(10**20):020d}"
        said = [
            {name: text if name == "role" else self._hide(text) for name, text in message.items()}
            for message in messages
        ]
        self._is_plain = said == list(messages)
        rendered = tokenizer.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        assert isinstance(rendered, str)
        self._rendered = rendered
        self.text = self._show(rendered)

    def encode(self) -> tuple[int, ...]:
        """The conversation's token ids; the template decides whether it begins with a BOS."""
        encode = partial(self.tokenizer.encode, add_special_tokens=False)
        if self._is_plain:
            return encode(self.text, parse_special=True)
        ids: list[int] = []
        done = 0
        for token_id, start, end in self.tokenizer.find_specials(self._rendered):
            ids += [*encode(self._show(self._rendered[done:start])), token_id]
            done = end
        return (*ids, *encode(self._show(self._rendered[done:])))

    def _hide(self, text: str) -> str:
        """`text` with a code for each character at which a control token begins, or could begin or end with what the
        template puts next to it."""
        specials = self.tokenizer.special_texts
        if not specials or not text:
            return text
        firsts = {special[0] for special in specials}
        hidden = {i for i, character in enumerate(text) if character in firsts and text.startswith(specials, i)}
        longest = len(specials[0])
        tails = range(max(0, len(text) - longest + 1), len(text))
        hidden.update(i for i in tails if any(special.startswith(text[i:]) for special in specials))
        if any(special.endswith(text[:n]) for special in specials for n in range(1, min(len(text), longest) + 1)):
            hidden.add(0)
        if not hidden:
            return text
        return "".join(self._code(text[i]) if i in hidden else text[i] for i in range(len(text)))

    def _code(self, character: str) -> str:
        return f"{self._mark}{ord(character):0{_CODE_DIGITS}d}{_CLOSE}"

    def _show(self, text: str) -> str:
        return re.sub(f"{self._mark}(\\d{{{_CODE_DIGITS}}}){_CLOSE}", lambda code: chr(int(code[1])), text)
