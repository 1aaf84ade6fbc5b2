"""What the model is held against: transformers' Llama with the same weights, and the definition written out."""

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from topk_model.modeling import TopKLMForCausalLM


def llama_like(model: TopKLMForCausalLM) -> LlamaForCausalLM:
    """transformers' Llama with the weights of `model`."""
    fields = {k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "architectures", "dtype")}
    llama = LlamaForCausalLM(LlamaConfig(**fields)).eval().to(model.device)
    llama.load_state_dict(model.state_dict())
    return llama


def reference_logits(model: TopKLMForCausalLM, ids: Tensor) -> Tensor:
    """Logits `[length, vocab]` of one sequence, in float64, from the definition alone."""
    config, w = model.config, {name: p.double().cpu() for name, p in model.state_dict().items()}
    length, heads, width = len(ids), config.num_attention_heads, config.head_dim
    pairs = width // 2
    turn = torch.arange(length)[:, None] * config.rope_parameters["rope_theta"] ** (-torch.arange(pairs) / pairs)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * w[name]

    def rope(x: Tensor) -> Tensor:  # [length, head_dim]: coordinates i and i + head_dim / 2 turn as one complex number
        turned = torch.complex(x[:, :pairs], x[:, pairs:]) * torch.polar(torch.ones_like(turn), turn)
        return torch.cat((turned.real, turned.imag), -1)

    def attention(x: Tensor, name: str) -> Tensor:
        q, k, v = (x @ w[f"{name}.{p}_proj.weight"].T for p in "qkv")
        out = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            group = head // (heads // config.num_key_value_heads)
            shared = slice(group * width, (group + 1) * width)
            scores = rope(q[:, own]) @ rope(k[:, shared]).T / width**0.5
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            out.append(scores.softmax(-1) @ v[:, shared])
        return torch.cat(out, -1) @ w[f"{name}.o_proj.weight"].T

    def keep_k(x: Tensor) -> Tensor:
        kept = torch.zeros_like(x)
        for row, vector in enumerate(x.tolist()):
            strength = [abs(value) if config.topk_select == "abs" else value for value in vector]
            for _, i in sorted((-s, i) for i, s in enumerate(strength))[: config.topk_k]:
                kept[row, i] = vector[i]
        return kept

    h = w["model.embed_tokens.weight"][ids.cpu()]
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        h = h + attention(norm(h, f"{name}.input_layernorm.weight"), f"{name}.self_attn")
        x = norm(h, f"{name}.post_attention_layernorm.weight")
        gate, up = x @ w[f"{name}.mlp.gate_proj.weight"].T, x @ w[f"{name}.mlp.up_proj.weight"].T
        h = h + (gate * gate.sigmoid() * up) @ w[f"{name}.mlp.down_proj.weight"].T
        if layer < config.num_hidden_layers - config.n_nontopk:
            h = keep_k(h)
    return norm(h, "model.norm.weight") @ w["lm_head.weight"].T


def realigned(model: torch.nn.Module) -> torch.nn.Module:
    """`model` with its weights copied to memory of torch's own.

    Weights that were loaded lie where the file was mapped. At another alignment some kernels add in another order,
    and a last bit can change which neurons are the k largest: what is to be equal must lie alike.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model
