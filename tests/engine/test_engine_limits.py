"""The engine on a tiny model: what it refuses, what it frees, and what it survives."""

import time

import pytest

from service.engine.config import EngineConfig
from service.engine.request import FinishEvent
from tests.support.engine.engine_checks import ALL, assert_nothing_held, force
from tests.support.tiny import finish, make_request, run, tiny_core, tokens
from topk_model.traces import TraceSpec


def test_a_stop_condition_that_fails_fails_alone():
    def broken(token_id):
        raise RuntimeError("of the test")

    core = tiny_core()
    events = run(core, make_request("bad", is_stop=broken), make_request("good"))
    assert finish(events["bad"]).reason == "error"
    assert "RuntimeError" not in (finish(events["bad"]).error or "")
    assert tokens(events["good"]) == tokens(run(core, make_request())["r"])
    assert_nothing_held(core)


def test_a_request_that_overflows_fails_alone_and_leaves_no_poison():
    core = tiny_core(num_blocks=2)  # the next sequence gets the same blocks, and fills them less far
    plain = tokens(run(core, make_request(length=20))["r"])
    huge = tuple(force(op="scale", value=1e4, layers=(0, 1)) for _ in range(32))
    events = run(core, make_request("bad", length=24, interventions=(force(), *huge)))
    assert finish(events["bad"]).reason == "overflow"
    assert "infinity" in (finish(events["bad"]).error or "")
    assert tokens(run(core, make_request(length=20))["r"]) == plain
    assert_nothing_held(core)


@pytest.mark.parametrize("max_tokens", [0, 4])
def test_an_overflow_in_an_early_layer_is_no_answer(max_tokens):
    huge = tuple(force(op="scale", value=1e4, layers=(0,)) for _ in range(32))
    events = run(tiny_core(), make_request(max_tokens=max_tokens, trace=ALL, interventions=(force(layers=(0,)), *huge)))
    assert finish(events["r"]).reason == "overflow"


def test_a_request_that_cannot_be_opened_fails_alone():
    core = tiny_core()
    beyond = force(end=2**63)  # of more bits than a table's column
    events = run(core, make_request("bad", interventions=(beyond,)), make_request("good"))
    assert finish(events["bad"]).reason == "error"
    assert tokens(events["good"]) == tokens(run(core, make_request())["r"])
    assert_nothing_held(core)


def test_a_step_that_fails_loses_its_own_sequences_only(monkeypatch):
    core = tiny_core(max_num_seqs=1)
    real_run, calls = core.runner.run, []

    def failing(pieces):
        calls.append(pieces)
        if len(calls) == 2:
            raise RuntimeError("of the test")
        return real_run(pieces)

    monkeypatch.setattr(core.runner, "run", failing)
    events = run(core, make_request("first"), make_request("second"))
    assert finish(events["first"]).reason == "error"
    assert finish(events["second"]).reason == "length"
    assert_nothing_held(core)


def test_a_step_reads_decodes_and_prompts_together():
    core = tiny_core()
    core.add(make_request("a", length=10, max_tokens=20))
    core.step(time.monotonic())
    core.add(make_request("b", length=150, max_tokens=2))
    kinds = []
    for _ in range(3):
        for sequence in core.scheduler.admit():
            core.runner.open(sequence)
        kinds.append([(p.sequence.request_id, p.num_tokens) for p in core.scheduler.plan()])
        core.step(time.monotonic())
    assert kinds == [[("a", 1), ("b", 64)], [("a", 1), ("b", 64)], [("a", 1), ("b", 22)]]


def test_admission_waits_for_blocks_and_nothing_is_put_back():
    core = tiny_core(num_blocks=4)  # 64 positions
    requests = [make_request(str(i), length=30, max_tokens=10) for i in range(5)]
    expected = tokens(run(tiny_core(), requests[0])["0"])
    for request in requests:
        core.add(request)
    core.step(time.monotonic())
    assert (len(core.scheduler.running), len(core.scheduler.waiting)) == (1, 4)
    while not core.is_idle:
        core.step(time.monotonic())
    core.take_events()
    assert_nothing_held(core)
    assert all(tokens(e) == expected for e in run(core, *requests).values())


def test_a_request_larger_than_the_cache_is_refused():
    with pytest.raises(ValueError, match="needs 5 KV blocks"):
        tiny_core(num_blocks=4).check(make_request(length=60, max_tokens=10))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt_ids": ()}, "at least one prompt token"),
        ({"prompt_ids": (101,)}, "vocabulary of 101"),
        ({"max_tokens": -1}, "at least 0"),
        ({"interventions": (force(neuron=64),)}, "neuron 64"),
        ({"interventions": (force(layers=(2,)),)}, "layer 2 is not a TopK layer"),
        ({"interventions": (force(),) * 65}, "65 interventions, but at most 64"),
        ({"trace": TraceSpec(layers=(3,))}, "not all TopK layers"),
    ],
)
def test_a_request_that_cannot_run_is_refused_before_it_reaches_a_step(fields, says):
    with pytest.raises(ValueError, match=says):
        tiny_core().check(make_request(**({"max_tokens": 4} | fields)))


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
def test_abort_at_any_point_frees_everything(num_steps):
    core = tiny_core()
    for i in range(3):
        core.add(make_request(str(i), length=100, max_tokens=50, interventions=(force(),), trace=ALL))
    for _ in range(num_steps):
        core.step(time.monotonic())
    for sequence in core.scheduler.all():
        core.finish(sequence, "abort")
    reasons = [event.reason for _, event in core.take_events() if isinstance(event, FinishEvent)]
    assert reasons == ["abort"] * 3
    assert_nothing_held(core)


def test_a_deadline_drops_running_and_waiting_requests():
    core = tiny_core(max_num_seqs=1)
    now = time.monotonic()
    core.add(make_request("running", max_tokens=100, deadline=now + 10))
    core.add(make_request("waiting", deadline=now + 10))
    core.step(now)
    core.step(now + 11)
    ends = {i: e.reason for i, e in core.take_events() if isinstance(e, FinishEvent)}
    assert ends == {"running": "deadline", "waiting": "deadline"}
    assert_nothing_held(core)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"block_size": 8}, "multiple of 16"),
        ({"max_step_tokens": 90}, "at least max_num_seqs"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, says):
    with pytest.raises(ValueError, match=says):
        EngineConfig(**sizes)
