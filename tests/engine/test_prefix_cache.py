"""Beginnings that sequences share: read once, never under other edits, and no number changes, to the bit."""

import random
from dataclasses import replace

import pytest
import torch

from service.engine.blocks import BlockPool
from service.engine.core import EngineCore
from service.engine.native import choice
from service.engine.prefixes import Prefixes
from service.engine.request import EngineRequest, FinishEvent, PromptEvent, SamplingParams
from service.engine.sequence import Sequence
from tests.support.engine.engine_checks import ALL, assert_nothing_held, force
from tests.support.engine.random_requests import random_request
from tests.support.exact import bits
from tests.support.tiny import finish, make_request, prompt, run, tiny_core, tokens
from topk_model.traces import TraceSpec

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="bitwise invariance is promised on CPU only")


@pytest.fixture(params=["compiled", "torch"])
def cpu_step(request: pytest.FixtureRequest) -> str:
    if request.param == "compiled" and choice.find_library("auto") is None:
        pytest.skip("there is no compiled step on this machine")
    return str(request.param)


def sampled(name: str, **fields: object) -> EngineRequest:
    seed = sum(name.encode())
    return make_request(name, length=100, sampling=SamplingParams(temperature=0.8, seed=seed), **fields)


def cold(cpu_step: str, request: EngineRequest) -> list[object]:
    """What a request is told by an engine that has seen no other."""
    return bits(run(tiny_core(cpu_step=cpu_step, prefix_cache=False), request)[request.request_id])


def hits(core: EngineCore) -> int:
    return core.scheduler.num_prefix_hits


def whole(cpu_step: str, num_tokens: int) -> int:
    """Of so many tokens, those that can be taken over: whole blocks, or with torch whole pieces."""
    unit = 16 if cpu_step == "compiled" else 64
    return num_tokens // unit * unit


def test_a_prompt_that_was_read_is_not_read_again(cpu_step: str) -> None:
    core = tiny_core(cpu_step=cpu_step)
    run(core, sampled("a"))
    num_read = core.num_prompt_tokens
    again = run(core, sampled("b"))["b"]
    assert num_read == 100
    assert hits(core) == whole(cpu_step, 99)
    assert core.num_prompt_tokens == num_read + 100 - hits(core)
    prompts = [event for event in again if isinstance(event, PromptEvent)]
    assert sum(event.num_tokens for event in prompts) == 100
    assert sum(event.num_cached for event in prompts) == hits(core)
    assert bits(again) == cold(cpu_step, sampled("b"))
    assert_nothing_held(core)


def test_choices_that_come_together_read_their_prompt_once(cpu_step: str) -> None:
    core = tiny_core(cpu_step=cpu_step)
    requests = [sampled(name) for name in "abcdefgh"]
    together = run(core, *requests)
    rest = 100 - whole(cpu_step, 99)
    assert core.num_prompt_tokens == 100 + 7 * rest
    for request in requests:
        assert bits(together[request.request_id]) == cold(cpu_step, request)
    assert_nothing_held(core)


def test_the_sides_of_a_comparison_share_what_comes_before_the_first_edit(cpu_step: str) -> None:
    core = tiny_core(cpu_step=cpu_step)
    requests = [sampled("plain"), sampled("early", interventions=(force(start=70),)), sampled("late")]
    requests.append(sampled("generated", interventions=(force(start=100),)))
    together = run(core, *requests)
    assert hits(core) == whole(cpu_step, 70) + 2 * whole(cpu_step, 99)
    for request in requests:
        assert bits(together[request.request_id]) == cold(cpu_step, request)


def test_edited_prompts_are_shared_under_the_same_edits_with_what_these_did(cpu_step: str) -> None:
    """Up to the last whole piece, after which it is known what the edits had done."""
    core = tiny_core(cpu_step=cpu_step)
    edits = (force(start=200), force(neuron=7, op="add"), force(neuron=9, start=30, end=90, site="pre_topk"))
    requests = [sampled(name, interventions=edits) for name in "abc"]
    # As far as both have begun, these are the same edits, at other places of the list.
    requests.append(sampled("d", interventions=edits[1:]))
    together = run(core, *requests)
    assert hits(core) == 3 * 64
    for request in requests:
        assert bits(together[request.request_id]) == cold(cpu_step, request)
    receipts = finish(together["c"]).receipts
    assert receipts[0].positions_applied == 0
    assert [receipt.positions_applied for receipt in receipts[1:]] == [106, 60]  # of 107: not the special first token


