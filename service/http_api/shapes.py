"""The models that document every response.

Replies are written without them, for speed (`rendering.py`); tests compare the two.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from topk_model.steering.examples import SteeringExample
from topk_model.steering.presets import Preset


class ResponseModel(BaseModel):
    """Unknown fields are forbidden, as in requests."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ErrorFields(ResponseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(description="path of the invalid field, such as interventions[0].layer")
    code: str | None


class ErrorResponse(ResponseModel):
    """The body of every error, whatever its status."""

    error: ErrorFields


class ReceiptFields(ResponseModel):
    """What one intervention did; means are null if it was applied nowhere."""

    positions_applied: int
    first: int | None = Field(description="first position at which it was applied")
    last: int | None
    active_before: int = Field(description="applications (one for each position and layer) where the neuron was active")
    mean_before: float | None
    mean_after: float | None
    evicted: int = Field(description="how often a pre_topk edit pushed another neuron out")


class TraceFields(ResponseModel):
    """Active neurons in compressed sparse rows; row = token × len(layers) + index of the layer in `layers`.

    With encoding "packed", offsets (uint32), indices (`index_dtype`) and values (`dtype`) are base64 of little-endian
    bytes.
    """

    trace_version: int
    model: str
    checkpoint: str | None
    k: int
    hidden_size: int
    layers: list[int]
    token_ids: list[int]
    tokens: list[str]
    phases: list[Literal["prompt", "generated"]]
    is_special: list[bool]
    offsets: list[int] | str = Field(description="tokens × layers + 1 numbers")
    indices: list[int] | str = Field(description="neurons, ascending within a row")
    values: list[float] | str
    complete: bool = Field(description="whether no filter removed anything")
    dtype: Literal["float16", "float32"] | None = None
    index_dtype: Literal["uint16", "uint32"] | None = None


class Usage(ResponseModel):
    """Tokens read and generated; a prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(ResponseModel):
    """One entry per token in each list. A token that is not complete UTF-8 is given as bytes: `bytes:\\xe2\\x80`."""

    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="nats; null for a prompt's first token")
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="start of each token, in characters of the choice's text")


class ChoiceExtensions(ResponseModel):
    """What steering and tracing add to a choice; absent if not requested."""

    index: int
    finish_reason: Literal["stop", "length"] | None = Field(
        description="null only in a stream, before the end of the choice"
    )
    variant: Literal["default", "steered"] | None = None
    interventions: list[ReceiptFields] | None = Field(None, description="receipts, in the request's order")
    trace: TraceFields | None = None


class CompletionChoice(ChoiceExtensions):
    """One continuation, or the next part of it in a stream."""

    text: str
    logprobs: CompletionLogprobs | None


class TokenDifference(ResponseModel):
    """The first generated token that differs; null in the variant that has ended before it."""

    position: int
    default_token_id: int | None
    default_token: str | None
    steered_token_id: int | None
    steered_token: str | None


class NeuronDifference(ResponseModel):
    """A neuron's value, or the mean of its values, in both variants."""

    layer: int
    neuron: int
    default: float
    steered: float
    difference: float = Field(description="steered less default")


class StateDifference(ResponseModel):
    """The first state that differs, by position and then by layer."""

    position: int
    layer: int
    neurons: list[NeuronDifference] = Field(description="largest differences first")


class VariantDifference(ResponseModel):
    """How the two variants of one choice part."""

    default_choice: int = Field(description="index")
    steered_choice: int = Field(description="index")
    num_shared_tokens: int = Field(description="that both begin with, the prompt's included")
    token: TokenDifference | None = Field(description="null: both wrote the same")
    state: StateDifference | None = Field(description="null: no state that is traced differs")
    neurons: list[NeuronDifference] = Field(description="means over the shared tokens, largest differences first")


class Completion(ResponseModel):
    """A completion; also a stream's chunk, which has one choice, or no choice and the usage."""

    id: str
    object: Literal["text_completion"]
    created: int = Field(description="Unix time in seconds")
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    warnings: list[str] = []
    differences: list[VariantDifference] | None = Field(None, description="only if they were asked for")


class ChatTokenLogprob(ResponseModel):
    """A token of a chat choice."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprobs(ChatTokenLogprob):
    """A chosen token and the most probable tokens at its position."""

    top_logprobs: list[ChatTokenLogprob]


class ChatLogprobs(ResponseModel):
    """The log probabilities of the message's tokens."""

    content: list[ChatTokenLogprobs]
    refusal: None = None


class AssistantMessage(ResponseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class MessageDelta(ResponseModel):
    """The next part of the answer; the first one has the role."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChoice(ChoiceExtensions):
    """One answer."""

    message: AssistantMessage
    logprobs: ChatLogprobs | None


class ChatChunkChoice(ChoiceExtensions):
    """A part of one answer."""

    delta: MessageDelta
    logprobs: ChatLogprobs | None


class ChatCompletion(ResponseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    warnings: list[str] = []
    differences: list[VariantDifference] | None = Field(None, description="only if they were asked for")


class ChatCompletionChunk(ResponseModel):
    """A stream's chunk, which has one choice, or no choice and the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    warnings: list[str] = []
    differences: list[VariantDifference] | None = Field(None, description="only if they were asked for")


class ActivationsItem(ResponseModel):
    """The trace of one input."""

    index: int
    trace: TraceFields
    interventions: list[ReceiptFields] | None = None


class Activations(ResponseModel):
    """Traces in the order of the inputs."""

    object: Literal["list"]
    model: str
    data: list[ActivationsItem]
    usage: Usage
    warnings: list[str] = []


class TopKFields(ResponseModel):
    """The properties of a TopK model."""

    k: int
    n_nontopk: int
    select: Literal["signed", "abs"]
    hidden_size: int
    num_layers: int
    topk_layers: list[int]
    context_length: int
    checkpoints: list[str] = Field(description="its training checkpoints, step-N; request them as <id>@step-N")
    checkpoint: str | None = Field(description="step-N if it is itself a checkpoint")
    has_catalogue: bool = Field(description="whether /v1/neurons and the unit max are available")
    presets: list[Preset] = Field(description="the presets that an intervention may name")
    examples: list[SteeringExample] = Field(description="what one edit each does to a text, stored with the model")
    weights_sha256: str | None = Field(description="SHA-256 of its safetensors file; null if it is not loaded")


class ModelCard(ResponseModel):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    topk: TopKFields


class ModelList(ResponseModel):
    """All served models."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokenization(ResponseModel):
    """Tokens of a text."""

    count: int
    max_model_len: int = Field(description="the model's context in tokens")
    tokens: list[int]
    token_strs: list[str]


class Detokenization(ResponseModel):
    """The text of tokens, including special ones."""

    prompt: Annotated[str, Field(description="bytes that are not UTF-8 appear as U+FFFD")]
