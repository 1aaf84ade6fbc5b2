"""The same request over HTTP and gRPC, and the same answer: JSON's fields as messages, and messages as JSON's fields.

Written by hand against the two documentations, not with the service's own conversion, which is what it tests.
"""

import base64
import random
from collections.abc import Callable
from typing import Any

from service.pb import topk_pb2 as pb
from tests.support.service.bad_requests import ACTIVATIONS, CHAT, COMPLETIONS, DETOKENIZE, LEVERS, SEARCH, TOKENIZE

Fields = dict[str, Any]

MESSAGES = {
    COMPLETIONS: pb.GenerateRequest,
    CHAT: pb.GenerateRequest,
    ACTIVATIONS: pb.ActivationsRequest,
    TOKENIZE: pb.TokenizeRequest,
    DETOKENIZE: pb.DetokenizeRequest,
    SEARCH: pb.SearchNeuronsRequest,
    LEVERS: pb.FindLeversRequest,
}
METHODS = {
    COMPLETIONS: "Generate",
    CHAT: "Generate",
    ACTIVATIONS: "Activations",
    TOKENIZE: "Tokenize",
    DETOKENIZE: "Detokenize",
    SEARCH: "SearchNeurons",
    LEVERS: "FindLevers",
}
ENUMS = {
    "role": (pb.Role, "ROLE_"),
    "op": (pb.Op, "OP_"),
    "unit": (pb.Unit, "UNIT_"),
    "site": (pb.Site, "SITE_"),
    "is": (pb.ConditionTest, "CONDITION_TEST_"),
    "dtype": (pb.ValueType, "VALUE_TYPE_"),
}
DOUBLES = {
    "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "timeout_s", "value", "min", "max",
    "min_value", "max_cost",
}  # fmt: skip


class InexpressibleError(Exception):
    """The API's types leave no way to say this in a message."""


def pair(path: str, fields: Fields) -> tuple[Fields, Any]:
    """A request's JSON, where two ways to say a thing exist in the one that a message says, and its message."""
    fields = {name: value for name, value in fields.items() if value is not None or name in ("prompt", "input")}
    if fields.pop("stream", False) or "stream_options" in fields:
        raise InexpressibleError("a stream is an RPC of its own")
    if path == ACTIVATIONS:
        fields.setdefault("trace", {})
    message = MESSAGES[path]()
    try:
        fill(message, fields, is_chat=path == CHAT)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InexpressibleError(str(error)) from None
    return fields, message


def fill(message: Any, fields: Fields, *, is_chat: bool = False) -> None:
    """Set a message's fields, and bring `fields` into the form that says the same over HTTP."""
    for name, value in list(fields.items()):
        if value is None and name not in ("prompt", "input"):
            del fields[name]
        elif name in ("prompt", "input") and not isinstance(message, pb.TokenizeRequest | pb.FindLeversRequest):
            getattr(message, name).SetInParent()
            fill_prompt(getattr(message, name), value)
        elif name == "positions":
            fill_positions(message.positions, value)
        elif name == "layer" and isinstance(message, pb.Intervention):
            fields[name] = fill_layer(message, value)
        elif name == "contrast":
            fields[name] = fill_sides(message.contrast, value, ("positive", "negative"))
        elif name == "texts" and isinstance(message, pb.FindLeversRequest):
            fields[name] = fill_sides(message.texts, value, ("towards", "away"))
        elif name == "words":
            if not value:
                raise InexpressibleError("an empty list is none")
            message.words.extend(as_list(value))
        elif name == "layers" and value in ("all", []) and isinstance(message, pb.SearchNeuronsRequest):
            if not value:
                raise InexpressibleError("an empty list is none")
        elif name == "trace":
            fill_trace(message.trace, value)
        elif name == "range":
            raise KeyError(name)
        elif name == "messages" and value == []:
            raise InexpressibleError("an empty list is none")
        elif name in ("interventions", "when", "messages"):
            for item in as_list(value):
                fill(getattr(message, name).add(), item)
        elif name == "stop":
            fields[name] = [value] if isinstance(value, str) else as_list(value)
            message.stop.extend(fields[name])
        elif name == "logit_bias":
            fields[name] = {token: float(bias) for token, bias in value.items()}
            message.logit_bias.update({int(token): bias for token, bias in fields[name].items()})
        elif name == "logprobs" and is_chat:
            if fields.get("top_logprobs") is None or value is not True:
                raise InexpressibleError("top_logprobs alone says it")
        elif name == "top_logprobs" and fields.get("logprobs") is not True:
            raise InexpressibleError("logprobs goes without saying")
        elif name in ENUMS:
            kind, prefix = ENUMS[name]
            setattr(message, name, kind.Value(prefix + value.upper()))
        elif isinstance(value, list):
            getattr(message, name).extend(map(number, value))
        else:
            fields[name] = float(value) if name in DOUBLES and type(value) is int else value
            setattr(message, name, exactly(type(getattr(message, name)), fields[name]))


