"""A small chat model with random weights, for chat clients: its answers are meaningless.

Run it as `python -m loadtests.clients.chat_model FOLDER`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from topk_model.configuration import TopKLMConfig
from topk_model.modeling import TopKLMForCausalLM

BOS, EOS, START, END = "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = (
    "You are a helpful assistant. What is the capital of France? Say hello, and nothing else.",
    "The model writes a word, then a line, and in the end a token that ends its turn.",
    "Once upon a time, there was a king who had three sons and a great house by the sea.",
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML's tokens, which are marked as special only in tokenizer.json."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BOS, EOS, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 4, trainer)
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_chat_model(folder: Path, *, seed: int = 0, context_length: int = 2048) -> Path:
    """Write the model; its turns end with the token that generation_config.json names."""
    tokenizer = chat_tokenizer()
    config = TopKLMConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
        topk_k=8,
        n_nontopk=2,
    )
    torch.manual_seed(seed)
    model = TopKLMForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(END)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if len(arguments) != 1:
        print("usage: python -m loadtests.clients.chat_model FOLDER", file=sys.stderr)
        return 2
    print(write_chat_model(Path(arguments[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
