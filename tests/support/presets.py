"""A preset, for tests that need one and do not look for it."""

from topk_model.steering.presets import Measured, Preset


def preset(name: str = "sea", **fields) -> Preset:
    found = Measured(log_odds=1.2, cost=0.1)
    defaults = {"version": 1, "layer": 1, "neuron": 3, "value": 2.5, "strength": 0.5, "words": ("sea",), "found": found}
    return Preset(name=name, **(defaults | fields))
