"""How far a device's numbers differ from the CPU's in float32: logits, neuron sets, greedy tokens.

TopK turns rounding into behaviour: if two neurons are nearly equal, one bit decides which is kept. So sets differ
whenever sums are computed in another order; the question is how often, and how the text changes.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loadtests.gpu.engine_runs import GREEDY, engine_core, generate, token_ids
from service.engine.request import EngineRequest
from topk_model.checkpoints import load_model
from topk_model.modeling import TopKLMForCausalLM

TEXTS = (
    "Once upon a time, in a village by the sea, there lived an old woman who had three sons.",
    "The door opened and a man came in. He looked at the fire, and at the boy who sat before it.",
    "In the morning the boys were all very busy, for the ship was to sail at noon.",
    "She looked at him, and said nothing; but her hands shook as she folded the letter.",
    "“I do not know the way,” said the fox, “but I know somebody who does.”",
    "The king was so angry that he had the whole court called together in the great hall.",
    "It was raining when they came to the bridge, and the river was higher than they had ever seen it.",
    "Far away, beyond the mountains, the bells of the city began to ring.",
)
NUM_TOKENS = 64


def reading(model: TopKLMForCausalLM, prompts: list[tuple[int, ...]]) -> list[tuple[Tensor, Tensor]]:
    """For each prompt the logits `[tokens, vocab_size]` and the TopK layers' states `[layers, tokens, hidden_size]`."""
    found = []
    with torch.inference_mode():
        for ids in prompts:
            out = model(input_ids=torch.tensor([ids], device=model.device), output_hidden_states=True)
            states = torch.stack(out.hidden_states[1 : model.config.num_topk_layers + 1])[:, 0]
            found.append((out.logits[0].float().cpu(), states.cpu()))
    return found


def greedy_tokens(model: TopKLMForCausalLM, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """The tokens that the engine generates, with all prompts in one batch."""
    core = engine_core(model, num_rows=len(prompts), num_positions=max(map(len, prompts)) + NUM_TOKENS)
    requests = [
        EngineRequest(request_id=str(i), prompt_ids=ids, max_tokens=NUM_TOKENS, sampling=GREEDY, ignore_eos=True)
        for i, ids in enumerate(prompts)
    ]
    events = generate(core, requests)
    return [token_ids(events[str(i)]) for i in range(len(prompts))]


def compare(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """A model on the device compared with itself on the CPU in float32."""
    reference, tokenizer = load_model(folder, device="cpu", dtype=torch.float32)
    prompts = [tuple(tokenizer(text)["input_ids"]) for text in TEXTS]
    expected = reading(reference, prompts)
    expected_tokens = greedy_tokens(reference, prompts)
    model, _ = load_model(folder, device=device, dtype=dtype)
    found = reading(model, prompts)
    found_tokens = greedy_tokens(model, prompts)

    furthest, differs, off = 0.0, [], []
    for (logits, states), (logits_there, states_there) in zip(expected, found, strict=True):
        furthest = max(furthest, float((logits - logits_there).abs().max()))
        differs.append(((states != 0) != (states_there != 0)).any(-1))  # [layers, tokens]
        off.append((logits.argmax(-1) != logits_there.argmax(-1)).float())
    sets = torch.cat(differs, dim=1)
    same_until = [
        next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), NUM_TOKENS)
        for mine, theirs in zip(expected_tokens, found_tokens, strict=True)
    ]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "positions": sets.shape[1],
        "max_logit_difference": furthest,
        "share_of_positions_whose_neuron_set_differs": float(sets.any(0).float().mean()),
        "share_of_positions_whose_neuron_set_differs_by_layer": sets.float().mean(1).tolist(),
        "share_of_positions_whose_most_probable_token_differs": float(torch.cat(off).mean()),
        "greedy_tokens_until_the_first_difference": same_until,
        "share_of_greedy_sequences_that_are_the_same": sum(n == NUM_TOKENS for n in same_until) / len(same_until),
    }
