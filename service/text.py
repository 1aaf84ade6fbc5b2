"""From text to token ids and back, one token at a time: decoding, stop strings, and deltas for streaming.

Works on bytes, as byte-level BPE does, so that a character split over tokens is never cut. Knows no model, no
request format and no transport.
"""

import codecs
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer

from service.engine.request import PromptEvent, TokenEvent, TokenLogprobs
from topk_model.special_tokens import special_token_ids
from topk_model.token_bytes import decode_bytes, token_bytes, token_name
from topk_model.traces import TraceChunk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TextTokenizer:
    """A fast byte-level BPE tokenizer as the service uses it. Every method may be called from any thread.

    A text is only text: "<|eos|>" becomes a few ordinary tokens, unless the caller asks for control tokens.

    Args:
        special_ids: ids that are not text; by default those that the tokenizer's files name.

    Raises:
        ValueError: the tokenizer is of another kind.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", special_ids: Iterable[int] | None = None) -> None:
        self.tokenizer = tokenizer
        self.special_ids = special_token_ids(tokenizer) if special_ids is None else frozenset(special_ids)
        self.token_bytes = token_bytes(tokenizer)
        self.max_token_bytes = max(map(len, self.token_bytes))
        self._names: dict[int, str] = {}  # of ids whose name has been asked for
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.pad_id: int | None = tokenizer.pad_token_id
        self.has_chat_template = bool(tokenizer.chat_template)
        self._parsing, self._literal = (self._backend(tokenizer.backend_tokenizer) for _ in range(2))
        self._literal.encode_special_tokens = True
        #: Texts of the special tokens that a text can contain, longest first.
        self.special_texts = tuple(
            sorted((token.content for token in self._added(tokenizer.backend_tokenizer)), key=len, reverse=True)
        )

    def _added(self, backend: Tokenizer) -> list[AddedToken]:
        """The added tokens that are special."""
        return [token for i, token in backend.get_added_tokens_decoder().items() if i in self.special_ids]

    def _backend(self, backend: Tokenizer) -> Tokenizer:
        """A copy that finds every special token by its exact text, whatever its file says about it."""
        copy = Tokenizer.from_str(backend.to_str())
        copy.no_truncation()
        copy.no_padding()
        copy.add_special_tokens(
            [
                AddedToken(
                    token.content,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                    special=True,
                )
                for token in self._added(backend)
            ]
        )
        return copy

    def __len__(self) -> int:
        """Number of token ids the tokenizer knows."""
        return len(self.token_bytes)

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False) -> tuple[int, ...]:
        """Token ids of `text`, with the tokenizer's BOS before them.

        Args:
            parse_special: read the texts of special tokens as those tokens.
        """
        backend = self._parsing if parse_special else self._literal
        # Of the backend's ways to encode, this one lets other threads run at the same time.
        return tuple(backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def find_specials(self, text: str) -> list[tuple[int, int, int]]:
        """(token id, start, end) of every special token in `text`, in characters."""
        encoding = self._parsing.encode(text, add_special_tokens=False)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [(token_id, *span) for token_id, span in pairs if token_id in self.special_ids]

    def first_special(self, text: str) -> str | None:
        """The text of a special token that `text` contains; None if there is none."""
        return next((special for special in self.special_texts if special in text), None)

    def pieces(self, ids: Sequence[int], text: str | None = None) -> list[str]:
        """The text of each token of a prompt; together they are the prompt as sent: `text`, if it was sent as text.

        A leading BOS has an empty text: no text contains it. A character split over tokens belongs to the last of them.
        """
        detokenizer, pieces = Detokenizer(self, shows_special=True), []
        for place, token_id in enumerate(ids):
            pieces.append("" if place == 0 and token_id == self.bos_id else detokenizer.feed(token_id))
        if pieces:
            pieces[-1] += detokenizer.flush()
        if text is not None and "".join(pieces) != text:
            pieces = self._cut(ids, text) or pieces
        return pieces

    def _cut(self, ids: Sequence[int], text: str) -> list[str] | None:
        """`text` cut at the starts of its tokens, for tokenizers that change a text before they encode it."""
        for backend in (self._literal, self._parsing):
            encoding = backend.encode(text)
            if encoding.ids == list(ids):
                starts = [0, *(start for start, _ in encoding.offsets[1:]), len(text)]
                return [text[max(starts[: i + 1]) : max(starts[: i + 2])] for i in range(len(ids))]
        return None

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD."""
        skipped = self.special_ids if skip_special else ()
        return decode_bytes((i for i in ids if i not in skipped), self.token_bytes)

    def bytes_of(self, token_id: int) -> bytes:
        """The token's bytes; empty for an id that only the model has, such as the padding of its vocabulary."""
        return self.token_bytes[token_id] if token_id < len(self.token_bytes) else b""

    def token_text(self, token_id: int) -> str:
        """A token by itself; see `topk_model.token_bytes.token_name`."""
        name = self._names.get(token_id)
        if name is None:
            name = self._names[token_id] = token_name(token_id, self.token_bytes)
        return name

    def least_tokens(self, text: str) -> int:
        """A lower bound on the number of tokens in `text`, found without encoding it."""
        return -(-len(text.encode()) // self.max_token_bytes)


class Detokenizer:
    """Text of token ids as they arrive, by default without special tokens. Part of a character waits for the rest, so
    what has been returned never changes, and all of it together is the text of the complete sequence."""

    def __init__(self, tokenizer: TextTokenizer, *, shows_special: bool = False) -> None:
        self.tokenizer = tokenizer
        self.hidden_ids = frozenset() if shows_special else tokenizer.special_ids
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The text that this token completes; may be empty."""
        if token_id in self.hidden_ids:
            return ""
        return self.decoder.decode(self.tokenizer.bytes_of(token_id))

    def feed_all(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        hidden, bytes_of = self.hidden_ids, self.tokenizer.bytes_of
        return self.decoder.decode(b"".join([bytes_of(i) for i in token_ids if i not in hidden]))

    def flush(self) -> str:
        """U+FFFD for a character that was cut off, otherwise an empty text."""
        return self.decoder.decode(b"", final=True)


class StopMatcher:
    """Finds the first of several strings in text that arrives in pieces."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = tuple(stop)
        self.longest = max(map(len, self.stop), default=0)
        self.beginnings = {string[:n] for string in self.stop for n in range(1, len(string))}
        self.tail = ""  # the last longest - 1 characters
        self.num_chars = 0
        self.cut: int | None = None  # offset of the first stop string, once there is one

    @property
    def is_found(self) -> bool:
        return self.cut is not None

    def feed(self, piece: str) -> bool:
        """Whether the text so far contains a stop string. If a piece completes several, the earliest one counts."""
        if not self.is_found and self.stop and piece:
            text = self.tail + piece
            start = self.num_chars - len(self.tail)
            found = [at for at in (text.find(string) for string in self.stop) if at >= 0]
            self.cut = start + min(found) if found else None
            self.num_chars += len(piece)
            self.tail = text[len(text) - self.longest + 1 :] if len(text) >= self.longest else text
        return self.is_found

    def num_held(self) -> int:
        """Length of the longest suffix of the text that may still become a stop string."""
        return next((n for n in range(len(self.tail), 0, -1) if self.tail[-n:] in self.beginnings), 0)


class StopChecker:
    """Reports to the engine, token by token and in its thread, when a sequence has reached a stop string."""

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str]) -> None:
        self.detokenizer = Detokenizer(tokenizer)
        self.matcher = StopMatcher(stop)

    def __call__(self, token_id: int) -> bool:
        return self.matcher.feed(self.detokenizer.feed(token_id))


