"""The configuration of a TopK language model: Llama's, and where and how the residual stream is sparse."""

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

SELECTIONS = ("signed", "abs")


@strict
class TopKLMConfig(LlamaConfig):
    """Llama's fields, and three of our own.

    Raises:
        ValueError: `topk_k`, `n_nontopk` or `topk_select` is out of range, or a Llama feature is asked for
            that a TopK model does not have (biases, a RoPE other than the default one).
    """

    model_type = "topk_lm"

    #: Number of entries of the residual stream kept at the end of every TopK layer; smaller is sparser.
    topk_k: int = 32
    #: Number of final layers kept as standard (dense) blocks. Equal to `num_hidden_layers`, it is a plain Llama.
    n_nontopk: int = 2
    #: "signed" keeps the largest values, "abs" the largest magnitudes.
    topk_select: str = "signed"

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if not 1 <= self.topk_k <= self.hidden_size:
            raise ValueError(f"topk_k is {self.topk_k}, must be between 1 and hidden_size ({self.hidden_size})")
        if not 0 <= self.n_nontopk <= self.num_hidden_layers:
            raise ValueError(
                f"n_nontopk is {self.n_nontopk}, must be between 0 and num_hidden_layers ({self.num_hidden_layers})"
            )
        if self.topk_select not in SELECTIONS:
            raise ValueError(f"topk_select is {self.topk_select!r}, must be one of {', '.join(SELECTIONS)}")
        if self.attention_bias or self.mlp_bias:
            raise ValueError("attention_bias and mlp_bias are not supported: a TopK block has no biases")
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act is {self.hidden_act!r}, must be 'silu': a TopK block is a SwiGLU block")
        rope_type = (self.rope_parameters or {}).get("rope_type", "default")
        if rope_type != "default":
            raise ValueError(f"rope_type is {rope_type!r}: only 'default' is supported")

    @property
    def num_topk_layers(self) -> int:
        """Number of leading layers whose output is sparse."""
        return self.num_hidden_layers - self.n_nontopk

    @property
    def topk_layers(self) -> list[int]:
        """Indices of the TopK layers, ascending."""
        return list(range(self.num_topk_layers))
