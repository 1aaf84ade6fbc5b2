"""Sequences that share too few KV blocks: each gets what it needs in turn, and its numbers stay its own."""

import random

import pytest

from service.engine.core import EngineCore
from service.engine.request import EngineRequest, FinishEvent, SamplingParams
from tests.support.exact import bits
from tests.support.tiny import make_request, prompt, run, tiny_core, tiny_model
from topk_model.interventions import Intervention
from topk_model.traces import TraceSpec

STEPS = ["compiled", "torch"]


def small_core(cpu_step: str, num_blocks: int = 6) -> EngineCore:
    """Room for 96 positions in all."""
    return tiny_core(tiny_model(), num_blocks=num_blocks, max_num_seqs=8, prefill_chunk=16, cpu_step=cpu_step)


def rich_request(name: str, rng: random.Random) -> EngineRequest:
    """A request of up to 60 positions with everything that could be counted twice."""
    edit = Intervention(layers=(0, 1), neuron=rng.randrange(60), op="add", value=2.0, unit_values=(1.0, 1.0))
    return EngineRequest(
        request_id=name,
        prompt_ids=prompt(rng.randrange(3, 30), seed=rng.randrange(100)),
        max_tokens=rng.randrange(8, 30),
        ignore_eos=True,
        sampling=SamplingParams(
            temperature=0.8, seed=rng.randrange(100), presence_penalty=0.5, frequency_penalty=0.25, top_p=0.9
        ),
        logprobs=rng.choice([None, 2]),
        prompt_logprobs=rng.choice([None, 1]),
        interventions=rng.choice([(), (edit,)]),
        trace=rng.choice([None, TraceSpec(layers=(0, 1)), TraceSpec(layers=(1,), start=5)]),
    )


@pytest.mark.parametrize("cpu_step", STEPS)
def test_a_preempted_request_says_the_same_as_alone(cpu_step: str) -> None:
    core = small_core(cpu_step)
    rng = random.Random(7)
    requests = [rich_request(str(i), rng) for i in range(8)]
    together = run(core, *requests)
    assert core.scheduler.num_preemptions > 0
    for request in requests:
        assert bits(run(core, request)[request.request_id]) == bits(together[request.request_id])
    assert core.scheduler.blocks.num_free == core.scheduler.blocks.num_blocks


@pytest.mark.parametrize("cpu_step", STEPS)
def test_two_requests_that_could_each_fill_the_cache_run_beside_each_other(cpu_step: str) -> None:
    core = small_core(cpu_step)
    for name in ("a", "b"):
        core.add(make_request(name, length=4, max_tokens=90))
    core.step(0.0)
    assert len(core.scheduler.running) == 2


def test_the_request_admitted_first_always_goes_on() -> None:
    core = small_core("torch")
    for name in ("first", "second", "third"):
        core.add(make_request(name, length=8, max_tokens=80, ignore_eos=True))
    finished = []
    for _ in range(600):
        core.step(0.0)
        finished += [name for name, event in core.take_events() if isinstance(event, FinishEvent)]
        if core.is_idle:
            break
    assert finished == ["first", "second", "third"]
    assert core.scheduler.num_preemptions > 0


def test_aborting_a_preempted_request_frees_all() -> None:
    core = small_core("torch")
    for name in ("a", "b", "c"):
        core.add(make_request(name, length=30, max_tokens=60, ignore_eos=True))
    for _ in range(200):
        core.step(0.0)
        if any(sequence.is_preempted for sequence in core.scheduler.running):
            break
    assert any(sequence.is_preempted for sequence in core.scheduler.running)
    for sequence in core.scheduler.all():
        core.finish(sequence, "abort")
    assert core.is_idle
    assert core.scheduler.blocks.num_free == core.scheduler.blocks.num_blocks
