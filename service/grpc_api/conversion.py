"""Converts between the gRPC API's messages and the service's requests and answers. Knows no transport and no engine.

Requests become the plain fields of JSON's requests, so that one schema checks both.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from service.answers.answer import Answer, Choice, Fragment
from service.answers.fields import receipt_fields
from service.errors import BadRequestError
from service.pb import topk_pb2 as pb
from service.requests.attribution_schema import AttributionRequest
from service.requests.neuron_schema import NeuronListRequest, NeuronRequest, NeuronSearchRequest
from service.requests.parsing import validate
from service.requests.schema import (
    ActivationsRequest,
    ActivationsStreamRequest,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from service.text import StreamedToken, TextTokenizer
from topk_model.interventions import Receipt
from topk_model.traces import PackedType, Trace, packed_types

if TYPE_CHECKING:
    from service.serving.attribution_reply import Attribution
    from service.serving.neurons import NeuronPage
    from service.serving.side_jobs import Progress

Fields = dict[str, Any]

#: Maximum bytes of a traced token in a message, besides its text and its activations.
TOKEN_OVERHEAD_BYTES = 16
#: Maximum bytes of a message besides tokens, for names and numbers of the usual lengths.
HEADER_BYTES = 2048


def generation_from_pb(message: pb.GenerateRequest) -> CompletionRequest | ChatCompletionRequest:
    """A request with messages is a chat; any other is a completion.

    Raises:
        BadRequestError: it breaks the schema.
    """
    fields = fields_from_pb(message)
    if "messages" not in fields:
        return validate(CompletionRequest, fields)
    if "logprobs" in fields:
        raise BadRequestError("logprobs is for prompts; with messages use top_logprobs", param="logprobs")
    if "top_logprobs" in fields:
        fields["logprobs"] = True
    return validate(ChatCompletionRequest, fields)


def stream_from_pb(message: pb.GenerateStreamRequest) -> CompletionRequest | ChatCompletionRequest:
    """Like `generation_from_pb`; field paths are those of the inner request."""
    check_known(message, "")
    return generation_from_pb(message.request)


def activations_from_pb(message: pb.ActivationsRequest) -> ActivationsRequest:
    """Raises BadRequestError if it breaks the schema."""
    return validate(ActivationsRequest, with_packed_trace(fields_from_pb(message)))


def activations_stream_from_pb(message: pb.ActivationsStreamRequest) -> ActivationsStreamRequest:
    """Raises BadRequestError if it breaks the schema."""
    return validate(ActivationsStreamRequest, with_packed_trace(fields_from_pb(message)))


def attribution_from_pb(message: pb.AttributeRequest) -> AttributionRequest:
    """Raises BadRequestError if it breaks the schema."""
    fields = fields_from_pb(message)
    if "target" in fields:  # a token that names none is one that is left out
        fields["target"] = {name: value for name, value in fields["target"].items() if value is not None}
    return validate(AttributionRequest, fields)


def tokenize_from_pb(message: pb.TokenizeRequest) -> TokenizeRequest:
    """Raises BadRequestError if it breaks the schema."""
    return validate(TokenizeRequest, fields_from_pb(message))


def detokenize_from_pb(message: pb.DetokenizeRequest) -> DetokenizeRequest:
    """Raises BadRequestError if it breaks the schema."""
    return validate(DetokenizeRequest, {"tokens": [], **fields_from_pb(message)})


def neuron_from_pb(message: pb.GetNeuronRequest | pb.GetNeuronHistoryRequest) -> NeuronRequest:
    """Raises BadRequestError if it breaks the schema."""
    return validate(NeuronRequest, fields_from_pb(message))


def neuron_list_from_pb(message: pb.ListNeuronsRequest) -> NeuronListRequest:
    """Raises BadRequestError if it breaks the schema."""
    return validate(NeuronListRequest, fields_from_pb(message))


def neuron_search_from_pb(message: pb.SearchNeuronsRequest) -> NeuronSearchRequest:
    """Raises BadRequestError if it breaks the schema."""
    fields = fields_from_pb(message)
    if "contrast" in fields:  # an empty list is one in JSON
        fields["contrast"] = {"positive": [], "negative": [], **fields["contrast"]}
    return validate(NeuronSearchRequest, fields)


def with_packed_trace(fields: Fields) -> Fields:
    return {"trace": {"encoding": "packed"}, **fields}


def fields_from_pb(message: Message, path: str = "") -> Fields:
    """The fields that were set, in JSON's types; enums by their lower-case names, unknown ones by their numbers.

    Raises:
        BadRequestError: a field is unknown; no part of a request is ignored.
    """
    check_known(message, path)
    fields: Fields = {}
    for field, value in message.ListFields():
        at = f"{path}.{field.name}" if path else field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            fields[field.name] = {str(key): number for key, number in value.items()}
        elif not field.is_repeated:
            fields[field.name] = value_from_pb(field, value, at)
        elif field.message_type is not None:
            fields[field.name] = [value_from_pb(field, item, f"{at}[{i}]") for i, item in enumerate(value)]
        else:
            fields[field.name] = list(value)
    return fields


def value_from_pb(field: FieldDescriptor, value: Any, path: str) -> Any:
    if field.enum_type is not None:
        return name_of(field.enum_type, value)
    if isinstance(value, pb.Prompt):
        return prompt_from_pb(value, path)
    if isinstance(value, pb.Token):
        fields = fields_from_pb(value, path)
        return fields.get("id", fields.get("text"))
    if isinstance(value, pb.Positions):
        return positions_from_pb(value, path)
    if isinstance(value, pb.Intervention):
        return intervention_from_pb(value, path)
    if isinstance(value, pb.TraceOptions):
        return {**fields_from_pb(value, path), "encoding": "packed"}
    return fields_from_pb(value, path) if isinstance(value, Message) else value


def prompt_from_pb(prompt: pb.Prompt, path: str) -> str | list[Any] | None:
    fields = fields_from_pb(prompt, path)
    if "texts" in fields:
        return list(prompt.texts.texts)
    if "token_ids" in fields:
        return list(prompt.token_ids.ids)
    if "token_ids_list" in fields:
        return [list(ids.ids) for ids in prompt.token_ids_list.lists]
    return fields.get("text")


def positions_from_pb(positions: pb.Positions, path: str) -> str | int | Fields | None:
    fields = fields_from_pb(positions, path)
    named: str | int | Fields | None = fields.get("kind", fields.get("range"))
    return named


def intervention_from_pb(intervention: pb.Intervention, path: str) -> Fields:
    fields = fields_from_pb(intervention, path)
    if fields.pop("all_layers", False):
        if "layer" in fields:
            raise BadRequestError(f"{path}.layer must be empty if all_layers is true", param=f"{path}.layer")
        fields["layer"] = "all"
    elif len(intervention.layer) == 1:
        fields["layer"] = intervention.layer[0]
    return fields


def check_known(message: Message, path: str) -> None:
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise BadRequestError(
            f"{path or 'the request'} has a field of number {unknown[0].field_number}, which this service's "
            "version of the API does not know",
            param=path or None,
        )


def name_of(enum: EnumDescriptor, number: int) -> str | int | None:
    """ROLE_USER becomes "user", unspecified becomes None, and a number without a name stays a number."""
    if number == 0:
        return None
    value = enum.values_by_number.get(number)
    return number if value is None else value.name.removeprefix(prefix_of(enum)).lower()


def number_of(enum: EnumDescriptor, name: str | None) -> Any:
    """The value of an enum; Any, because the generated stubs have a type for each enum."""
    return 0 if name is None else enum.values_by_name[prefix_of(enum) + name.upper()].number


def prefix_of(enum: EnumDescriptor) -> str:
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")


def trace_to_pb(trace: Trace, dtype: PackedType) -> pb.Trace:
    numbers = {name: number_of(pb.Phase.DESCRIPTOR, name) for name in ("prompt", "generated")}
    fields: Fields = {**trace.header(), **trace.to_bytes(dtype)}
    fields["phases"] = [numbers[name] for name in trace.phases]
    return pb.Trace(
        **fields,
        dtype=number_of(pb.ValueType.DESCRIPTOR, dtype),
        index_dtype=number_of(pb.IndexType.DESCRIPTOR, np.dtype(trace.index_type).name),
    )


def counted_trace(answer: Answer, trace: Trace) -> pb.Trace:
    """A trace of the answer, counted as sent, whether it is sent at once or in parts."""
    message = trace_to_pb(trace, answer.plan.dtype)
    answer.count_trace("grpc", message.ByteSize())
    return message


def trace_parts(trace: Trace, dtype: PackedType, max_bytes: int) -> Iterator[Trace]:
    """The trace in parts whose messages have at most `max_bytes`, or contain one token."""
    if not trace.token_ids:
        yield trace
        return
    types = packed_types(trace.index_type, dtype)
    num_layers = len(trace.layers)
    num_entries = np.diff(trace.chunk.offsets[::num_layers])
    sizes = num_entries * (types["indices"].itemsize + types["values"].itemsize)
    sizes += num_layers * types["offsets"].itemsize + TOKEN_OVERHEAD_BYTES
    sizes += [len(token.encode()) for token in trace.tokens]
    ends = sizes.cumsum()
    start, budget = 0, max_bytes - HEADER_BYTES - TOKEN_OVERHEAD_BYTES * num_layers
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + budget, side="right")))
        yield trace.part(start, stop)
        start = stop


def receipts_to_pb(receipts: Sequence[Receipt]) -> list[pb.Receipt]:
    return [pb.Receipt(**receipt_fields(receipt)) for receipt in receipts]


def logprobs_to_pb(token: StreamedToken, tokenizer: TextTokenizer) -> pb.TokenLogprob:
    known = token.logprobs
    return pb.TokenLogprob(
        token_id=token.token_id,
        token=tokenizer.token_text(token.token_id),
        bytes=tokenizer.bytes_of(token.token_id),
        logprob=None if known is None else known.logprob,
        top=[
            pb.TopLogprob(token_id=token_id, token=tokenizer.token_text(token_id), logprob=value)
            for token_id, value in (() if known is None else known.top)
        ],
        text_offset=token.text_offset,
    )


def choice_to_pb(answer: Answer, choice: Choice, fragment: Fragment, trace: Trace | None) -> pb.Choice:
    """A choice, or a stream's next part of it, with the given trace."""
    row = choice.row
    wanted = row.request.logprobs is not None
    return pb.Choice(
        index=row.index,
        text=fragment.text,
        finish_reason=number_of(pb.FinishReason.DESCRIPTOR, fragment.finish_reason),
        variant=number_of(pb.Variant.DESCRIPTOR, row.variant),
        logprobs=[logprobs_to_pb(token, answer.tokenizer) for token in fragment.tokens] if wanted else (),
        interventions=receipts_to_pb(fragment.receipts),
        trace=None if trace is None else counted_trace(answer, trace),
    )


