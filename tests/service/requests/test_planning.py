"""Good requests: what they become for the engine."""

import time
from typing import get_args

import pytest
from pydantic.fields import FieldInfo

from service.engine.request import SamplingParams
from service.errors import (
    BadRequestError,
)
from service.requests.facts import ModelFacts
from service.requests.limits import (
    MAX_TRACE_ENTRIES,
)
from service.requests.neutral import COMPLETION
from service.requests.parsing import validate
from service.requests.planning import Planner
from service.requests.schema import (
    ActivationsRequest,
    ChatCompletionRequest,
    CompletionRequest,
)
from tests.support.service.plans import PROMPT_IDS, completion, with_chat_template
from tests.support.small_vocabulary import small_facts, small_tokenizer
from topk_model.interventions import Condition, Intervention
from topk_model.traces import TraceSpec


def edited(facts: ModelFacts | None = None, **fields: object) -> Intervention:
    spec = {"layer": 0, "neuron": 3, "op": "set", "value": 1.5} | fields
    plan = completion(facts, interventions=[{k: v for k, v in spec.items() if v is not ...}])
    (intervention,) = plan.rows[0].request.interventions
    return intervention


def test_defaults_are_openais() -> None:
    request = validate(CompletionRequest, {"model": "tiny", "prompt": "Once"})
    (row,) = Planner(small_facts(), small_tokenizer()).completion(request, "r").rows
    assert row.request.max_tokens == 16
    sampling = SamplingParams(seed=row.request.sampling.seed)
    assert row.request.sampling == sampling
    assert (row.request.logprobs, row.request.trace, row.request.is_stop, row.variant) == (None, None, None, None)


def accepts_null(field: FieldInfo) -> bool:
    return type(None) in (field.annotation, *get_args(field.annotation))


def test_null_means_the_default() -> None:
    nullable = [name for name, field in CompletionRequest.model_fields.items() if accepts_null(field)]
    nullable += ["interventions"]  # whose type hides it
    assert len(nullable) == 28
    nullable += COMPLETION
    body = {"model": "tiny", "prompt": PROMPT_IDS, "seed": 1}
    nulls = validate(CompletionRequest, body | dict.fromkeys(nullable) | {"seed": 1})
    rows = [
        Planner(small_facts(), small_tokenizer()).completion(request, "r").rows[0].request
        for request in (nulls, validate(CompletionRequest, body))
    ]
    assert rows[0].sampling == rows[1].sampling
    assert rows[0].max_tokens == rows[1].max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "num_rows"),
    [("Once", 1), (["Once", "upon"], 2), ([5, 6], 1), ([[5, 6]], 1), ([[5], [6], [7]], 3)],
)
def test_a_prompt_is_text_or_tokens_or_a_list_of_either(prompt: object, num_rows: int) -> None:
    plan = completion(prompt=prompt)
    assert [row.prompt_index for row in plan.rows] == list(range(num_rows))
    assert plan.num_prompt_tokens == sum(len(row.request.prompt_ids) for row in plan.rows)


def test_text_gets_one_bos_and_token_ids_are_taken_as_they_are() -> None:
    assert completion(prompt="Once").rows[0].request.prompt_ids[0] == 0
    assert completion(prompt="Once").rows[0].request.prompt_ids.count(0) == 1
    assert completion(prompt=[7, 8]).rows[0].request.prompt_ids == (7, 8)


def test_choices_stand_by_prompt_and_request_ids_name_rows() -> None:
    plan = completion(prompt=[[5], [6]], n=2)
    assert [(row.index, row.prompt_index, row.request.request_id) for row in plan.rows] == [
        (0, 0, "cmpl-1-0"),
        (1, 0, "cmpl-1-1"),
        (2, 1, "cmpl-1-2"),
        (3, 1, "cmpl-1-3"),
    ]
    assert plan.num_prompt_tokens == 2


def test_a_seed_gives_each_choice_its_own_whatever_else_is_asked() -> None:
    seeds = [row.request.sampling.seed for row in completion(seed=7, n=3).rows]
    assert len(set(seeds)) == 3
    assert seeds[:1] == [row.request.sampling.seed for row in completion(seed=7).rows]
    assert seeds * 2 == [row.request.sampling.seed for row in completion(seed=7, n=3, prompt=[[5], [6]]).rows]
    assert seeds != [row.request.sampling.seed for row in completion(seed=8, n=3).rows]
    assert all(0 <= row.request.sampling.seed < 2**63 for row in completion(seed=-(2**63), n=16).rows)


def test_without_a_seed_nothing_repeats() -> None:
    seeds = {
        row.request.sampling.seed for plan in (completion(n=2, prompt=[[5], [5]]), completion()) for row in plan.rows
    }
    assert len(seeds) == 5


