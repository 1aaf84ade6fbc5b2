"""The requests' fields for edits, presets and traces, shared by HTTP and gRPC. Knows no model and no transport."""

from functools import cache
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from service.errors import fault
from service.requests.limits import (
    MAX_ABS_VALUE,
    MAX_FIELDS,
    MAX_INTERVENTIONS,
    MAX_NAME_CHARS,
    MAX_POSITION,
    MAX_STRENGTH,
)
from service.requests.neutral import Neutral, describe, without_neutral
from service.requests.validators import parse_layer, parse_layers, parse_neurons
from topk_model.interventions import MAX_CONDITIONS

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
EditValue = Annotated[float, Field(ge=-MAX_ABS_VALUE, le=MAX_ABS_VALUE)]


class Request(BaseModel):
    """Strict, closed and frozen. Null means the default of a field that has one, and `neutral` fields are accepted if
    they change nothing."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra=lambda schema, kind: kind.describe_null_and_neutral(schema),
    )
    neutral: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def check_size(cls, data: object) -> object:
        """Reject too many fields: a body may contain 300,000 unknown ones, and reporting each of them is slow."""
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise fault(f"must have at most {MAX_FIELDS} fields, has {len(data)}", data)
        data = without_neutral(data, cls.neutral)
        if not isinstance(data, dict):
            return data
        left_out = cls.null_is_default()
        return {name: value for name, value in data.items() if value is not None or name not in left_out}

    @classmethod
    @cache
    def null_is_default(cls) -> frozenset[str]:
        """The fields with a default whose type has no null of its own."""
        return frozenset(
            name
            for name, field in cls.model_fields.items()
            if not field.is_required() and NoneType not in get_args(field.annotation)
        )

    @classmethod
    def describe_null_and_neutral(cls, schema: dict[str, Any]) -> None:
        """Add what `check_size` accepts besides the fields' own types to the JSON Schema."""
        for name in cls.null_is_default():
            described = schema["properties"][name]
            kept = {key: described.pop(key) for key in ("title", "default", "description") if key in described}
            schema["properties"][name] = {"anyOf": [*described.pop("anyOf", [described]), {"type": "null"}], **kept}
        describe(cls.neutral, schema)


class PositionRange(Request):
    """Half-open; counted from the prompt's first token (including BOS), negative values from the prompt's end."""

    start: int | None = Field(
        None, ge=-MAX_POSITION, le=MAX_POSITION, description="first position; null: the prompt's first token"
    )
    end: int | None = Field(
        None,
        ge=-MAX_POSITION,
        le=MAX_POSITION,
        description="position after the last; null: no end. A negative value ends in the prompt",
    )


PositionName = Literal["all", "prompt", "generated", "continuation"]


def parse_positions(value: object) -> object:
    """Check positions: a name or a range."""
    if isinstance(value, PositionRange):
        return value
    if isinstance(value, dict):
        return PositionRange.model_validate(value)
    if value not in get_args(PositionName):
        raise fault('must be "all", "prompt", "generated", "continuation" or {"start": a, "end": b}', value)
    return value


Positions = Annotated[
    PositionName | PositionRange, PlainValidator(parse_positions, json_schema_input_type=PositionName | PositionRange)
]
POSITIONS = (
    "Positions are counted in tokens from the prompt's first one; if the tokenizer adds a BOS, that is 0. A state "
    'chooses the token after it: "generated" begins with the first generated token, whose own choice it cannot change; '
    '"continuation", which is {"start": -1}, begins one earlier, with the prompt\'s last token, and steers every '
    "generated token."
)


class ConditionSpec(Request):
    """A condition on one neuron at the position to be edited."""

    layer: LayerIndex = Field(description="TopK layer, no later than the first edited one")
    neuron: int = Field(ge=0)
    test: Literal["active", "inactive", "above"] = Field(alias="is")
    value: EditValue | None = Field(None, description='only for "above", which needs it: the raw value to exceed')

    @model_validator(mode="after")
    def check_value(self) -> Self:
        if self.test == "above" and self.value is None:
            raise fault('is required if "is" is "above"', self.value, "value")
        if self.test != "above" and self.value is not None:
            raise fault(f'must be left out if "is" is "{self.test}"', self.value, "value")
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
        description="for set, add and clamp. raw (the default): the value itself; max: multiples of the neuron's "
        "largest activation in the catalogue; kth: multiples of the position's k-th kept value",
    )
    site: Literal["post_topk", "pre_topk"] = Field(
        "post_topk", description="post_topk forces the neuron (k + 1 may be active); pre_topk: it must win its place"
    )
    positions: Positions = Field("all", description=POSITIONS)
    when: list[ConditionSpec] = Field(
        [], max_length=MAX_CONDITIONS, description="conditions that must all hold at the same position"
    )
    include_special: bool = Field(False, description="also edit special tokens (BOS, padding)")

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
    """One of the model's steering presets, by name, in place of an edit; like an edit, it has a receipt."""

    preset: str = Field(
        min_length=1, max_length=MAX_NAME_CHARS, description='"name", for its latest version, or "name@version"'
    )
    strength: float = Field(1.0, ge=0, le=MAX_STRENGTH, description="factor applied to the preset's value")
    positions: Positions = Field("all", description=POSITIONS)


def parse_intervention(value: object) -> object:
    """Check an edit, or a preset if it names one."""
    kind = PresetSpec if isinstance(value, dict) and "preset" in value else InterventionSpec
    return kind.model_validate(value)


Edit = Annotated[
    InterventionSpec | PresetSpec,
    PlainValidator(parse_intervention, json_schema_input_type=InterventionSpec | PresetSpec),
]
Edits = Annotated[list[Edit], Field(max_length=MAX_INTERVENTIONS)]


class TraceRequest(Request):
    """Which activations to return; they are read after the edits."""

    layers: Layers = Field("all", description='TopK layers, in the order of the reply, or "all"')
    positions: Positions = Field("all", description=POSITIONS)
    neurons: Neurons = Field(None, description="only these neurons; null: all")
    top_n: int | None = Field(None, ge=1, description="only the n largest of each token and layer")
    min_value: float | None = Field(None, description="only values of at least this (in an abs model: magnitudes)")
    encoding: Literal["json", "packed"] = Field(
        "json", description="packed: little-endian bytes, base64 over HTTP and raw over gRPC"
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="type of packed values; float16 ends at 65,504")

    @model_validator(mode="after")
    def check_dtype(self) -> Self:
        if self.encoding == "json" and self.dtype != "float32":
            raise fault('must be left out for encoding "json"', self.dtype, "dtype")
        return self
