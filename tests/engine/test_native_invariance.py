"""The compiled step: a request's numbers depend on nothing but the request, to the bit.

`TOPK_MIXTURES` says how many requests of random mixtures are compared with each alone.
"""

import os
import random
from typing import Any

import numpy as np
import pytest

from service.engine.core import EngineCore
from service.engine.native import binding, build
from service.engine.native.runner import CompiledRunner
from service.engine.request import EngineRequest, Event, FinishEvent, PromptEvent, TokenEvent
from tests.support.engine.random_requests import random_request
from tests.support.tiny import run, tiny_core, tiny_model

NUM_CASES = int(os.environ.get("TOPK_MIXTURES", "240"))

try:
    build.library()
except build.BuildError as error:
    pytest.skip(f"no compiled step: {error}", allow_module_level=True)


def compiled(model: Any = None, **sizes: object) -> EngineCore:
    core = tiny_core(model, cpu_step="compiled", **sizes)
    assert isinstance(core.runner, CompiledRunner)
    return core


def bits(events: list[Event]) -> list[object]:
    """Everything that a request was told, whatever its prompt was cut into, in a form that compares every bit."""
    logprobs: list[object] = []
    counts: list[Any] = []
    indices = b""
    values = b""
    for event in events:
        if isinstance(event, FinishEvent):
            return [repr(logprobs), b"".join(counts), indices, values, repr(event)]
        logprobs += event.logprobs if isinstance(event, PromptEvent) else [event.token_id, event.logprobs]
        if event.trace is not None:
            counts.append(np.diff(event.trace.offsets).tobytes())
            indices += event.trace.indices.tobytes()
            values += event.trace.values.tobytes()
    raise AssertionError("no end")


def assert_equal_alone(together: EngineCore, alone: EngineCore, requests: list[EngineRequest]) -> None:
    results = run(together, *requests)
    for request in requests:
        (events,) = run(alone, request).values()
        assert bits(results[request.request_id]) == bits(events), request
    assert together.scheduler.blocks.num_free == together.config.num_blocks


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("select", ["signed", "abs"])
def test_random_mixtures_equal_each_alone(weights, select):
    """Rows, lengths, edits, seeds, cuts of the prompt, threads and the sparse product may differ; no bit does."""
    rng = random.Random(f"{weights} {select}")
    alone = compiled(tiny_model(topk_select=select), weights=weights)
    variants = [
        compiled(tiny_model(topk_select=select), weights=weights, **sizes)
        for sizes in (
            {"num_threads": 2},
            {"prefill_chunk": 16, "max_num_seqs": 5, "max_step_tokens": 21, "num_threads": 2},
            {"prefill_chunk": 7, "max_num_seqs": 3, "max_step_tokens": 200, "block_size": 32},
        )
    ]
    variants[0].runner.engine.prefer_sparse(2)
    variants[1].runner.engine.prefer_sparse(1)
    left = max(1, NUM_CASES // 6)
    while left > 0:
        requests = [random_request(rng, str(i)) for i in range(min(left, rng.randrange(1, 40)))]
        assert_equal_alone(rng.choice(variants), alone, requests)
        left -= len(requests)


@pytest.mark.parametrize(
    "shape",
    [
        {"hidden_size": 80, "intermediate_size": 50, "num_attention_heads": 5, "num_key_value_heads": 1},
        {"head_dim": 6, "vocab_size": 131, "topk_k": 80, "hidden_size": 80, "num_attention_heads": 2},
        {"head_dim": 70, "num_attention_heads": 4, "num_key_value_heads": 4, "topk_k": 1},
    ],
)
def test_shapes_that_fill_no_register(shape):
    rng = random.Random(3)
    requests = [random_request(rng, str(i)) for i in range(12)]
    assert_equal_alone(
        compiled(tiny_model(**shape), num_threads=2, prefill_chunk=16), compiled(tiny_model(**shape)), requests
    )


@pytest.mark.timeout(600)  # it may compile
@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="the processor's features cannot be read")
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_every_instruction_set_gives_the_same_bits(weights, monkeypatch):
    """The plain loops stand for those that this machine does not have."""
    isas = {build.best_isa(), "portable"} | ({"avx2"} if build.best_isa() == "avx512" else set())
    rng = random.Random(4)
    requests = [random_request(rng, str(i)) for i in range(16)]
    told = {}
    for isa in isas:
        library = binding.load_library(build.library(isa))
        monkeypatch.setattr("service.engine.native.choice._library", lambda library=library: library)
        core = compiled(tiny_model(), weights=weights)
        told[core.runner.engine.isa] = [bits(events) for events in run(core, *requests).values()]
    assert len(told) == len(isas)
    assert all(result == told["portable"] for result in told.values())


def test_the_law_can_be_broken():
    """Other weights give other bits, so the comparison does look at what matters."""
    rng = random.Random(2)
    requests = [random_request(rng, str(i)) for i in range(8)]
    ours, theirs = (run(compiled(tiny_model(seed)), *requests) for seed in (0, 1))
    assert all(bits(ours[i]) != bits(theirs[i]) for i in ours)


def test_an_unfinished_token_event_is_no_end():
    with pytest.raises(AssertionError, match="no end"):
        bits([TokenEvent(token_id=1)])
