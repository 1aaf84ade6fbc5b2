"""What may be asked for a lever: the request shared by HTTP and gRPC, checked against a model.

Knows no transport and runs nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from service.requests.parsing import validate
from service.requests.planning import Planner
from service.requests.resolving import Prompt, check_has_topk, check_length, read_prompt
from service.requests.schema import CompletionRequest
from service.requests.validators import check_text
from service.text import TextTokenizer
from topk_model.steering.words import MIN_TEXT_TOKENS, Contrast, WordTree, word_ids


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


@dataclass(frozen=True, kw_only=True)
class LeverPlan:
    """What is to be searched: a tree of words, or a contrast of texts."""

    words: tuple[tuple[int, ...], ...]  # tokens of each word, in the request's order
    tree: WordTree | None
    contrast: Contrast | None


def plan_levers(request: LeversRequest, planner: Planner) -> LeverPlan:
    """The words or texts as token ids.

    Raises:
        BadRequestError: the model cannot search for them, or not continue the prompt.
    """
    facts, tokenizer = planner.facts, planner.tokenizer
    check_has_topk("model", facts)
    words: tuple[tuple[int, ...], ...] = ()
    tree = contrast = None
    if request.words is not None:
        words = tuple(tokens_of_word(word, f"words[{i}]", tokenizer) for i, word in enumerate(request.words))
        tree = tree_of(words, facts)
    else:
        assert request.texts is not None
        contrast = contrast_of(request.texts, facts, tokenizer)
    if request.prompt is not None and request.max_tokens:
        planner.completion(continuation(request, request.prompt), "checked")
    else:
        check_length(Prompt(path="prompt", ids=(0,)), request.max_tokens, facts)
    return LeverPlan(words=words, tree=tree, contrast=contrast)


def continuation(
    request: LeversRequest, prompt: str | list[int], edit: Mapping[str, object] | None = None
) -> CompletionRequest:
    """The request for a continuation of `prompt`, under an intervention if there is one."""
    fields = {name: getattr(request, name) for name in ("model", "max_tokens", "temperature", "seed")}
    edits = [] if edit is None else [dict(edit)]
    return validate(CompletionRequest, {**fields, "prompt": prompt, "interventions": edits, "parse_special": False})


def tokens_of_word(word: str, path: str, tokenizer: TextTokenizer) -> tuple[int, ...]:
    """Token ids of a word inside a sentence.

    Raises:
        BadRequestError: the tokenizer makes nothing of it.
    """
    ids = word_ids(lambda text: tokenizer.encode(text, add_special_tokens=False), word)
    if not ids:
        raise invalid(path, "must have at least one token", word)
    return ids


def tree_of(words: Sequence[tuple[int, ...]], facts: ModelFacts) -> WordTree:
    """The words as a search reads them.

    Raises:
        BadRequestError: there are too many words of several tokens, or one is too long for the model.
    """
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
        BadRequestError: a text is too short or too long for the model, or they are all together.
    """
    sides: dict[str, list[tuple[int, ...]]] = {}
    for side, several in (("towards", texts.towards), ("away", texts.away)):
        prompts = [read_prompt(text, f"texts.{side}[{i}]", facts, tokenizer) for i, text in enumerate(several)]
        for prompt in prompts:
            check_length(prompt, 0, facts)
            if len(prompt.ids) < MIN_TEXT_TOKENS:
                raise invalid(prompt.path, f"must have at least {MIN_TEXT_TOKENS} tokens, BOS included", prompt.text)
        sides[side] = [prompt.ids for prompt in prompts]
    total = sum(len(ids) for several in sides.values() for ids in several)
    if total > MAX_LEVER_TEXT_TOKENS:
        raise BadRequestError(f"texts have {total} tokens, must be at most {MAX_LEVER_TEXT_TOKENS}", param="texts")
    return Contrast(**sides)