def test_compare_puts_defaults_first_with_the_same_seeds() -> None:
    plan = completion(compare=True, n=2, interventions=[{"layer": 0, "neuron": 1, "op": "ablate"}], trace={})
    assert [row.variant for row in plan.rows] == ["default", "default", "steered", "steered"]
    assert [len(row.request.interventions) for row in plan.rows] == [0, 0, 1, 1]
    seeds = [row.request.sampling.seed for row in plan.rows]
    assert seeds[:2] == seeds[2:]
    assert all(row.request.trace is not None for row in plan.rows)


def test_an_edit_is_resolved_to_layers_and_numbers() -> None:
    condition = {"layer": 0, "neuron": 9, "is": "above", "value": 0.7}
    assert edited(layer=[1, 0], site="pre_topk", include_special=True, when=[condition]) == Intervention(
        layers=(0, 1),
        neuron=3,
        op="set",
        value=1.5,
        unit_values=(1.0, 1.0),
        site="pre_topk",
        include_special=True,
        conditions=(Condition(layer=0, neuron=9, test="above", value=0.7),),
    )
    assert edited(layer="all").layers == (0, 1)
    assert edited(op="clamp", value=..., min=-1, max=2.5).max == 2.5
    assert edited(op="ablate", value=...).unit_values == (1.0,)


def test_units_become_numbers_where_they_can() -> None:
    facts = small_facts(neuron_max=lambda layer, neuron: 10.0 * layer + neuron)
    assert edited(facts, layer="all", unit="max").unit_values == (3.0, 13.0)
    assert edited(facts, layer="all", unit="kth").unit_values is None
    with pytest.raises(BadRequestError, match="never active"):
        edited(small_facts(neuron_max=lambda layer, neuron: 0.0), unit="max")
    with pytest.raises(BadRequestError, match="never active"):
        edited(small_facts(neuron_max=lambda layer, neuron: None), unit="max")


def test_a_model_without_topk_layers_cannot_be_edited_or_traced() -> None:
    dense = small_facts(topk_layers=(), n_nontopk=4, k=64)
    for layer in ("all", 0):
        with pytest.raises(BadRequestError) as caught:
            edited(dense, layer=layer)
        assert caught.value.param == "interventions[0].layer"
    with pytest.raises(BadRequestError):
        completion(dense, trace={})


@pytest.mark.parametrize(
    ("positions", "start", "end"),
    [
        ("all", 0, None),
        ("prompt", 0, 6),
        ("generated", 6, None),
        ("continuation", 5, None),
        ({"start": 2, "end": 4}, 2, 4),
        ({"start": -2}, 4, None),
        ({"end": -1}, 0, 5),
        ({"start": -6, "end": 100}, 0, 100),
        ({"start": 9}, 9, None),
        ({}, 0, None),
    ],
)
def test_positions_count_from_the_prompts_first_token(positions: object, start: int, end: int | None) -> None:
    intervention = edited(positions=positions)
    assert (intervention.start, intervention.end) == (start, end)
    spec = completion(trace={"positions": positions}).rows[0].request.trace
    assert spec is not None
    assert (spec.start, spec.end) == (start, end)


@pytest.mark.parametrize("positions", [{"start": 10}, {"start": 3, "end": 3}, {"end": 0}, {"start": -7}, {"end": -6}])
def test_a_range_that_can_never_apply_is_an_error(positions: object) -> None:
    with pytest.raises(BadRequestError) as caught:
        edited(positions=positions)
    assert caught.value.param is not None
    assert caught.value.param.startswith("interventions[0].positions.")


def test_negative_positions_follow_each_prompts_own_length() -> None:
    edits = [{"layer": 0, "neuron": 1, "op": "ablate", "positions": {"start": -1}}]
    plan = completion(prompt=[[5, 6], [5, 6, 7, 8]], interventions=edits)
    assert [row.request.interventions[0].start for row in plan.rows] == [1, 3]


def test_a_trace_is_resolved() -> None:
    trace = {"layers": [1, 0], "neurons": [5, 3], "top_n": 2, "min_value": 0.5}
    assert completion(small_facts(select="abs"), trace=trace).rows[0].request.trace == TraceSpec(
        layers=(1, 0), neurons=(5, 3), top_n=2, min_value=0.5, by_magnitude=True
    )
    assert completion(trace={}).rows[0].request.trace == TraceSpec(layers=(0, 1))


def test_a_trace_that_is_too_large_is_refused_before_anything_runs() -> None:
    facts = small_facts(k=4096, hidden_size=8192)
    plenty = {"prompt": [5] * 100, "max_tokens": 156}  # 256 tokens × 2 layers × 4096 = 2**21
    completion(facts, **plenty, trace={})
    with pytest.raises(BadRequestError, match=str(MAX_TRACE_ENTRIES)):
        completion(facts, **plenty, n=2, trace={})
    completion(facts, **plenty, n=2, trace={"top_n": 100})
    completion(facts, **plenty, n=2, trace={"positions": "prompt"})


