"""Ablations beside the engine: equal to requests that ablate the same, by the compiled step to the bit."""

import random
import threading

import numpy as np
import pytest

from service.engine.ablation import EVERY_NEURON, Ablations, OverflowedError, Watched
from service.engine.native.binding import NativeError
from tests.support.tiny import make_request, prompt, run, tiny_core, tiny_model, trace
from topk_model.interventions import Condition, Intervention
from topk_model.traces import TraceSpec

NUM_LAYERS, WIDTH = 2, 64
EDITS = (
    Intervention(layers=(0, 1), neuron=5, op="set", value=2.0),
    Intervention(layers=(1,), neuron=9, op="add", value=1.5, site="pre_topk", start=3),
    Intervention(
        layers=(1,), neuron=11, op="set", value=3.0, conditions=(Condition(layer=0, neuron=5, test="active"),)
    ),
)


def ablations(*runs: tuple[int, int, int, int, bool]) -> Ablations:
    """(layer, neuron, start, end, through all later layers)"""
    layers, neurons, starts, ends, through = (np.array(column) for column in zip(*runs, strict=True))
    return Ablations(layers=layers, neurons=neurons, starts=starts, ends=ends, is_through=through)


def as_edits(layer: int, neuron: int, start: int, end: int, through: bool) -> tuple[Intervention, ...]:
    layers = tuple(range(layer, NUM_LAYERS)) if through else (layer,)
    neurons = range(WIDTH) if neuron == EVERY_NEURON else (neuron,)
    return tuple(
        Intervention(layers=layers, neuron=one, op="ablate", start=start, end=end, include_special=True)
        for one in neurons
    )


@pytest.mark.parametrize(("step", "tolerance"), [("compiled", 0.0), ("torch", 1e-5)])
@pytest.mark.parametrize("edits", [(), EDITS], ids=["plain", "edited"])
@pytest.mark.parametrize("length", [7, 50])
def test_each_run_is_a_request_that_ablates_the_same(
    step: str, tolerance: float, edits: tuple[Intervention, ...], length: int
) -> None:
    core, rng = tiny_core(cpu_step=step), random.Random(length)
    ids, target = prompt(length), 17
    ablator = core.runner.ablator(ids, edits, range(NUM_LAYERS), 2)
    reading = ablator.read((target,), num_top=2)

    def by_request(extra: tuple[Intervention, ...]) -> tuple[float, np.ndarray]:
        fields = {"prompt_ids": (*ids, target), "max_tokens": 0, "interventions": (*edits, *extra)}
        spec = TraceSpec(layers=(0, 1), end=length)
        events = run(core, make_request(prompt_logprobs=0, trace=spec, **fields))["r"]
        scored = [one for event in events for one in getattr(event, "logprobs", ())]
        return scored[length].logprob, trace(events)

    plain, read = by_request(())
    assert reading.logprobs[0] == pytest.approx(plain, abs=tolerance)
    assert reading.top[0][1] >= reading.top[1][1]
    assert (reading.trace.offsets == read.offsets).all()
    assert (reading.trace.indices == read.indices).all()
    runs = []
    for _ in range(40):
        state = rng.randrange(length * NUM_LAYERS)
        neuron = int(rng.choice(reading.trace.indices[slice(*reading.trace.offsets[state : state + 2])]))
        position = state // NUM_LAYERS
        runs.append((state % NUM_LAYERS, neuron, position, position + 1, False))
    room = not edits  # a request has no more edits than the model has neurons
    position = rng.randrange(length)
    runs += [(0, EVERY_NEURON, position, position + 1, True), (1, EVERY_NEURON, 0, length, False)] if room else []
    runs += [(0, EVERY_NEURON, 0, length, True)] if room else []
    rng.shuffle(runs)
    watched = [Watched(layer=1, position=length - 1, neuron=int(reading.trace.indices[-1]))]
    every = ablations(*runs)
    found, values = np.empty(len(runs)), np.empty(len(runs))
    for batch in ablator.batches(every):
        outcome = ablator.run(every.part(batch), (target,), watched)
        found[batch], values[batch] = outcome.logprobs[:, 0], outcome.values[:, 0]
    for one, got, value in zip(runs, found, values, strict=True):
        expected, chunk = by_request(as_edits(*one))
        assert got == pytest.approx(expected, abs=tolerance), one
        last = slice(*chunk.offsets[-2:])
        at = chunk.indices[last] == watched[0].neuron
        assert value == pytest.approx(chunk.values[last][at].sum(), abs=tolerance * 10), one
    ablator.close()


