"""Requests and edits at random, for tests that compare two ways of running them."""

import random

from hypothesis import strategies as st

from service.engine.request import EngineRequest, SamplingParams
from tests.support.tiny import prompt
from topk_model.interventions import Condition, Intervention
from topk_model.traces import TraceSpec


def random_request(rng: random.Random, request_id: str) -> EngineRequest:
    """Any mixture of lengths, sampling rules, edits and traces."""

    def edit() -> Intervention:
        layers = rng.choice([(0,), (1,), (0, 1)])
        condition = Condition(
            layer=0, neuron=rng.randrange(64), test=rng.choice(["active", "inactive", "above"]), value=0.1
        )
        return Intervention(
            layers=layers,
            neuron=rng.randrange(64),
            op=rng.choice(["set", "add", "scale", "ablate", "clamp"]),
            value=rng.uniform(-3, 3),
            min=rng.choice([None, 0.5]),
            max=1.0,
            unit_values=rng.choice([None, (1.0,) * len(layers)]),
            site=rng.choice(["pre_topk", "post_topk"]),
            conditions=(condition,) * rng.randrange(2),
        )

    return EngineRequest(
        request_id=request_id,
        prompt_ids=prompt(rng.choice([1, 2, 5, 17, 63, 64, 65, 100, 130]), seed=rng.randrange(10**6)),
        max_tokens=rng.randrange(0, 12),
        sampling=SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.0]),
            top_p=rng.choice([0.9, 1.0]),
            top_k=rng.choice([0, 5]),
            min_p=rng.choice([0.0, 0.05]),
            presence_penalty=rng.choice([0.0, 0.5]),
            frequency_penalty=rng.choice([0.0, 0.3]),
            logit_bias=rng.choice([(), ((5, 2.0),)]),
            seed=rng.randrange(2**63),
        ),
        logprobs=rng.choice([None, 0, 3]),
        prompt_logprobs=rng.choice([None, 2]),
        interventions=tuple(edit() for _ in range(rng.randrange(4))),
        trace=rng.choice(
            [None, TraceSpec(layers=(0, 1)), TraceSpec(layers=(1,), top_n=3), TraceSpec(layers=(1, 0), start=3)]
        ),
    )


numbers = st.sampled_from([-3.0, -0.5, 0.0, 0.25, 1.0, 2.5])


@st.composite
def interventions(draw, num_layers: int = 3):
    """Edits of few neurons, so that they meet, of a model of 16 with so many TopK layers."""
    layers = tuple(sorted(draw(st.sets(st.integers(0, num_layers - 1), min_size=1))))
    op = draw(st.sampled_from(["set", "add", "scale", "ablate", "clamp"]))
    low, high = sorted((draw(numbers), draw(numbers)))
    conditions = st.builds(
        Condition,
        layer=st.integers(0, layers[0]),
        neuron=st.integers(0, 15),
        test=st.sampled_from(["active", "inactive", "above"]),
        value=numbers,
    )
    return Intervention(
        layers=layers,
        neuron=draw(st.integers(0, 3)),
        op=op,
        value=draw(numbers),
        min=low if op == "clamp" else None,
        max=draw(st.sampled_from([None, high])) if op == "clamp" else None,
        unit_values=draw(st.sampled_from([None, (1.0,) * len(layers), (2.0, 0.5, 4.0)[: len(layers)]])),
        site=draw(st.sampled_from(["post_topk", "pre_topk"])),
        start=draw(st.sampled_from([0, 2])),
        end=draw(st.sampled_from([None, 3])),
        include_special=draw(st.booleans()),
        conditions=tuple(draw(st.lists(conditions, max_size=2))),
    )
