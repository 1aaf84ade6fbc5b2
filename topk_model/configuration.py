"""The configuration of a TopK language model: Llama's, plus where and how the residual stream is sparse."""

from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, LlamaConfig

from topk_model import register_if_possible

SELECTIONS = ("signed", "abs")
#: Fields that count something there must be at least one of.
COUNTS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip


@strict
class TopKLMConfig(LlamaConfig):
    """Llama's fields, and three of our own.

    Raises:
        StrictDataclassError: a field has the wrong type or an impossible value, `topk_k`, `n_nontopk` or `topk_select`
            is out of range, the heads do not divide, or a Llama feature is asked for that a TopK model does not have
            (biases, a RoPE other than the default one). `make_config` raises ValueError instead.
    """

    model_type = "topk_lm"

    #: Number of entries of the residual stream kept at the end of every TopK layer; smaller is sparser.
    topk_k: int = 32
    #: Number of final layers kept as standard (dense) blocks. Equal to `num_hidden_layers`, it is a plain Llama.
    n_nontopk: int = 2
    #: "signed" keeps the largest values, "abs" the largest magnitudes.
    topk_select: str = "signed"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_attention_heads == 0:  # by which the next line divides
            raise ValueError("num_attention_heads is 0, must be at least 1")
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        for name in COUNTS:
            if (count := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {count}, must be at least 1")
        super().validate_architecture()
        if self.head_dim is not None and self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, must be even: RoPE turns pairs of it")
        if not 0 < self.rms_norm_eps < float("inf"):
            raise ValueError(f"rms_norm_eps is {self.rms_norm_eps}, must be positive and finite")
        if self.pad_token_id is not None and not -self.vocab_size <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id is {self.pad_token_id}, must be below vocab_size ({self.vocab_size})")
        if not 1 <= self.topk_k <= self.hidden_size:
            raise ValueError(f"topk_k is {self.topk_k}, must be between 1 and hidden_size ({self.hidden_size})")
        if not 0 <= self.n_nontopk <= self.num_hidden_layers:
            raise ValueError(
                f"n_nontopk is {self.n_nontopk}, must be between 0 and num_hidden_layers ({self.num_hidden_layers})"
            )
        if self.topk_select not in SELECTIONS:
            raise ValueError(f"topk_select is {self.topk_select!r}, must be one of {', '.join(SELECTIONS)}")
        if self.num_key_value_heads and self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if self.attention_bias or self.mlp_bias:
            raise ValueError("attention_bias and mlp_bias are not supported: a TopK block has no biases")
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act is {self.hidden_act!r}, must be 'silu': a TopK block is a SwiGLU block")
        rope = self.rope_parameters or {}
        if (rope_type := rope.get("rope_type", "default")) != "default":
            raise ValueError(f"rope_type is {rope_type!r}: only 'default' is supported")
        theta = rope.get("rope_theta", 1.0)
        if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < float("inf"):
            raise ValueError(f"rope_theta is {theta!r}, must be a positive number")
        if (factor := rope.get("partial_rotary_factor", 1.0)) != 1.0:
            raise ValueError(f"partial_rotary_factor is {factor}: only 1.0 is supported")

    @property
    def num_topk_layers(self) -> int:
        """Number of leading layers whose output is sparse."""
        return self.num_hidden_layers - self.n_nontopk

    @property
    def topk_layers(self) -> list[int]:
        """Indices of the TopK layers, ascending."""
        return list(range(self.num_topk_layers))


def make_config(fields: dict[str, Any], source: object) -> TopKLMConfig:
    """The configuration of `fields`, as `config.json` names them.

    Raises:
        ValueError: they describe no TopK model; the message begins with `source`.
    """
    try:
        return TopKLMConfig.from_dict(fields)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{source}: {' '.join(str(error.__cause__ or error).split())}") from error


AutoConfig.register("topk_lm", TopKLMConfig)
register_if_possible()
