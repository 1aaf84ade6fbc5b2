"""Answers as JSON in OpenAI's format: complete replies, the chunks of a stream, and traces alone.

Everything is a plain dictionary, because the JSON writer accepts a trace's arrays as they are. Knows no engine.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from service.answers.answer import Answer, Choice, Fragment
from service.answers.fields import Fields, receipt_fields
from service.engine.request import TokenLogprobs
from service.requests.planning import PlannedRow
from service.text import StreamedToken, TextTokenizer
from topk_model.interventions import Receipt

_OBJECTS = {"completion": "text_completion", "chat": "chat.completion"}
_CHUNK_OBJECTS = {"completion": "text_completion", "chat": "chat.completion.chunk"}


def whole(answer: Answer) -> Fields:
    """The reply of a request that does not stream, once every choice is finished."""
    choices = []
    for choice in answer.choices:
        fragment = choice.take()
        assert fragment is not None
        assert fragment.finish_reason is not None
        choices.append(_choice(answer, choice, fragment, is_chunk=False))
    reply = {**_head(answer, _OBJECTS), "choices": choices, "usage": answer.usage, "warnings": answer.warnings}
    return reply if (differences := answer.differences) is None else reply | {"differences": differences}


def chunks(answer: Answer) -> Iterator[Fields]:
    """The chunks that are new since the last call, one choice per chunk."""
    for choice, fragment in answer.fragments():
        chunk = {**_head(answer, _CHUNK_OBJECTS), "choices": [_choice(answer, choice, fragment, is_chunk=True)]}
        if answer.continuous_usage:
            chunk["usage"] = answer.usage
        elif answer.include_usage:
            chunk["usage"] = None
        if fragment.finish_reason is not None and (warnings := answer.warnings_of(choice)):
            chunk["warnings"] = warnings
        yield chunk


def last_chunk(answer: Answer) -> Fields | None:
    """What follows the choices of a stream: the usage, and how variants differ, if requested."""
    last: Fields = {"usage": answer.usage} if answer.include_usage else {}
    if (differences := answer.differences) is not None:
        last["differences"] = differences
    return {**_head(answer, _CHUNK_OBJECTS), "choices": [], **last} if last else None


def activations(answer: Answer) -> Fields:
    """The reply of the activations endpoint: only the traces of finished choices."""
    data = []
    for choice in answer.choices:
        fragment = choice.take()
        assert fragment is not None
        item: Fields = {"index": choice.row.index, "trace": _trace(answer, fragment)}
        if fragment.receipts:
            item["interventions"] = [receipt_fields(receipt) for receipt in fragment.receipts]
        data.append(item)
    return {
        "object": "list",
        "model": answer.facts.id,
        "data": data,
        "usage": answer.usage,
        "warnings": answer.warnings,
    }


def _head(answer: Answer, objects: Mapping[str, str]) -> Fields:
    return {"id": answer.head["id"], "object": objects[answer.kind], **answer.head}


def _choice(answer: Answer, choice: Choice, fragment: Fragment, *, is_chunk: bool) -> Fields:
    is_traced = fragment.trace is not None and (fragment.trace.token_ids or not is_chunk)
    common: dict[str, Any] = {
        "finish_reason": fragment.finish_reason,
        "receipts": fragment.receipts,
        "trace": _trace(answer, fragment) if is_traced else None,
    }
    row, tokens, tokenizer = choice.row, fragment.tokens, answer.tokenizer
    if answer.kind == "completion":
        return completion_choice(row, fragment.text, tokens, tokenizer, **common)
    is_first = fragment.is_first
    return chat_choice(row, fragment.text, tokens, tokenizer, is_chunk=is_chunk, is_first=is_first, **common)


def _trace(answer: Answer, fragment: Fragment) -> orjson.Fragment:
    spec = answer.plan.trace
    assert fragment.trace is not None
    assert spec is not None
    fields = fragment.trace.to_packed(spec.dtype) if spec.encoding == "packed" else fragment.trace.to_json()
    text = orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
    answer.count_trace("http", len(text))
    return orjson.Fragment(text)


def extension_fields(
    row: PlannedRow, finish_reason: str | None, receipts: Sequence[Receipt], trace: Mapping[str, Any] | None
) -> Fields:
    """The fields of a choice that completions and chats share."""
    fields: Fields = {"index": row.index, "finish_reason": finish_reason}
    if row.variant is not None:
        fields["variant"] = row.variant
    if receipts:
        fields["interventions"] = [receipt_fields(receipt) for receipt in receipts]
    if trace is not None:
        fields["trace"] = trace
    return fields


def completion_choice(
    row: PlannedRow,
    text: str,
    tokens: Sequence[StreamedToken],
    tokenizer: TextTokenizer,
    *,
    finish_reason: str | None,
    receipts: Sequence[Receipt] = (),
    trace: Mapping[str, Any] | None = None,
) -> Fields:
    """A choice, or a stream's next part of one; receipts are in the last part."""
    wanted = row.request.logprobs is not None
    return {
        "text": text,
        "logprobs": completion_logprobs(tokens, tokenizer) if wanted else None,
        **extension_fields(row, finish_reason, receipts, trace),
    }


def chat_choice(
    row: PlannedRow,
    text: str,
    tokens: Sequence[StreamedToken],
    tokenizer: TextTokenizer,
    *,
    finish_reason: str | None,
    is_chunk: bool = False,
    is_first: bool = False,
    receipts: Sequence[Receipt] = (),
    trace: Mapping[str, Any] | None = None,
) -> Fields:
    """A chat's choice; in a chunk, its text is a delta, and the first delta has the role."""
    message: Fields = {"role": "assistant", "content": text} if is_first or not is_chunk else {"content": text}
    return {
        "delta" if is_chunk else "message": message,
        "logprobs": chat_logprobs(tokens, tokenizer) if row.request.logprobs is not None else None,
        **extension_fields(row, finish_reason, receipts, trace),
    }


def completion_logprobs(tokens: Sequence[StreamedToken], tokenizer: TextTokenizer) -> Fields:
    return {
        "tokens": [tokenizer.token_text(token.token_id) for token in tokens],
        "token_logprobs": [None if token.logprobs is None else token.logprobs.logprob for token in tokens],
        "top_logprobs": [
            None if token.logprobs is None else named_logprobs(token.token_id, token.logprobs, tokenizer)
            for token in tokens
        ],
        "text_offset": [token.text_offset for token in tokens],
    }


def named_logprobs(chosen: int, logprobs: TokenLogprobs, tokenizer: TextTokenizer) -> dict[str, float]:
    """The most probable tokens by name, and the chosen one if it is not among them."""
    named = {tokenizer.token_text(token_id): value for token_id, value in logprobs.top}
    named.setdefault(tokenizer.token_text(chosen), logprobs.logprob)
    return named


def chat_logprobs(tokens: Sequence[StreamedToken], tokenizer: TextTokenizer) -> Fields:
    def entry(token_id: int, logprob: float) -> Fields:
        data = tokenizer.bytes_of(token_id)
        return {"token": tokenizer.token_text(token_id), "logprob": logprob, "bytes": list(data)}

    return {
        "content": [
            {
                **entry(token.token_id, token.logprobs.logprob),
                "top_logprobs": [entry(token_id, value) for token_id, value in token.logprobs.top],
            }
            for token in tokens
            if token.logprobs is not None
        ]
    }
