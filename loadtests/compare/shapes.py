"""The models that are compared: shapes, random weights, and prompts. Light: every side reads it, in any environment."""

import json
import os
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topk_model.configuration import TopKLMConfig

PROMPT_TOKENS = 32
NEW_TOKENS = 64
MAX_POSITIONS = 512


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    topk_k: int
    n_nontopk: int = 2
    is_widened: bool = True  # there is an engine of it with wider MLPs, too

    @property
    def attention_outputs(self) -> int:
        """Columns of queries, keys and values together."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def num_matrix_weights(self) -> int:
        """Weights of all products of a step; the embedding is read from the unembedding, row by row."""
        attention = self.attention_outputs + self.num_heads * self.head_dim
        block = self.hidden_size * (attention + 3 * self.intermediate_size)
        return self.num_layers * block + self.vocab_size * self.hidden_size

    @property
    def num_fewest_weights(self) -> int:
        """The same where a product over a TopK layer's output reads only the k columns that are not zero."""
        num_sparse = min(self.num_layers - self.n_nontopk, self.num_layers - 1)  # blocks that follow a TopK layer
        return self.num_matrix_weights - num_sparse * (self.hidden_size - self.topk_k) * self.attention_outputs

    @property
    def num_widening_weights(self) -> int:
        """By how many `widened` has more."""
        return self.num_layers * 3 * self.intermediate_size * self.hidden_size

    def widened(self) -> "Shape":
        """The same with MLPs of twice the width."""
        return replace(self, intermediate_size=2 * self.intermediate_size)

    def config(self) -> "TopKLMConfig":
        from topk_model.configuration import TopKLMConfig

        return TopKLMConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=MAX_POSITIONS,
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
            topk_k=self.topk_k,
            n_nontopk=self.n_nontopk,
        )


#: The first is the default model's shape.
SHAPES = (
    Shape(
        name="7M", vocab_size=8192, hidden_size=384, intermediate_size=224, num_layers=6,
        num_heads=6, num_kv_heads=2, head_dim=64, topk_k=10,
    ),
    Shape(
        name="30M", vocab_size=8192, hidden_size=512, intermediate_size=1408, num_layers=8,
        num_heads=8, num_kv_heads=8, head_dim=64, topk_k=32,
    ),
    Shape(
        name="200M", vocab_size=16384, hidden_size=1024, intermediate_size=2816, num_layers=14,
        num_heads=16, num_kv_heads=16, head_dim=64, topk_k=64, is_widened=False,
    ),
)  # fmt: skip
#: For a test of the program itself.
TINY = Shape(
    name="tiny", vocab_size=512, hidden_size=64, intermediate_size=96, num_layers=4,
    num_heads=2, num_kv_heads=1, head_dim=32, topk_k=8,
)  # fmt: skip
BY_NAME = {shape.name: shape for shape in (*SHAPES, TINY)}


def prompts(shape: Shape, num_rows: int, seed: int) -> list[list[int]]:
    """Random prompts `[num_rows, PROMPT_TOKENS]` without special tokens; another seed, other prompts, so that nothing
    of an earlier turn may be found in a prefix cache."""
    rng = random.Random(seed)
    return [[rng.randrange(3, shape.vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(num_rows)]


def write_models(shape: Shape, folder: Path) -> None:
    """Random weights of the shape as two models: `topk`, and `llama`, the plain Llama of the same tensors, which is
    what others can run."""
    import torch

    from topk_model.modeling import TopKLMForCausalLM

    torch.manual_seed(0)
    TopKLMForCausalLM(shape.config()).save_pretrained(folder / "topk")
    plain = folder / "llama"
    plain.mkdir()
    os.link(folder / "topk" / "model.safetensors", plain / "model.safetensors")
    fields = json.loads((folder / "topk" / "config.json").read_text())
    for name in ("topk_k", "n_nontopk", "topk_select", "auto_map"):
        fields.pop(name, None)
    fields |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (plain / "config.json").write_text(json.dumps(fields, indent=2))


if __name__ == "__main__":
    write_models(BY_NAME[sys.argv[1]], Path(sys.argv[2]))
