"""The request models shared by HTTP and gRPC; those of edits and traces are in `edit_schema`.

Nothing is coerced, clamped or ignored: "5" is not an integer, NaN is not a number, an unknown field is an error. What
depends on the model (layers, token ids, lengths) is checked when the request is planned. Knows no model and no
transport.
"""

from functools import partial
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from service.errors import fault
from service.requests.edit_schema import Edits, Request, TraceRequest
from service.requests.limits import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_TIMEOUT_S,
    MAX_DIFFERENCES,
    MAX_GENERATED_TOKENS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_N,
    MAX_NAME_CHARS,
    MAX_PROMPTS,
    MAX_STOP,
    MAX_STOP_CHARS,
    MAX_STREAM_PROMPTS,
    MAX_TIMEOUT_S,
    MAX_TOKENIZED,
    MAX_TOKENS,
    MIN_TEMPERATURE,
)
from service.requests.neutral import CHAT, COMPLETION, MESSAGE, STREAM_OPTIONS
from service.requests.validators import parse_content, parse_logit_bias, parse_prompt, parse_stop, parse_tokens

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


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


#: Clients of both APIs send false for none.
Logprobs = Annotated[
    int | None,
    Field(ge=0, le=MAX_LOGPROBS),
    BeforeValidator(
        lambda value: None if value is False else value,
        json_schema_input_type=Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | Literal[False] | None,
    ),
]


Label = Annotated[str | None, Field(max_length=MAX_NAME_CHARS)]
Content = Annotated[
    str,
    PlainValidator(parse_content, json_schema_input_type=str | Annotated[list[TextPart], Field(min_length=1)]),
]
PROMPT = "texts get the tokenizer's BOS, token ids are taken as they are"
ParseSpecial = Annotated[
    bool | None,
    Field(
        description='whether the text of a special token, as "<|eos|>", is read as that token; by default it is read '
        "as text, and a warning says so"
    ),
]


class StreamOptions(Request):
    """What a stream contains besides the text."""

    neutral = STREAM_OPTIONS

    include_usage: bool | None = Field(None, description="end the stream with a chunk that holds only the usage")
    continuous_usage_stats: bool | None = Field(None, description="add the usage so far to every chunk")