def generation_to_pb(answer: Answer) -> pb.GenerateResponse:
    """The complete answer, once every choice is finished."""
    return pb.GenerateResponse(
        **answer.head,
        choices=[choice_to_pb(answer, choice, fragment, fragment.trace) for choice, fragment in answer.fragments()],
        usage=pb.Usage(**vars(answer.usage)),
        warnings=answer.warnings,
        differences=plain(answer.differences or ()),
    )


def stream_to_pb(answer: Answer, max_bytes: int) -> Iterator[pb.GenerateStreamResponse]:
    """The messages that are new since the last call, one choice per message.

    A message over `max_bytes` becomes several: the text, then the trace in parts, the last with the choice's end.
    """
    dtype = answer.plan.dtype
    for choice, fragment in answer.fragments():
        trace = fragment.trace if fragment.trace is not None and fragment.trace.token_ids else None
        item = choice_to_pb(answer, choice, fragment, trace)
        warnings = answer.warnings_of(choice) if fragment.finish_reason is not None else []
        message = pb.GenerateStreamResponse(**answer.head, choices=[item], warnings=warnings)
        if trace is None or message.ByteSize() <= max_bytes:
            yield message
            continue
        first = pb.Choice(index=item.index, text=item.text, variant=item.variant, logprobs=item.logprobs)
        yield pb.GenerateStreamResponse(**answer.head, choices=[first])
        parts = list(trace_parts(trace, dtype, max_bytes - pb.Choice(interventions=item.interventions).ByteSize()))
        for i, part in enumerate(parts):
            rest = pb.Choice(index=item.index, variant=item.variant, trace=trace_to_pb(part, dtype))
            is_last = i == len(parts) - 1
            if is_last:
                rest.finish_reason = item.finish_reason
                rest.interventions.extend(item.interventions)
            yield pb.GenerateStreamResponse(**answer.head, choices=[rest], warnings=warnings if is_last else ())


