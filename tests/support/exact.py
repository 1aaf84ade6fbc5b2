"""Events of the engine, compared by every bit."""

from dataclasses import fields

import numpy as np

from service.engine.request import PromptEvent
from topk_model.traces import TraceChunk, concatenate


def bits(events: list[object]) -> list[object]:
    """Events in a form whose equality is that of every bit; when something happened is no part of it."""

    def exact(value: object) -> object:
        if isinstance(value, np.ndarray):
            return value.tobytes()
        if isinstance(value, TraceChunk):
            return {field.name: exact(getattr(value, field.name)) for field in fields(value)}
        return repr(value)

    return [
        (type(event).__name__, [exact(getattr(event, f.name)) for f in fields(event)])
        for event in with_one_prompt(events)
    ]


def with_one_prompt(events: list[object]) -> list[object]:
    """The events with what they say of the prompt in one, whatever it was cut into and whoever had read it before."""
    parts = [event for event in events if isinstance(event, PromptEvent)]
    chunks = [part.trace for part in parts if part.trace is not None]
    whole = PromptEvent(
        num_tokens=sum(part.num_tokens for part in parts),
        logprobs=tuple(entry for part in parts for entry in part.logprobs),
        trace=concatenate(chunks) if chunks else None,
    )
    return [whole, *(event for event in events if not isinstance(event, PromptEvent))]