@pytest.mark.parametrize(("step", "tolerance"), [("compiled", 0.0), ("torch", 1e-5)])
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_model_without_dense_layers_is_ablated_up_to_its_last(step: str, tolerance: float, layer: int) -> None:
    core, ids, target = tiny_core(tiny_model(n_nontopk=0), cpu_step=step), prompt(20), 17
    ablator = core.runner.ablator(ids, (), range(4), 1)
    trace_of = ablator.read((target,)).trace
    for position in (12, 19):
        state = position * 4 + layer
        neuron = int(trace_of.indices[trace_of.offsets[state]])
        one = (layer, neuron, position, position + 1, False)
        fields = {"prompt_ids": (*ids, target), "max_tokens": 0, "interventions": as_edits(*one)}
        events = run(core, make_request(prompt_logprobs=0, **fields))["r"]
        expected = [scored for event in events for scored in getattr(event, "logprobs", ())][20].logprob
        assert ablator.run(ablations(one), (target,)).logprobs[0, 0] == pytest.approx(expected, abs=tolerance)


def test_an_ablator_counts_what_edits_do_and_tells_of_overflow() -> None:
    core = tiny_core(cpu_step="compiled")
    edit = Intervention(layers=(0,), neuron=5, op="set", value=2.0)
    reading = core.runner.ablator(prompt(9), (edit,), (0, 1), 1).read()
    assert reading.receipts[0].positions_applied == 8
    strong = (edit, *[Intervention(layers=(0,), neuron=5, op="scale", value=1e9)] * 6)
    for step in ("compiled", "torch"):
        ablator = tiny_core(cpu_step=step).runner.ablator(prompt(9), strong, (0, 1), 1)
        with pytest.raises(OverflowedError):
            ablator.read()


def test_an_ablator_in_another_thread_changes_nothing_of_the_engine() -> None:
    core = tiny_core(cpu_step="compiled")
    request = make_request(length=40, max_tokens=60, logprobs=2)
    alone = run(core, request)
    is_over, failed = threading.Event(), []

    def ablate() -> None:
        try:
            while not is_over.is_set():
                ablator = core.runner.ablator(prompt(30), EDITS, (0, 1), 2)
                ablator.read((3,))
                ablator.run(ablations((0, EVERY_NEURON, 0, 30, True)), (3,))
                ablator.close()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=ablate)
    thread.start()
    beside = run(core, request)
    is_over.set()
    thread.join()
    assert not failed
    assert [repr(event) for event in beside["r"]][1:] == [repr(event) for event in alone["r"]][1:]


def test_weights_that_are_shared_outlive_the_engine_and_are_not_loaded_again() -> None:
    core = tiny_core(tiny_model(), cpu_step="compiled")
    ablator = core.runner.ablator(prompt(9), (), (0, 1), 1)
    with pytest.raises(NativeError):
        core.runner.engine.load("final_norm", np.ones(WIDTH, dtype=np.float32))
    first = ablator.read((3,)).logprobs
    core.runner.engine.close()
    assert ablator.read((3,)).logprobs == first


@pytest.mark.parametrize(
    ("counts", "indices"),
    [
        ([[2]], [3, 4, 5]),  # more entries than are counted
        ([[4]], [3, 4, 5]),  # fewer
        ([[3]], [3, 5, 4]),  # not ascending
        ([[3]], [3, 3, 4]),
        ([[3]], [-1, 3, 4]),
        ([[3]], [3, 4, WIDTH]),
        ([[-1]], []),
        ([[WIDTH + 1]], list(range(WIDTH))),
    ],
)
def test_a_state_to_begin_with_that_does_not_fit_is_refused(counts: list[list[int]], indices: list[int]) -> None:
    ablator = tiny_core(cpu_step="compiled").runner.ablator(prompt(9), (), (0, 1), 1)
    ablator.read()
    ablator.run(ablations((0, 3, 8, 9, False)), ())
    pieces = np.array([[0, 8, 1, 0, 0, 0, 0, 0]], dtype=np.int32)
    start = (
        np.array(counts, dtype=np.int32),
        np.array(indices, dtype=np.int32),
        np.ones(len(indices), dtype=np.float32),
    )
    with pytest.raises(NativeError) as caught:
        ablator._step(pieces, np.array([5], dtype=np.int32), [], first_layer=1, start=start)
    assert caught.value.status == 13
