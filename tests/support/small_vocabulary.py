"""A small real tokenizer, trained here, and the facts of a small model that could go with it."""

from dataclasses import replace
from functools import cache

from service.requests.facts import ModelFacts
from service.text import TextTokenizer
from topk_model.training.data import train_tokenizer

TEXTS = (
    "Once upon a time, there was a king who had three sons and a great house by the sea.",
    "The soldier said that he would not go back to the war, and his mother was glad.",
    "Die schöne Müllerin saß am Fluß. Où est l'été, déjà passé? Ça va, mon cœur.",
    "stop the project, stop the work; the work was done and the project was over. abab abba aabb",
)


@cache
def small_tokenizer() -> TextTokenizer:
    return TextTokenizer(train_tokenizer(iter(TEXTS * 4), 400))


def small_facts(**changes: object) -> ModelFacts:
    """Four layers, two of them TopK, 64 neurons, a context of 256 tokens."""
    tokenizer = small_tokenizer()
    facts = ModelFacts(
        id="tiny",
        hidden_size=64,
        num_layers=4,
        topk_layers=(0, 1),
        n_nontopk=2,
        k=8,
        select="signed",
        vocab_size=len(tokenizer),
        context_length=256,
        bos_id=tokenizer.bos_id,
        pad_id=tokenizer.pad_id,
        special_ids=tokenizer.special_ids,
        checkpoint=None,
        has_chat_template=tokenizer.has_chat_template,
    )
    return replace(facts, **changes)