class GenerationRequest(Request):
    """The fields that completions and chat completions share. Null means the default, as in the OpenAI API."""

    model: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    n: int | None = Field(1, ge=1, le=MAX_N, description="choices for each prompt")
    temperature: float | None = Field(
        1.0, ge=0, le=2, description=f"0, or anything below {MIN_TEMPERATURE}: the most probable token"
    )
    top_p: float | None = Field(1.0, ge=0, le=1, description="0: the most probable token")
    top_k: int | None = Field(0, ge=-1, description="0 or -1: all tokens")
    min_p: float | None = Field(0.0, ge=0, le=1)
    stop: Stop = Field(None, description="generation ends before the first of these strings")
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="the same seed gives the same choices, whatever else the server does"
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(0.0, ge=-2, le=2, description="counted over generated tokens")
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2, description="counted over generated tokens")
    logit_bias: LogitBias = Field(None, description="token ids, in decimal digits, and numbers added to their logits")
    user: Label = Field(None, description="an opaque label; has no effect")
    safety_identifier: Label = Field(None, description="an opaque label; has no effect")
    prompt_cache_key: Label = Field(None, description="an opaque label; has no effect")
    max_tokens: int | None = None
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="a newer name for max_tokens; must equal it if both are given"
    )
    min_tokens: int | None = Field(
        None, ge=0, description="only 0, unless ignore_eos is true and stop is left out: max_tokens are then certain"
    )
    ignore_eos: bool | None = Field(False, description="continue after an end-of-text token")
    interventions: Edits = []
    trace: TraceRequest | None = None
    compare: bool | None = Field(
        False, description="return the default and the steered continuation of each choice, defaults first"
    )
    differences: int | None = Field(
        None,
        ge=1,
        le=MAX_DIFFERENCES,
        description="with compare: say where the two variants first differ, and name up to so many neurons, of those "
        "that trace covers (of all without it)",
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        le=MAX_TIMEOUT_S,
        description=f"seconds until the request is cancelled (default: {DEFAULT_TIMEOUT_S:g})",
    )

    @model_validator(mode="after")
    def check_generation(self) -> Self:
        options = self.stream_options
        if options is not None and not self.stream and (options.include_usage or options.continuous_usage_stats):
            raise fault("is allowed only if stream is true", {}, "stream_options")
        older, newer = self.given_max_tokens, self.max_completion_tokens
        if older is not None and newer is not None and older != newer:
            raise fault(f"must equal max_tokens ({older}) if both are given", newer, "max_completion_tokens")
        self.check_min_tokens()
        if self.compare and not self.interventions:
            raise fault("needs at least one intervention", True, "compare")
        if self.differences is not None and not self.compare:
            raise fault("is allowed only if compare is true", self.differences, "differences")
        return self

    def check_min_tokens(self) -> None:
        """A minimum length is allowed only if nothing but max_tokens can end the text."""
        if not self.min_tokens:
            return
        if not self.ignore_eos or self.stop_strings:
            raise fault(
                "is not supported unless ignore_eos is true and stop is left out", self.min_tokens, "min_tokens"
            )
        if self.token_limit is not None and self.min_tokens > self.token_limit:
            raise fault(f"must not be above max_tokens ({self.token_limit})", self.min_tokens, "min_tokens")

    @property
    def given_max_tokens(self) -> int | None:
        return self.max_tokens if "max_tokens" in self.model_fields_set else None

    @property
    def token_limit(self) -> int | None:
        """Maximum number of tokens to generate, under either name; None if the client gives none."""
        return self.max_completion_tokens if self.given_max_tokens is None else self.given_max_tokens

    @property
    def is_greedy(self) -> bool:
        """Whether the sampling parameters leave only the most probable token."""
        is_cold = self.temperature is not None and self.temperature < MIN_TEMPERATURE
        return is_cold or self.top_p == 0

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(GenerationRequest):
    """POST /v1/completions: OpenAI's fields, plus steering and tracing."""

    neutral = COMPLETION

    prompt: Prompt = Field(description=PROMPT)
    parse_special: ParseSpecial = None
    max_tokens: int | None = Field(
        DEFAULT_MAX_TOKENS, ge=0, le=MAX_TOKENS, description="0, only with echo or trace: only read the prompt"
    )
    logprobs: Logprobs = Field(None, description="number of most probable tokens to report per position")
    echo: bool | None = Field(False, description="begin the text with the prompt; logprobs then cover the prompt too")
    best_of: int | None = Field(None, ge=1, le=MAX_N, description="only a value equal to n is supported")

    @model_validator(mode="after")
    def check_completion(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise fault(f"is not supported unless equal to n ({self.n or 1})", self.best_of, "best_of")
        if self.token_limit == 0 and not self.echo and self.trace is None:
            raise fault("must be at least 1 without echo or trace", 0, "max_tokens")
        return self


class ChatMessage(Request):
    """One turn. Its content is text, even if it looks like a control token."""

    neutral = MESSAGE

    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer: a newer name for system")
    content: Content = Field(json_schema_extra={"description": "null, from the assistant: nothing"})
    name: Label = Field(None, description="passed to the model's chat template, which may ignore it")

    @model_validator(mode="before")
    @classmethod
    def check_silence(cls, data: object) -> object:
        """An assistant that said nothing comes back with a null."""
        if isinstance(data, dict) and data.get("role") == "assistant" and data.get("content", "") is None:
            return data | {"content": ""}
        return data

    def as_template_fields(self) -> dict[str, str]:
        """The message in the form that chat templates expect."""
        fields = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        return fields if self.name is None else fields | {"name": self.name}


class ChatCompletionRequest(GenerationRequest):
    """POST /v1/chat/completions, for models whose tokenizer has a chat template."""

    neutral = CHAT

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description=f"(default: the rest of the context, at most {MAX_GENERATED_TOKENS} over all choices)",
    )
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="only with logprobs")

    @model_validator(mode="after")
    def check_chat(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise fault("needs logprobs to be true", self.top_logprobs, "top_logprobs")
        return self


class ActivationsRequest(Request):
    """POST /v1/activations: traces of given texts, with nothing generated."""

    model: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    input: Prompt = Field(description=PROMPT)
    parse_special: ParseSpecial = None
    trace: TraceRequest = TraceRequest()
    interventions: Edits = []
    timeout_s: float | None = Field(None, gt=0, le=MAX_TIMEOUT_S)


class ActivationsStreamRequest(ActivationsRequest):
    """gRPC's ActivationsStream: many texts; the timeout covers all of them."""

    input: ManyPrompts


class TokenizeRequest(Request):
    """POST /v1/tokenize."""

    model: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    prompt: str = Field(max_length=MAX_TOKENIZED)
    add_special_tokens: bool = Field(True, description="put a BOS before the text, as completions do")
    parse_special: ParseSpecial = None


class DetokenizeRequest(Request):
    """POST /v1/detokenize."""

    model: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    tokens: TokenIds
