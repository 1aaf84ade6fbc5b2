"""Requests that must be refused, against the schema and the planning alone; over HTTP the same table is sent."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import MAX_PROBLEMS_SHOWN, BadRequestError
from service.requests.edit_schema import Request
from service.requests.levers import LeversRequest, plan_levers
from service.requests.neuron_schema import NeuronSearchRequest
from service.requests.parsing import parse_body
from service.requests.planning import Planner
from service.requests.resolving import check_token_ids, resolve_layers
from service.requests.schema import (
    ActivationsRequest,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from tests.support.service.bad_requests import (
    ACTIVATIONS,
    BAD_REQUESTS,
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    LEVERS,
    SEARCH,
    TOKENIZE,
    BadRequest,
)
from tests.support.small_vocabulary import small_facts, small_tokenizer


def plan(path: str, body: bytes) -> None:
    """What the service does with a body before the engine hears of it."""
    facts = small_facts()
    planner = Planner(facts, small_tokenizer())
    if path == COMPLETIONS:
        planner.completion(parse_body(CompletionRequest, body), "r")
    elif path == CHAT:
        planner.chat(parse_body(ChatCompletionRequest, body), "r")
    elif path == ACTIVATIONS:
        planner.activations(parse_body(ActivationsRequest, body), "r")
    elif path == SEARCH:
        request = parse_body(NeuronSearchRequest, body)
        resolve_layers(request.layers, "layers", facts)
        planner.search(request, "r")
    elif path == LEVERS:
        plan_levers(parse_body(LeversRequest, body), planner)
    elif path == TOKENIZE:
        parse_body(TokenizeRequest, body)
    else:
        check_token_ids(parse_body(DetokenizeRequest, body).tokens, "tokens", facts)


def test_the_table_is_long_and_its_names_are_distinct() -> None:
    names = [bad.name for bad in BAD_REQUESTS]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize("bad", [b for b in BAD_REQUESTS if not b.is_http_only], ids=lambda b: b.name)
def test_a_bad_request_is_refused_with_its_field_and_limit(bad: BadRequest) -> None:
    with pytest.raises(BadRequestError) as caught:
        plan(bad.path, bad.body)
    error = caught.value.body()["error"]
    assert caught.value.status == bad.status
    assert error["param"] == bad.param
    assert bad.says in error["message"]
    assert bad.param is None or bad.param in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 500
    json.dumps(error).encode()
    assert not any(noise in error["message"] for noise in ("pydantic", "Traceback", "function-", "Error,"))


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["all", "set", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KINDS: dict[str, type[Request]] = {
    COMPLETIONS: CompletionRequest,
    CHAT: ChatCompletionRequest,
    ACTIVATIONS: ActivationsRequest,
    TOKENIZE: TokenizeRequest,
    DETOKENIZE: DetokenizeRequest,
    SEARCH: NeuronSearchRequest,
    LEVERS: LeversRequest,
}


def refusal(path: str, body: dict[str, Any]) -> BadRequestError | None:
    """The error of a body, if it is refused; any other error is a test's failure."""
    try:
        plan(path, json.dumps(body).encode())
    except BadRequestError as error:
        json.dumps(error.body()).encode()
        return error
    return None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first draw of a text makes a table
@given(st.data())
def test_whatever_stands_in_a_field_the_request_is_served_or_refused(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(list(KINDS)))
    fields = st.sampled_from([*KINDS[path].model_fields, "unknown"])
    good = {"model": "tiny", "prompt": "a", "input": "a", "messages": [], "tokens": [], "text": "a"}
    body = {k: v for k, v in good.items() if k in KINDS[path].model_fields} | data.draw(
        st.dictionaries(fields, JSON_VALUES, max_size=3)
    )
    refused = refusal(path, body)
    assert refused is None or len(refused.message) < 500 * MAX_PROBLEMS_SHOWN


@given(st.binary(max_size=60))
def test_whatever_bytes_come_the_request_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        parse_body(CompletionRequest, body)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_stands_in_an_edit_the_request_is_served_or_refused(data: st.DataObject) -> None:
    spec: dict[str, Any] = {"layer": 0, "neuron": 1, "op": "set", "value": 1.0}
    fields = st.sampled_from([*spec, "positions", "when", "unit", "site", "min", "max", "include_special"])
    spec |= data.draw(st.dictionaries(fields, JSON_VALUES, max_size=2))
    body = {"model": "tiny", "prompt": "a", "interventions": [spec]}
    refused = refusal(COMPLETIONS, body)
    assert refused is None or refused.param is None or refused.param.startswith("interventions")


GOOD = [
    (COMPLETIONS, b'{"model": "tiny", "prompt": "Once upon", "max_tokens": 4}'),
    (ACTIVATIONS, b'{"model": "tiny", "input": "Once upon"}'),
    (TOKENIZE, b'{"model": "tiny", "prompt": "Once upon"}'),
    (DETOKENIZE, b'{"model": "tiny", "tokens": [1]}'),
    (SEARCH, b'{"model": "tiny", "text": "Once upon"}'),
    (SEARCH, b'{"model": "tiny", "contrast": {"positive": ["a"], "negative": ["b"]}}'),
    (LEVERS, b'{"model": "tiny", "words": ["war", "?"], "prompt": "Once upon", "max_cost": 0.3}'),
    (LEVERS, b'{"model": "tiny", "texts": {"towards": ["Once upon a time"], "away": ["to the war"]}}'),
    (
        COMPLETIONS,
        b'{"model": "tiny", "prompt": "a", "interventions": [{"layer": 0, "neuron": 1, "op": "set", "value": 1.0, '
        b'"when": [{"layer": 0, "neuron": 1, "is": "active"}]}], "trace": {}}',
    ),
]


@pytest.mark.parametrize(("path", "body"), GOOD)
def test_the_requests_that_the_table_changes_are_good(path: str, body: bytes) -> None:
    plan(path, body)