def activations_to_pb(answer: Answer) -> pb.ActivationsResponse:
    """The traces of a finished answer, in the order of its inputs."""
    data = []
    for choice, fragment in answer.fragments():
        assert fragment.trace is not None
        trace = counted_trace(answer, fragment.trace)
        receipts = receipts_to_pb(fragment.receipts)
        data.append(pb.ActivationsItem(index=choice.row.index, trace=trace, interventions=receipts))
    return pb.ActivationsResponse(
        model=answer.head["model"], data=data, usage=pb.Usage(**vars(answer.usage)), warnings=answer.warnings
    )


def activation_parts_to_pb(index: int, answer: Answer, max_bytes: int) -> Iterator[pb.ActivationsStreamResponse]:
    """The trace of a finished answer's only input, which is number `index` of a stream."""
    dtype = answer.plan.dtype
    [(_, fragment)] = answer.fragments()
    assert fragment.trace is not None
    receipts = receipts_to_pb(fragment.receipts)
    rest = pb.ActivationsStreamResponse(index=index, interventions=receipts, warnings=answer.warnings, is_last=True)
    whole = counted_trace(answer, fragment.trace)
    if whole.ByteSize() + rest.ByteSize() + TOKEN_OVERHEAD_BYTES > max_bytes:
        *parts, last = trace_parts(fragment.trace, dtype, max_bytes - rest.ByteSize())
        for part in parts:
            yield pb.ActivationsStreamResponse(index=index, trace=trace_to_pb(part, dtype))
        whole = trace_to_pb(last, dtype)
    rest.trace.CopyFrom(whole)
    yield rest


