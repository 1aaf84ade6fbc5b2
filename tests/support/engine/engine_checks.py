"""An edit that tests of the engine make, and what they read from its events."""

from service.engine.request import PromptEvent, TokenEvent
from topk_model.interventions import Intervention
from topk_model.traces import TraceSpec

ALL = TraceSpec(layers=(0, 1))


def force(neuron=5, value=6.0, layers=(1,), **fields):
    return Intervention(
        **(
            {"layers": layers, "neuron": neuron, "op": "set", "value": value, "unit_values": (1.0,) * len(layers)}
            | fields
        )
    )


def assert_nothing_held(core):
    assert core.scheduler.blocks.num_free == core.config.num_blocks
    assert not core.scheduler.running
    assert not core.scheduler.waiting
    assert len(core.scheduler._free_slots) == core.config.max_num_seqs


def logprobs_of(events):
    """Of every token but the first, prompt and generated."""
    of_prompt = [entry for event in events if isinstance(event, PromptEvent) for entry in event.logprobs if entry]
    return [e.logprob for e in of_prompt] + [e.logprobs.logprob for e in events if isinstance(e, TokenEvent)]