def test_max_tokens_of_zero_reads_the_prompt() -> None:
    plan = completion(prompt=[5] * 256, max_tokens=0, echo=True, logprobs=3)
    request = plan.rows[0].request
    assert (request.max_tokens, request.logprobs, request.prompt_logprobs, plan.echo) == (0, 3, 3, True)
    assert completion(logprobs=3).rows[0].request.prompt_logprobs is None
    assert completion(max_tokens=0, trace={}).rows[0].request.max_tokens == 0


def test_every_row_has_a_stop_checker_of_its_own() -> None:
    rows = completion(n=2, stop="the").rows
    word = small_tokenizer().encode(" the", add_special_tokens=False)
    checks = [row.request.is_stop for row in rows]
    assert checks[0] is not None
    assert checks[1] is not None
    assert [checks[0](token_id) for token_id in word][-1] is True
    assert checks[1](word[0]) is (len(word) == 1)


def test_sampling_fields_reach_the_engine() -> None:
    sampling = (
        completion(temperature=0, top_p=0.9, top_k=-1, min_p=0.1, logit_bias={"7": -100}, presence_penalty=1)
        .rows[0]
        .request.sampling
    )
    assert sampling.is_greedy
    assert (sampling.top_p, sampling.top_k, sampling.min_p, sampling.presence_penalty) == (0.9, 0, 0.1, 1.0)
    assert sampling.logit_bias == ((7, -100.0),)


def test_the_deadline_is_the_requests_or_the_services() -> None:
    now = time.monotonic()
    request = validate(CompletionRequest, {"model": "tiny", "prompt": "Once"})
    plan = Planner(small_facts(), small_tokenizer(), 50).completion(request, "r")
    deadline = plan.rows[0].request.deadline
    assert deadline is not None
    assert 50 <= deadline - now < 55
    deadline = completion(timeout_s=2.5).rows[0].request.deadline
    assert deadline is not None
    assert deadline - now < 8


def test_activations_read_each_input_and_generate_nothing() -> None:
    body = {"model": "tiny", "input": ["Once", "upon a time"], "trace": {"layers": [1]}}
    plan = Planner(small_facts(), small_tokenizer()).activations(validate(ActivationsRequest, body), "a")
    assert [row.request.max_tokens for row in plan.rows] == [0, 0]
    assert all(row.request.trace == TraceSpec(layers=(1,)) for row in plan.rows)
    bare = validate(ActivationsRequest, {"model": "tiny", "input": [5, 6]})
    assert Planner(small_facts(), small_tokenizer()).activations(bare, "a").rows[0].request.trace == TraceSpec(
        layers=(0, 1)
    )


def test_a_chat_is_rendered_by_the_template_with_one_bos() -> None:
    tokenizer = with_chat_template()
    facts = small_facts(has_chat_template=True)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "the war"}]}
    request = validate(ChatCompletionRequest, body | {"logprobs": True, "top_logprobs": 2})
    (row,) = Planner(facts, tokenizer).chat(request, "c").rows
    assert tokenizer.decode(row.request.prompt_ids) == "<|bos|>user: the war\nassistant:"
    assert row.request.prompt_ids.count(0) == 1
    assert row.request.max_tokens == facts.context_length - len(row.request.prompt_ids)
    assert row.request.logprobs == 2
    several = validate(ChatCompletionRequest, body | {"n": 5})
    long = small_facts(has_chat_template=True, context_length=131_072)
    assert {row.request.max_tokens for row in Planner(long, tokenizer).chat(several, "c").rows} == {32_768 // 5}
    limited = validate(ChatCompletionRequest, body | {"max_completion_tokens": 5})
    assert Planner(facts, tokenizer).chat(limited, "c").rows[0].request.max_tokens == 5


def test_a_conversation_that_the_template_refuses_is_the_clients_error() -> None:
    body = {"model": "tiny", "messages": [{"role": "system", "content": "Be brief."}]}
    planner = Planner(small_facts(has_chat_template=True), with_chat_template())
    with pytest.raises(BadRequestError, match="no system role") as caught:
        planner.chat(validate(ChatCompletionRequest, body), "c")
    assert caught.value.param == "messages"


def test_a_cache_smaller_than_the_context_is_the_limit_of_the_field_that_exceeds_it() -> None:
    facts = small_facts(has_chat_template=True)
    planner = Planner(facts, with_chat_template(), max_positions=16)
    for prompt, max_tokens, param in ((20, 1, "prompt"), (16, 1, "prompt"), (10, 7, "max_tokens")):
        body = {"model": "tiny", "prompt": [5] * prompt, "max_tokens": max_tokens}
        with pytest.raises(BadRequestError, match="the KV cache has room for 16") as caught:
            planner.completion(validate(CompletionRequest, body), "r")
        assert caught.value.param == param
    long = {"model": "tiny", "messages": [{"role": "user", "content": "the war " * 20}]}
    with pytest.raises(BadRequestError, match=r"messages is too long: \d+ tokens; the KV cache") as caught:
        planner.chat(validate(ChatCompletionRequest, long), "c")
    assert caught.value.param == "messages"
