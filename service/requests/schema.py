"""What clients may ask: the request models shared by HTTP and gRPC, and every limit on them.

Nothing is coerced, clamped or ignored: "5" is no integer, NaN no number, an unknown field an error. What depends on
the model (layers, token ids, lengths) is checked when the request is planned. Knows no model and no transport.
"""

from functools import partial
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from service.errors import fault
from service.requests.validators import (
    parse_layer,
    parse_layers,
    parse_logit_bias,
    parse_neurons,
    parse_prompt,
    parse_stop,
    parse_tokens,
)
from topk_model.interventions import MAX_CONDITIONS, MAX_EDITS

MAX_BODY_BYTES = 4 * 2**20
MAX_FIELDS = 100  # of one object; no request has half as many
MAX_NAME_CHARS = 200  # of a model's name or a user's label
MAX_PROMPTS = 32
MAX_STREAM_PROMPTS = 4096  # of an activations stream, which answers each as soon as it is ready
MAX_N = 16
MAX_ROWS = 64  # sequences of one request: prompts × n × variants
MAX_TOKENS = 2**20  # of one sequence; the model's context is the tighter limit
MAX_POSITION = 2**31 - 1
MAX_TOKENIZED = 2**18  # characters to tokenize, or tokens to detokenize, at once
MAX_GENERATED_TOKENS = 32_768  # of one request: rows × max_tokens
MAX_TRACE_ENTRIES = 2**21  # of one request: rows × traced tokens × layers × kept neurons
MAX_STOP = 4
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_INTERVENTIONS = MAX_EDITS
#: Largest factor on a preset's value.
MAX_STRENGTH = 10.0
MAX_ABS_VALUE = 1e4  # of an intervention
MAX_MESSAGES = 256
MAX_NEURONS = 500  # of one page of a list, or of a search's results
DEFAULT_NEURONS = 50
MAX_OFFSET = 2**31 - 1
MAX_CONTRAST_TEXTS = 16  # of each side; each is a sequence for the engine
MIN_TEMPERATURE = 0.01  # below it, 0 is meant
MAX_TIMEOUT_S = 3600.0
DEFAULT_TIMEOUT_S = 300.0
DEFAULT_MAX_TOKENS = 16


Prompt = Annotated[
    str | list[str] | list[int] | list[list[int]],
    PlainValidator(
        partial(parse_prompt, max_prompts=MAX_PROMPTS),
        json_schema_input_type=Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]],
            Field(min_length=1, max_length=MAX_PROMPTS),
        ],
    ),
]
ManyPrompts = Annotated[
    str | list[str] | list[int] | list[list[int]],
    PlainValidator(partial(parse_prompt, max_prompts=MAX_STREAM_PROMPTS)),
]
TokenIds = Annotated[
    list[int],
    PlainValidator(
        partial(parse_tokens, max_tokens=MAX_TOKENIZED),
        json_schema_input_type=Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_TOKENIZED)],
    ),
]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stop = Annotated[
    str | list[str] | None,
    PlainValidator(
        partial(parse_stop, max_strings=MAX_STOP, max_chars=MAX_STOP_CHARS),
        json_schema_input_type=StopText | Annotated[list[StopText], Field(max_length=MAX_STOP)] | None,
    ),
]
LayerIndex = Annotated[int, Field(ge=0)]
LayerIndices = Annotated[list[LayerIndex], Field(min_length=1, json_schema_extra={"uniqueItems": True})]
Layer = Annotated[
    int | list[int] | Literal["all"],
    PlainValidator(parse_layer, json_schema_input_type=LayerIndex | LayerIndices | Literal["all"]),
]
Layers = Annotated[
    list[int] | Literal["all"], PlainValidator(parse_layers, json_schema_input_type=LayerIndices | Literal["all"])
]
Neurons = Annotated[list[int] | None, PlainValidator(parse_neurons, json_schema_input_type=LayerIndices | None)]
LogitBias = Annotated[
    dict[str, float] | None,
    PlainValidator(
        partial(parse_logit_bias, max_entries=MAX_LOGIT_BIAS),
        json_schema_input_type=Annotated[
            dict[Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,9})$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=MAX_LOGIT_BIAS),
        ]
        | None,
    ),
]
EditValue = Annotated[float, Field(ge=-MAX_ABS_VALUE, le=MAX_ABS_VALUE)]


