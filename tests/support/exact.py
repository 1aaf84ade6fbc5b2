"""Events of the engine, compared by every bit."""

from dataclasses import fields

import numpy as np

from topk_model.traces import TraceChunk


def bits(events: list[object]) -> list[object]:
    """Events in a form whose equality is that of every bit; when something happened is no part of it."""

    def exact(value: object) -> object:
        if isinstance(value, np.ndarray):
            return value.tobytes()
        if isinstance(value, TraceChunk):
            return {field.name: exact(getattr(value, field.name)) for field in fields(value)}
        return repr(value)

    return [
        (type(event).__name__, [exact(getattr(event, f.name)) for f in fields(event) if f.name != "admitted_at"])
        for event in events
    ]