@dataclass(frozen=True, kw_only=True)
class StreamedToken:
    """A token with what belongs to it."""

    token_id: int
    text_offset: int  # in characters of the choice's complete text: the start of the token's own text
    logprobs: TokenLogprobs | None = None
    trace: TraceChunk | None = None


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """The next part of a choice: text, and the tokens that begin in it."""

    text: str = ""
    tokens: tuple[StreamedToken, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens)


class TextStream:
    """Turns the events of one sequence into deltas of text with their tokens.

    A stop string is never shown: the end of the text is held back as long as it may become one. If a stop string
    is found, the text ends before it, and tokens that begin at or after the cut are left out. The deltas
    of a stream, joined, are the complete answer.

    Args:
        keeps_tokens: whether the generated tokens are needed, not only their text.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        prompt_ids: Sequence[int] = (),
        prompt_text: str | None = None,
        echo: bool = False,
        stop: Sequence[str] = (),
        keeps_tokens: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.is_plain = not stop and not keeps_tokens
        self.prompt_ids = tuple(prompt_ids)
        self.is_echo = echo
        self.detokenizer = Detokenizer(tokenizer)
        self.prompt_text = prompt_text
        self.matcher = StopMatcher(stop)
        self.num_prompt_read = 0
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        self.num_generated = 0  # tokens, including those of a stop string and the end-of-text token
        self.generated_from = 0  # offset of the first generated character
        self.num_decoded = 0  # generated characters, including those held back
        self.held_text = ""
        self.held_tokens: deque[StreamedToken] = deque()

    def prompt(self, event: PromptEvent) -> TextDelta:
        """With echo the prompt, once all of it has been read; otherwise nothing."""
        self.num_prompt_read += event.num_tokens
        self.prompt_logprobs += event.logprobs
        if not self.is_echo or self.num_prompt_read < len(self.prompt_ids):
            return TextDelta()
        logprobs = self.prompt_logprobs or [None] * len(self.prompt_ids)
        pieces = self.tokenizer.pieces(self.prompt_ids, self.prompt_text)
        tokens, offset = [], 0
        for token_id, of_token, piece in zip(self.prompt_ids, logprobs, pieces, strict=True):
            tokens.append(StreamedToken(token_id=token_id, text_offset=offset, logprobs=of_token))
            offset += len(piece)
        self.generated_from = offset
        return TextDelta(text="".join(pieces), tokens=tuple(tokens))

    def generated(self, events: Sequence[TokenEvent]) -> TextDelta:
        """What can be shown after these tokens; often without their last characters, and often nothing."""
        if self.is_plain:
            self.num_generated += len(events)
            return TextDelta(text=self.detokenizer.feed_all([e.token_id for e in events if not e.is_end]))
        deltas = [self._token(event) for event in events]
        if len(deltas) == 1:
            return deltas[0]
        tokens = tuple(token for delta in deltas for token in delta.tokens)
        return TextDelta(text="".join([delta.text for delta in deltas]), tokens=tokens)

    def _token(self, event: TokenEvent) -> TextDelta:
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
        piece = "" if event.is_end else self.detokenizer.feed(event.token_id)
        self.held_text += piece
        self.num_decoded += len(piece)
        if not self.matcher.stop:
            return self.release(self.num_decoded)
        self.matcher.feed(piece)
        cut = self.matcher.cut
        return self.release(self.num_decoded - self.matcher.num_held() if cut is None else cut)

    def finish(self) -> TextDelta:
        """All text that was held back, up to the stop string if there was one."""
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
