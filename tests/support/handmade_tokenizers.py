"""Byte-level tokenizers made by hand, whose every token is known: what is read from one can be told from its making."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def handmade(
    added: Sequence[AddedToken] = (),
    *,
    bos: str | None = None,
    eos: str | None = None,
    chat_template: str | None = None,
    normalizer: normalizers.Normalizer | None = None,
) -> PreTrainedTokenizerFast:
    """A token for each byte, then the added ones, and one merge: " the"."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    vocabulary = {token: i for i, token in enumerate([*alphabet, "th", "the", "Ġthe"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    for token in added:
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    if bos is not None:
        template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])
        backend.post_processor = template
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def special(text: str, **flags: bool) -> AddedToken:
    return AddedToken(text, special=True, **{"normalized": False} | flags)


def word(text: str, **flags: bool) -> AddedToken:
    return AddedToken(text, special=False, **{"normalized": False} | flags)
