"""The compiled step against torch's runner: the same model, up to rounding; the same edits, exactly."""

import functools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.core import EngineCore
from service.engine.native import build
from service.engine.request import EngineRequest, Event, FinishEvent, PromptEvent, SamplingParams
from tests.support.engine.random_requests import interventions
from tests.support.tiny import finish, make_request, prompt, run, tiny_core, tiny_model, tokens, trace
from topk_model.modeling import TopKLMForCausalLM
from topk_model.traces import TraceSpec

try:
    build.library()
except build.BuildError as error:
    pytest.skip(f"no compiled step: {error}", allow_module_level=True)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the two steps are compared on a CPU")
BOTH = ("compiled", "torch")


def logprobs(events: list[Event]) -> np.ndarray:
    """Of every token that something predicts, and of its most probable alternatives."""
    scored = [
        entry
        for event in events
        if not isinstance(event, FinishEvent)
        for entry in (event.logprobs if isinstance(event, PromptEvent) else [event.logprobs])
        if entry is not None
    ]
    return np.array([[entry.logprob, *(value for _, value in entry.top)] for entry in scored])


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": False}, {"n_nontopk": 4}, {"topk_select": "abs"}])
def test_log_probabilities_are_those_of_torch_within_1e_4(overrides):
    request = make_request(length=130, max_tokens=16, logprobs=3, prompt_logprobs=3)
    ours, theirs = (run(tiny_core(tiny_model(**overrides), cpu_step=step), request)["r"] for step in BOTH)
    assert tokens(ours) == tokens(theirs)
    np.testing.assert_allclose(logprobs(ours), logprobs(theirs), atol=1e-4, rtol=0)


def test_neuron_sets_are_those_of_torch_in_9999_of_10000_positions():
    """Not in all: where the k-th and the next value are a rounding apart, either set is a right one."""
    shape = {
        "hidden_size": 384, "intermediate_size": 224, "num_attention_heads": 6, "num_hidden_layers": 6, "topk_k": 10,
        "max_position_embeddings": 512, "initializer_range": 0.05,
    }  # fmt: skip
    spec = TraceSpec(layers=(0, 1, 2, 3))
    requests = [
        EngineRequest(request_id=str(i), prompt_ids=prompt(256, seed=i), max_tokens=0, trace=spec) for i in range(12)
    ]
    sets = []
    for step in BOTH:
        events = run(tiny_core(tiny_model(**shape), cpu_step=step, num_blocks=256), *requests)
        chunks = [trace(events[request.request_id]) for request in requests]
        assert all((np.diff(chunk.offsets) == 10).all() for chunk in chunks)
        sets.append(np.concatenate([chunk.indices.reshape(-1, 10) for chunk in chunks]))
    assert len(sets[0]) == 12 * 256 * 4
    assert (sets[0] == sets[1]).all(1).mean() >= 0.9999


@functools.cache
def transparent_core(select: str, step: str) -> EngineCore:
    return tiny_core(transparent_model(topk_select=select), cpu_step=step)


def transparent_model(**overrides: object) -> TopKLMForCausalLM:
    """A model whose blocks add nothing: a TopK layer sees the embedding as it is, small whole numbers with ties."""
    model = tiny_model(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=4, n_nontopk=1, topk_k=4, vocab_size=101, **overrides
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.randint(-3, 4, (101, 16), generator=generator).float())
    return model


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.lists(interventions(), max_size=5), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    select=st.sampled_from(["signed", "abs"]),
)
def test_edits_conditions_ties_and_receipts_are_exactly_those_of_torch(requests, seed, select):
    spec = TraceSpec(layers=(0, 1, 2))
    made = [
        make_request(
            str(i), prompt_ids=prompt(9, seed=seed + i), max_tokens=3, interventions=tuple(edits), trace=spec,
            sampling=SamplingParams(temperature=0.0, logit_bias=((7 + i, 1e4),)),
        )
        for i, edits in enumerate(requests)
    ]  # fmt: skip
    ours, theirs = (run(transparent_core(select, step), *made) for step in BOTH)
    for request in made:
        mine, reference = ours[request.request_id], theirs[request.request_id]
        assert finish(mine).reason == finish(reference).reason
        assert [vars(r) for r in finish(mine).receipts] == [vars(r) for r in finish(reference).receipts]
        for name in ("offsets", "indices", "values"):
            np.testing.assert_array_equal(getattr(trace(mine), name), getattr(trace(reference), name))


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"temperature": 0.7, "top_k": 5},
        {"top_p": 0.9},
        {"top_p": 0.3, "min_p": 0.05},
        {"min_p": 0.2},
        {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.7},
        {"temperature": 1.5, "presence_penalty": 0.5, "logit_bias": ((5, 2.0), (9, -100.0))},
        {"temperature": 0.0, "logit_bias": ((5, 50.0),)},
        {"top_p": 0.0},
        {"top_k": 1},
    ],
)
def test_drawn_tokens_are_those_of_torch(rules):
    rng = random.Random(0)
    requests = [
        make_request(
            str(i), length=rng.randrange(2, 30), max_tokens=40,
            sampling=SamplingParams(**rules, seed=rng.randrange(-(2**63), 2**63)),
        )
        for i in range(12)
    ]  # fmt: skip
    ours, theirs = (run(tiny_core(cpu_step=step), *requests) for step in BOTH)
    # A number that falls within a rounding of the border between two tokens may go to either.
    num_equal = sum(tokens(ours[request.request_id]) == tokens(theirs[request.request_id]) for request in requests)
    assert num_equal >= len(requests) - (rules.get("temperature") != 0.0)


@pytest.mark.parametrize(("weights", "atol"), [("bfloat16", 0.2), ("int8", 0.5)])
def test_narrow_weights_stay_near_the_wide_ones(weights, atol):
    dense = {"n_nontopk": 4}  # a TopK layer may take another neuron, which is far away
    request = make_request(length=100, max_tokens=0, prompt_logprobs=0)
    wide, narrow = (
        run(tiny_core(tiny_model(**dense), cpu_step="compiled", weights=kind), request)["r"]
        for kind in ("float32", weights)
    )
    difference = np.abs(logprobs(wide) - logprobs(narrow))
    assert 0 < difference.max() < atol