class Request(BaseModel):
    """Strict, closed and frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def check_size(cls, data: object) -> object:
        """A body may hold 300,000 unknown fields, and telling of each would keep everybody waiting."""
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise fault(f"must have at most {MAX_FIELDS} fields, has {len(data)}", data)
        return data


class PositionRange(Request):
    """Half-open; counted from the prompt's first token (BOS included), negatives from the prompt's end."""

    start: int | None = Field(
        None, ge=-MAX_POSITION, le=MAX_POSITION, description="first position; null: the prompt's first token"
    )
    end: int | None = Field(
        None,
        ge=-MAX_POSITION,
        le=MAX_POSITION,
        description="position after the last; null: no end. A negative one ends in the prompt",
    )


def parse_positions(value: object) -> object:
    """Check "all", "prompt", "generated" or a range."""
    if isinstance(value, PositionRange):
        return value
    if isinstance(value, dict):
        return PositionRange.model_validate(value)
    if value not in ("all", "prompt", "generated"):
        raise fault('must be "all", "prompt", "generated" or {"start": a, "end": b}', value)
    return value


Positions = Annotated[
    Literal["all", "prompt", "generated"] | PositionRange,
    PlainValidator(parse_positions, json_schema_input_type=Literal["all", "prompt", "generated"] | PositionRange),
]
POSITIONS = "Positions are counted in tokens from the prompt's first one; where the tokenizer puts a BOS, it is 0."


class ConditionSpec(Request):
    """A test of one neuron at the position that would be edited."""

    layer: LayerIndex = Field(description="TopK layer, not later than the first edited one")
    neuron: int = Field(ge=0)
    test: Literal["active", "inactive", "above"] = Field(alias="is")
    value: EditValue | None = Field(None, description='for "above", and only there: the raw value to exceed')

    @model_validator(mode="after")
    def check_value(self) -> Self:
        if self.test == "above" and self.value is None:
            raise fault('is required where "is" is "above"', self.value, "value")
        if self.test != "above" and self.value is not None:
            raise fault(f'must be left out where "is" is "{self.test}"', self.value, "value")
        return self


class InterventionSpec(Request):
    """One edit of one neuron, in one or more TopK layers."""

    layer: Layer = Field(description='a TopK layer, several of them, or "all"')
    neuron: int = Field(ge=0, description="index in the residual stream, below the model's hidden_size")
    op: Literal["set", "add", "scale", "ablate", "clamp"]
    value: EditValue | None = Field(None, description="for set, add (in units) and scale (a factor)")
    min: EditValue | None = Field(None, description="for clamp, in units")
    max: EditValue | None = Field(None, description="for clamp, in units")
    unit: Literal["raw", "max", "kth"] | None = Field(
        None,
        description="for set, add and clamp. raw (where not given): the value itself; max: multiples of the neuron's "
        "largest activation in the catalogue; kth: multiples of the position's k-th kept value",
    )
    site: Literal["post_topk", "pre_topk"] = Field(
        "post_topk", description="post_topk forces the neuron (k + 1 may be active); pre_topk: it must win its place"
    )
    positions: Positions = Field("all", description=POSITIONS)
    when: list[ConditionSpec] = Field(
        [], max_length=MAX_CONDITIONS, description="conditions that must all hold at the same position"
    )
    include_special: bool = Field(False, description="edit special tokens (BOS, padding) too")

    @model_validator(mode="after")
    def check_values(self) -> Self:
        wanted = self.op in ("set", "add", "scale")
        if wanted and self.value is None:
            raise fault(f'is required for op "{self.op}"', self.value, "value")
        if not wanted and self.value is not None:
            instead = '; it takes "min" and "max"' if self.op == "clamp" else ""
            raise fault(f'must be left out for op "{self.op}"{instead}', self.value, "value")
        for name, bound in (("min", self.min), ("max", self.max)):
            if self.op != "clamp" and bound is not None:
                raise fault(f'must be left out for op "{self.op}"', bound, name)
        if self.op == "clamp" and self.min is None and self.max is None:
            raise fault('or max is required for op "clamp"', None, "min")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise fault(f"must not be above max ({self.max})", self.min, "min")
        if self.op in ("scale", "ablate") and self.unit is not None:
            raise fault(f'must be left out for op "{self.op}", which has no unit', self.unit, "unit")
        return self


class PresetSpec(Request):
    """One of the model's steering presets, by name, in the place of an edit; it has a receipt as an edit has."""

    preset: str = Field(
        min_length=1, max_length=MAX_NAME_CHARS, description='its name, for the latest version, or "name@version"'
    )
    strength: float = Field(1.0, ge=0, le=MAX_STRENGTH, description="factor on the value of the recipe")
    positions: Positions = Field("all", description=POSITIONS)


def parse_intervention(value: object) -> object:
    """Check an edit, or a preset where it names one."""
    kind = PresetSpec if isinstance(value, dict) and "preset" in value else InterventionSpec
    return kind.model_validate(value)


Edit = Annotated[
    InterventionSpec | PresetSpec,
    PlainValidator(parse_intervention, json_schema_input_type=InterventionSpec | PresetSpec),
]
Edits = Annotated[list[Edit], Field(max_length=MAX_INTERVENTIONS)]
#: Null: none.
OptionalEdits = Annotated[
    Edits, BeforeValidator(lambda edits: [] if edits is None else edits, json_schema_input_type=Edits | None)
]


