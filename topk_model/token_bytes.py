"""The bytes of each token of a byte-level vocabulary, and text from them. Knows no model.

Added tokens are plain texts. The decoders of tokenizer libraries pass them through the byte table too, which corrupts
every one with an accent.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


def byte_of_character() -> dict[str, int]:
    """The byte for each character of a byte-level vocabulary (the table of GPT-2, Radford et al. 2019):
    printable Latin-1 characters stand for themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def described(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The content of a fast tokenizer's tokenizer.json."""
    fields: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return fields


def decoder_type(fields: Mapping[str, Any]) -> str | None:
    """The kind of a tokenizer's decoder; "ByteLevel" is that of byte-level BPE."""
    kind: str | None = (fields.get("decoder") or {}).get("type")
    return kind


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes of every id of a byte-level tokenizer; empty for an id that it lacks.

    Raises:
        ValueError: the tokenizer is of another kind.
    """
    fields = described(tokenizer)
    if (decoder := decoder_type(fields)) != "ByteLevel":
        raise ValueError(f"the tokenizer's decoder is {decoder!r}: only byte-level BPE ('ByteLevel') is supported")
    bytes_of = byte_of_character()
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        known = all(character in bytes_of for character in token)
        table[token_id] = bytes(bytes_of[c] for c in token) if known else token.encode()
    # A token that BPE produces keeps its bytes, even if it is also an added token, as in GPT-2's vocabulary.
    merges = (fields.get("model") or {}).get("merges") or ()
    made = {"".join(pair) if isinstance(pair, list) else pair.replace(" ", "") for pair in merges} | bytes_of.keys()
    for token_id, added in tokenizer.added_tokens_decoder.items():
        if added.content not in made:
            table[token_id] = added.content.encode()
    return table


def token_name(token_id: int, table: Sequence[bytes]) -> str:
    """A single token, as lists of tokens show it: its text, or `bytes:\\xe2\\x80` if it is not complete UTF-8.

    Different byte strings give different names, so it can be the key of a map of tokens.
    """
    if token_id >= len(table):
        return f"<token {token_id}>"
    try:
        return table[token_id].decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in table[token_id])


def decode_bytes(ids: Iterable[int], table: Sequence[bytes]) -> str:
    """Text of token ids; bytes that are not UTF-8 become U+FFFD, and ids that the tokenizer lacks are skipped."""
    return b"".join(table[i] for i in ids if i < len(table)).decode(errors="replace")


class TokenTexts:
    """Texts and names of token ids, as `topk generate` and `topk trace` show them, for tokenizers of every kind."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._table = token_bytes(tokenizer) if decoder_type(described(tokenizer)) == "ByteLevel" else None

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids)) if self._table is None else decode_bytes(ids, self._table)

    def name(self, token_id: int) -> str:
        return self.decode([token_id]) if self._table is None else token_name(token_id, self._table)
