"""Requests can be documented, and responses are what the document says."""

import json

import numpy as np
import orjson
import pytest
from pydantic import BaseModel

from service.answers.fields import Usage, model_entry, tokenization
from service.engine.request import TokenLogprobs
from service.errors import (
    BadRequestError,
)
from service.http_api import shapes
from service.http_api.rendering import chat_choice, completion_choice
from service.requests.schema import (
    ActivationsRequest,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from service.text import StreamedToken
from tests.support.service.plans import completion, receipt
from tests.support.small_vocabulary import small_facts, small_tokenizer
from topk_model.traces import Trace, TraceChunk


@pytest.mark.parametrize(
    "kind", [CompletionRequest, ChatCompletionRequest, ActivationsRequest, TokenizeRequest, DetokenizeRequest]
)
def test_requests_can_be_documented(kind: type[BaseModel]) -> None:
    schema = kind.model_json_schema()
    assert schema["additionalProperties"] is False
    json.dumps(schema)


def read_as(kind: type[BaseModel], fields: dict[str, object]) -> BaseModel:
    """The response after a journey through the JSON writer; fails where the document does not describe it."""
    return kind.model_validate_json(orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY))


def test_responses_are_what_the_document_says() -> None:
    tokenizer, facts = small_tokenizer(), small_facts()
    edits = [{"layer": 0, "neuron": 1, "op": "ablate"}]
    row = completion(logprobs=1, compare=True, interventions=edits).rows[1]
    logprobs = TokenLogprobs(logprob=-2.0, top=((9, -0.5),))
    tokens = [
        StreamedToken(token_id=0, text_offset=0),
        StreamedToken(token_id=10, text_offset=0, logprobs=logprobs),
    ]
    chunk = TraceChunk(
        first_position=0,
        num_tokens=1,
        offsets=np.array([0, 2, 3]),
        indices=np.array([1, 5, 7], dtype=np.int32),
        values=np.array([0.5, 1.5, 0.25], dtype=np.float32),
    )
    trace = Trace(
        model="tiny",
        checkpoint=None,
        k=8,
        hidden_size=64,
        layers=(0, 1),
        token_ids=(5,),
        tokens=("a",),
        phases=("prompt",),
        is_special=(False,),
        chunk=chunk,
    )
    head = {"id": "cmpl-1", "created": 1, "model": "tiny", "warnings": []}
    usage = {"usage": vars(Usage.of(6, 4))}
    for fields in (trace.to_json(), trace.to_packed("float16")):
        choice = completion_choice(
            row, "ab", tokens, tokenizer, finish_reason="stop", receipts=[receipt()], trace=fields
        )
        body = head | usage | {"object": "text_completion", "choices": [choice]}
        read = read_as(shapes.Completion, body).model_dump(mode="json", exclude_unset=True)
        assert read["choices"][0]["variant"] == "steered"
        assert read["choices"][0]["logprobs"] == {
            "tokens": ["<|bos|>", tokenizer.token_text(10)],
            "token_logprobs": [None, -2.0],
            "top_logprobs": [None, {tokenizer.token_text(9): -0.5, tokenizer.token_text(10): -2.0}],
            "text_offset": [0, 0],
        }
        assert set(read["choices"][0]["interventions"][0]) == {
            "positions_applied",
            "first",
            "last",
            "active_before",
            "mean_before",
            "mean_after",
            "evicted",
        }
        item = {"index": 0, "trace": fields}
        read_as(shapes.Activations, {"object": "list", "model": "tiny", "data": [item], "warnings": []} | usage)
    chat = chat_choice(row, "ab", tokens, tokenizer, finish_reason="length")
    read_as(shapes.ChatCompletion, head | usage | {"object": "chat.completion", "choices": [chat]})
    first = chat_choice(row, "a", tokens, tokenizer, finish_reason=None, is_chunk=True, is_first=True)
    assert first["delta"] == {"role": "assistant", "content": "a"}
    read_as(shapes.ChatCompletionChunk, head | {"object": "chat.completion.chunk", "choices": [first], "usage": None})
    card = model_entry(facts, created=1, checkpoints=["step-100"], has_catalogue=True)
    read_as(shapes.ModelList, {"object": "list", "data": [card]})
    read_as(shapes.Tokenization, tokenization(tokenizer.encode("Once"), facts, tokenizer))
    read_as(shapes.ErrorResponse, BadRequestError("no", param="n").body())
