"""TopK language model, for transformers with trust_remote_code=True; made by `topk ship`, not to be edited.

Licensed under Apache-2.0.
"""

from typing import Any
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig
from collections.abc import Callable
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

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
#: The output's field for the cache, and `forward`'s argument: transformers 5.24 gave both another name.
CACHE_FIELD = "cache" if "cache" in CausalLMOutputWithPast.__annotations__ else "past_key_values"
#: (layer, query [..., heads, head_dim], key, value [..., kv_heads, head_dim]), RoPE applied -> [..., heads * head_dim]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
#: (layer, block output [..., hidden_size]) -> what the next block reads, same shape
Sparsify = Callable[[int, Tensor], Tensor]


def topk_mask(values: Tensor, k: int, select: str = "signed") -> Tensor:
    """Which entries of each vector TopK keeps.

    Selection is done in float32 and ties go to the lower index, so the set depends on the vector alone.

    Args:
        values: `[..., hidden_size]`.
        k: number of entries kept.
        select: "signed" (largest values) or "abs" (largest magnitudes).

    Returns:
        Boolean `[..., hidden_size]` with exactly k true entries in each vector that holds no NaN.
    """
    key = values.float()
    if select == "abs":
        key = key.abs()
    kth = key.topk(k, dim=-1).values[..., -1:]
    above, tied = key > kth, key == kth
    room = k - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1) <= room))


def topk(values: Tensor, k: int, select: str = "signed") -> Tensor:
    """`values` with all but the k selected entries of each vector set to zero; see `topk_mask`."""
    if k >= values.shape[-1]:
        return values
    return torch.where(topk_mask(values.detach(), k, select), values, 0.0)


