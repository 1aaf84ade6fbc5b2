"""Events of the engine, compared by every bit."""

import numpy as np

from topk_model.traces import TraceChunk


def bits(events: list[object]) -> list[object]:
    """Events in a form whose equality is that of every bit; when something happened is no part of it."""

    def exact(value: object) -> object:
        if isinstance(value, np.ndarray):
            return value.tobytes()
        if isinstance(value, TraceChunk):
            return {name: exact(part) for name, part in vars(value).items()}
        return repr(value)

    return [
        (type(event).__name__, {name: exact(part) for name, part in vars(event).items() if name != "admitted_at"})
        for event in events
    ]
