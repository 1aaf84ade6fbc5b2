"""From text to token ids and back, a token at a time: decoding, stop strings, and deltas for streaming.

Works on bytes, as byte-level BPE does, so that a character split over tokens comes out whole. Knows no model, no
requests' format and no transport.
"""

import codecs
import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.engine.request import PromptEvent, TokenEvent, TokenLogprobs
from topk_model.traces import TraceChunk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def byte_of_character() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for (the table of GPT-2, Radford et al. 2019):
    printable Latin-1 characters stand for themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


class TextTokenizer:
    """A fast byte-level BPE tokenizer as the service uses it. Every method may be called from any thread.

    Raises:
        ValueError: the tokenizer is of another kind.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.tokenizer = tokenizer
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        decoder = (json.loads(self.backend.to_str()).get("decoder") or {}).get("type")
        if decoder != "ByteLevel":
            raise ValueError(f"the tokenizer's decoder is {decoder!r}: only byte-level BPE ('ByteLevel') is supported")
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.pad_id: int | None = tokenizer.pad_token_id
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self.has_chat_template = bool(tokenizer.chat_template)
        bytes_of = byte_of_character()
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        self.token_bytes = [b""] * (max(vocabulary.values()) + 1)
        for token, token_id in vocabulary.items():
            known = all(character in bytes_of for character in token)
            self.token_bytes[token_id] = bytes(bytes_of[c] for c in token) if known else token.encode()
        self.max_token_bytes = max(map(len, self.token_bytes))

    def __len__(self) -> int:
        """Number of token ids the tokenizer knows."""
        return len(self.token_bytes)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of `text`, with the tokenizer's BOS before them."""
        # Of the backend's ways to encode, this one lets other threads run meanwhile.
        return tuple(self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
        skipped = self.special_ids if skip_special else ()
        return b"".join(self.bytes_of(i) for i in ids if i not in skipped).decode(errors="replace")

    def bytes_of(self, token_id: int) -> bytes:
        """The token's bytes; none for an id that only the model has, as where its vocabulary is padded."""
        return self.token_bytes[token_id] if token_id < len(self.token_bytes) else b""

    def token_text(self, token_id: int) -> str:
        """A token by itself, as lists of tokens show it: its text, or `bytes:\\xe2\\x80` where it is no whole text.

        Different byte strings give different names, so it can be the key of a map of tokens.
        """
        if token_id >= len(self.token_bytes):
            return f"<token {token_id}>"
        data = self.token_bytes[token_id]
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def least_tokens(self, text: str) -> int:
        """How many tokens `text` has at least, told without encoding it."""
        return -(-len(text.encode()) // self.max_token_bytes)

    def chat_text(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation up to where the assistant speaks, by the tokenizer's chat template; it holds its own BOS.

        Raises:
            jinja2.exceptions.TemplateError: the template refuses the conversation.
        """
        text = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        assert isinstance(text, str)
        return text


class Detokenizer:
    """Text of token ids as they come, special tokens left out. Half a character waits for its rest, so what has been
    returned never changes, and all of it together is the text of the whole."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The text that this token completes; may be empty."""
        if token_id in self.tokenizer.special_ids:
            return ""
        return self.decoder.decode(self.tokenizer.bytes_of(token_id))

    def flush(self) -> str:
        """U+FFFD for a character that was cut off, else nothing."""
        return self.decoder.decode(b"", final=True)


class StopMatcher:
    """Finds the first of some strings in text that comes in pieces."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = tuple(stop)
        self.longest = max(map(len, self.stop), default=0)
        self.tail = ""  # the last longest - 1 characters
        self.num_chars = 0
        self.cut: int | None = None  # offset of the first stop string, once there is one

    @property
    def is_found(self) -> bool:
        return self.cut is not None

    def feed(self, piece: str) -> bool:
        """Whether the text so far holds a stop string. The earliest one counts if a piece completes several."""
        if not self.is_found and self.stop and piece:
            text = self.tail + piece
            start = self.num_chars - len(self.tail)
            found = [at for at in (text.find(string) for string in self.stop) if at >= 0]
            self.cut = start + min(found) if found else None
            self.num_chars += len(piece)
            self.tail = text[len(text) - self.longest + 1 :] if len(text) >= self.longest else text
        return self.is_found

    def num_held(self) -> int:
        """Length of the longest end of the text that may yet become a stop string."""
        return max(
            (n for string in self.stop for n in range(1, len(string)) if self.tail.endswith(string[:n])), default=0
        )


class StopChecker:
    """Tells the engine, token by token and in its thread, when a sequence has reached a stop string."""

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str]) -> None:
        self.detokenizer = Detokenizer(tokenizer)
        self.matcher = StopMatcher(stop)

    def __call__(self, token_id: int) -> bool:
        return self.matcher.feed(self.detokenizer.feed(token_id))


@dataclass(frozen=True, kw_only=True)
class StreamedToken:
    """A token with what belongs to it."""

    token_id: int
    text_offset: int  # in characters of the choice's whole text, where the token's own text begins
    logprobs: TokenLogprobs | None = None
    trace: TraceChunk | None = None


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """The next stretch of a choice: text, and the tokens that begin in it."""

    text: str = ""
    tokens: tuple[StreamedToken, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens)


class TextStream:
    """Turns the events of one sequence into deltas of text, with tokens aligned.

    A stop string never shows: an end of the text that may become one is held back until it does or cannot. With a
    stop string found, the text ends before it, and tokens that begin at or after the cut are left out. The deltas
    of a stream, put together, are the whole answer.
    """

    def __init__(
        self, tokenizer: TextTokenizer, *, prompt_ids: Sequence[int] = (), echo: bool = False, stop: Sequence[str] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.prompt_ids = tuple(prompt_ids)
        self.is_echo = echo
        self.detokenizer = Detokenizer(tokenizer)
        self.matcher = StopMatcher(stop)
        self.num_prompt_read = 0
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        self.num_generated = 0  # tokens, those of a stop string and the end-of-text token included
        self.generated_from = 0  # offset of the first generated character
        self.num_decoded = 0  # generated characters, held ones included
        self.held_text = ""
        self.held_tokens: deque[StreamedToken] = deque()

    def prompt(self, event: PromptEvent) -> TextDelta:
        """With echo the prompt, once all of it has been read; else nothing."""
        self.num_prompt_read += event.num_tokens
        self.prompt_logprobs += event.logprobs
        if not self.is_echo or self.num_prompt_read < len(self.prompt_ids):
            return TextDelta()
        logprobs = self.prompt_logprobs or [None] * len(self.prompt_ids)
        detokenizer, text, tokens = Detokenizer(self.tokenizer), "", []
        for token_id, of_token in zip(self.prompt_ids, logprobs, strict=True):
            tokens.append(StreamedToken(token_id=token_id, text_offset=len(text), logprobs=of_token))
            text += detokenizer.feed(token_id)
        text += detokenizer.flush()
        self.generated_from = len(text)
        return TextDelta(text=text, tokens=tuple(tokens))

    def token(self, event: TokenEvent) -> TextDelta:
        """What can be shown now that this token has come; often that of earlier tokens, often nothing."""
        self.num_generated += 1
        self.held_tokens.append(
            StreamedToken(
                token_id=event.token_id,
                text_offset=self.generated_from + self.num_decoded,
                logprobs=event.logprobs,
                trace=event.trace,
            )
        )
        if self.matcher.is_found:
            return TextDelta()
        piece = self.detokenizer.feed(event.token_id)
        self.matcher.feed(piece)
        self.held_text += piece
        self.num_decoded += len(piece)
        cut = self.matcher.cut
        return self.release(self.num_decoded - self.matcher.num_held() if cut is None else cut)

    def finish(self) -> TextDelta:
        """All that was held back, up to the stop string if there was one."""
        if not self.matcher.is_found:
            tail = self.detokenizer.flush()
            self.held_text += tail
            self.num_decoded += len(tail)
            delta = self.release(self.num_decoded)
            delta = TextDelta(text=delta.text, tokens=(*delta.tokens, *self.held_tokens))
        else:
            delta = TextDelta()
        self.held_text = ""
        self.held_tokens.clear()
        return delta

    def release(self, end: int) -> TextDelta:
        """Text up to `end` generated characters, and the tokens that begin in it."""
        start = self.num_decoded - len(self.held_text)
        text, self.held_text = self.held_text[: end - start], self.held_text[end - start :]
        tokens = []
        while self.held_tokens and self.held_tokens[0].text_offset < self.generated_from + end:
            tokens.append(self.held_tokens.popleft())
        return TextDelta(text=text, tokens=tuple(tokens))
