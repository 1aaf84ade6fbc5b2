"""A table of requests that must be refused: each gets a 4xx in the one error body, naming the field and the limit."""

import json
from dataclasses import dataclass
from typing import Any

from service.requests.facts import ModelFacts
from service.requests.limits import MAX_BODY_BYTES
from tests.support.small_vocabulary import small_facts

COMPLETIONS, CHAT, ACTIVATIONS = "/v1/completions", "/v1/chat/completions", "/v1/activations"
TOKENIZE, DETOKENIZE = "/v1/tokenize", "/v1/detokenize"
SEARCH = "/v1/neurons/search"
LEVERS = "/v1/levers"


@dataclass(frozen=True, kw_only=True)
class BadRequest:
    """One bad request and what must come of it."""

    name: str
    path: str
    body: bytes
    status: int = 400
    param: str | None = None
    says: str  # a part of the message
    method: str = "POST"
    content_type: str = "application/json"
    is_http_only: bool = False  # wrong before or beside the schema


def bad_requests(facts: ModelFacts) -> list[BadRequest]:
    """The table for a served model; it needs a TopK layer, a dense layer and no chat template."""
    dense, hidden, context, vocab = facts.num_layers - 1, facts.hidden_size, facts.context_length, facts.vocab_size
    last_topk = facts.topk_layers[-1]
    table: list[BadRequest] = []

    def bad(name: str, says: str, param: str | None, path: str = COMPLETIONS, **fields: Any) -> None:
        """`fields` change a good request; `...` removes a field."""
        good = {
            COMPLETIONS: {"prompt": "Once upon", "max_tokens": 4},
            CHAT: {"messages": [{"role": "user", "content": "Hello"}]},
            ACTIVATIONS: {"input": "Once upon"},
            TOKENIZE: {"prompt": "Once upon"},
            DETOKENIZE: {"tokens": [1]},
            SEARCH: {"text": "Once upon"},
            LEVERS: {"words": ["war", "soldier"]},
        }[path]
        body = {k: v for k, v in ({"model": facts.id} | good | fields).items() if v is not ...}
        table.append(BadRequest(name=name, path=path, body=json.dumps(body).encode(), param=param, says=says))

    def raw(name: str, says: str, body: bytes, param: str | None = None, path: str = COMPLETIONS) -> None:
        table.append(BadRequest(name=name, path=path, body=body, param=param, says=says))

    def edit(name: str, says: str, at: str, **fields: Any) -> None:
        spec = {"layer": 0, "neuron": 1, "op": "set", "value": 1.0} | fields
        param = f"interventions[0].{at}"
        bad(name, says, param, interventions=[{k: v for k, v in spec.items() if v is not ...}])

    def when(name: str, says: str, at: str, **fields: Any) -> None:
        edit(name, says, f"when[0].{at}", when=[{"layer": 0, "neuron": 1, "is": "active"} | fields])

    def traced(name: str, says: str, at: str, **fields: Any) -> None:
        bad(name, says, f"trace.{at}", trace=fields)

    raw("empty body", "not valid JSON", b"")
    raw("bad JSON", "not valid JSON", b'{"model": "tiny", "prompt": ')
    raw("two JSON values", "not valid JSON", b'{} {"model": "tiny"}')
    raw("bad UTF-8", "not valid UTF-8", b'{"model": "tiny", "prompt": "\xff\xfe"}')
    raw("half a surrogate pair", "not valid JSON", b'{"model": "tiny", "prompt": "\\ud83d"}')
    raw("nested too deeply", "recursion", b"[" * 10_000)
    raw("number of too many digits", "not valid JSON", b'{"model": "tiny", "prompt": "a", "n": ' + b"9" * 10_000 + b"}")
    raw("body is a list", "must be an object", b"[]")
    raw("body is null", "must be an object", b"null")

    bad("no model", "is required", "model", model=...)
    bad("model is a number", "must be a string", "model", model=7)
    bad("empty model", "at least 1 character", "model", model="")
    bad("no prompt", "is required", "prompt", prompt=...)
    bad("prompt is null", "must be a string", "prompt", prompt=None)
    bad("prompt is a number", "must be a string", "prompt", prompt=3)
    bad("empty prompt", "must not be empty", "prompt", prompt="")
    bad("no prompts", "must not be empty", "prompt", prompt=[])
    bad("empty prompt among others", "must not be empty", "prompt[1]", prompt=["a", ""])
    bad("empty token list among others", "must not be empty", "prompt[1]", prompt=[[1], []])
    bad("prompts of two kinds", "must be a string", "prompt[1]", prompt=["a", 5])
    bad("token lists and texts", "must be a list of token ids", "prompt[1]", prompt=[[1], "a"])
    bad("too many prompts", "at most 128", "prompt", prompt=["a"] * 129)
    bad("fractional token id", "must be a token id", "prompt[1]", prompt=[1, 1.0])
    bad("boolean token id", "must be a token id", "prompt[0]", prompt=[True])
    bad("negative token id", "got -1", "prompt[0][1]", prompt=[[1, -1]])
    bad("token id outside the vocabulary", str(vocab), "prompt[1]", prompt=[1, vocab])
    bad("huge token id", "vocabulary", "prompt[0]", prompt=[10**30])
    bad("prompt of too many tokens", str(context), "prompt", prompt=[5] * (context + 1))
    bad("text too long to encode", "too long", "prompt", prompt="word " * 100_000)
    bad("prompt fills the context", str(context), "prompt", prompt=[5] * context)
    bad("max_tokens over what is left", f"at most {context - 2}", "max_tokens", prompt=[5, 6], max_tokens=context - 1)
    bad("BOS before the BOS", "BOS", "prompt", prompt="<|bos|>Once", parse_special=True)

    bad("unknown field", "not a known field", "temprature", temprature=1)
    too_many = dict.fromkeys(map(str, range(100_000)))
    raw("too many unknown fields", "at most 200 fields", json.dumps(too_many).encode())
    bad("field of the other route", "left out or null or [], got a list of 1", "tools", tools=[{}])
    bad("suffix", "must be left out or null or \"\", got 'the end'", "suffix", suffix="the end")
    penalty = {"repetition_penalty": 1.1}
    bad("what is not supported", "must be left out or null or 1, got 1.1", "repetition_penalty", **penalty)
    bad("true for one", "or null or 1, got true", "length_penalty", length_penalty=True)
    bad("one for true", "or null or true, got 1", "skip_special_tokens", skip_special_tokens=1)
    bad("tools", "left out or null or [], got a list of 1", "tools", CHAT, tools=[{"type": "function"}])
    json_mode = {"response_format": {"type": "json_object"}}
    bad("JSON mode", 'null or {"type": "text"}, got an object', "response_format", CHAT, **json_mode)
    bad("least length", "ignore_eos", "min_tokens", min_tokens=3)
    bad("least length and a stop", "stop is left out", "min_tokens", min_tokens=3, ignore_eos=True, stop="a")
    bad("least above most", "above max_tokens (4)", "min_tokens", min_tokens=5, ignore_eos=True)
    bad("two limits that differ", "must equal max_tokens (4)", "max_completion_tokens", max_completion_tokens=5)
    bad("usage without a stream", "stream is true", "stream_options", stream_options={"include_usage": True})
    bad("logprobs as true", "must be an integer, got true", "logprobs", logprobs=True)
    bad("how to read special tokens, in words", "true or false", "parse_special", parse_special="no")
    bad("best_of other than n", "not supported", "best_of", best_of=3)
    bad("max_tokens as a string", "must be an integer, got '5'", "max_tokens", max_tokens="5")
    bad("max_tokens as a float", "must be an integer, got 5.0", "max_tokens", max_tokens=5.0)
    bad("max_tokens as a boolean", "must be an integer, got true", "max_tokens", max_tokens=True)
    bad("negative max_tokens", "at least 0", "max_tokens", max_tokens=-1)
    bad("no tokens wanted", "echo or trace", "max_tokens", max_tokens=0)
    bad("huge max_tokens", "at most", "max_tokens", max_tokens=10**40)
    bad("n of zero", "at least 1", "n", n=0)
    bad("n too large", "at most 16", "n", n=17)
    bad("too many rows", "at most 128", "n", prompt=["a"] * 64, n=3)
    bad("n × max_tokens too large", "at most 32768", "max_tokens", prompt=[5], n=16, max_tokens=4000)
    bad("temperature as a string", "must be a number", "temperature", temperature="hot")
    bad("temperature too high", "at most 2", "temperature", temperature=2.1)
    bad("temperature too low", "at least 0", "temperature", temperature=-0.5)
    bad("temperature is not a number", "finite", "temperature", temperature=float("nan"))
    bad("temperature is infinite", "finite", "temperature", temperature=float("inf"))
    bad("top_p below zero", "at least 0", "top_p", top_p=-0.1)
    bad("top_k below -1", "at least -1", "top_k", top_k=-2)
    bad("top_k over the vocabulary", "vocabulary", "top_k", top_k=vocab + 1)
    bad("min_p too large", "at most 1", "min_p", min_p=1.5)
    bad("presence_penalty too large", "at most 2", "presence_penalty", presence_penalty=3)
    bad("frequency_penalty too small", "at least -2", "frequency_penalty", frequency_penalty=-3)
    bad("seed over 64 bits", "less than", "seed", seed=2**63)
    bad("too many stop strings", "at most 64", "stop", stop=["a"] * 65)
    bad("empty stop string", "must not be empty", "stop[1]", stop=["a", ""])
    bad("stop string is a number", "must be a string", "stop", stop=5)
    bad("stop string too long", "at most 256", "stop", stop="a" * 257)
    bad("logprobs is a boolean", "must be an integer", "logprobs", logprobs=True)
    bad("logprobs too large", "at most 20", "logprobs", logprobs=21)
    bad("logit_bias is a list", "must be an object", "logit_bias", logit_bias=[])
    bad("logit_bias of a word", "decimal digits", "logit_bias", logit_bias={"the": 1})
    bad("logit_bias too large", "-100 and 100", "logit_bias.5", logit_bias={"5": 101})
    bad("logit_bias is not a number", "-100 and 100", "logit_bias.5", logit_bias={"5": float("nan")})
    bad("logit_bias outside the vocabulary", "vocabulary", "logit_bias.999999999", logit_bias={"999999999": 1})
    bad("stream is a string", "true or false", "stream", stream="yes")
    bad("stream_options without stream", "stream is true", "stream_options", stream_options={"include_usage": True})
    bad("unknown stream option", "not a known", "stream_options.usage", stream=True, stream_options={"usage": True})
    bad("timeout of zero", "greater than 0", "timeout_s", timeout_s=0)
    bad("timeout too long", "at most 3600", "timeout_s", timeout_s=1e6)

    bad("interventions is an object", "must be a list", "interventions", interventions={})
    bad("intervention is a string", "must be an object", "interventions[0]", interventions=["layer 3"])
    one = {"layer": 0, "neuron": 1, "op": "ablate"}
    bad("too many interventions", "at most 64", "interventions", interventions=[one] * 65)
    second = [one, one | {"layer": dense}]
    bad("second intervention wrong", "dense", "interventions[1].layer", interventions=second)
    bad("compare without interventions", "at least one intervention", "compare", compare=True)
    edit("edit without a layer", "is required", "layer", layer=...)
    edit("edit of a dense layer", "dense", "layer", layer=dense)
    edit("edit of layers of which one is dense", "dense", "layer", layer=[0, dense])
    edit("edit of a layer that is not there", str(facts.num_layers), "layer", layer=99_999)
    edit("edit of a negative layer", "at least 0", "layer", layer=-1)
    edit("edit of no layer", "must not be empty", "layer", layer=[])
    edit("edit of a layer twice", "twice", "layer[1]", layer=[0, 0])
    edit("layer is a word", '"all"', "layer", layer="every")
    edit("layer is a float", '"all"', "layer", layer=1.5)
    edit("neuron out of range", str(hidden), "neuron", neuron=hidden)
    edit("negative neuron", "at least 0", "neuron", neuron=-1)
    edit("neuron is a string", "must be an integer", "neuron", neuron="work")
    edit("huge neuron", str(hidden), "neuron", neuron=10**25)
    edit("unknown op", "'clamp'", "op", op="boost")
    edit("set without a value", "is required", "value", value=...)
    edit("value is not a number", "finite", "value", value=float("nan"))
    edit("value is infinite", "finite", "value", value=float("-inf"))
    edit("value too large", "at most 10000", "value", value=1e5)
    edit("value is a string", "must be a number, got '1.5'", "value", value="1.5")
    edit("ablate with a value", "left out", "value", op="ablate")
    edit("ablate with a unit", "no unit", "unit", op="ablate", value=..., unit="max")
    edit("clamp with a value", "min", "value", op="clamp", max=1)
    edit("clamp without bounds", "required", "min", op="clamp", value=...)
    edit("clamp with min above max", "above max", "min", op="clamp", value=..., min=2, max=1)
    edit("bounds without clamp", "left out", "max", max=1)
    edit("unknown unit", "'kth'", "unit", unit="sigma")
    edit("unknown site", "'pre_topk'", "site", site="residual")
    edit("unknown field of an edit", "not a known field", "strength", strength=3)
    edit("positions is a word", '"generated"', "positions", positions="last")
    edit("positions is a list", '"generated"', "positions", positions=[0, 1])
    edit("empty range", "empty", "positions.end", positions={"start": 1, "end": 1})
    edit("range beyond the end", "last possible", "positions.start", positions={"start": context + 5})
    edit("range before the beginning", "at least", "positions.start", positions={"start": -1000})
    edit("position beyond any", "at most 2147483647", "positions.end", positions={"end": 2**63})
    edit("position before any", "at least -2147483647", "positions.start", positions={"start": -(2**63) - 1})
    edit("position is a float", "must be an integer", "positions.start", positions={"start": 0.0})
    edit("unknown field of a range", "not a known field", "positions.stop", positions={"stop": 4})
    edit("include_special is a number", "true or false", "include_special", include_special=1)
    edit("too many conditions", "at most 8", "when", when=[{"layer": 0, "neuron": 1, "is": "active"}] * 9)
    when("condition on a dense layer", "dense", "layer", layer=dense)
    when("condition on a neuron out of range", str(hidden), "neuron", neuron=hidden)
    when("condition without its value", "is required", "value", **{"is": "above"})
    when("condition with a value too many", "left out", "value", value=0.5)
    when("unknown condition", "'above'", "is", **{"is": "below"})
    if last_topk > 0:
        when("condition on a later layer", "later than", "layer", layer=last_topk)

    bad("trace is a boolean", "must be an object", "trace", trace=True)
    traced("trace of a dense layer", "dense", "layers", layers=[dense])
    traced("trace of one layer without a list", '"all"', "layers", layers=0)
    traced("trace of a neuron out of range", str(hidden), "neurons[1]", neurons=[0, hidden])
    traced("trace of a neuron twice", "twice", "neurons[1]", neurons=[0, 0])
    traced("trace of the top zero", "at least 1", "top_n", top_n=0)
    traced("trace from NaN on", "finite", "min_value", min_value=float("nan"))
    traced("trace of unknown encoding", "'packed'", "encoding", encoding="csv")
    traced("type of values that are not packed", "left out", "dtype", dtype="float16")
    traced("trace of unknown type", "'float16'", "dtype", encoding="packed", dtype="int8")
    traced("trace of positions never reached", "last possible", "positions.start", positions={"start": context + 5})

    bad("model without a chat template", "no chat template", "model", CHAT)
    bad("no messages", "at least 1 item", "messages", CHAT, messages=[])
    nobody = [{"role": "nobody", "content": "Hello"}]
    bad("unknown role", "'assistant'", "messages[0].role", CHAT, messages=nobody)
    bad("message without content", "is required", "messages[0].content", CHAT, messages=[{"role": "user"}])
    bad("top_logprobs without logprobs", "needs logprobs", "top_logprobs", CHAT, top_logprobs=2)
    bad("two limits", "equal max_tokens (5)", "max_completion_tokens", CHAT, max_tokens=5, max_completion_tokens=6)
    for name, says, at, content in (
        ("content is a number", "a string or a list of text parts", "", 5),
        ("no parts", "must not be empty", "", []),
        ("a part is a string", '"type": "text"', "[0]", ["Hello"]),
        ("a picture", 'must be "text"', "[1].type", [{"type": "text", "text": "a"}, {"type": "image_url"}]),
        ("a part without text", "must be a string", "[0].text", [{"type": "text"}]),
        ("a part with more", "not a known field", "[0].size", [{"type": "text", "text": "a", "size": 1}]),
    ):
        bad(name, says, f"messages[0].content{at}", CHAT, messages=[{"role": "user", "content": content}])
    called = [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]
    bad("a call of a tool", "left out or null or []", "messages[0].tool_calls", CHAT, messages=called)
    bad("parse_special in a chat", "not a known field", "parse_special", CHAT, parse_special=True)
    bad(
        "prompt in a chat",
        "is not supported by this service and must be left out or null",
        "prompt",
        CHAT,
        prompt="Hello",
    )

    bad("no input", "is required", "input", ACTIVATIONS, input=...)
    bad("empty input", "must not be empty", "input", ACTIVATIONS, input="")
    bad("input too long", "too long", "input[1]", ACTIVATIONS, input=[[5], [5] * (context + 1)])
    generated = {"positions": "generated"}
    bad("trace of what is not generated", "never apply", "trace.positions", ACTIVATIONS, trace=generated)
    bad("sampling where nothing is sampled", "not a known field", "temperature", ACTIVATIONS, temperature=1)

    bad("tokenize a list", "must be a string", "prompt", TOKENIZE, prompt=["a"])
    bad("tokenize with a string for a switch", "true or false", "add_special_tokens", TOKENIZE, add_special_tokens="no")
    bad("tokenize a book", "at most 262144 characters", "prompt", TOKENIZE, prompt="a" * (2**18 + 1))
    bad("detokenize a book", "at most 262144 token ids", "tokens", DETOKENIZE, tokens=[1] * (2**18 + 1))
    bad("detokenize what is no id", "must be a token id", "tokens[1]", DETOKENIZE, tokens=[1] + [-1] * 200_000)
    bad("detokenize a text", "must be a list", "tokens", DETOKENIZE, tokens="a")
    bad("detokenize outside the vocabulary", "vocabulary", "tokens[1]", DETOKENIZE, tokens=[1, vocab])

    sides = {"positive": ["a"], "negative": ["b"]}
    bad("search for nothing", "or contrast is required", "text", SEARCH, text=...)
    bad("search for two things", "left out", "contrast", SEARCH, contrast=sides)
    bad("search for an empty text", "must not be empty", "text", SEARCH, text="")
    bad("search for a text too long", "too long", "text", SEARCH, text="word " * 100_000)
    for name, says, side in (
        ("with a side of no text", "at least 1 item", []),
        ("with a side of too many texts", "at most 16 items", ["a"] * 17),
        ("with a side that is a text", "must be a list", "a"),
    ):
        bad(f"contrast {name}", says, "contrast.negative", SEARCH, text=..., contrast=sides | {"negative": side})
    for name, says, text in (("empty", "not be empty", ""), ("too long", "too long", "word " * 100_000)):
        contrast = sides | {"positive": ["a", text]}
        bad(f"contrast with a text {name}", says, "contrast.positive[1]", SEARCH, text=..., contrast=contrast)
    bad("contrast of one side", "is required", "contrast.negative", SEARCH, text=..., contrast={"positive": ["a"]})
    bad("search of a dense layer", "is dense", "layers", SEARCH, layers=[dense])
    bad("search of a layer twice", "must not occur twice", "layers[1]", SEARCH, layers=[0, 0])
    bad("search without results", "at least 1", "limit", SEARCH, limit=0)
    bad("search for too many results", "at most 500", "limit", SEARCH, limit=501)
    bad("search with an unknown field", "not a known field", "top_k", SEARCH, top_k=3)

    bad("lever for nothing", "is required, or texts", "words", LEVERS, words=...)
    pair = {"towards": ["Once upon a time"], "away": ["the war"]}
    bad("lever for two things", "left out", "texts", LEVERS, texts=pair)
    bad("lever for no words", "at least 1", "words", LEVERS, words=[])
    bad("lever for too many words", "at most 32", "words", LEVERS, words=["war"] * 33)
    bad("lever for a blank word", "must not be blank", "words[1]", LEVERS, words=["war", "  "])
    bad("lever for a long word", "at most 64", "words[0]", LEVERS, words=["a" * 65])
    bad("lever for a number", "must be a string", "words[0]", LEVERS, words=[7])
    many = [f"{chr(97 + i)}{chr(97 + i)}q{i}zxq{i}" for i in range(26)]
    bad("lever for words of many tokens", "at most 48", "words", LEVERS, words=many)
    for side in pair:
        bad(f"lever for texts without {side}", "is required", f"texts.{side}", LEVERS, words=..., texts={
            other: texts for other, texts in pair.items() if other != side
        })  # fmt: skip
        bad(f"lever for no texts {side}", "at least 1", f"texts.{side}", LEVERS, words=..., texts=pair | {side: []})
        short = pair | {side: ["Once upon a time", "a"]}
        bad(f"lever for a short text {side}", "at least 3 tokens", f"texts.{side}[1]", LEVERS, words=..., texts=short)
        long = pair | {side: ["word " * 100_000]}
        bad(f"lever for a long text {side}", "too long", f"texts.{side}[0]", LEVERS, words=..., texts=long)
    much = pair | {"towards": ["the war " * (context // 8)] * 16, "away": ["the war " * (context // 8)] * 16}
    bad("lever for much text", "at most 2048", "texts", LEVERS, words=..., texts=much)
    bad("lever for free", "greater than 0", "max_cost", LEVERS, max_cost=0)
    bad("lever at any cost", "at most 2", "max_cost", LEVERS, max_cost=2.5)
    bad("no lever", "at least 1", "limit", LEVERS, limit=0)
    bad("too many levers", "at most 10", "limit", LEVERS, limit=11)
    bad("lever with an empty prompt", "must not be empty", "prompt", LEVERS, prompt="")
    bad("lever with a long prompt", "too long", "prompt", LEVERS, prompt="word " * 100_000)
    bad("lever with a long continuation", "at most 128", "max_tokens", LEVERS, max_tokens=129)
    bad("lever with a hot continuation", "at most 2", "temperature", LEVERS, temperature=2.5)
    bad("lever with an unknown field", "not a known field", "top_k", LEVERS, top_k=3)
    bad("lever in no time", "greater than 0", "timeout_s", LEVERS, timeout_s=0)

    def http(name: str, status: int, says: str, **fields: Any) -> None:
        good = json.dumps({"model": facts.id, "prompt": "Once upon", "max_tokens": 4}).encode()
        fields = {"path": COMPLETIONS, "body": good} | fields
        table.append(BadRequest(name=name, status=status, says=says, is_http_only=True, **fields))

    other = json.dumps({"model": "gpt-x", "prompt": "a"}).encode()
    http("unknown model", 404, "gpt-x", body=other, param="model")
    http("unknown model's card", 404, "gpt-x", method="GET", path="/v1/models/gpt-x", body=b"", param="model")

    def get(name: str, says: str, param: str, path: str, status: int = 400) -> None:
        http(name, status, says, method="GET", path=f"/v1/neurons{path}", body=b"", param=param)

    get("list without a model", "is required", "model", "")
    get("list of an unknown model", "gpt-x", "model", "?model=gpt-x", 404)
    get("list of a dense layer", "is dense", "layer", f"?model={facts.id}&layer={dense}")
    get("list with a word for a number", "must be an integer, got 'ten'", "limit", f"?model={facts.id}&limit=ten")
    get("list with a fraction for a number", "must be an integer", "layer", f"?model={facts.id}&layer=0.5")
    get("list that is too long", "at most 500", "limit", f"?model={facts.id}&limit=501")
    get("list past any end", "at most 2147483647", "offset", f"?model={facts.id}&offset={10**30}")
    get("density over 1", "at most 1", "min_density", f"?model={facts.id}&min_density=1.5")
    get("density that is no number", "finite", "max_density", f"?model={facts.id}&max_density=NaN")
    get("truth as a number", "true or false", "is_dead", f"?model={facts.id}&is_dead=1")
    get("unknown order", "token_entropy", "order", f"?model={facts.id}&order=size")
    get("unknown parameter", "not a known field", "page", f"?model={facts.id}&page=2")
    get("parameter given twice", "given twice", "limit", f"?model={facts.id}&limit=1&limit=2")
    get("neuron without a model", "is required", "model", "/0/1")
    get("neuron of a dense layer", "is not a TopK layer", "layer", f"/{dense}/1?model={facts.id}", 404)
    get("neuron past the last", str(hidden - 1), "neuron", f"/0/{hidden}?model={facts.id}", 404)
    get("neuron below the first", "at least 0", "neuron", f"/0/-1?model={facts.id}")
    get("neuron by a word", "must be an integer", "neuron", f"/0/war?model={facts.id}")
    get("neuron with a layer twice", "given twice", "layer", f"/0/1?model={facts.id}&layer=1")
    get("history of what is no neuron", str(hidden - 1), "neuron", f"/0/{hidden}/history?model={facts.id}", 404)
    http("unknown route", 404, "/v1/complete", path="/v1/complete")
    http("wrong method", 405, "GET", method="GET", body=b"")
    http("body over the limit", 413, str(MAX_BODY_BYTES), body=b" " * (MAX_BODY_BYTES + 1))
    http(
        "body is a form", 415, "application/json", body=b"model=tiny", content_type="application/x-www-form-urlencoded"
    )
    return table


BAD_REQUESTS = bad_requests(small_facts())
