"""Parts of answers as plain fields, with the names that every transport uses. Knows no transport."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from service.requests.facts import ModelFacts
from service.text import TextTokenizer
from topk_model.interventions import Receipt

Fields = dict[str, Any]

#: Fields of a receipt that are used only for warnings; clients see the warnings.
_OF_WARNINGS = {"num_applications", "num_changed"}


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens read and generated; a prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, num_prompt_tokens: int, num_generated: int) -> "Usage":
        total = num_prompt_tokens + num_generated
        return cls(prompt_tokens=num_prompt_tokens, completion_tokens=num_generated, total_tokens=total)


def receipt_fields(receipt: Receipt) -> Fields:
    return {name: value for name, value in asdict(receipt).items() if name not in _OF_WARNINGS}


def model_entry(facts: ModelFacts, *, created: int, checkpoints: Sequence[str], has_catalogue: bool) -> Fields:
    """The description of a model."""
    return {
        "id": facts.id,
        "object": "model",
        "created": created,
        "owned_by": "topk",
        "topk": {
            "k": facts.k,
            "n_nontopk": facts.n_nontopk,
            "select": facts.select,
            "hidden_size": facts.hidden_size,
            "num_layers": facts.num_layers,
            "topk_layers": list(facts.topk_layers),
            "context_length": facts.context_length,
            "checkpoints": list(checkpoints),
            "checkpoint": facts.checkpoint,
            "has_catalogue": has_catalogue,
            "presets": [preset.model_dump(mode="json") for preset in facts.presets],
            "examples": [example.model_dump(mode="json") for example in facts.examples],
            "weights_sha256": facts.weights_sha256,
        },
    }


def tokenization(ids: Sequence[int], facts: ModelFacts, tokenizer: TextTokenizer) -> Fields:
    return {
        "count": len(ids),
        "max_model_len": facts.context_length,
        "tokens": list(ids),
        "token_strs": [tokenizer.token_text(token_id) for token_id in ids],
    }