class RMSNorm(nn.Module):
    """Root mean square normalisation over the last axis, computed in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(hidden.dtype)


class RotaryEmbedding(nn.Module):
    """Rotary position embedding, in the two-halves layout of transformers' Llama (Su et al. 2021)."""

    inv_freq: Tensor

    def __init__(self, config: TopKLMConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.base = config.rope_parameters["rope_theta"]
        self.register_buffer("inv_freq", self.compute_inv_freq(), persistent=False)

    def compute_inv_freq(self) -> Tensor:
        """Angular frequency of each pair of coordinates, `[head_dim / 2]`, radians per position."""
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        return 1.0 / self.base**exponent

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin `[..., 1, head_dim]` of integer `positions` `[...]`, ready to broadcast over heads."""
        angles = positions[..., None].float() * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(-2)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply a rotary embedding to `x` `[..., heads, head_dim]`."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class TopKLMAttention(nn.Module):
    """Grouped-query attention without the attending itself."""

    def __init__(self, config: TopKLMConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim: int = config.head_dim
        hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(hidden, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, hidden, bias=False)

    def forward(self, hidden: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        query = self.q_proj(hidden).unflatten(-1, (-1, self.head_dim))  # [..., heads, head_dim]
        key = self.k_proj(hidden).unflatten(-1, (-1, self.head_dim))  # [..., kv_heads, head_dim]
        value = self.v_proj(hidden).unflatten(-1, (-1, self.head_dim))
        return self.o_proj(attend(self.layer, rotate(query, *rope), rotate(key, *rope), value))


class TopKLMMLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: TopKLMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class TopKLMDecoderLayer(nn.Module):
    """One pre-norm block: attention, MLP, and then `sparsify` on the residual stream itself."""

    def __init__(self, config: TopKLMConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.self_attn = TopKLMAttention(config, layer)
        self.mlp = TopKLMMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, rope: tuple[Tensor, Tensor], attend: Attend, sparsify: Sparsify) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rope, attend)
        hidden = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return sparsify(self.layer, hidden)


class TopKLMPreTrainedModel(PreTrainedModel):
    """What transformers needs to know to load, save and initialise the model."""

    config: TopKLMConfig
    config_class = TopKLMConfig
    base_model_prefix = "model"
    _no_split_modules = ["TopKLMDecoderLayer"]
    _supports_sdpa = True

    def __init__(self, config: TopKLMConfig) -> None:
        config.validate()  # `from_pretrained` sets what it is given beside the folder without a look
        super().__init__(config)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RotaryEmbedding):
            module.inv_freq.copy_(module.compute_inv_freq())


class TopKLMModel(TopKLMPreTrainedModel):
    """Embedding, blocks and final norm."""

    def __init__(self, config: TopKLMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(TopKLMDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)
        self.post_init()

    def sparsify(self, layer: int, hidden: Tensor) -> Tensor:
        """The model as trained: TopK in the TopK layers, identity in the dense ones."""
        if layer >= self.config.num_topk_layers:
            return hidden
        return topk(hidden, self.config.topk_k, self.config.topk_select)

    def run_blocks(
        self, hidden: Tensor, positions: Tensor, attend: Attend, sparsify: Sparsify | None = None, start: int = 0
    ) -> Tensor:
        """Run the blocks from `start` on and the final norm.

        Args:
            hidden: `[..., hidden_size]`, the input of block `start` (block 0 reads the embedding).
            positions: `[...]`, position of each vector in its own sequence.
            attend: reads and writes whatever cache there is.
            sparsify: replaces the model's own; it is called once for each block, dense ones too.
            start: first block to run.

        Returns:
            `[..., hidden_size]`, what the unembedding reads.
        """
        rope = self.rotary_emb(positions, hidden.dtype)
        for layer in self.layers[start:]:
            hidden = layer(hidden, rope, attend, sparsify or self.sparsify)
        return self.norm(hidden)


def cached_attention(config: TopKLMConfig, mask: Tensor | None, cache: Cache | None) -> Attend:
    """Attention over whole padded batches `[batch, length, ...]` with transformers' mask and cache."""
    groups = config.num_attention_heads // config.num_key_value_heads

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # [batch, heads, length, head_dim]
        if cache is not None:
            key, value = cache.update(key, value, layer)
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        is_causal = mask is None and query.shape[2] > 1
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        return out.transpose(1, 2).flatten(2)

    return attend


class TopKLMForCausalLM(TopKLMPreTrainedModel, GenerationMixin):
    """The language model: `TopKLMModel` and an unembedding, with the parameter names and shapes of Llama."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: TopKLMConfig) -> None:
        super().__init__(config)
        self.model = TopKLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        sparsify: Sparsify | None = None,
        num_items_in_batch: int | Tensor | None = None,
        output_hidden_states: bool | None = None,
        **unused: object,
    ) -> CausalLMOutputWithPast:
        """Next-token logits.

        Args:
            input_ids: `[batch, length]`; or `inputs_embeds` `[batch, length, hidden_size]`, exactly one of them.
            attention_mask: `[batch, past + length]`, 0 at padding.
            position_ids: `[batch, length]`; counted from the cache's length if not given.
            cache, past_key_values: the cache, by either name; a `DynamicCache` is made where `use_cache` asks for one.
            labels: `[batch, length]`, shifted inside; -100 is not counted.
            num_items_in_batch: what the summed loss is divided by, where it is not the labels counted here: the labels
                of all passes of a step that accumulates.
            logits_to_keep: compute only the last so many positions' logits (0: all), or those of an index tensor.
            sparsify: replaces the model's TopK, as a training schedule or an experiment needs.
            output_hidden_states: return the states, too; by default as the configuration says.

        Returns:
            `logits` `[batch, kept, vocab_size]`, `loss` where labels were given, the cache, and of `hidden_states` the
            embedding and each block's output after its TopK, all `[batch, length, hidden_size]`. As in transformers,
            the last one is what the final norm made of it.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds` were given, or two caches.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        if inputs_embeds is None:
            inputs_embeds = self.model.embed_tokens(input_ids)
        if cache is not None and past_key_values is not None:
            raise ValueError("cache and past_key_values are two names for one argument: only one may be given")
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            past = cache.get_seq_length() if cache is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past)[None]
        mask = create_causal_mask(self.config, inputs_embeds, attention_mask, cache, position_ids)
        attend = cached_attention(self.config, mask, cache)
        sparsify, states = sparsify or self.model.sparsify, [inputs_embeds]

        def kept(layer: int, hidden: Tensor) -> Tensor:
            states.append(sparsify(layer, hidden))
            return states[-1]

        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden = self.model.run_blocks(inputs_embeds, position_ids, attend, kept if wanted else sparsify)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        hidden_states = (*states[:-1], hidden) if wanted else None
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=hidden_states, **{CACHE_FIELD: cache})