def exactly(kind: type, value: Any) -> Any:
    """Protobuf takes whole floats and booleans for integers; JSON's schema does not."""
    if type(value) is not kind:
        raise TypeError(f"no {kind.__name__}")
    return value


def as_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def fill_prompt(prompt: pb.Prompt, value: Any) -> None:
    if isinstance(value, str):
        prompt.text = value
    elif value == [] or (isinstance(value, list) and isinstance(value[0], str)):
        prompt.texts.SetInParent()
        prompt.texts.texts.extend(value)
    elif isinstance(value, list) and isinstance(value[0], list):
        for ids in value:
            prompt.token_ids_list.lists.add(ids=ids)
    elif value is not None:
        prompt.token_ids.ids.extend([number(item) for item in as_list(value)])


def number(value: Any) -> Any:
    if type(value) is not int:
        raise TypeError("no integer")
    return value


def fill_positions(positions: pb.Positions, value: Any) -> None:
    if isinstance(value, str):
        positions.kind = pb.PositionKind.Value(f"POSITION_KIND_{value.upper()}")
    else:
        positions.range.SetInParent()
        for name, position in value.items():
            setattr(positions.range, name, number(position))


def fill_layer(message: pb.Intervention, value: Any) -> Any:
    if value == "all":
        message.all_layers = True
        return value
    layers = value if isinstance(value, list) else [value]
    if not layers:
        raise InexpressibleError("an empty list is none")
    message.layer.extend(map(number, layers))
    return layers[0] if len(layers) == 1 else layers


def fill_sides(message: Any, value: Fields, names: tuple[str, str]) -> Fields:
    """Both sides are always there in a message."""
    message.SetInParent()
    sides = {name: [] for name in names} | value
    for name, texts in sides.items():
        getattr(message, name).extend(as_list(texts))
    return sides


def fill_trace(trace: pb.TraceOptions, value: Fields) -> None:
    encoding = value.get("encoding", "json")
    if encoding not in ("json", "packed") or (encoding == "json" and "dtype" in value):
        raise InexpressibleError("traces are always packed")
    value["encoding"] = "packed"
    trace.SetInParent()
    fields = {name: item for name, item in value.items() if name != "encoding" and item is not None}
    if fields.get("layers") == "all":
        del fields["layers"]
    if fields.get("neurons") == [] or fields.get("layers") == []:
        raise InexpressibleError("an empty list is none")
    fill(trace, fields)
    value.update(fields)


def as_json(path: str, message: Any) -> Fields:
    """A reply as the HTTP API would give it; ids, times and the names of kinds left out."""
    if path == TOKENIZE:
        return {
            "count": message.count,
            "max_model_len": message.max_model_len,
            "tokens": list(message.tokens),
            "token_strs": list(message.token_strs),
        }
    if path == DETOKENIZE:
        return {"prompt": message.prompt}
    if path == SEARCH:
        return matches(message)
    common = {"model": message.model, "usage": usage(message.usage), "warnings": list(message.warnings)}
    if path == ACTIVATIONS:
        return common | {"data": [item(one) for one in message.data]}
    return common | {"choices": [choice(one, is_chat=path == CHAT) for one in message.choices]}


