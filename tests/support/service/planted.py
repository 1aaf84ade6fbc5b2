"""A tiny model in which raising a neuron brings words, since it was built so, with presets and examples of that."""

from pathlib import Path

from service.cli import main
from tests.support.presets import preset
from tests.support.served import save_tiny_model
from tests.support.small_vocabulary import small_tokenizer
from topk_model.model_folder import weights_digest
from topk_model.modeling import TopKLMForCausalLM
from topk_model.steering.presets import write_presets

#: Words that are one token, by the neuron that writes them.
PLANTED = {"crown": (3, ("war", "mother")), "labour": (9, ("work", "project"))}
#: What the presets add to the neuron.
VALUE = 30.0
PROMPTS = ("Once upon a time", "The king", "The soldier said")
OPTIONS = (
    "--max-tokens",
    "24",
    "--max-cost",
    "3",
    "--seeds",
    "1,2,3,4,5",
    "--prompts",
    ",".join(PROMPTS),
    "--threads",
    "1",
)


def save_planted_model(folder: Path) -> Path:
    """A tiny model with presets for two neurons of layer 1; a third of the presets does nothing."""
    save_tiny_model(folder)
    model, tokenizer = TopKLMForCausalLM.from_pretrained(folder), small_tokenizer()
    for neuron, words in PLANTED.values():
        for word in words:
            (token_id,) = tokenizer.encode(f" {word}", add_special_tokens=False)
            # The embedding is the unembedding, too: the neuron's weight on the word's logit.
            model.model.embed_tokens.weight.data[token_id, neuron] += 1.0
    model.save_pretrained(folder)
    presets = [preset(name, neuron=neuron, value=VALUE, words=words) for name, (neuron, words) in PLANTED.items()]
    idle = preset("idle", neuron=20, value=1e-6, words=("king", "war"))
    write_presets(folder, weights_digest(folder), 0.2, [*presets, idle])
    return folder


def make_examples(folder: Path, *options: str) -> int:
    """Run `topk examples` as a user does; its exit status."""
    return main(["examples", "--model", str(folder), *OPTIONS, *options])