@pytest.mark.parametrize(
    "other",
    [
        (force(value=6.000001),),
        (force(neuron=6),),
        (force(layers=(0,)),),
        (force(op="add"),),
        (force(end=1000),),
        (force(start=1),),
        (force(include_special=True),),
        (force(site="pre_topk"),),
        (force(unit_values=None),),
        (force(), force(neuron=8)),
        (),
    ],
)
def test_other_edits_share_nothing_that_they_could_change(cpu_step: str, other: tuple[object, ...]) -> None:
    core = tiny_core(cpu_step=cpu_step)
    run(core, sampled("a", interventions=(force(),)))
    request = sampled("b", interventions=other)
    assert bits(run(core, request)["b"]) == cold(cpu_step, request)
    assert hits(core) == 0


@pytest.mark.parametrize(
    ("fields", "num_shared"),
    [
        ({"trace": ALL}, 0),
        ({"trace": TraceSpec(layers=(0,), start=70)}, 70),
        ({"trace": TraceSpec(layers=(0, 1), start=100)}, 99),
        ({"prompt_logprobs": 2, "logprobs": 2}, 0),
        ({"logprobs": 2}, 99),
        ({"max_tokens": 0}, 99),
    ],
)
def test_what_is_asked_of_a_prompt_s_positions_is_there(
    cpu_step: str, fields: dict[str, object], num_shared: int
) -> None:
    core = tiny_core(cpu_step=cpu_step)
    run(core, sampled("a"))
    request = sampled("b", **fields)
    assert bits(run(core, request)["b"]) == cold(cpu_step, request)
    assert hits(core) == whole(cpu_step, num_shared)


def test_what_was_generated_is_taken_over_if_a_prompt_continues_it() -> None:
    """As a chat's next turn does; not with torch, where generating rounds otherwise than reading."""
    if choice.find_library("auto") is None:
        pytest.skip("there is no compiled step on this machine")
    core = tiny_core(cpu_step="compiled")
    first = sampled("a", max_tokens=50)
    said = tokens(run(core, first)["a"])
    second = replace(sampled("b"), prompt_ids=(*first.prompt_ids, *said, 7, 8, 9))
    assert bits(run(core, second)["b"]) == cold("compiled", second)
    assert hits(core) == 144  # of 149 that were read


@pytest.mark.long
@pytest.mark.parametrize("num_blocks", [12, 40, 400])
def test_any_mixture_of_few_beginnings_equals_each_alone(cpu_step: str, num_blocks: int) -> None:
    """With room for all, and with so little that beginnings go and sequences are preempted."""
    rng = random.Random(num_blocks)
    sizes = {"num_blocks": num_blocks, "max_num_seqs": 6, "max_step_tokens": 70}
    core = tiny_core(cpu_step=cpu_step, **sizes)
    alone = tiny_core(cpu_step=cpu_step, prefix_cache=False)
    beginnings = [prompt(130, seed=seed) for seed in range(3)]
    edit_sets = [random_request(rng, "e").interventions for _ in range(3)]
    edit_sets += [tuple(replace(edit, start=start) for edit in edit_sets[0]) for start in (16, 50)] + [()] * 3
    for _ in range(4 if cpu_step == "compiled" else 1):
        requests = []
        for number in range(24):
            request = random_request(rng, str(number))
            length = rng.choice([5, 33, 64, 65, 100, 129, 130])
            request = replace(request, prompt_ids=rng.choice(beginnings)[:length], interventions=rng.choice(edit_sets))
            if rng.random() < 0.7:
                request = replace(request, trace=None, prompt_logprobs=None)
            requests.append(replace(request, max_tokens=rng.randrange(0, 40)))
        together = run(core, *requests)
        for request in requests:
            assert bits(together[request.request_id]) == bits(run(alone, request)[request.request_id]), request
        assert_nothing_held(core)
    assert hits(core) > 0
    assert core.scheduler.num_preemptions > 0 or num_blocks > 12


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
def test_when_the_one_that_reads_goes_the_others_read_themselves(cpu_step: str, num_steps: int) -> None:
    core = tiny_core(cpu_step=cpu_step)
    requests = [sampled(name) for name in "abc"]
    for request in requests:
        core.add(request)
    for _ in range(num_steps):
        core.step(0.0)
    first = next(sequence for sequence in core.scheduler.all() if sequence.request_id == "a")
    core.finish(first, "abort")
    events = {"a": [], "b": [], "c": []}
    for _ in range(60):
        for name, event in core.take_events():
            events[name].append(event)
        core.step(0.0)
    assert core.is_idle
    assert [finish(events[name]).reason for name in "abc"] == ["abort", "length", "length"]
    assert bits(events["b"]) == cold(cpu_step, requests[1])
    assert_nothing_held(core)