def model_to_pb(card: Mapping[str, Any]) -> pb.Model:
    """A model's card, as in the HTTP API."""
    topk = card["topk"] | {"select": number_of(pb.Select.DESCRIPTOR, card["topk"]["select"])}
    return pb.Model(id=card["id"], created=card["created"], owned_by=card["owned_by"], topk=pb.TopK(**topk))


def neuron_to_pb(page: "NeuronPage") -> pb.GetNeuronResponse:
    """A neuron's page."""
    neuron = {name: value for name, value in fields_to_pb(page).items() if name not in ("model", "checkpoint")}
    return pb.GetNeuronResponse(model=page.model, checkpoint=page.checkpoint, neuron=neuron)


def attribution_to_pb(event: "Progress | Attribution") -> pb.AttributeResponse:
    """A message of an attribution's stream."""
    fields = fields_to_pb(event)
    if "stage" in fields:
        return pb.AttributeResponse(progress=pb.Progress(**fields))
    fields["target"]["unit"] = number_of(pb.EffectUnit.DESCRIPTOR, fields["target"]["unit"])
    return pb.AttributeResponse(attribution=pb.Attribution(**fields))


def fields_to_pb(reply: Any) -> Fields:
    """The fields of a dataclass for its message; the dataclass has the message's name."""
    return {name: value for name, value in plain(reply).items() if name != "object"}


def plain(value: Any) -> Any:
    """Dataclasses, and lists of them, as dictionaries; numbers are not copied, as `dataclasses.asdict` does."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclass_fields(value)}
    if isinstance(value, list | tuple) and value and is_dataclass(value[0]):
        return [plain(item) for item in value]
    return value
