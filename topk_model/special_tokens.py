"""Which tokens end a text, and which are not text at all, from all files of a model that define them. Knows no weights.

Up to four files of a model define them: config.json, generation_config.json, tokenizer_config.json and tokenizer.json.
They often name different tokens, and all of them are valid.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from topk_model.configuration import TopKLMConfig
from topk_model.files import read_json

GENERATION_CONFIG = "generation_config.json"
#: Values by which configurations say that there is no such token.
_NONE = -1


def listed(value: Any, source: object) -> list[int]:
    """The ids in a field with one id, several or none.

    Raises:
        ValueError: the field has another value.
    """
    values = value if isinstance(value, list) else [value]
    ids = [one for one in values if one is not None and one != _NONE]
    if not all(type(one) is int and one >= 0 for one in ids):
        raise ValueError(f"{source} is {value!r}, but must be a token id, a list of token ids, or null")
    return ids


def end_token_ids(config: TopKLMConfig, tokenizer: PreTrainedTokenizerBase, folders: Iterable[Path]) -> list[int]:
    """Ids that end a text: those of config.json, generation_config.json and the tokenizer, without duplicates.

    Args:
        folders: where generation_config.json may be; the first one found counts.

    Raises:
        ValueError: a file names something that is not a token of the model.
    """
    named = {"config.json": config.eos_token_id, "tokenizer_config.json": tokenizer.eos_token_id}
    path = next((path for folder in folders if (path := folder / GENERATION_CONFIG).is_file()), None)
    if path is not None:
        named[str(path)] = read_json(path).get("eos_token_id")
    ids: list[int] = []
    for name, value in named.items():
        source = f"{name}: eos_token_id"
        for token_id in listed(value, source):
            if token_id >= config.vocab_size:
                raise ValueError(f"{source} is {token_id}, but must be below vocab_size ({config.vocab_size})")
            if token_id not in ids:
                ids.append(token_id)
    return ids


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, with the tokenizer's BOS before them; what looks like a special token is text."""
    ids: list[int] = tokenizer(text, split_special_tokens=True).input_ids
    return ids


def special_token_ids(tokenizer: PreTrainedTokenizerBase, config: TopKLMConfig | None = None) -> frozenset[int]:
    """Ids that are not text: those that either file of the tokenizer calls special, and the added tokens with which
    `config` begins, ends and pads texts. A word of the vocabulary that ends texts, as a line break may, stays text."""
    added = tokenizer.added_tokens_decoder
    special = {token_id for token_id, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    if config is not None:
        ends = config.eos_token_id
        named = [config.bos_token_id, config.pad_token_id, *(ends if isinstance(ends, list) else [ends])]
        special |= {token_id for token_id in named if token_id in added}
    return frozenset(special)
