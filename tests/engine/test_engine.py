"""The engine on a tiny model: what it computes."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.request import PromptEvent, SamplingParams, TokenEvent
from tests.support.engine.engine_checks import ALL, force, logprobs_of
from tests.support.tiny import BOS, EOS, dense, finish, make_request, prompt, run, tiny_core, tiny_model, tokens, trace
from topk_model.interventions import Condition
from topk_model.modeling import cached_attention, topk


@torch.no_grad()
def model_logprobs(model, ids, **options):
    ids = torch.tensor([ids], device=model.device)
    logprobs = torch.log_softmax(model(ids, **options).logits[0].float(), -1)
    return logprobs[:-1].gather(1, ids[0, 1:, None]).squeeze(1).cpu()


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("overrides", [{}, {"n_nontopk": 4}, {"n_nontopk": 0}, {"topk_select": "abs"}])
def test_reading_and_decoding_equal_one_uncached_forward(length, overrides):
    core = tiny_core(tiny_model(**overrides))
    request = make_request(length=length, max_tokens=6, logprobs=0, prompt_logprobs=0)
    events = run(core, request)["r"]
    expected = model_logprobs(tiny_model(**overrides), [*request.prompt_ids, *tokens(events)])
    torch.testing.assert_close(torch.tensor(logprobs_of(events)), expected, atol=2e-5, rtol=0)


def test_a_dense_model_through_the_cache_equals_llama():
    model = tiny_model(n_nontopk=4)
    fields = {k: v for k, v in model.config.to_dict().items() if k in LlamaConfig().to_dict() and k != "model_type"}
    llama = LlamaForCausalLM(LlamaConfig(**fields)).eval().to(model.device)
    llama.load_state_dict(model.state_dict())
    request = make_request(length=70, max_tokens=20, logprobs=0, prompt_logprobs=0)
    events = run(tiny_core(model), request)["r"]
    expected = model_logprobs(llama, [*request.prompt_ids, *tokens(events)])
    torch.testing.assert_close(torch.tensor(logprobs_of(events)), expected, atol=2e-5, rtol=0)


def test_an_unedited_trace_has_k_entries_at_every_position_of_every_layer():
    events = run(tiny_core(), make_request(length=70, max_tokens=9, trace=ALL))["r"]
    rows = trace(events)
    assert rows.num_tokens == 79  # the last generated token too
    assert set((rows.offsets[1:] - rows.offsets[:-1]).tolist()) == {8}
    assert rows.is_complete


def test_a_trace_fed_back_as_the_blocks_input_reproduces_the_logits():
    core = tiny_core()
    request = make_request(length=40, max_tokens=5, trace=ALL, logprobs=0, prompt_logprobs=0)
    events = run(core, request)["r"]
    states = dense(trace(events), ALL)
    model = tiny_model()
    ids = [*request.prompt_ids, *tokens(events)]
    for layer in (0, 1):
        entering = states[None, :, layer].to(model.device)
        with torch.no_grad():
            positions = torch.arange(len(ids), device=model.device)[None]
            hidden = model.model.run_blocks(
                entering, positions, cached_attention(model.config, None, None), start=layer + 1
            )
            logprobs = torch.log_softmax(model.lm_head(hidden)[0], -1).cpu()
        got = logprobs[:-1].gather(1, torch.tensor(ids)[1:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(logprobs_of(events)), got, atol=2e-5, rtol=0)


def test_an_edit_acts_on_every_decode_step():
    request = make_request(length=12, max_tokens=10, interventions=(force(),), logprobs=0, prompt_logprobs=0, trace=ALL)
    events = run(tiny_core(), request)["r"]
    model = tiny_model()

    def sparsify(layer, hidden):
        if layer >= 2:
            return hidden
        hidden = topk(hidden, 8)
        if layer == 1:
            hidden[:, 1:, 5] = 6.0  # BOS is special
        return hidden

    expected = model_logprobs(model, [*request.prompt_ids, *tokens(events)], sparsify=sparsify)
    torch.testing.assert_close(torch.tensor(logprobs_of(events)), expected, atol=2e-5, rtol=0)
    assert (dense(trace(events), ALL)[1:, 1, 5] == 6.0).all()
    assert tokens(events) != tokens(run(tiny_core(), make_request(length=12, max_tokens=10))["r"])
    (receipt,) = finish(events).receipts
    # The last token is read for its trace alone: no token depends on it, so no receipt counts it.
    assert (receipt.positions_applied, receipt.first, receipt.last) == (20, 1, 20)
    assert receipt.mean_after == 6.0


def test_receipts_do_not_depend_on_the_trace():
    edit = force(unit_values=None, value=2.0, site="pre_topk")
    with_trace, without = (
        finish(run(tiny_core(), make_request(interventions=(edit,), trace=spec))["r"]).receipts for spec in (ALL, None)
    )
    assert with_trace == without


def test_what_the_tokenizer_calls_special_is_not_edited():
    request = make_request(length=5, max_tokens=1, interventions=(force(),))
    marker = request.prompt_ids[2]
    core = EngineCore(tiny_model(), EngineConfig(num_blocks=16), special_ids=[BOS, marker])
    (receipt,) = finish(run(core, request)["r"]).receipts
    assert receipt.positions_applied == 4 - request.prompt_ids.count(marker)


def test_special_tokens_are_edited_only_on_demand():
    for include, first in ((False, 1), (True, 0)):
        request = make_request(length=5, max_tokens=1, interventions=(force(include_special=include),))
        assert finish(run(tiny_core(), request)["r"]).receipts[0].first == first


def test_positions_are_half_open():
    request = make_request(length=10, max_tokens=5, interventions=(force(start=4, end=7),), trace=ALL)
    events = run(tiny_core(), request)["r"]
    active = (dense(trace(events), ALL)[:, 1, 5] == 6.0).nonzero().squeeze(1).tolist()
    assert active == [4, 5, 6]
    assert finish(events).receipts[0].positions_applied == 3


def test_an_edit_of_one_request_changes_nothing_in_another():
    plain = [make_request(f"p{i}", length=20 + i, trace=ALL, logprobs=0) for i in range(4)]
    alone = run(tiny_core(), *plain)
    edited = make_request("e", length=23, interventions=(force(value=50.0, layers=(0, 1)),))
    beside = run(tiny_core(), plain[0], edited, *plain[1:])
    for request in plain:
        assert tokens(beside[request.request_id]) == tokens(alone[request.request_id])
        assert logprobs_of(beside[request.request_id]) == logprobs_of(alone[request.request_id])


def test_a_condition_reads_earlier_layers_after_their_edits():
    reads = Condition(layer=0, neuron=7, test="above", value=300.0)
    edits = (force(neuron=7, value=400.0, layers=(0,), start=3, end=5), force(conditions=(reads,)))
    events = run(tiny_core(), make_request(length=10, max_tokens=2, interventions=edits))["r"]
    receipt = finish(events).receipts[1]
    assert (receipt.first, receipt.last, receipt.positions_applied) == (3, 4, 2)


def test_max_tokens_0_reads_the_prompt_and_ends():
    events = run(tiny_core(), make_request(length=70, max_tokens=0, trace=ALL))["r"]
    assert finish(events).reason == "length"
    assert [e.num_tokens for e in events if isinstance(e, PromptEvent)] == [64, 6]
    assert trace(events).num_tokens == 70


def test_eos_ends_a_sequence_and_is_its_last_token():
    biased = SamplingParams(temperature=0.0, logit_bias=((EOS, 100.0),))
    core = tiny_core()
    events = run(core, make_request(sampling=biased, ignore_eos=False, logprobs=1))["r"]
    assert tokens(events) == [EOS]
    assert finish(events).reason == "stop"
    (event,) = (event for event in events if isinstance(event, TokenEvent))
    assert event.is_end
    assert event.logprobs is not None
    assert core.num_generated_tokens == 1
    traced = run(core, make_request(sampling=biased, ignore_eos=False, trace=ALL))["r"]
    assert tokens(traced) == [EOS]
    assert trace(traced).num_tokens == 11
    ignoring = run(core, make_request(sampling=biased, ignore_eos=True, max_tokens=3))["r"]
    assert tokens(ignoring) == [EOS] * 3
    assert finish(ignoring).reason == "length"


def test_a_stop_condition_ends_after_the_token_it_was_told():
    plain = tokens(run(tiny_core(), make_request())["r"])
    told = []

    def is_stop(token_id):
        told.append(token_id)
        return len(told) == 3

    events = run(tiny_core(), make_request(is_stop=is_stop, trace=ALL))["r"]
    assert tokens(events) == told == plain[:3]
    assert finish(events).reason == "stop"
    assert trace(events).num_tokens == 13


def test_a_prompt_begins_with_bos_in_these_tests():
    assert prompt(3)[0] == BOS
