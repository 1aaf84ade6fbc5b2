"""What may be asked for a lever: the request shared by HTTP and gRPC, and its words or texts as a model's token ids.

Knows no transport and runs nothing.
"""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from service.errors import BadRequestError, fault, invalid
from service.requests.edit_schema import Request
from service.requests.facts import ModelFacts
from service.requests.limits import (
    MAX_CONTRAST_TEXTS,
    MAX_LEVER_COST,
    MAX_LEVER_NODES,
    MAX_LEVER_TEXT_TOKENS,
    MAX_LEVER_TOKENS,
    MAX_LEVER_WORDS,
    MAX_LEVERS,
    MAX_NAME_CHARS,
    MAX_TIMEOUT_S,
    MAX_WORD_CHARS,
)
from service.requests.neuron_schema import MODEL, Text
from service.requests.resolving import check_has_topk, read_prompt
from service.requests.validators import check_text
from service.text import TextTokenizer
from topk_model.steering.words import Contrast, WordTree, word_ids


def check_word(word: str) -> str:
    if not word.strip():
        raise fault("must not be blank", word)
    return check_text(word)


Word = Annotated[str, Field(max_length=MAX_WORD_CHARS), AfterValidator(check_word)]
Several = Annotated[list[Text], Field(min_length=1, max_length=MAX_CONTRAST_TEXTS)]


class TextPair(Request):
    """Texts to steer towards, and others to steer away from."""

    towards: Several
    away: Several


class LeversRequest(Request):
    """POST /v1/levers: which neurons, moved by how much, make some words or texts likelier, and what that costs."""

    model: str = Field(min_length=1, max_length=MAX_NAME_CHARS, description=MODEL)
    words: list[Word] | None = Field(
        None,
        min_length=1,
        max_length=MAX_LEVER_WORDS,
        description="words to make likelier, each as a whole, as it stands inside a sentence; either this or texts",
    )
    texts: TextPair | None = Field(
        None,
        description="texts to make likelier than others; with two or more on each side, the levers are measured on "
        "texts that they were not found on",
    )
    prompt: Text | None = Field(
        None, description="text to continue, plain and with each lever; null: the opening of an ordinary text"
    )
    max_tokens: int = Field(32, ge=0, le=MAX_LEVER_TOKENS, description="of each continuation; 0: none are written")
    temperature: float = Field(0.8, ge=0, le=2, description="of the continuations")
    seed: int = Field(0, ge=-(2**63), lt=2**63, description="of the continuations")
    max_cost: float = Field(
        0.2,
        gt=0,
        le=MAX_LEVER_COST,
        description="nats per token that what is written may be less likely under the plain model",
    )
    limit: int = Field(5, ge=1, le=MAX_LEVERS, description="most levers to return")
    stream: bool = Field(False, description="tell how far the search has come, as server-sent events")
    timeout_s: float | None = Field(None, gt=0, le=MAX_TIMEOUT_S, description="seconds until the request is dropped")

    @model_validator(mode="after")
    def check_target(self) -> Self:
        if self.words is None and self.texts is None:
            raise fault("is required, or texts", None, "words")
        if self.words is not None and self.texts is not None:
            raise fault("must be left out where words are given", {}, "texts")
        return self


def tokens_of_words(words: list[str], tokenizer: TextTokenizer) -> list[tuple[int, ...]]:
    """Token ids of each word inside a sentence.

    Raises:
        BadRequestError: the tokenizer makes nothing of a word, or a word is too long.
    """

    def encode(text: str) -> tuple[int, ...]:
        return tokenizer.encode(text, add_special_tokens=False)

    several = [word_ids(encode, word) for word in words]
    for i, ids in enumerate(several):
        if not ids:
            raise invalid(f"words[{i}]", "must have at least one token", words[i])
    return several


def tree_of(words: list[tuple[int, ...]], facts: ModelFacts) -> WordTree:
    """The words as a search reads them.

    Raises:
        BadRequestError: the model has no TopK layer, or so many words of several tokens are too much.
    """
    check_has_topk("model", facts)
    tree = WordTree.of(words)
    if len(tree.nodes) > MAX_LEVER_NODES:
        raise BadRequestError(
            f"words have {len(tree.nodes)} tokens that are not a word's last, must be at most {MAX_LEVER_NODES}",
            param="words",
        )
    if tree.depth >= facts.context_length // 2:
        raise BadRequestError(
            f"words has one of {tree.depth + 1} tokens, must be at most {facts.context_length // 2} (half of the "
            "model's context)",
            param="words",
        )
    return tree


def contrast_of(texts: TextPair, facts: ModelFacts, tokenizer: TextTokenizer) -> Contrast:
    """The texts as a search reads them.

    Raises:
        BadRequestError: the model has no TopK layer, or a text is too short or too long for it, or they all are.
    """
    check_has_topk("model", facts)
    total = 0
    sides: dict[str, list[tuple[int, ...]]] = {"towards": [], "away": []}
    for side, several in (("towards", texts.towards), ("away", texts.away)):
        for i, text in enumerate(several):
            path = f"texts.{side}[{i}]"
            ids = read_prompt(text, path, facts, tokenizer).ids
            if len(ids) < 3:
                raise invalid(path, "must have at least 3 tokens, the first one included", text)
            if len(ids) > facts.context_length:
                raise invalid(path, f"must have at most {facts.context_length} tokens (the model's context)", text)
            total += len(ids)
            sides[side].append(ids)
    if total > MAX_LEVER_TEXT_TOKENS:
        raise BadRequestError(f"texts have {total} tokens, must be at most {MAX_LEVER_TEXT_TOKENS}", param="texts")
    return Contrast(**sides)