def matches(message: pb.SearchNeuronsResponse) -> Fields:
    return {
        "model": message.model,
        "usage": usage(message.usage),
        "num_tokens": message.num_tokens,
        "num_tokens_negative": optional(message, "num_tokens_negative"),
        "data": [
            {name: getattr(match, name) for name in ("layer", "neuron", "score", "density", "active")}
            | {name: optional(match, name) for name in ("label", "active_negative")}
            | {"also_in": list(match.also_in)}
            for match in message.data
        ],
    }


def optional(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def without_names(reply: Fields) -> Fields:
    return {name: value for name, value in reply.items() if name not in ("id", "created", "object")}


def usage(message: pb.Usage) -> Fields:
    return {name: getattr(message, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


def item(message: pb.ActivationsItem) -> Fields:
    fields: Fields = {"index": message.index, "trace": trace(message.trace)}
    if message.interventions:
        fields["interventions"] = [receipt(one) for one in message.interventions]
    return fields


def choice(message: pb.Choice, *, is_chat: bool = False) -> Fields:
    fields: Fields = {
        "index": message.index,
        "finish_reason": word(pb.FinishReason, message.finish_reason, "FINISH_REASON_"),
        "logprobs": (chat_logprobs if is_chat else logprobs)(message.logprobs) if message.logprobs else None,
    }
    if is_chat:
        fields["message"] = {"role": "assistant", "content": message.text}
    else:
        fields["text"] = message.text
    if message.variant:
        fields["variant"] = word(pb.Variant, message.variant, "VARIANT_")
    if message.interventions:
        fields["interventions"] = [receipt(one) for one in message.interventions]
    if message.HasField("trace"):
        fields["trace"] = trace(message.trace)
    return fields


def logprobs(tokens: Any) -> Fields:
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob if token.HasField("logprob") else None for token in tokens],
        "top_logprobs": [
            {**{top.token: top.logprob for top in reversed(token.top)}, token.token: token.logprob}
            if token.HasField("logprob")
            else None
            for token in tokens
        ],
        "text_offset": [token.text_offset for token in tokens],
    }


def chat_logprobs(tokens: Any) -> Fields:
    return {
        "content": [
            {
                "token": token.token,
                "logprob": token.logprob,
                "bytes": list(token.bytes),
                "top_logprobs": [(top.token, top.logprob) for top in token.top],
            }
            for token in tokens
        ]
    }


def receipt(message: pb.Receipt) -> Fields:
    counts = {name: getattr(message, name) for name in ("positions_applied", "active_before", "evicted")}
    optional = ("first", "last", "mean_before", "mean_after")
    return counts | {name: getattr(message, name) if message.HasField(name) else None for name in optional}


def trace(message: pb.Trace) -> Fields:
    numbers = ("trace_version", "model", "k", "hidden_size", "complete")
    lists = ("layers", "token_ids", "tokens", "is_special")
    packed = ("offsets", "indices", "values")
    return {
        **{name: getattr(message, name) for name in numbers},
        **{name: list(getattr(message, name)) for name in lists},
        **{name: base64.b64encode(getattr(message, name)).decode() for name in packed},
        "checkpoint": message.checkpoint if message.HasField("checkpoint") else None,
        "phases": [word(pb.Phase, phase, "PHASE_") for phase in message.phases],
        "dtype": word(pb.ValueType, message.dtype, "VALUE_TYPE_"),
        "index_dtype": word(pb.IndexType, message.index_dtype, "INDEX_TYPE_"),
    }


def word(kind: Any, number: int, prefix: str) -> str | None:
    return kind.Name(number).removeprefix(prefix).lower() if number else None


def random_request(rng: random.Random, model: str) -> tuple[str, Fields]:
    """A path and a request, right more often than not."""
    text = lambda: " ".join(rng.choices(("Once", "the king", "war", "été", "stop", ",", "🙂"), k=rng.randrange(1, 8)))  # noqa: E731
    ids = lambda: [rng.randrange(3, 300) for _ in range(rng.randrange(1, 8))]  # noqa: E731
    prompt: Any = rng.choice((text, ids, lambda: [text(), text()], lambda: [ids(), ids()]))()
    path = rng.choices((COMPLETIONS, ACTIVATIONS, TOKENIZE, DETOKENIZE, SEARCH), (7, 3, 1, 1, 2))[0]
    if path == SEARCH:
        return path, {"model": model} | random_search(rng, text)
    if path == TOKENIZE:
        return path, {"model": model, "prompt": text(), "add_special_tokens": rng.random() < 0.5}
    if path == DETOKENIZE:
        return path, {"model": model, "tokens": [*ids(), rng.choice((1, 2, 10**6))]}
    fields: Fields = {"model": model, "prompt" if path == COMPLETIONS else "input": prompt}
    options: Fields = {
        "interventions": [random_edit(rng) for _ in range(rng.randrange(1, 4))],
        "trace": random_trace(rng),
    }
    if path == COMPLETIONS:
        fields |= {"max_tokens": rng.choice((1, 3, 6, 6, 300)), "seed": rng.randrange(-5, 5)}
        options |= {
            "n": rng.choice((1, 2, 3, 17)),
            "temperature": rng.choice((0, 0.5, 1, 2.0, 2.5)),
            "top_p": rng.choice((0.5, 1)),
            "top_k": rng.choice((-1, 0, 5, 10**6)),
            "min_p": rng.choice((0, 0.1, 1.1)),
            "presence_penalty": rng.choice((-2, 0.5)),
            "frequency_penalty": rng.choice((0.5, 3)),
            "logit_bias": {str(rng.randrange(3, 320)): rng.choice((-100, 5.5))},
            "logprobs": rng.choice((0, 3, 21)),
            "stop": rng.choice(("e", ["a", "th"], [""])),
            "echo": True,
            "ignore_eos": True,
            "compare": True,
            "user": "someone",
        }
    for name in rng.sample(list(options), rng.randrange(len(options) // 2 + 1)):
        fields[name] = options[name]
    return path, fields


def random_search(rng: random.Random, text: Callable[[], str]) -> Fields:
    contrast = {"positive": [text() for _ in range(rng.randrange(3))], "negative": [text()]}
    fields: Fields = {"text": text()} if rng.random() < 0.5 else {"contrast": contrast}
    options: Fields = {"layers": rng.choice(([0], [1, 0], [3])), "limit": rng.choice((1, 5, 0))}
    return fields | {name: options[name] for name in rng.sample(list(options), rng.randrange(3))}


def random_edit(rng: random.Random) -> Fields:
    op = rng.choice(("set", "add", "scale", "ablate", "clamp"))
    numbers: Fields = {"set": {"value": 3.5}, "add": {"value": -2}, "scale": {"value": 4}, "clamp": {"max": 0.5}}
    edit = {"layer": rng.choice((0, 1, "all", [0, 1], 3)), "neuron": rng.choice((1, 7, 63, 64)), "op": op}
    edit |= numbers.get(op, {})
    options: Fields = {
        "unit": rng.choice(("raw", "kth", "max")),
        "site": "pre_topk",
        "positions": rng.choice(("prompt", "generated", {"start": -1}, {"start": 0, "end": 2})),
        "when": [{"layer": 0, "neuron": rng.randrange(64), "is": rng.choice(("active", "inactive"))}],
        "include_special": True,
    }
    return edit | {name: options[name] for name in rng.sample(list(options), rng.randrange(3))}


def random_trace(rng: random.Random) -> Fields:
    options: Fields = {
        "layers": rng.choice(("all", [0], [1, 0], [2])),
        "positions": rng.choice(("all", "prompt", "generated", {"end": 1})),
        "neurons": sorted(rng.sample(range(64), 20)),
        "top_n": rng.choice((1, 3, 0)),
        "min_value": rng.choice((0, 0.5)),
    }
    trace = {name: options[name] for name in rng.sample(list(options), rng.randrange(4))}
    return trace | ({"encoding": "packed", "dtype": "float16"} if rng.random() < 0.5 else {})
