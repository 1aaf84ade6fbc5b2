"""The playground's views "Read" and "Training": their addresses, and what they show of a trace."""

import math
import re
from typing import Any
from urllib.parse import quote

import numpy as np
from playwright.sync_api import Locator, Page

from tests.support.served import MODEL_ID, Served
from topk_model.traces import Trace

TEXT = "Once upon a time, there was a <b>king</b>.\n\nThe soldier said that he would not go back to the war."
STEPS = (64, 128, 256)


def trace_of(served: Served, text: str = TEXT, model: str = MODEL_ID, **fields: Any) -> Trace:
    reply = served.post("/v1/activations", model=model, input=text, **fields)
    assert reply.status_code == 200, reply.text
    return Trace.read(reply.json()["data"][0]["trace"])


def busiest(trace: Trace, place: int) -> int:
    """The neuron of a layer that is active at most, but not at all, tokens."""
    counts = (trace.dense()[:, place] > 0).sum(axis=0)
    counts[counts == len(trace.tokens)] = 0
    return int(counts.argmax())


def read_address(neuron: str = "", text: str = TEXT) -> str:
    return f"#/read?text={quote(text)}" + (f"&neuron={neuron}" if neuron else "")


def tokens_of(page: Page, name: str = "Text") -> Locator:
    return page.get_by_role("listbox", name=f"Tokens: {name}").get_by_role("option")


def steps_of_shade(values: np.ndarray[Any, Any]) -> list[int]:
    """What `shade` of the page gives, in 0 to 8, where the strongest is the scale."""
    return [min(8, math.ceil(8 * value / values.max())) if value > 0 else 0 for value in values]


def shown_shades(tokens: Locator) -> list[int]:
    classes = tokens.evaluate_all("all => all.map((token) => token.className)")
    return [int(re.findall(r"shade-(\d)", names)[0]) for names in classes]


def training_address(**fields: Any) -> str:
    return f"#/training?text={quote(TEXT)}" + "".join(f"&{name}={value}" for name, value in fields.items())
