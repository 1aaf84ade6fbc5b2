"""Fields that ask for nothing change nothing, and greedy is meant by whatever says so."""

from typing import Any

import pytest

from service.errors import BadRequestError
from service.requests.attribution_schema import AttributionRequest
from service.requests.edit_schema import InterventionSpec, PresetSpec, TraceRequest
from service.requests.levers import LeversRequest
from service.requests.neuron_schema import NeuronSearchRequest
from service.requests.neutral import CHAT, COMPLETION, MESSAGE, STREAM_OPTIONS
from service.requests.parsing import validate
from service.requests.planning import Plan, Planner
from service.requests.schema import (
    ActivationsRequest,
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    StreamOptions,
    TokenizeRequest,
)
from tests.support.service.plans import with_chat_template
from tests.support.small_vocabulary import small_facts, small_tokenizer

USER = {"role": "user", "content": "the war"}


def completion(**fields: Any) -> Plan:
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 4, "seed": 1} | fields
    return Planner(small_facts(), small_tokenizer()).completion(validate(CompletionRequest, body), "r")


def chat(**fields: Any) -> Plan:
    body = {"model": "tiny", "messages": [USER], "seed": 1} | fields
    planner = Planner(small_facts(has_chat_template=True), with_chat_template())
    return planner.chat(validate(ChatCompletionRequest, body), "r")


def prompt_ids(plan: Plan) -> tuple[int, ...]:
    return plan.rows[0].request.prompt_ids


@pytest.mark.parametrize("name", COMPLETION)
def test_a_completion_s_neutral_field_is_taken(name: str) -> None:
    for value in (None, *COMPLETION[name]):
        assert completion(**{name: value}).rows[0].request.sampling == completion().rows[0].request.sampling


@pytest.mark.parametrize("name", CHAT)
def test_a_chat_s_neutral_field_is_taken(name: str) -> None:
    for value in (None, *CHAT[name]):
        assert prompt_ids(chat(**{name: value})) == prompt_ids(chat())


@pytest.mark.parametrize(
    ("kind", "base", "fields"), [(ChatMessage, USER, MESSAGE), (StreamOptions, {}, STREAM_OPTIONS)]
)
def test_neutral_fields_of_parts_are_taken(kind: Any, base: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, values in fields.items():
        for value in (None, *values):
            assert validate(kind, base | {name: value}) == validate(kind, base)


def test_no_field_is_both_served_and_neutral() -> None:
    assert not COMPLETION.keys() & CompletionRequest.model_fields.keys()
    assert not CHAT.keys() & ChatCompletionRequest.model_fields.keys()
    assert not MESSAGE.keys() & ChatMessage.model_fields.keys()


@pytest.mark.parametrize(
    ("kind", "body", "names"),
    [
        (ActivationsRequest, {"model": "tiny", "input": "a"}, ["trace", "interventions", "parse_special", "timeout_s"]),
        (ActivationsRequest, {"model": "tiny", "input": "a"}, ["interventions"]),
        (NeuronSearchRequest, {"model": "tiny", "text": "a"}, ["contrast", "layers", "limit"]),
        (TokenizeRequest, {"model": "tiny", "prompt": "a"}, ["add_special_tokens"]),
        (TraceRequest, {}, ["layers", "positions", "neurons", "top_n", "encoding", "dtype"]),
        (InterventionSpec, {"layer": 1, "neuron": 2, "op": "ablate"}, ["positions", "site", "when", "include_special"]),
        (PresetSpec, {"preset": "sea"}, ["strength", "positions"]),
        (AttributionRequest, {"model": "tiny", "prompt": "a"}, ["layers", "positions", "top_n", "graph"]),
        (LeversRequest, {"model": "tiny", "words": ["sea"]}, ["limit", "max_cost", "stream"]),
    ],
)
def test_null_is_the_default_of_any_field_that_has_one(kind: Any, body: dict[str, Any], names: list[str]) -> None:
    assert validate(kind, body | dict.fromkeys(names)) == validate(kind, body)
    described = kind.model_json_schema()["properties"]
    for name in names:
        assert {"type": "null"} in described[name]["anyOf"], name
    for name in body:
        with pytest.raises(BadRequestError):
            validate(kind, body | {name: None})


def test_fields_of_the_other_route_are_taken_if_they_ask_for_nothing() -> None:
    nothing = {"tools": [], "tool_choice": "none", "messages": None, "top_logprobs": None, "suffix": ""}
    assert completion(**nothing).rows[0].request.sampling == completion().rows[0].request.sampling
    assert prompt_ids(chat(prompt=None, best_of=1, suffix=None, prompt_embeds=None)) == prompt_ids(chat())
    assert prompt_ids(chat(response_format={"type": "text", "schema": None})) == prompt_ids(chat())
    for fields in ({"tools": [{}]}, {"messages": [USER]}, {"response_format": {"type": "text", "schema": {}}}):
        with pytest.raises(BadRequestError, match="is not supported by this service"):
            completion(**fields)


def test_an_assistant_that_said_nothing_comes_back_with_null() -> None:
    silent = {"role": "assistant", "content": None}
    assert validate(ChatMessage, silent).content == ""
    with pytest.raises(BadRequestError, match="must be a string or a list of text parts, got null"):
        validate(ChatMessage, silent | {"role": "user"})


@pytest.mark.parametrize("fields", [{"temperature": 1e-8}, {"temperature": 0.009}, {"top_p": 0}, {"top_p": 0.0}])
def test_next_to_nothing_means_greedy(fields: dict[str, Any]) -> None:
    sampling = completion(**fields).rows[0].request.sampling
    assert (sampling.is_greedy, sampling.top_p) == (True, 1.0)
    assert not completion(temperature=0.01, top_p=1e-6).rows[0].request.sampling.is_greedy


def test_either_name_limits_the_tokens() -> None:
    for fields in ({"max_completion_tokens": 5, "max_tokens": 5}, {"max_completion_tokens": 5, "max_tokens": None}):
        assert completion(**fields).rows[0].request.max_tokens == 5
        assert chat(**fields).rows[0].request.max_tokens == 5
    request = validate(CompletionRequest, {"model": "tiny", "prompt": "a", "max_completion_tokens": 7})
    assert request.token_limit == 7
    assert validate(CompletionRequest, {"model": "tiny", "prompt": "a"}).token_limit is None


def test_a_least_length_that_is_reached_anyway_is_granted() -> None:
    assert completion(min_tokens=4, ignore_eos=True).rows[0].request.max_tokens == 4
    assert completion(min_tokens=0).rows[0].request.max_tokens == 4


def test_a_message_is_text_in_parts_or_whole_by_either_name_of_its_role() -> None:
    parts = [{"type": "text", "text": "the"}, {"type": "text", "text": " war"}]
    assert prompt_ids(chat(messages=[USER | {"content": parts}])) == prompt_ids(chat())
    assert prompt_ids(chat(messages=[USER | {"name": "Tom"}])) == prompt_ids(chat())
    for role in ("system", "developer"):
        message = validate(ChatMessage, {"role": role, "content": "", "name": "Tom"})
        assert message.as_template_fields() == {"role": "system", "content": "", "name": "Tom"}


def test_many_stop_strings_and_many_prompts_are_taken() -> None:
    assert len(completion(stop=[f"stop {i}" for i in range(64)]).stop) == 64
    assert len(completion(prompt=["Once"] * 128).rows) == 128
    assert completion(logprobs=False).rows[0].request.logprobs is None
    assert completion(stream_options={}, stream=False).stop == ()
    assert chat(top_logprobs=0).rows[0].request.logprobs is None