class TraceRequest(Request):
    """Which activations to return, taken after the edits."""

    layers: Layers = Field("all", description='TopK layers, in the order wanted; "all" of them')
    positions: Positions = Field("all", description=POSITIONS)
    neurons: Neurons = Field(None, description="only these; null: all")
    top_n: int | None = Field(None, ge=1, description="only the strongest of each token and layer")
    min_value: float | None = Field(None, description="only values of at least this (magnitudes in an abs model)")
    encoding: Literal["json", "packed"] = Field(
        "json", description="packed: little-endian bytes, base64 over HTTP and raw over gRPC"
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="of packed values; float16 ends at 65,504")

    @model_validator(mode="after")
    def check_dtype(self) -> Self:
        if self.encoding == "json" and self.dtype != "float32":
            raise fault('must be left out for encoding "json"', self.dtype, "dtype")
        return self


class StreamOptions(Request):
    """What else a stream carries."""

    include_usage: bool | None = Field(None, description="end the stream with a chunk that holds only the usage")


class GenerationRequest(Request):
    """What completions and chat completions have in common. Null means the default, as in the OpenAI API."""

    model: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    n: int | None = Field(1, ge=1, le=MAX_N, description="choices for each prompt")
    temperature: float | None = Field(
        1.0, ge=0, le=2, description=f"0: the most probable token; otherwise at least {MIN_TEMPERATURE}"
    )
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(0, ge=-1, description="0 or -1: all tokens")
    min_p: float | None = Field(0.0, ge=0, le=1)
    stop: Stop = Field(None, description="generation ends before the first of these strings")
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="same seed, same choices, whatever else the server does"
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(0.0, ge=-2, le=2, description="counted over generated tokens")
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2, description="counted over generated tokens")
    logit_bias: LogitBias = Field(None, description="token id in decimal digits to a number added to its logit")
    user: str | None = Field(None, max_length=MAX_NAME_CHARS, description="an opaque label; has no effect")
    ignore_eos: bool | None = Field(False, description="go on after the end-of-text token")
    interventions: OptionalEdits = []
    trace: TraceRequest | None = None
    compare: bool | None = Field(
        False, description="return the default and the steered continuation of each choice, defaults first"
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        le=MAX_TIMEOUT_S,
        description=f"seconds until the request is dropped; {DEFAULT_TIMEOUT_S:g} by default",
    )

    @model_validator(mode="after")
    def check_generation(self) -> Self:
        if self.temperature is not None and 0 < self.temperature < MIN_TEMPERATURE:
            raise fault(f"must be 0 or at least {MIN_TEMPERATURE}", self.temperature, "temperature")
        if self.stream_options is not None and not self.stream:
            raise fault("is allowed only where stream is true", {}, "stream_options")
        if self.compare and not self.interventions:
            raise fault("needs at least one intervention", True, "compare")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(GenerationRequest):
    """POST /v1/completions: OpenAI's fields, and steering and tracing."""

    prompt: Prompt = Field(description="texts get the tokenizer's BOS, token ids are taken as they are")
    max_tokens: int | None = Field(
        DEFAULT_MAX_TOKENS, ge=0, le=MAX_TOKENS, description="0, only with echo or trace: read the prompt and no more"
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="of so many most probable tokens")
    echo: bool | None = Field(False, description="begin the text with the prompt; with logprobs, the prompt's too")
    best_of: int | None = Field(None, ge=1, le=MAX_N, description="only a value equal to n is supported")
    suffix: None = Field(None, description="not supported")

    @model_validator(mode="after")
    def check_completion(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise fault(f"is not supported unless equal to n ({self.n or 1})", self.best_of, "best_of")
        if self.max_tokens == 0 and not self.echo and self.trace is None:
            raise fault("must be at least 1 without echo or trace", 0, "max_tokens")
        return self


class ChatMessage(Request):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatCompletionRequest(GenerationRequest):
    """POST /v1/chat/completions, for models whose tokenizer has a chat template."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description=f"by default all that the context leaves, at most {MAX_GENERATED_TOKENS} over all choices",
    )
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="a newer name of max_tokens")
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="only with logprobs")

    @model_validator(mode="after")
    def check_chat(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise fault(
                "must be left out where max_tokens is given", self.max_completion_tokens, "max_completion_tokens"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise fault("needs logprobs to be true", self.top_logprobs, "top_logprobs")
        return self


class ActivationsRequest(Request):
    """POST /v1/activations: traces of given texts, with nothing generated."""

    model: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    input: Prompt = Field(description="texts get the tokenizer's BOS, token ids are taken as they are")
    trace: TraceRequest = TraceRequest()
    interventions: OptionalEdits = []
    timeout_s: float | None = Field(None, gt=0, le=MAX_TIMEOUT_S)


class ActivationsStreamRequest(ActivationsRequest):
    """gRPC's ActivationsStream: many texts, and the time is that of all of them."""

    input: ManyPrompts


class TokenizeRequest(Request):
    """POST /v1/tokenize."""

    model: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    prompt: str = Field(max_length=MAX_TOKENIZED)
    add_special_tokens: bool = Field(True, description="put a BOS before the text, as completions do")


class DetokenizeRequest(Request):
    """POST /v1/detokenize."""

    model: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    tokens: TokenIds
