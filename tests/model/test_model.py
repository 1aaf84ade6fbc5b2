"""The model against transformers' Llama, against a reference of its own, and the laws of TopK."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaForCausalLM

from tests.support.references import llama_like, realigned, reference_logits
from tests.support.tiny import DEVICE, tiny_config, tiny_model
from topk_model.configuration import TopKLMConfig, make_config
from topk_model.modeling import TopKLMForCausalLM, cached_attention, topk, topk_mask

LAYERS = 4


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 101, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_dense_model_is_transformers_llama_to_the_bit(tied: bool, kv_heads: int) -> None:
    model = tiny_model(n_nontopk=LAYERS, num_key_value_heads=kv_heads, tie_word_embeddings=tied)
    llama, ids = llama_like(model), random_ids(3, 20)
    assert torch.equal(model(ids).logits, llama(ids).logits)
    labels = model(ids, labels=ids).loss
    assert torch.equal(labels, llama(ids, labels=ids).loss)
    of_more = {"labels": ids, "num_items_in_batch": 100}  # as a trainer that accumulates says it
    assert torch.equal(model(ids, **of_more).loss, llama(ids, **of_more).loss)
    mine, theirs = (either(ids, output_hidden_states=True).hidden_states for either in (model, llama))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@torch.no_grad()
def test_dense_model_is_llama_to_the_bit_under_padding() -> None:
    model = tiny_model(n_nontopk=LAYERS)
    llama, ids = llama_like(model), random_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    mine = model(ids, attention_mask=mask, position_ids=positions).logits
    theirs = llama(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(mine[mask.bool()], theirs[mask.bool()])


@torch.no_grad()
def test_dense_model_generates_as_llama_with_the_cache() -> None:
    model = tiny_model(n_nontopk=LAYERS)
    llama, ids = llama_like(model), random_ids(2, 7)
    wanted = {"return_dict_in_generate": True, "output_logits": True, "output_hidden_states": True}
    options = {"max_new_tokens": 20, "do_sample": False, **wanted}
    mine, theirs = model.generate(ids, **options), llama.generate(ids, **options)
    assert torch.equal(mine.sequences, theirs.sequences)
    assert all(torch.equal(a, b) for a, b in zip(mine.logits, theirs.logits, strict=True))
    for a, b in zip(mine.hidden_states, theirs.hidden_states, strict=True):  # of each new token
        assert all(torch.equal(*states) for states in zip(a, b, strict=True))


@pytest.mark.parametrize("select", ["signed", "abs"])
@pytest.mark.parametrize("n_nontopk", [0, 2])
@torch.no_grad()
def test_topk_model_equals_the_reference(select: str, n_nontopk: int) -> None:
    model = tiny_model(topk_select=select, n_nontopk=n_nontopk)
    ids = random_ids(30)
    torch.testing.assert_close(
        model(ids[None]).logits[0].cpu().double(), reference_logits(model, ids), atol=2e-4, rtol=1e-4
    )


@torch.no_grad()
def test_sparsity_changes_the_logits() -> None:
    ids = random_ids(1, 10)
    assert not torch.allclose(tiny_model()(ids).logits, tiny_model(n_nontopk=LAYERS)(ids).logits, atol=0.1)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])  # transformers' names, since 5.24 and before
@pytest.mark.parametrize("lengths", [(1,) * 12, (5, 1, 6), (4, 4, 4), (11, 1)])
@torch.no_grad()
def test_cached_steps_of_any_size_equal_one_pass(lengths: tuple[int, ...], name: str) -> None:
    model, ids = tiny_model(), random_ids(2, 12)
    cache, parts = DynamicCache(config=model.config), []
    for part in ids.split(list(lengths), dim=1):
        parts.append(model(part, **{name: cache}, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="two names for one argument"):
        model(ids, cache=cache, past_key_values=cache)


@torch.no_grad()
def test_left_padding_does_not_change_a_row() -> None:
    model, ids = tiny_model(), random_ids(1, 9)
    padded = torch.cat((torch.full((1, 6), model.config.pad_token_id, device=DEVICE), ids), 1)
    other = random_ids(1, 15, seed=1)
    batch = torch.cat((padded, other))
    mask = (batch != model.config.pad_token_id).long()
    logits = model(batch, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(logits[0, 6:], model(ids).logits[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[1], model(other).logits[0], atol=1e-4, rtol=1e-4)

    options = {"max_new_tokens": 10, "do_sample": False}
    alone = model.generate(ids, **options)[0, 9:]
    assert torch.equal(model.generate(batch, attention_mask=mask, **options)[0, 15:], alone)


@torch.no_grad()
def test_a_layer_output_fed_back_as_the_next_input_reproduces_the_logits() -> None:
    model, ids = tiny_model(), random_ids(1, 15)
    positions = torch.arange(15, device=DEVICE)[None]
    states: list[Tensor] = []

    def keep(layer: int, hidden: Tensor) -> Tensor:
        states.append(model.model.sparsify(layer, hidden))
        return states[-1]

    logits = model(ids, sparsify=keep).logits
    assert len(states) == LAYERS
    for layer in model.config.topk_layers:
        assert (states[layer] != 0).sum(-1).unique().tolist() == [model.config.topk_k]
        rebuilt = torch.zeros_like(states[layer])
        where = states[layer].nonzero(as_tuple=True)
        rebuilt[where] = states[layer][where]
        attend = cached_attention(model.config, None, None)
        hidden = model.model.run_blocks(rebuilt, positions, attend, start=layer + 1)
        assert torch.equal(model.lm_head(hidden), logits)


def test_ties_go_to_the_lower_index() -> None:
    assert topk_mask(torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0]), 2).nonzero().flatten().tolist() == [1, 2]
    assert topk_mask(torch.zeros(6), 3).nonzero().flatten().tolist() == [0, 1, 2]
    assert topk_mask(torch.tensor([-2.0, 2.0, -2.0]), 2, "abs").nonzero().flatten().tolist() == [0, 1]


def test_signed_keeps_values_and_abs_keeps_magnitudes() -> None:
    vector = torch.tensor([-5.0, 1.0, 2.0, -0.5])
    assert topk(vector, 2).tolist() == [0.0, 1.0, 2.0, 0.0]
    assert topk(vector, 2, "abs").tolist() == [-5.0, 0.0, 2.0, 0.0]
    assert topk(vector, 4).tolist() == vector.tolist()


@given(
    vector=st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0]) | st.floats(-9, 9, width=32), min_size=1),
    data=st.data(),
    select=st.sampled_from(["signed", "abs"]),
)
@settings(max_examples=200, deadline=None)
def test_exactly_k_are_kept_as_a_stable_sort_would(vector: list[float], data: st.DataObject, select: str) -> None:
    k = data.draw(st.integers(1, len(vector)))
    strength = [abs(x) for x in vector] if select == "abs" else vector
    best = sorted(range(len(vector)), key=lambda i: (-strength[i], i))[:k]
    assert topk_mask(torch.tensor(vector), k, select).nonzero().flatten().tolist() == sorted(best)


def test_selection_does_not_depend_on_the_dtype_of_equal_values() -> None:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(topk_mask(vector, 8), topk_mask(vector.float(), 8))


def test_gradient_flows_through_kept_entries_only() -> None:
    vector = torch.tensor([0.1, 3.0, -1.0, 2.0], requires_grad=True)
    topk(vector, 2).sum().backward()
    assert vector.grad is not None
    assert vector.grad.tolist() == [0.0, 1.0, 0.0, 1.0]


@torch.no_grad()
def test_save_and_load_through_the_auto_classes(tmp_path) -> None:
    model, ids = tiny_model(topk_k=5, topk_select="abs"), random_ids(1, 9)
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "generation_config.json", "model.safetensors"]
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, TopKLMConfig)
    assert (config.topk_k, config.n_nontopk, config.topk_select) == (5, 2, "abs")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval().to(DEVICE)
    assert isinstance(loaded, TopKLMForCausalLM)
    assert torch.equal(realigned(loaded)(ids).logits, realigned(model)(ids).logits)
    with pytest.raises(StrictDataclassError, match="topk_k is 300, must be between 1 and hidden_size"):
        AutoModelForCausalLM.from_pretrained(tmp_path, topk_k=300)
    peer = LlamaForCausalLM.from_pretrained(tmp_path).eval().to(DEVICE)
    dense = tiny_model(n_nontopk=LAYERS)
    assert torch.equal(realigned(peer)(ids).logits, realigned(dense)(ids).logits)


@pytest.mark.parametrize(
    "fields",
    [
        {"topk_k": 0},
        {"topk_k": 65},
        {"num_key_value_heads": 3},
        {"n_nontopk": -1},
        {"n_nontopk": 5},
        {"topk_select": "largest"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ],
)
def test_a_configuration_that_is_no_topk_model_is_refused(fields: dict[str, object]) -> None:
    name = next(iter(fields)).replace("rope_parameters", "rope_type")
    with pytest.raises(ValueError, match=rf"^here: .*{name}"):
        make_config(tiny_config().to_dict() | fields, "here")


@torch.no_grad()
def test_hidden_states_are_those_after_topk_where_they_are_asked_for() -> None:
    model, ids = tiny_model(), random_ids(2, 9)
    assert model(ids).hidden_states is None
    asked = model(ids, output_hidden_states=True)
    assert torch.equal(asked.logits, model(ids).logits)
    assert len(asked.hidden_states) == LAYERS + 1  # the embedding's, too
    assert torch.equal(model.lm_head(asked.hidden_states[-1]), asked.logits)
    for layer in model.config.topk_layers:
        assert (asked.hidden_states[layer + 1] != 0).sum(-1).unique().tolist() == [model.config.topk_k]
    model.config.output_hidden_states = True
    assert model(ids).hidden_states is not None


def test_both_or_neither_input_is_refused() -> None:
    model, ids = tiny_model(), random_ids(1, 3)
    with pytest.raises(ValueError, match="exactly one"):
        model()
    with pytest.raises(ValueError, match="exactly one"):
        model(ids, inputs_embeds=model.model.embed_tokens(ids))