def test_others_go_first_while_one_waits_for_its_beginning() -> None:
    core = tiny_core(max_num_seqs=8)
    for request in (sampled("a"), sampled("b"), make_request("other", length=10)):
        core.add(request)
    core.step(0.0)
    assert [sequence.request_id for sequence in core.scheduler.running] == ["a", "other"]
    for _ in range(3):
        core.step(0.0)
    assert [sequence.request_id for sequence in core.scheduler.running] == ["a", "other", "b"]


def test_what_edits_drive_to_infinity_is_not_shared(cpu_step: str) -> None:
    core = tiny_core(cpu_step=cpu_step)
    edits = (force(value=3e38), force(value=10.0, op="scale"))
    ends = run(core, *(sampled(name, interventions=edits) for name in "ab"))
    assert {finish(events).reason for events in ends.values()} == {"overflow"}
    assert hits(core) == 0
    assert not core.scheduler.blocks._by_key
    assert_nothing_held(core)


def test_with_the_cache_off_nothing_is_shared(cpu_step: str) -> None:
    core = tiny_core(cpu_step=cpu_step, prefix_cache=False)
    run(core, sampled("a"), sampled("b"))
    assert core.num_prompt_tokens == 200
    assert core.scheduler.num_prefix_tokens == 0


def test_the_law_can_be_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With keys that pass over edits the same comparison fails, so it does look at what matters."""
    monkeypatch.setattr(Prefixes, "begun", staticmethod(lambda sequence, end: []))
    core = tiny_core(cpu_step="torch")
    run(core, sampled("a", interventions=(force(),)))
    request = sampled("b", logprobs=0)
    assert bits(run(core, request)["b"]) != cold("torch", request)


def test_the_block_used_least_recently_makes_room_first() -> None:
    pool = BlockPool(4)
    one, two = pool.allocate(2), pool.allocate(2)
    for block, key in zip(one + two, (b"1a", b"1b", b"2a", b"2b"), strict=True):
        pool.keep(block, key)
    assert (pool.release(one), pool.release(two), pool.num_free) == ([], [], 4)
    again = pool.share([kept for key in (b"1a", b"1b") if (kept := pool.find(key)) is not None])
    assert (again, pool.num_free) == (one, 2)
    assert pool.release(again) == []
    (fresh,) = pool.allocate(1)
    assert fresh == two[1]  # an end before its beginning
    assert [pool.find(key) is not None for key in (b"1a", b"1b", b"2a", b"2b")] == [True, True, True, False]
    pool.forget(one)
    assert pool.find(b"1a") is None
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([fresh, fresh])


def test_a_key_stands_for_all_tokens_before() -> None:
    prefixes = Prefixes(tiny_core().config, is_cut_free=True)

    def keys(*prompt_ids: int) -> list[bytes]:
        sequence = Sequence(request=make_request(prompt_ids=prompt_ids))
        return [prefixes.key(sequence, number) for number in range(len(prompt_ids) // 16)]

    same = keys(*range(48))
    assert len(set(same)) == 3
    assert keys(*range(48)) == same
    changed = keys(*range(15), 99, *range(16, 48))
    assert not set(changed) & set(same)
    assert keys(*range(40))[:2] == same[:2]


def test_events_end_whatever_was_shared() -> None:
    core = tiny_core()
    ends = run(core, *(sampled(name, max_tokens=0) for name in "ab"))
    assert all(isinstance(events[-1], FinishEvent) for events in ends.values())
