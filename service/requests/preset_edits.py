"""Steering presets by name: each becomes the edit that it stands for. Knows no engine and no transport."""

from collections.abc import Sequence

from service.errors import BadRequestError, invalid
from service.requests.edit_schema import (
    InterventionSpec,
    PresetSpec,
)
from service.requests.limits import (
    MAX_ABS_VALUE,
)
from topk_model.interventions import Op
from topk_model.steering.presets import Preset

VERSION_SEPARATOR = "@"
#: The operation that uses a preset's value.
OP: Op = "add"


def edit_of(spec: PresetSpec, path: str, presets: Sequence[Preset], model_id: str) -> InterventionSpec:
    """The edit that a preset of the model stands for; `path` is its path in the request.

    Raises:
        BadRequestError: the model has no such preset, or its strength makes the value larger than an edit may have.
    """
    name, _, version = spec.preset.partition(VERSION_SEPARATOR)
    named = [preset for preset in presets if preset.name == name]
    found = [preset for preset in named if str(preset.version) == version or VERSION_SEPARATOR not in spec.preset]
    if not found:
        rule = f"left out: model {model_id} has no presets"
        if presets:
            versions = [f"{preset.name}{VERSION_SEPARATOR}{preset.version}" for preset in named]
            rule = "one of " + ", ".join(versions or sorted({preset.name for preset in presets}))
        raise BadRequestError(f"{path}.preset must be {rule}, got {spec.preset[:100]!r}", param=f"{path}.preset")
    preset = max(found, key=lambda one: one.version)
    value = preset.value * spec.strength
    if abs(value) > MAX_ABS_VALUE:
        most = MAX_ABS_VALUE / abs(preset.value)
        raise invalid(f"{path}.strength", f"must be at most {most:g} for {preset.name}", spec.strength)
    return InterventionSpec(
        layer=preset.layer,
        neuron=preset.neuron,
        op=OP,
        value=value,
        positions=spec.positions,
    )
