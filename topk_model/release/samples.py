"""What a model writes, unselected: every one of fixed prompts with every seed at every temperature. Knows no server."""

from transformers import PreTrainedTokenizerBase

from topk_model.generate import continue_text
from topk_model.modeling import TopKLMForCausalLM

PROMPTS = (
    "Once upon a time,",
    "The dog",
    "One day, a little girl",
    "The old man looked at the sea and",
    '"I do not believe you," said',
    "She opened the door and",
    "It was a cold morning, and",
    "They had worked all day, and now",
)
TEMPERATURES = (1.0, 0.7)
MAX_TOKENS = 64


def write_samples(
    model: TopKLMForCausalLM, tokenizer: PreTrainedTokenizerBase, temperature: float, num_seeds: int
) -> list[dict[str, str | int]]:
    """The model's continuations, as long as its context allows, sampled without any cut of the distribution.

    Returns:
        `prompt`, `seed` and `continuation` of each, prompt by prompt.
    """
    texts: list[dict[str, str | int]] = []
    for prompt in PROMPTS:
        room = min(MAX_TOKENS, model.config.max_position_embeddings - len(tokenizer(prompt).input_ids))
        if room > 0:
            for seed in range(num_seeds):
                text = continue_text(model, tokenizer, prompt, max_tokens=room, temperature=temperature, seed=seed)
                texts.append({"prompt": prompt, "seed": seed, "continuation": text})
    return texts
