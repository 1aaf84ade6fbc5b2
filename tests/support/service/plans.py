"""A completion planned for the small model of tests, a tokenizer with a chat template, and a receipt."""

from service.requests.facts import ModelFacts
from service.requests.parsing import validate
from service.requests.planning import Plan, Planner
from service.requests.schema import (
    CompletionRequest,
)
from service.text import TextTokenizer
from tests.support.small_vocabulary import TEXTS, small_facts, small_tokenizer
from topk_model.interventions import Receipt
from topk_model.training.data import train_tokenizer

PROMPT_IDS = [0, 10, 11, 12, 13, 14]


def completion(facts: ModelFacts | None = None, **fields: object) -> Plan:
    request = validate(CompletionRequest, {"model": "tiny", "prompt": PROMPT_IDS, "max_tokens": 4} | fields)
    return Planner(facts or small_facts(), small_tokenizer()).completion(request, "cmpl-1")


def with_chat_template() -> TextTokenizer:
    tokenizer = train_tokenizer(iter(TEXTS * 4), 400)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    )
    return TextTokenizer(tokenizer)


def receipt(**changes: object) -> Receipt:
    fields = {
        "positions_applied": 4,
        "first": 0,
        "last": 3,
        "active_before": 1,
        "mean_before": 0.5,
        "mean_after": 2.0,
        "evicted": 0,
        "num_applications": 4,
        "num_changed": 4,
    }
    return Receipt(**(fields | changes))
