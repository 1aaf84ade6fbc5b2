from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]
    ROLE_DEVELOPER: _ClassVar[Role]

class PositionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POSITION_KIND_UNSPECIFIED: _ClassVar[PositionKind]
    POSITION_KIND_ALL: _ClassVar[PositionKind]
    POSITION_KIND_PROMPT: _ClassVar[PositionKind]
    POSITION_KIND_GENERATED: _ClassVar[PositionKind]
    POSITION_KIND_CONTINUATION: _ClassVar[PositionKind]

class ConditionTest(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONDITION_TEST_UNSPECIFIED: _ClassVar[ConditionTest]
    CONDITION_TEST_ACTIVE: _ClassVar[ConditionTest]
    CONDITION_TEST_INACTIVE: _ClassVar[ConditionTest]
    CONDITION_TEST_ABOVE: _ClassVar[ConditionTest]

class Op(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OP_UNSPECIFIED: _ClassVar[Op]
    OP_SET: _ClassVar[Op]
    OP_ADD: _ClassVar[Op]
    OP_SCALE: _ClassVar[Op]
    OP_ABLATE: _ClassVar[Op]
    OP_CLAMP: _ClassVar[Op]

class Unit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNIT_UNSPECIFIED: _ClassVar[Unit]
    UNIT_RAW: _ClassVar[Unit]
    UNIT_MAX: _ClassVar[Unit]
    UNIT_KTH: _ClassVar[Unit]

class Site(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SITE_UNSPECIFIED: _ClassVar[Site]
    SITE_POST_TOPK: _ClassVar[Site]
    SITE_PRE_TOPK: _ClassVar[Site]

class ValueType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VALUE_TYPE_UNSPECIFIED: _ClassVar[ValueType]
    VALUE_TYPE_FLOAT32: _ClassVar[ValueType]
    VALUE_TYPE_FLOAT16: _ClassVar[ValueType]

class IndexType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INDEX_TYPE_UNSPECIFIED: _ClassVar[IndexType]
    INDEX_TYPE_UINT16: _ClassVar[IndexType]
    INDEX_TYPE_UINT32: _ClassVar[IndexType]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_PROMPT: _ClassVar[Phase]
    PHASE_GENERATED: _ClassVar[Phase]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]

class Variant(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VARIANT_UNSPECIFIED: _ClassVar[Variant]
    VARIANT_DEFAULT: _ClassVar[Variant]
    VARIANT_STEERED: _ClassVar[Variant]

class Select(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SELECT_UNSPECIFIED: _ClassVar[Select]
    SELECT_SIGNED: _ClassVar[Select]
    SELECT_ABS: _ClassVar[Select]

class EffectUnit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EFFECT_UNIT_UNSPECIFIED: _ClassVar[EffectUnit]
    EFFECT_UNIT_NATS: _ClassVar[EffectUnit]
    EFFECT_UNIT_ACTIVATION: _ClassVar[EffectUnit]

class LeverTextSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEVER_TEXT_SOURCE_UNSPECIFIED: _ClassVar[LeverTextSource]
    LEVER_TEXT_SOURCE_HELD_OUT: _ClassVar[LeverTextSource]
    LEVER_TEXT_SOURCE_WRITTEN: _ClassVar[LeverTextSource]
ROLE_UNSPECIFIED: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
ROLE_DEVELOPER: Role
POSITION_KIND_UNSPECIFIED: PositionKind
POSITION_KIND_ALL: PositionKind
POSITION_KIND_PROMPT: PositionKind
POSITION_KIND_GENERATED: PositionKind
POSITION_KIND_CONTINUATION: PositionKind
CONDITION_TEST_UNSPECIFIED: ConditionTest
CONDITION_TEST_ACTIVE: ConditionTest
CONDITION_TEST_INACTIVE: ConditionTest
CONDITION_TEST_ABOVE: ConditionTest
OP_UNSPECIFIED: Op
OP_SET: Op
OP_ADD: Op
OP_SCALE: Op
OP_ABLATE: Op
OP_CLAMP: Op
UNIT_UNSPECIFIED: Unit
UNIT_RAW: Unit
UNIT_MAX: Unit
UNIT_KTH: Unit
SITE_UNSPECIFIED: Site
SITE_POST_TOPK: Site
SITE_PRE_TOPK: Site
VALUE_TYPE_UNSPECIFIED: ValueType
VALUE_TYPE_FLOAT32: ValueType
VALUE_TYPE_FLOAT16: ValueType
INDEX_TYPE_UNSPECIFIED: IndexType
INDEX_TYPE_UINT16: IndexType
INDEX_TYPE_UINT32: IndexType
PHASE_UNSPECIFIED: Phase
PHASE_PROMPT: Phase
PHASE_GENERATED: Phase
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
VARIANT_UNSPECIFIED: Variant
VARIANT_DEFAULT: Variant
VARIANT_STEERED: Variant
SELECT_UNSPECIFIED: Select
SELECT_SIGNED: Select
SELECT_ABS: Select
EFFECT_UNIT_UNSPECIFIED: EffectUnit
EFFECT_UNIT_NATS: EffectUnit
EFFECT_UNIT_ACTIVATION: EffectUnit
LEVER_TEXT_SOURCE_UNSPECIFIED: LeverTextSource
LEVER_TEXT_SOURCE_HELD_OUT: LeverTextSource
LEVER_TEXT_SOURCE_WRITTEN: LeverTextSource

class TextList(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class TokenIdsList(_message.Message):
    __slots__ = ("lists",)
    LISTS_FIELD_NUMBER: _ClassVar[int]
    lists: _containers.RepeatedCompositeFieldContainer[TokenIds]
    def __init__(self, lists: _Optional[_Iterable[_Union[TokenIds, _Mapping]]] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("text", "texts", "token_ids", "token_ids_list")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_LIST_FIELD_NUMBER: _ClassVar[int]
    text: str
    texts: TextList
    token_ids: TokenIds
    token_ids_list: TokenIdsList
    def __init__(self, text: _Optional[str] = ..., texts: _Optional[_Union[TextList, _Mapping]] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., token_ids_list: _Optional[_Union[TokenIdsList, _Mapping]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content", "name")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    role: Role
    content: str
    name: str
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., content: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class PositionRange(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Positions(_message.Message):
    __slots__ = ("kind", "range")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    kind: PositionKind
    range: PositionRange
    def __init__(self, kind: _Optional[_Union[PositionKind, str]] = ..., range: _Optional[_Union[PositionRange, _Mapping]] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("layer", "neuron", "value")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    IS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    layer: int
    neuron: int
    value: float
    def __init__(self, layer: _Optional[int] = ..., neuron: _Optional[int] = ..., value: _Optional[float] = ..., **kwargs) -> None: ...

class Intervention(_message.Message):
    __slots__ = ("layer", "all_layers", "neuron", "op", "value", "min", "max", "unit", "site", "positions", "when", "include_special", "preset", "strength")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    ALL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    WHEN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SPECIAL_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    layer: _containers.RepeatedScalarFieldContainer[int]
    all_layers: bool
    neuron: int
    op: Op
    value: float
    min: float
    max: float
    unit: Unit
    site: Site
    positions: Positions
    when: _containers.RepeatedCompositeFieldContainer[Condition]
    include_special: bool
    preset: str
    strength: float
    def __init__(self, layer: _Optional[_Iterable[int]] = ..., all_layers: _Optional[bool] = ..., neuron: _Optional[int] = ..., op: _Optional[_Union[Op, str]] = ..., value: _Optional[float] = ..., min: _Optional[float] = ..., max: _Optional[float] = ..., unit: _Optional[_Union[Unit, str]] = ..., site: _Optional[_Union[Site, str]] = ..., positions: _Optional[_Union[Positions, _Mapping]] = ..., when: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ..., include_special: _Optional[bool] = ..., preset: _Optional[str] = ..., strength: _Optional[float] = ...) -> None: ...

class TraceOptions(_message.Message):
    __slots__ = ("layers", "positions", "neurons", "top_n", "min_value", "dtype")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    NEURONS_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    MIN_VALUE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    positions: Positions
    neurons: _containers.RepeatedScalarFieldContainer[int]
    top_n: int
    min_value: float
    dtype: ValueType
    def __init__(self, layers: _Optional[_Iterable[int]] = ..., positions: _Optional[_Union[Positions, _Mapping]] = ..., neurons: _Optional[_Iterable[int]] = ..., top_n: _Optional[int] = ..., min_value: _Optional[float] = ..., dtype: _Optional[_Union[ValueType, str]] = ...) -> None: ...

class Trace(_message.Message):
    __slots__ = ("trace_version", "model", "checkpoint", "k", "hidden_size", "layers", "token_ids", "tokens", "phases", "is_special", "offsets", "indices", "values", "dtype", "index_dtype", "complete")
    TRACE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    IS_SPECIAL_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    INDEX_DTYPE_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    trace_version: int
    model: str
    checkpoint: str
    k: int
    hidden_size: int
    layers: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    phases: _containers.RepeatedScalarFieldContainer[Phase]
    is_special: _containers.RepeatedScalarFieldContainer[bool]
    offsets: bytes
    indices: bytes
    values: bytes
    dtype: ValueType
    index_dtype: IndexType
    complete: bool
    def __init__(self, trace_version: _Optional[int] = ..., model: _Optional[str] = ..., checkpoint: _Optional[str] = ..., k: _Optional[int] = ..., hidden_size: _Optional[int] = ..., layers: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[str]] = ..., phases: _Optional[_Iterable[_Union[Phase, str]]] = ..., is_special: _Optional[_Iterable[bool]] = ..., offsets: _Optional[bytes] = ..., indices: _Optional[bytes] = ..., values: _Optional[bytes] = ..., dtype: _Optional[_Union[ValueType, str]] = ..., index_dtype: _Optional[_Union[IndexType, str]] = ..., complete: _Optional[bool] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("positions_applied", "first", "last", "active_before", "mean_before", "mean_after", "evicted")
    POSITIONS_APPLIED_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_BEFORE_FIELD_NUMBER: _ClassVar[int]
    MEAN_BEFORE_FIELD_NUMBER: _ClassVar[int]
    MEAN_AFTER_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    positions_applied: int
    first: int
    last: int
    active_before: int
    mean_before: float
    mean_after: float
    evicted: int
    def __init__(self, positions_applied: _Optional[int] = ..., first: _Optional[int] = ..., last: _Optional[int] = ..., active_before: _Optional[int] = ..., mean_before: _Optional[float] = ..., mean_after: _Optional[float] = ..., evicted: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("model", "prompt", "messages", "max_tokens", "n", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "echo", "ignore_eos", "user", "interventions", "trace", "compare", "timeout_s", "parse_special", "differences")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    COMPARE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    PARSE_SPECIAL_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt: Prompt
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    max_tokens: int
    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    stop: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    logprobs: int
    top_logprobs: int
    echo: bool
    ignore_eos: bool
    user: str
    interventions: _containers.RepeatedCompositeFieldContainer[Intervention]
    trace: TraceOptions
    compare: bool
    timeout_s: float
    parse_special: bool
    differences: int
    def __init__(self, model: _Optional[str] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., max_tokens: _Optional[int] = ..., n: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., stop: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., logprobs: _Optional[int] = ..., top_logprobs: _Optional[int] = ..., echo: _Optional[bool] = ..., ignore_eos: _Optional[bool] = ..., user: _Optional[str] = ..., interventions: _Optional[_Iterable[_Union[Intervention, _Mapping]]] = ..., trace: _Optional[_Union[TraceOptions, _Mapping]] = ..., compare: _Optional[bool] = ..., timeout_s: _Optional[float] = ..., parse_special: _Optional[bool] = ..., differences: _Optional[int] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("token_id", "token", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    token: str
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., token: _Optional[str] = ..., logprob: _Optional[float] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "token", "bytes", "logprob", "top", "text_offset")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    TEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    token: str
    bytes: bytes
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    text_offset: int
    def __init__(self, token_id: _Optional[int] = ..., token: _Optional[str] = ..., bytes: _Optional[bytes] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ..., text_offset: _Optional[int] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("index", "text", "finish_reason", "variant", "logprobs", "interventions", "trace")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    finish_reason: FinishReason
    variant: Variant
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    interventions: _containers.RepeatedCompositeFieldContainer[Receipt]
    trace: Trace
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., variant: _Optional[_Union[Variant, str]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., interventions: _Optional[_Iterable[_Union[Receipt, _Mapping]]] = ..., trace: _Optional[_Union[Trace, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "total_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., total_tokens: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("message", "type", "param", "code")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    message: str
    type: str
    param: str
    code: str
    def __init__(self, message: _Optional[str] = ..., type: _Optional[str] = ..., param: _Optional[str] = ..., code: _Optional[str] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("id", "created", "model", "choices", "usage", "warnings", "differences")
    ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    id: str
    created: int
    model: str
    choices: _containers.RepeatedCompositeFieldContainer[Choice]
    usage: Usage
    warnings: _containers.RepeatedScalarFieldContainer[str]
    differences: _containers.RepeatedCompositeFieldContainer[VariantDifference]
    def __init__(self, id: _Optional[str] = ..., created: _Optional[int] = ..., model: _Optional[str] = ..., choices: _Optional[_Iterable[_Union[Choice, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., differences: _Optional[_Iterable[_Union[VariantDifference, _Mapping]]] = ...) -> None: ...

class GenerateStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: GenerateRequest
    def __init__(self, request: _Optional[_Union[GenerateRequest, _Mapping]] = ...) -> None: ...

class GenerateStreamResponse(_message.Message):
    __slots__ = ("id", "created", "model", "choices", "usage", "warnings", "error", "differences")
    ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    id: str
    created: int
    model: str
    choices: _containers.RepeatedCompositeFieldContainer[Choice]
    usage: Usage
    warnings: _containers.RepeatedScalarFieldContainer[str]
    error: Error
    differences: _containers.RepeatedCompositeFieldContainer[VariantDifference]
    def __init__(self, id: _Optional[str] = ..., created: _Optional[int] = ..., model: _Optional[str] = ..., choices: _Optional[_Iterable[_Union[Choice, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., differences: _Optional[_Iterable[_Union[VariantDifference, _Mapping]]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("stage", "done", "total")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    stage: str
    done: int
    total: int
    def __init__(self, stage: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class ActivationsRequest(_message.Message):
    __slots__ = ("model", "input", "trace", "interventions", "timeout_s", "parse_special")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    PARSE_SPECIAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    input: Prompt
    trace: TraceOptions
    interventions: _containers.RepeatedCompositeFieldContainer[Intervention]
    timeout_s: float
    parse_special: bool
    def __init__(self, model: _Optional[str] = ..., input: _Optional[_Union[Prompt, _Mapping]] = ..., trace: _Optional[_Union[TraceOptions, _Mapping]] = ..., interventions: _Optional[_Iterable[_Union[Intervention, _Mapping]]] = ..., timeout_s: _Optional[float] = ..., parse_special: _Optional[bool] = ...) -> None: ...

class ActivationsItem(_message.Message):
    __slots__ = ("index", "trace", "interventions")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    index: int
    trace: Trace
    interventions: _containers.RepeatedCompositeFieldContainer[Receipt]
    def __init__(self, index: _Optional[int] = ..., trace: _Optional[_Union[Trace, _Mapping]] = ..., interventions: _Optional[_Iterable[_Union[Receipt, _Mapping]]] = ...) -> None: ...

class ActivationsResponse(_message.Message):
    __slots__ = ("model", "data", "usage", "warnings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    model: str
    data: _containers.RepeatedCompositeFieldContainer[ActivationsItem]
    usage: Usage
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., data: _Optional[_Iterable[_Union[ActivationsItem, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class ActivationsStreamRequest(_message.Message):
    __slots__ = ("model", "input", "trace", "interventions", "timeout_s", "parse_special")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    PARSE_SPECIAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    input: Prompt
    trace: TraceOptions
    interventions: _containers.RepeatedCompositeFieldContainer[Intervention]
    timeout_s: float
    parse_special: bool
    def __init__(self, model: _Optional[str] = ..., input: _Optional[_Union[Prompt, _Mapping]] = ..., trace: _Optional[_Union[TraceOptions, _Mapping]] = ..., interventions: _Optional[_Iterable[_Union[Intervention, _Mapping]]] = ..., timeout_s: _Optional[float] = ..., parse_special: _Optional[bool] = ...) -> None: ...

class ActivationsStreamResponse(_message.Message):
    __slots__ = ("index", "trace", "interventions", "is_last", "warnings", "error")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    IS_LAST_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    index: int
    trace: Trace
    interventions: _containers.RepeatedCompositeFieldContainer[Receipt]
    is_last: bool
    warnings: _containers.RepeatedScalarFieldContainer[str]
    error: Error
    def __init__(self, index: _Optional[int] = ..., trace: _Optional[_Union[Trace, _Mapping]] = ..., interventions: _Optional[_Iterable[_Union[Receipt, _Mapping]]] = ..., is_last: _Optional[bool] = ..., warnings: _Optional[_Iterable[str]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("model", "prompt", "add_special_tokens", "parse_special")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PARSE_SPECIAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt: str
    add_special_tokens: bool
    parse_special: bool
    def __init__(self, model: _Optional[str] = ..., prompt: _Optional[str] = ..., add_special_tokens: _Optional[bool] = ..., parse_special: _Optional[bool] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("count", "max_model_len", "tokens", "token_strs")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STRS_FIELD_NUMBER: _ClassVar[int]
    count: int
    max_model_len: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    token_strs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, count: _Optional[int] = ..., max_model_len: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., token_strs: _Optional[_Iterable[str]] = ...) -> None: ...

class DetokenizeRequest(_message.Message):
    __slots__ = ("model", "tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class DetokenizeResponse(_message.Message):
    __slots__ = ("prompt",)
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    def __init__(self, prompt: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TopK(_message.Message):
    __slots__ = ("k", "n_nontopk", "select", "hidden_size", "num_layers", "topk_layers", "context_length", "checkpoints", "checkpoint", "has_catalogue", "presets", "weights_sha256", "examples")
    K_FIELD_NUMBER: _ClassVar[int]
    N_NONTOPK_FIELD_NUMBER: _ClassVar[int]
    SELECT_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    TOPK_LAYERS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    HAS_CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    PRESETS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    k: int
    n_nontopk: int
    select: Select
    hidden_size: int
    num_layers: int
    topk_layers: _containers.RepeatedScalarFieldContainer[int]
    context_length: int
    checkpoints: _containers.RepeatedScalarFieldContainer[str]
    checkpoint: str
    has_catalogue: bool
    presets: _containers.RepeatedCompositeFieldContainer[Preset]
    weights_sha256: str
    examples: _containers.RepeatedCompositeFieldContainer[SteeringExample]
    def __init__(self, k: _Optional[int] = ..., n_nontopk: _Optional[int] = ..., select: _Optional[_Union[Select, str]] = ..., hidden_size: _Optional[int] = ..., num_layers: _Optional[int] = ..., topk_layers: _Optional[_Iterable[int]] = ..., context_length: _Optional[int] = ..., checkpoints: _Optional[_Iterable[str]] = ..., checkpoint: _Optional[str] = ..., has_catalogue: _Optional[bool] = ..., presets: _Optional[_Iterable[_Union[Preset, _Mapping]]] = ..., weights_sha256: _Optional[str] = ..., examples: _Optional[_Iterable[_Union[SteeringExample, _Mapping]]] = ...) -> None: ...

class SteeringEffect(_message.Message):
    __slots__ = ("log_odds", "cost")
    LOG_ODDS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    log_odds: float
    cost: float
    def __init__(self, log_odds: _Optional[float] = ..., cost: _Optional[float] = ...) -> None: ...

class Preset(_message.Message):
    __slots__ = ("name", "version", "layer", "neuron", "value", "strength", "words", "found")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    layer: int
    neuron: int
    value: float
    strength: float
    words: _containers.RepeatedScalarFieldContainer[str]
    found: SteeringEffect
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., layer: _Optional[int] = ..., neuron: _Optional[int] = ..., value: _Optional[float] = ..., strength: _Optional[float] = ..., words: _Optional[_Iterable[str]] = ..., found: _Optional[_Union[SteeringEffect, _Mapping]] = ...) -> None: ...

class SteeringExample(_message.Message):
    __slots__ = ("name", "prompt", "max_tokens", "temperature", "seed", "layer", "neuron", "value", "words", "default", "steered", "cost")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    STEERED_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    name: str
    prompt: str
    max_tokens: int
    temperature: float
    seed: int
    layer: int
    neuron: int
    value: float
    words: _containers.RepeatedScalarFieldContainer[str]
    default: str
    steered: str
    cost: float
    def __init__(self, name: _Optional[str] = ..., prompt: _Optional[str] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., layer: _Optional[int] = ..., neuron: _Optional[int] = ..., value: _Optional[float] = ..., words: _Optional[_Iterable[str]] = ..., default: _Optional[str] = ..., steered: _Optional[str] = ..., cost: _Optional[float] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("id", "created", "owned_by", "topk")
    ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    OWNED_BY_FIELD_NUMBER: _ClassVar[int]
    TOPK_FIELD_NUMBER: _ClassVar[int]
    id: str
    created: int
    owned_by: str
    topk: TopK
    def __init__(self, id: _Optional[str] = ..., created: _Optional[int] = ..., owned_by: _Optional[str] = ..., topk: _Optional[_Union[TopK, _Mapping]] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, data: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetNeuronRequest(_message.Message):
    __slots__ = ("model", "layer", "neuron")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    model: str
    layer: int
    neuron: int
    def __init__(self, model: _Optional[str] = ..., layer: _Optional[int] = ..., neuron: _Optional[int] = ...) -> None: ...

class NeuronLabel(_message.Message):
    __slots__ = ("text", "source", "score", "evidence")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    text: str
    source: str
    score: float
    evidence: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, text: _Optional[str] = ..., source: _Optional[str] = ..., score: _Optional[float] = ..., evidence: _Optional[_Iterable[str]] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("edges", "counts")
    EDGES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    edges: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, edges: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class TopToken(_message.Message):
    __slots__ = ("token_id", "token", "count", "share", "mean")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    token: str
    count: int
    share: float
    mean: float
    def __init__(self, token_id: _Optional[int] = ..., token: _Optional[str] = ..., count: _Optional[int] = ..., share: _Optional[float] = ..., mean: _Optional[float] = ...) -> None: ...

class NeuronExample(_message.Message):
    __slots__ = ("text", "token_ids", "tokens", "activations", "peak", "max", "source")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    PEAK_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    activations: _containers.RepeatedScalarFieldContainer[float]
    peak: int
    max: float
    source: str
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[str]] = ..., activations: _Optional[_Iterable[float]] = ..., peak: _Optional[int] = ..., max: _Optional[float] = ..., source: _Optional[str] = ...) -> None: ...

class TokenEffect(_message.Message):
    __slots__ = ("token_id", "token", "value")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    token: str
    value: float
    def __init__(self, token_id: _Optional[int] = ..., token: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class LogitEffect(_message.Message):
    __slots__ = ("note", "positive", "negative")
    NOTE_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    note: str
    positive: _containers.RepeatedCompositeFieldContainer[TokenEffect]
    negative: _containers.RepeatedCompositeFieldContainer[TokenEffect]
    def __init__(self, note: _Optional[str] = ..., positive: _Optional[_Iterable[_Union[TokenEffect, _Mapping]]] = ..., negative: _Optional[_Iterable[_Union[TokenEffect, _Mapping]]] = ...) -> None: ...

class AblationEffect(_message.Message):
    __slots__ = ("positive", "negative", "loss_change", "num_positions")
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    LOSS_CHANGE_FIELD_NUMBER: _ClassVar[int]
    NUM_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positive: _containers.RepeatedCompositeFieldContainer[TokenEffect]
    negative: _containers.RepeatedCompositeFieldContainer[TokenEffect]
    loss_change: float
    num_positions: int
    def __init__(self, positive: _Optional[_Iterable[_Union[TokenEffect, _Mapping]]] = ..., negative: _Optional[_Iterable[_Union[TokenEffect, _Mapping]]] = ..., loss_change: _Optional[float] = ..., num_positions: _Optional[int] = ...) -> None: ...

class SteeringPoint(_message.Message):
    __slots__ = ("in_units_of_max", "share", "log_odds", "cost")
    IN_UNITS_OF_MAX_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    LOG_ODDS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    in_units_of_max: float
    share: float
    log_odds: float
    cost: float
    def __init__(self, in_units_of_max: _Optional[float] = ..., share: _Optional[float] = ..., log_odds: _Optional[float] = ..., cost: _Optional[float] = ...) -> None: ...

class NeuronSteering(_message.Message):
    __slots__ = ("words", "value", "in_units_of_max", "curve")
    WORDS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    IN_UNITS_OF_MAX_FIELD_NUMBER: _ClassVar[int]
    CURVE_FIELD_NUMBER: _ClassVar[int]
    words: _containers.RepeatedCompositeFieldContainer[TokenEffect]
    value: float
    in_units_of_max: float
    curve: _containers.RepeatedCompositeFieldContainer[SteeringPoint]
    def __init__(self, words: _Optional[_Iterable[_Union[TokenEffect, _Mapping]]] = ..., value: _Optional[float] = ..., in_units_of_max: _Optional[float] = ..., curve: _Optional[_Iterable[_Union[SteeringPoint, _Mapping]]] = ...) -> None: ...

class RelatedNeuron(_message.Message):
    __slots__ = ("layer", "neuron", "pmi", "label")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    PMI_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    layer: int
    neuron: int
    pmi: float
    label: str
    def __init__(self, layer: _Optional[int] = ..., neuron: _Optional[int] = ..., pmi: _Optional[float] = ..., label: _Optional[str] = ...) -> None: ...

class Neuron(_message.Message):
    __slots__ = ("layer", "neuron", "label", "density", "max", "mean", "quantiles", "is_dead", "histogram", "token_entropy", "semantic_entropy", "top_tokens", "top_examples", "logit_effect", "ablation_effect", "related", "strongest_firings", "steering", "also_in")
    class QuantilesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    IS_DEAD_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    SEMANTIC_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOP_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOGIT_EFFECT_FIELD_NUMBER: _ClassVar[int]
    ABLATION_EFFECT_FIELD_NUMBER: _ClassVar[int]
    RELATED_FIELD_NUMBER: _ClassVar[int]
    STRONGEST_FIRINGS_FIELD_NUMBER: _ClassVar[int]
    STEERING_FIELD_NUMBER: _ClassVar[int]
    ALSO_IN_FIELD_NUMBER: _ClassVar[int]
    layer: int
    neuron: int
    label: NeuronLabel
    density: float
    max: float
    mean: float
    quantiles: _containers.ScalarMap[str, float]
    is_dead: bool
    histogram: Histogram
    token_entropy: float
    semantic_entropy: float
    top_tokens: _containers.RepeatedCompositeFieldContainer[TopToken]
    top_examples: _containers.RepeatedCompositeFieldContainer[NeuronExample]
    logit_effect: LogitEffect
    ablation_effect: AblationEffect
    related: _containers.RepeatedCompositeFieldContainer[RelatedNeuron]
    strongest_firings: _containers.RepeatedCompositeFieldContainer[NeuronExample]
    steering: NeuronSteering
    also_in: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layer: _Optional[int] = ..., neuron: _Optional[int] = ..., label: _Optional[_Union[NeuronLabel, _Mapping]] = ..., density: _Optional[float] = ..., max: _Optional[float] = ..., mean: _Optional[float] = ..., quantiles: _Optional[_Mapping[str, float]] = ..., is_dead: _Optional[bool] = ..., histogram: _Optional[_Union[Histogram, _Mapping]] = ..., token_entropy: _Optional[float] = ..., semantic_entropy: _Optional[float] = ..., top_tokens: _Optional[_Iterable[_Union[TopToken, _Mapping]]] = ..., top_examples: _Optional[_Iterable[_Union[NeuronExample, _Mapping]]] = ..., logit_effect: _Optional[_Union[LogitEffect, _Mapping]] = ..., ablation_effect: _Optional[_Union[AblationEffect, _Mapping]] = ..., related: _Optional[_Iterable[_Union[RelatedNeuron, _Mapping]]] = ..., strongest_firings: _Optional[_Iterable[_Union[NeuronExample, _Mapping]]] = ..., steering: _Optional[_Union[NeuronSteering, _Mapping]] = ..., also_in: _Optional[_Iterable[int]] = ...) -> None: ...

class GetNeuronResponse(_message.Message):
    __slots__ = ("model", "checkpoint", "neuron")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    model: str
    checkpoint: str
    neuron: Neuron
    def __init__(self, model: _Optional[str] = ..., checkpoint: _Optional[str] = ..., neuron: _Optional[_Union[Neuron, _Mapping]] = ...) -> None: ...

class ListNeuronsRequest(_message.Message):
    __slots__ = ("model", "layer", "min_density", "max_density", "min_token_entropy", "max_token_entropy", "is_dead", "label", "order", "limit", "offset")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    MIN_DENSITY_FIELD_NUMBER: _ClassVar[int]
    MAX_DENSITY_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKEN_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKEN_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    IS_DEAD_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    model: str
    layer: int
    min_density: float
    max_density: float
    min_token_entropy: float
    max_token_entropy: float
    is_dead: bool
    label: str
    order: str
    limit: int
    offset: int
    def __init__(self, model: _Optional[str] = ..., layer: _Optional[int] = ..., min_density: _Optional[float] = ..., max_density: _Optional[float] = ..., min_token_entropy: _Optional[float] = ..., max_token_entropy: _Optional[float] = ..., is_dead: _Optional[bool] = ..., label: _Optional[str] = ..., order: _Optional[str] = ..., limit: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class NeuronSummary(_message.Message):
    __slots__ = ("layer", "neuron", "label", "score", "density", "max", "mean", "token_entropy", "semantic_entropy", "is_dead", "top_tokens", "also_in")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    SEMANTIC_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    IS_DEAD_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ALSO_IN_FIELD_NUMBER: _ClassVar[int]
    layer: int
    neuron: int
    label: str
    score: float
    density: float
    max: float
    mean: float
    token_entropy: float
    semantic_entropy: float
    is_dead: bool
    top_tokens: _containers.RepeatedScalarFieldContainer[str]
    also_in: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layer: _Optional[int] = ..., neuron: _Optional[int] = ..., label: _Optional[str] = ..., score: _Optional[float] = ..., density: _Optional[float] = ..., max: _Optional[float] = ..., mean: _Optional[float] = ..., token_entropy: _Optional[float] = ..., semantic_entropy: _Optional[float] = ..., is_dead: _Optional[bool] = ..., top_tokens: _Optional[_Iterable[str]] = ..., also_in: _Optional[_Iterable[int]] = ...) -> None: ...

class ListNeuronsResponse(_message.Message):
    __slots__ = ("model", "data", "total", "limit", "offset")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    model: str
    data: _containers.RepeatedCompositeFieldContainer[NeuronSummary]
    total: int
    limit: int
    offset: int
    def __init__(self, model: _Optional[str] = ..., data: _Optional[_Iterable[_Union[NeuronSummary, _Mapping]]] = ..., total: _Optional[int] = ..., limit: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Contrast(_message.Message):
    __slots__ = ("positive", "negative")
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    positive: _containers.RepeatedScalarFieldContainer[str]
    negative: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, positive: _Optional[_Iterable[str]] = ..., negative: _Optional[_Iterable[str]] = ...) -> None: ...

class SearchNeuronsRequest(_message.Message):
    __slots__ = ("model", "text", "contrast", "layers", "limit", "timeout_s")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CONTRAST_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    contrast: Contrast
    layers: _containers.RepeatedScalarFieldContainer[int]
    limit: int
    timeout_s: float
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., contrast: _Optional[_Union[Contrast, _Mapping]] = ..., layers: _Optional[_Iterable[int]] = ..., limit: _Optional[int] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class NeuronMatch(_message.Message):
    __slots__ = ("layer", "neuron", "score", "label", "density", "active", "active_negative", "also_in")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    ALSO_IN_FIELD_NUMBER: _ClassVar[int]
    layer: int
    neuron: int
    score: float
    label: str
    density: float
    active: int
    active_negative: int
    also_in: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layer: _Optional[int] = ..., neuron: _Optional[int] = ..., score: _Optional[float] = ..., label: _Optional[str] = ..., density: _Optional[float] = ..., active: _Optional[int] = ..., active_negative: _Optional[int] = ..., also_in: _Optional[_Iterable[int]] = ...) -> None: ...

class SearchNeuronsResponse(_message.Message):
    __slots__ = ("model", "data", "num_tokens", "num_tokens_negative", "usage")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    model: str
    data: _containers.RepeatedCompositeFieldContainer[NeuronMatch]
    num_tokens: int
    num_tokens_negative: int
    usage: Usage
    def __init__(self, model: _Optional[str] = ..., data: _Optional[_Iterable[_Union[NeuronMatch, _Mapping]]] = ..., num_tokens: _Optional[int] = ..., num_tokens_negative: _Optional[int] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class GetNeuronHistoryRequest(_message.Message):
    __slots__ = ("model", "layer", "neuron")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    model: str
    layer: int
    neuron: int
    def __init__(self, model: _Optional[str] = ..., layer: _Optional[int] = ..., neuron: _Optional[int] = ...) -> None: ...

class CheckpointStage(_message.Message):
    __slots__ = ("step", "density", "max", "mean", "token_entropy", "semantic_entropy", "is_dead", "label", "top_tokens", "example_overlap", "token_overlap")
    STEP_FIELD_NUMBER: _ClassVar[int]
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    SEMANTIC_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    IS_DEAD_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    TOKEN_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    step: int
    density: float
    max: float
    mean: float
    token_entropy: float
    semantic_entropy: float
    is_dead: bool
    label: str
    top_tokens: _containers.RepeatedScalarFieldContainer[str]
    example_overlap: float
    token_overlap: float
    def __init__(self, step: _Optional[int] = ..., density: _Optional[float] = ..., max: _Optional[float] = ..., mean: _Optional[float] = ..., token_entropy: _Optional[float] = ..., semantic_entropy: _Optional[float] = ..., is_dead: _Optional[bool] = ..., label: _Optional[str] = ..., top_tokens: _Optional[_Iterable[str]] = ..., example_overlap: _Optional[float] = ..., token_overlap: _Optional[float] = ...) -> None: ...

class LayerStage(_message.Message):
    __slots__ = ("layer", "density", "max", "mean", "token_entropy", "semantic_entropy", "is_dead", "label", "top_tokens", "example_overlap", "token_overlap")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    SEMANTIC_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    IS_DEAD_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    TOKEN_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    layer: int
    density: float
    max: float
    mean: float
    token_entropy: float
    semantic_entropy: float
    is_dead: bool
    label: str
    top_tokens: _containers.RepeatedScalarFieldContainer[str]
    example_overlap: float
    token_overlap: float
    def __init__(self, layer: _Optional[int] = ..., density: _Optional[float] = ..., max: _Optional[float] = ..., mean: _Optional[float] = ..., token_entropy: _Optional[float] = ..., semantic_entropy: _Optional[float] = ..., is_dead: _Optional[bool] = ..., label: _Optional[str] = ..., top_tokens: _Optional[_Iterable[str]] = ..., example_overlap: _Optional[float] = ..., token_overlap: _Optional[float] = ...) -> None: ...

class GetNeuronHistoryResponse(_message.Message):
    __slots__ = ("model", "layer", "neuron", "checkpoints", "layers")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    model: str
    layer: int
    neuron: int
    checkpoints: _containers.RepeatedCompositeFieldContainer[CheckpointStage]
    layers: _containers.RepeatedCompositeFieldContainer[LayerStage]
    def __init__(self, model: _Optional[str] = ..., layer: _Optional[int] = ..., neuron: _Optional[int] = ..., checkpoints: _Optional[_Iterable[_Union[CheckpointStage, _Mapping]]] = ..., layers: _Optional[_Iterable[_Union[LayerStage, _Mapping]]] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("id", "text")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: int
    text: str
    def __init__(self, id: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class AttributionTargetSpec(_message.Message):
    __slots__ = ("position", "token", "layer", "neuron")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    position: int
    token: Token
    layer: int
    neuron: int
    def __init__(self, position: _Optional[int] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., layer: _Optional[int] = ..., neuron: _Optional[int] = ...) -> None: ...

class AttributeRequest(_message.Message):
    __slots__ = ("model", "prompt", "target", "against", "interventions", "layers", "positions", "top_n", "min_effect", "graph", "max_nodes", "timeout_s")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    MIN_EFFECT_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    MAX_NODES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt: Prompt
    target: AttributionTargetSpec
    against: Token
    interventions: _containers.RepeatedCompositeFieldContainer[Intervention]
    layers: _containers.RepeatedScalarFieldContainer[int]
    positions: Positions
    top_n: int
    min_effect: float
    graph: bool
    max_nodes: int
    timeout_s: float
    def __init__(self, model: _Optional[str] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., target: _Optional[_Union[AttributionTargetSpec, _Mapping]] = ..., against: _Optional[_Union[Token, _Mapping]] = ..., interventions: _Optional[_Iterable[_Union[Intervention, _Mapping]]] = ..., layers: _Optional[_Iterable[int]] = ..., positions: _Optional[_Union[Positions, _Mapping]] = ..., top_n: _Optional[int] = ..., min_effect: _Optional[float] = ..., graph: _Optional[bool] = ..., max_nodes: _Optional[int] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class ScoredToken(_message.Message):
    __slots__ = ("token_id", "token", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    token: str
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., token: _Optional[str] = ..., logprob: _Optional[float] = ...) -> None: ...

class AttributedNeuron(_message.Message):
    __slots__ = ("position", "layer", "neuron", "token", "value", "label")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    position: int
    layer: int
    neuron: int
    token: str
    value: float
    label: str
    def __init__(self, position: _Optional[int] = ..., layer: _Optional[int] = ..., neuron: _Optional[int] = ..., token: _Optional[str] = ..., value: _Optional[float] = ..., label: _Optional[str] = ...) -> None: ...

class AttributionTarget(_message.Message):
    __slots__ = ("position", "score", "unit", "token", "against", "neuron")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    position: int
    score: float
    unit: EffectUnit
    token: ScoredToken
    against: ScoredToken
    neuron: AttributedNeuron
    def __init__(self, position: _Optional[int] = ..., score: _Optional[float] = ..., unit: _Optional[_Union[EffectUnit, str]] = ..., token: _Optional[_Union[ScoredToken, _Mapping]] = ..., against: _Optional[_Union[ScoredToken, _Mapping]] = ..., neuron: _Optional[_Union[AttributedNeuron, _Mapping]] = ...) -> None: ...

class NeuronEffect(_message.Message):
    __slots__ = ("position", "layer", "neuron", "token", "value", "label", "effect")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    position: int
    layer: int
    neuron: int
    token: str
    value: float
    label: str
    effect: float
    def __init__(self, position: _Optional[int] = ..., layer: _Optional[int] = ..., neuron: _Optional[int] = ..., token: _Optional[str] = ..., value: _Optional[float] = ..., label: _Optional[str] = ..., effect: _Optional[float] = ...) -> None: ...

class PositionEffect(_message.Message):
    __slots__ = ("position", "token_id", "token", "is_special", "num_neurons", "effect")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    IS_SPECIAL_FIELD_NUMBER: _ClassVar[int]
    NUM_NEURONS_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    position: int
    token_id: int
    token: str
    is_special: bool
    num_neurons: int
    effect: float
    def __init__(self, position: _Optional[int] = ..., token_id: _Optional[int] = ..., token: _Optional[str] = ..., is_special: _Optional[bool] = ..., num_neurons: _Optional[int] = ..., effect: _Optional[float] = ...) -> None: ...

class LayerEffect(_message.Message):
    __slots__ = ("layer", "num_neurons", "effect")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NUM_NEURONS_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    layer: int
    num_neurons: int
    effect: float
    def __init__(self, layer: _Optional[int] = ..., num_neurons: _Optional[int] = ..., effect: _Optional[float] = ...) -> None: ...

class EffectSums(_message.Message):
    __slots__ = ("everything", "neurons", "positions", "layers", "neurons_gap", "positions_gap", "layers_gap")
    EVERYTHING_FIELD_NUMBER: _ClassVar[int]
    NEURONS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    NEURONS_GAP_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_GAP_FIELD_NUMBER: _ClassVar[int]
    LAYERS_GAP_FIELD_NUMBER: _ClassVar[int]
    everything: float
    neurons: float
    positions: float
    layers: float
    neurons_gap: float
    positions_gap: float
    layers_gap: float
    def __init__(self, everything: _Optional[float] = ..., neurons: _Optional[float] = ..., positions: _Optional[float] = ..., layers: _Optional[float] = ..., neurons_gap: _Optional[float] = ..., positions_gap: _Optional[float] = ..., layers_gap: _Optional[float] = ...) -> None: ...

class GraphNode(_message.Message):
    __slots__ = ("position", "layer", "neuron", "token", "value", "label", "effect", "id")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    position: int
    layer: int
    neuron: int
    token: str
    value: float
    label: str
    effect: float
    id: int
    def __init__(self, position: _Optional[int] = ..., layer: _Optional[int] = ..., neuron: _Optional[int] = ..., token: _Optional[str] = ..., value: _Optional[float] = ..., label: _Optional[str] = ..., effect: _Optional[float] = ..., id: _Optional[int] = ...) -> None: ...

class GraphEdge(_message.Message):
    __slots__ = ("source", "target", "effect", "share")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    source: int
    target: int
    effect: float
    share: float
    def __init__(self, source: _Optional[int] = ..., target: _Optional[int] = ..., effect: _Optional[float] = ..., share: _Optional[float] = ...) -> None: ...

class AttributionGraph(_message.Message):
    __slots__ = ("graph_version", "nodes", "edges", "min_share", "effect", "share")
    GRAPH_VERSION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    MIN_SHARE_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    graph_version: int
    nodes: _containers.RepeatedCompositeFieldContainer[GraphNode]
    edges: _containers.RepeatedCompositeFieldContainer[GraphEdge]
    min_share: float
    effect: float
    share: float
    def __init__(self, graph_version: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[GraphNode, _Mapping]]] = ..., edges: _Optional[_Iterable[_Union[GraphEdge, _Mapping]]] = ..., min_share: _Optional[float] = ..., effect: _Optional[float] = ..., share: _Optional[float] = ...) -> None: ...

class Attribution(_message.Message):
    __slots__ = ("attribution_version", "model", "checkpoint", "target", "neurons", "num_neurons", "positions", "layers", "sums", "graph", "interventions", "warnings", "usage")
    ATTRIBUTION_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NEURONS_FIELD_NUMBER: _ClassVar[int]
    NUM_NEURONS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    attribution_version: int
    model: str
    checkpoint: str
    target: AttributionTarget
    neurons: _containers.RepeatedCompositeFieldContainer[NeuronEffect]
    num_neurons: int
    positions: _containers.RepeatedCompositeFieldContainer[PositionEffect]
    layers: _containers.RepeatedCompositeFieldContainer[LayerEffect]
    sums: EffectSums
    graph: AttributionGraph
    interventions: _containers.RepeatedCompositeFieldContainer[Receipt]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    usage: Usage
    def __init__(self, attribution_version: _Optional[int] = ..., model: _Optional[str] = ..., checkpoint: _Optional[str] = ..., target: _Optional[_Union[AttributionTarget, _Mapping]] = ..., neurons: _Optional[_Iterable[_Union[NeuronEffect, _Mapping]]] = ..., num_neurons: _Optional[int] = ..., positions: _Optional[_Iterable[_Union[PositionEffect, _Mapping]]] = ..., layers: _Optional[_Iterable[_Union[LayerEffect, _Mapping]]] = ..., sums: _Optional[_Union[EffectSums, _Mapping]] = ..., graph: _Optional[_Union[AttributionGraph, _Mapping]] = ..., interventions: _Optional[_Iterable[_Union[Receipt, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class AttributeResponse(_message.Message):
    __slots__ = ("progress", "attribution", "error")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    attribution: Attribution
    error: Error
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., attribution: _Optional[_Union[Attribution, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class TokenDifference(_message.Message):
    __slots__ = ("position", "default_token_id", "default_token", "steered_token_id", "steered_token")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STEERED_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    STEERED_TOKEN_FIELD_NUMBER: _ClassVar[int]
    position: int
    default_token_id: int
    default_token: str
    steered_token_id: int
    steered_token: str
    def __init__(self, position: _Optional[int] = ..., default_token_id: _Optional[int] = ..., default_token: _Optional[str] = ..., steered_token_id: _Optional[int] = ..., steered_token: _Optional[str] = ...) -> None: ...

class NeuronDifference(_message.Message):
    __slots__ = ("layer", "neuron", "default", "steered", "difference")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    STEERED_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    layer: int
    neuron: int
    default: float
    steered: float
    difference: float
    def __init__(self, layer: _Optional[int] = ..., neuron: _Optional[int] = ..., default: _Optional[float] = ..., steered: _Optional[float] = ..., difference: _Optional[float] = ...) -> None: ...

class StateDifference(_message.Message):
    __slots__ = ("position", "layer", "neurons")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURONS_FIELD_NUMBER: _ClassVar[int]
    position: int
    layer: int
    neurons: _containers.RepeatedCompositeFieldContainer[NeuronDifference]
    def __init__(self, position: _Optional[int] = ..., layer: _Optional[int] = ..., neurons: _Optional[_Iterable[_Union[NeuronDifference, _Mapping]]] = ...) -> None: ...

class VariantDifference(_message.Message):
    __slots__ = ("default_choice", "steered_choice", "num_shared_tokens", "token", "state", "neurons")
    DEFAULT_CHOICE_FIELD_NUMBER: _ClassVar[int]
    STEERED_CHOICE_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NEURONS_FIELD_NUMBER: _ClassVar[int]
    default_choice: int
    steered_choice: int
    num_shared_tokens: int
    token: TokenDifference
    state: StateDifference
    neurons: _containers.RepeatedCompositeFieldContainer[NeuronDifference]
    def __init__(self, default_choice: _Optional[int] = ..., steered_choice: _Optional[int] = ..., num_shared_tokens: _Optional[int] = ..., token: _Optional[_Union[TokenDifference, _Mapping]] = ..., state: _Optional[_Union[StateDifference, _Mapping]] = ..., neurons: _Optional[_Iterable[_Union[NeuronDifference, _Mapping]]] = ...) -> None: ...

class TextPair(_message.Message):
    __slots__ = ("towards", "away")
    TOWARDS_FIELD_NUMBER: _ClassVar[int]
    AWAY_FIELD_NUMBER: _ClassVar[int]
    towards: _containers.RepeatedScalarFieldContainer[str]
    away: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, towards: _Optional[_Iterable[str]] = ..., away: _Optional[_Iterable[str]] = ...) -> None: ...

class FindLeversRequest(_message.Message):
    __slots__ = ("model", "words", "texts", "prompt", "max_tokens", "temperature", "seed", "max_cost", "limit", "timeout_s")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    model: str
    words: _containers.RepeatedScalarFieldContainer[str]
    texts: TextPair
    prompt: str
    max_tokens: int
    temperature: float
    seed: int
    max_cost: float
    limit: int
    timeout_s: float
    def __init__(self, model: _Optional[str] = ..., words: _Optional[_Iterable[str]] = ..., texts: _Optional[_Union[TextPair, _Mapping]] = ..., prompt: _Optional[str] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., max_cost: _Optional[float] = ..., limit: _Optional[int] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class LeverWord(_message.Message):
    __slots__ = ("word", "token_ids", "tokens")
    WORD_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    word: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, word: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[str]] = ...) -> None: ...

class LeverTexts(_message.Message):
    __slots__ = ("source", "num_finding", "num_measuring", "num_tokens", "is_target_held_out")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NUM_FINDING_FIELD_NUMBER: _ClassVar[int]
    NUM_MEASURING_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IS_TARGET_HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    source: LeverTextSource
    num_finding: int
    num_measuring: int
    num_tokens: int
    is_target_held_out: bool
    def __init__(self, source: _Optional[_Union[LeverTextSource, str]] = ..., num_finding: _Optional[int] = ..., num_measuring: _Optional[int] = ..., num_tokens: _Optional[int] = ..., is_target_held_out: _Optional[bool] = ...) -> None: ...

class LeverPoint(_message.Message):
    __slots__ = ("value", "value_in_max", "log_odds", "cost", "per_1000_tokens")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    VALUE_IN_MAX_FIELD_NUMBER: _ClassVar[int]
    LOG_ODDS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    PER_1000_TOKENS_FIELD_NUMBER: _ClassVar[int]
    value: float
    value_in_max: float
    log_odds: float
    cost: float
    per_1000_tokens: float
    def __init__(self, value: _Optional[float] = ..., value_in_max: _Optional[float] = ..., log_odds: _Optional[float] = ..., cost: _Optional[float] = ..., per_1000_tokens: _Optional[float] = ...) -> None: ...

class TriedNeuron(_message.Message):
    __slots__ = ("layer", "neuron", "label", "value", "value_in_max", "log_odds", "cost", "per_1000_tokens")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    VALUE_IN_MAX_FIELD_NUMBER: _ClassVar[int]
    LOG_ODDS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    PER_1000_TOKENS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    neuron: int
    label: str
    value: float
    value_in_max: float
    log_odds: float
    cost: float
    per_1000_tokens: float
    def __init__(self, layer: _Optional[int] = ..., neuron: _Optional[int] = ..., label: _Optional[str] = ..., value: _Optional[float] = ..., value_in_max: _Optional[float] = ..., log_odds: _Optional[float] = ..., cost: _Optional[float] = ..., per_1000_tokens: _Optional[float] = ...) -> None: ...

class FoundLever(_message.Message):
    __slots__ = ("layer", "neuron", "label", "value", "value_in_max", "log_odds", "error", "cost", "per_1000_tokens", "curve", "intervention", "continuation")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    VALUE_IN_MAX_FIELD_NUMBER: _ClassVar[int]
    LOG_ODDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    PER_1000_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CURVE_FIELD_NUMBER: _ClassVar[int]
    INTERVENTION_FIELD_NUMBER: _ClassVar[int]
    CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    layer: int
    neuron: int
    label: str
    value: float
    value_in_max: float
    log_odds: float
    error: float
    cost: float
    per_1000_tokens: float
    curve: _containers.RepeatedCompositeFieldContainer[LeverPoint]
    intervention: Intervention
    continuation: str
    def __init__(self, layer: _Optional[int] = ..., neuron: _Optional[int] = ..., label: _Optional[str] = ..., value: _Optional[float] = ..., value_in_max: _Optional[float] = ..., log_odds: _Optional[float] = ..., error: _Optional[float] = ..., cost: _Optional[float] = ..., per_1000_tokens: _Optional[float] = ..., curve: _Optional[_Iterable[_Union[LeverPoint, _Mapping]]] = ..., intervention: _Optional[_Union[Intervention, _Mapping]] = ..., continuation: _Optional[str] = ...) -> None: ...

class LeverPrompt(_message.Message):
    __slots__ = ("text", "token_ids", "max_tokens", "temperature", "seed", "continuation")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    max_tokens: int
    temperature: float
    seed: int
    continuation: str
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., continuation: _Optional[str] = ...) -> None: ...

class Levers(_message.Message):
    __slots__ = ("model", "is_moved", "message", "max_cost", "log_odds", "per_1000_tokens", "words", "texts", "levers", "tried", "prompt", "usage")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IS_MOVED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_FIELD_NUMBER: _ClassVar[int]
    LOG_ODDS_FIELD_NUMBER: _ClassVar[int]
    PER_1000_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    LEVERS_FIELD_NUMBER: _ClassVar[int]
    TRIED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    model: str
    is_moved: bool
    message: str
    max_cost: float
    log_odds: float
    per_1000_tokens: float
    words: _containers.RepeatedCompositeFieldContainer[LeverWord]
    texts: LeverTexts
    levers: _containers.RepeatedCompositeFieldContainer[FoundLever]
    tried: _containers.RepeatedCompositeFieldContainer[TriedNeuron]
    prompt: LeverPrompt
    usage: Usage
    def __init__(self, model: _Optional[str] = ..., is_moved: _Optional[bool] = ..., message: _Optional[str] = ..., max_cost: _Optional[float] = ..., log_odds: _Optional[float] = ..., per_1000_tokens: _Optional[float] = ..., words: _Optional[_Iterable[_Union[LeverWord, _Mapping]]] = ..., texts: _Optional[_Union[LeverTexts, _Mapping]] = ..., levers: _Optional[_Iterable[_Union[FoundLever, _Mapping]]] = ..., tried: _Optional[_Iterable[_Union[TriedNeuron, _Mapping]]] = ..., prompt: _Optional[_Union[LeverPrompt, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class FindLeversResponse(_message.Message):
    __slots__ = ("progress", "levers", "error")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LEVERS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    levers: Levers
    error: Error
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., levers: _Optional[_Union[Levers, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...
