"""What may be asked of attributions: why a token was likely, or a neuron active. Knows no model and no transport."""

from typing import Annotated, Self

from pydantic import Field, PlainValidator, model_validator

from service.errors import fault
from service.requests.edit_schema import Edits, LayerIndex, Layers, Positions, Request
from service.requests.limits import (
    DEFAULT_NODES,
    DEFAULT_TOP_NEURONS,
    MAX_ATTRIBUTION_ROWS,
    MAX_INTERVENTIONS,
    MAX_NAME_CHARS,
    MAX_NEURONS,
    MAX_NODES,
    MAX_POSITION,
    MAX_TIMEOUT_S,
)
from service.requests.validators import check_ids, check_text


def parse_one_prompt(value: object) -> object:
    """Check a text or a list of token ids."""
    if isinstance(value, str):
        return check_text(value)
    if not isinstance(value, list) or (value and isinstance(value[0], str | list)):
        raise fault("must be one string or one list of token ids", value)
    return check_ids(value)


def parse_token(value: object) -> object:
    """Check a token's id or its text."""
    if isinstance(value, str):
        return check_text(value)
    if type(value) is not int or value < 0:
        raise fault("must be a token's id (an integer of at least 0) or its text", value)
    return value


OnePrompt = Annotated[
    str | list[int],
    PlainValidator(
        parse_one_prompt,
        json_schema_input_type=Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)],
    ),
]
Token = Annotated[
    int | str,
    PlainValidator(
        parse_token, json_schema_input_type=Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)]
    ),
]


class TargetSpec(Request):
    """What is to be explained: a token at a position, or, with `layer` and `neuron`, how active a neuron was."""

    position: int | None = Field(
        None,
        ge=-MAX_POSITION,
        le=MAX_POSITION,
        description="of the token that is explained, by what was read before it; as many as the prompt has tokens (by "
        "default): the token that would follow. Of a neuron: where it is active (by default at the last token). "
        "Negative ones count from the prompt's end",
    )
    token: Token | None = Field(
        None,
        description="its id or its text, which must be one token; by default the prompt's own token at the position, "
        "after the prompt the most probable one",
    )
    layer: LayerIndex | None = Field(None, description="with neuron: TopK layer of the neuron that is explained")
    neuron: LayerIndex | None = None

    @model_validator(mode="after")
    def check_neuron(self) -> Self:
        if (self.layer is None) != (self.neuron is None):
            raise fault("and neuron are given together or not at all", self.layer, "layer")
        if self.neuron is not None and self.token is not None:
            raise fault("must be left out where neuron is given", self.token, "token")
        return self


class AttributionRequest(Request):
    """POST /v1/attributions: which neurons a token, or another neuron, rests on, by ablating each one alone."""

    model: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    prompt: OnePrompt = Field(description="a text gets the tokenizer's BOS, token ids are taken as they are")
    target: TargetSpec | None = Field(None, description="null: the most probable token after the prompt")
    against: Token | None = Field(
        None,
        description="another token's id or text: effects are then on the difference of both tokens' log-probabilities",
    )
    interventions: Edits = []
    layers: Layers = Field("all", description='ablate neurons of these TopK layers; "all" of them')
    positions: Positions = Field(
        "all",
        description="ablate neurons at these positions, those before the target; an attribution may compute at most "
        f"{MAX_ATTRIBUTION_ROWS} positions, for each neuron those from its own to the target",
    )
    top_n: int = Field(
        DEFAULT_TOP_NEURONS, ge=0, le=MAX_NEURONS, description="neurons to return, largest effects first"
    )
    min_effect: float = Field(0.0, ge=0, description="return only neurons whose effect is at least this, either way")
    graph: bool = Field(False, description="return which of the strongest neurons hold up which others")
    max_nodes: int = Field(
        DEFAULT_NODES,
        ge=1,
        le=MAX_NODES,
        description=f"neurons of the graph; together with interventions at most {MAX_INTERVENTIONS}",
    )
    stream: bool = Field(False, description="events of progress, the last event is the attribution")
    timeout_s: float | None = Field(None, gt=0, le=MAX_TIMEOUT_S)

    @model_validator(mode="after")
    def check_together(self) -> Self:
        if self.against is not None and self.target is not None and self.target.neuron is not None:
            raise fault("must be left out where target.neuron is given", self.against, "against")
        if self.graph and self.max_nodes + len(self.interventions) > MAX_INTERVENTIONS:
            raise fault(
                f"must be at most {MAX_INTERVENTIONS - len(self.interventions)} beside {len(self.interventions)} "
                "interventions",
                self.max_nodes,
                "max_nodes",
            )
        return self
