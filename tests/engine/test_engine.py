"""The engine on a tiny model: what it computes, what it frees, and what it survives."""

import threading
import time

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.engine import Engine, EngineDeadError, QueueFullError
from service.engine.request import FinishEvent, PromptEvent, SamplingParams, TokenEvent
from tests.support.tiny import BOS, EOS, dense, finish, make_request, prompt, run, tiny_core, tiny_model, tokens, trace
from topk_model.interventions import Condition, Intervention
from topk_model.modeling import cached_attention, topk
from topk_model.traces import TraceSpec

ALL = TraceSpec(layers=(0, 1))


def force(neuron=5, value=6.0, layers=(1,), **fields):
    return Intervention(
        **(
            {"layers": layers, "neuron": neuron, "op": "set", "value": value, "unit_values": (1.0,) * len(layers)}
            | fields
        )
    )


def assert_nothing_held(core):
    assert core.scheduler.blocks.num_free == core.config.num_blocks
    assert not core.scheduler.running
    assert not core.scheduler.waiting
    assert len(core.scheduler._free_slots) == core.config.max_num_seqs


def logprobs_of(events):
    """Of every token but the first, prompt and generated."""
    of_prompt = [entry for event in events if isinstance(event, PromptEvent) for entry in event.logprobs if entry]
    return [e.logprob for e in of_prompt] + [e.logprobs.logprob for e in events if isinstance(e, TokenEvent)]


@torch.no_grad()
def model_logprobs(model, ids, **options):
    ids = torch.tensor([ids], device=model.device)
    logprobs = torch.log_softmax(model(ids, **options).logits[0].float(), -1)
    return logprobs[:-1].gather(1, ids[0, 1:, None]).squeeze(1).cpu()


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("overrides", [{}, {"n_nontopk": 4}, {"n_nontopk": 0}, {"topk_select": "abs"}])
def test_reading_and_decoding_equal_one_uncached_forward(length, overrides):
    core = tiny_core(tiny_model(**overrides))
    request = make_request(length=length, max_tokens=6, logprobs=0, prompt_logprobs=0)
    events = run(core, request)["r"]
    expected = model_logprobs(tiny_model(**overrides), [*request.prompt_ids, *tokens(events)])
    torch.testing.assert_close(torch.tensor(logprobs_of(events)), expected, atol=2e-5, rtol=0)


def test_a_dense_model_through_the_cache_equals_llama():
    model = tiny_model(n_nontopk=4)
    fields = {k: v for k, v in model.config.to_dict().items() if k in LlamaConfig().to_dict() and k != "model_type"}
    llama = LlamaForCausalLM(LlamaConfig(**fields)).eval().to(model.device)
    llama.load_state_dict(model.state_dict())
    request = make_request(length=70, max_tokens=20, logprobs=0, prompt_logprobs=0)
    events = run(tiny_core(model), request)["r"]
    expected = model_logprobs(llama, [*request.prompt_ids, *tokens(events)])
    torch.testing.assert_close(torch.tensor(logprobs_of(events)), expected, atol=2e-5, rtol=0)


def test_an_unedited_trace_has_k_entries_at_every_position_of_every_layer():
    events = run(tiny_core(), make_request(length=70, max_tokens=9, trace=ALL))["r"]
    rows = trace(events)
    assert rows.num_tokens == 79  # the last generated token too
    assert set((rows.offsets[1:] - rows.offsets[:-1]).tolist()) == {8}
    assert rows.is_complete


def test_a_trace_fed_back_as_the_blocks_input_reproduces_the_logits():
    core = tiny_core()
    request = make_request(length=40, max_tokens=5, trace=ALL, logprobs=0, prompt_logprobs=0)
    events = run(core, request)["r"]
    states = dense(trace(events), ALL)
    model = tiny_model()
    ids = [*request.prompt_ids, *tokens(events)]
    for layer in (0, 1):
        entering = states[None, :, layer].to(model.device)
        with torch.no_grad():
            positions = torch.arange(len(ids), device=model.device)[None]
            hidden = model.model.run_blocks(
                entering, positions, cached_attention(model.config, None, None), start=layer + 1
            )
            logprobs = torch.log_softmax(model.lm_head(hidden)[0], -1).cpu()
        got = logprobs[:-1].gather(1, torch.tensor(ids)[1:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(logprobs_of(events)), got, atol=2e-5, rtol=0)


def test_an_edit_acts_on_every_decode_step():
    request = make_request(length=12, max_tokens=10, interventions=(force(),), logprobs=0, prompt_logprobs=0, trace=ALL)
    events = run(tiny_core(), request)["r"]
    model = tiny_model()

    def sparsify(layer, hidden):
        if layer >= 2:
            return hidden
        hidden = topk(hidden, 8)
        if layer == 1:
            hidden[:, 1:, 5] = 6.0  # BOS is special
        return hidden

    expected = model_logprobs(model, [*request.prompt_ids, *tokens(events)], sparsify=sparsify)
    torch.testing.assert_close(torch.tensor(logprobs_of(events)), expected, atol=2e-5, rtol=0)
    assert (dense(trace(events), ALL)[1:, 1, 5] == 6.0).all()
    assert tokens(events) != tokens(run(tiny_core(), make_request(length=12, max_tokens=10))["r"])
    (receipt,) = finish(events).receipts
    # The last token is read for its trace alone: no token depends on it, so no receipt counts it.
    assert (receipt.positions_applied, receipt.first, receipt.last) == (20, 1, 20)
    assert receipt.mean_after == 6.0


def test_receipts_do_not_depend_on_the_trace():
    edit = force(unit_values=None, value=2.0, site="pre_topk")
    with_trace, without = (
        finish(run(tiny_core(), make_request(interventions=(edit,), trace=spec))["r"]).receipts for spec in (ALL, None)
    )
    assert with_trace == without


def test_what_the_tokenizer_calls_special_is_not_edited():
    request = make_request(length=5, max_tokens=1, interventions=(force(),))
    marker = request.prompt_ids[2]
    core = EngineCore(tiny_model(), EngineConfig(num_blocks=16), special_ids=[BOS, marker])
    (receipt,) = finish(run(core, request)["r"]).receipts
    assert receipt.positions_applied == 4 - request.prompt_ids.count(marker)


def test_special_tokens_are_edited_only_on_demand():
    for include, first in ((False, 1), (True, 0)):
        request = make_request(length=5, max_tokens=1, interventions=(force(include_special=include),))
        assert finish(run(tiny_core(), request)["r"]).receipts[0].first == first


def test_positions_are_half_open():
    request = make_request(length=10, max_tokens=5, interventions=(force(start=4, end=7),), trace=ALL)
    events = run(tiny_core(), request)["r"]
    active = (dense(trace(events), ALL)[:, 1, 5] == 6.0).nonzero().squeeze(1).tolist()
    assert active == [4, 5, 6]
    assert finish(events).receipts[0].positions_applied == 3


def test_an_edit_of_one_request_changes_nothing_in_another():
    plain = [make_request(f"p{i}", length=20 + i, trace=ALL, logprobs=0) for i in range(4)]
    alone = run(tiny_core(), *plain)
    edited = make_request("e", length=23, interventions=(force(value=50.0, layers=(0, 1)),))
    beside = run(tiny_core(), plain[0], edited, *plain[1:])
    for request in plain:
        assert tokens(beside[request.request_id]) == tokens(alone[request.request_id])
        assert logprobs_of(beside[request.request_id]) == logprobs_of(alone[request.request_id])


def test_a_condition_reads_earlier_layers_after_their_edits():
    reads = Condition(layer=0, neuron=7, test="above", value=300.0)
    edits = (force(neuron=7, value=400.0, layers=(0,), start=3, end=5), force(conditions=(reads,)))
    events = run(tiny_core(), make_request(length=10, max_tokens=2, interventions=edits))["r"]
    receipt = finish(events).receipts[1]
    assert (receipt.first, receipt.last, receipt.positions_applied) == (3, 4, 2)


def test_max_tokens_0_reads_the_prompt_and_ends():
    events = run(tiny_core(), make_request(length=70, max_tokens=0, trace=ALL))["r"]
    assert finish(events).reason == "length"
    assert [e.num_tokens for e in events if isinstance(e, PromptEvent)] == [64, 6]
    assert trace(events).num_tokens == 70


def test_eos_ends_a_sequence_and_is_not_a_token_of_it():
    biased = SamplingParams(temperature=0.0, logit_bias=((EOS, 100.0),))
    core = tiny_core()
    events = run(core, make_request(sampling=biased, ignore_eos=False))["r"]
    assert tokens(events) == []
    assert finish(events).reason == "stop"
    ignoring = run(core, make_request(sampling=biased, ignore_eos=True, max_tokens=3))["r"]
    assert tokens(ignoring) == [EOS] * 3
    assert finish(ignoring).reason == "length"


def test_a_stop_condition_ends_after_the_token_it_was_told():
    plain = tokens(run(tiny_core(), make_request())["r"])
    told = []

    def is_stop(token_id):
        told.append(token_id)
        return len(told) == 3

    events = run(tiny_core(), make_request(is_stop=is_stop, trace=ALL))["r"]
    assert tokens(events) == told == plain[:3]
    assert finish(events).reason == "stop"
    assert trace(events).num_tokens == 13


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
        ({"interventions": (force(layers=(2,)),)}, "layer 2 is no TopK layer"),
        ({"interventions": (force(),) * 65}, "65 interventions, at most 64"),
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


class Collector:
    """Gathers an engine's events, and waits for ends."""

    def __init__(self):
        self.events, self.changed = {}, threading.Condition()

    def __call__(self, batch):
        with self.changed:
            for request_id, event in batch:
                self.events.setdefault(request_id, []).append(event)
            self.changed.notify_all()

    def wait_for(self, *request_ids, timeout=30.0):
        def ended():
            return all(isinstance(self.events.get(i, [None])[-1], FinishEvent) for i in request_ids)

        with self.changed:
            assert self.changed.wait_for(ended, timeout), f"{request_ids} have not ended"
        return [self.events[i][-1] for i in request_ids]


@pytest.fixture
def threaded():
    collector = Collector()
    sizes = EngineConfig(num_blocks=64, max_num_seqs=2, max_waiting=3)
    engine = Engine(tiny_model(), sizes, collector)
    engine.start()
    yield engine, collector
    engine.stop()


def test_the_thread_serves_and_reports(threaded):
    engine, collector = threaded
    engine.submit([make_request("a"), make_request("b", length=20)])
    assert [end.reason for end in collector.wait_for("a", "b")] == ["length", "length"]
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, 64)
    assert (stats.num_prompt_tokens, stats.num_generated_tokens) == (30, 16)
    assert stats.is_alive


def test_a_full_queue_takes_all_or_nothing(threaded):
    engine, collector = threaded
    long = [make_request(f"long{i}", length=4, max_tokens=250) for i in range(2)]
    engine.submit(long)
    deadline = time.monotonic() + 10
    while engine.stats().num_running < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    with pytest.raises(QueueFullError, match="at most 3"):
        engine.submit([make_request(f"n{i}") for i in range(4)])
    assert engine.stats().num_waiting == 0
    engine.submit([make_request(f"m{i}") for i in range(3)])
    engine.abort(["long0", "long1", "unknown"])
    first_end, *_ = collector.wait_for("long0", "m0", "m1", "m2")
    assert first_end.reason == "abort"
    assert not any(name.startswith("n") for name in collector.events)


def test_a_heartbeat_shows_a_stuck_thread(threaded, monkeypatch):
    engine, collector = threaded
    release = threading.Event()
    monkeypatch.setattr(engine._core.runner, "run", lambda pieces: release.wait(10) and 1 / 0)
    engine.submit([make_request("stuck")])
    time.sleep(1.2)
    try:
        assert engine.stats().heartbeat_age_s > 1.0
    finally:
        release.set()
    assert collector.wait_for("stuck")[0].reason == "error"


def test_an_idle_thread_keeps_its_heartbeat(threaded):
    engine, _ = threaded
    time.sleep(1.2)
    assert engine.stats().heartbeat_age_s < 1.0


def test_stop_ends_what_runs_and_refuses_what_comes():
    collector = Collector()
    engine = Engine(tiny_model(), EngineConfig(num_blocks=64), collector)
    engine.start()
    engine.submit([make_request("a", length=4, max_tokens=250)])
    engine.stop()
    assert collector.wait_for("a")[0].reason == "abort"
    assert not engine.stats().is_alive
    with pytest.raises(EngineDeadError):
        engine.submit([make_request("b")])


def test_a_prompt_begins_with_bos_in_these_tests():
    assert prompt(3)[0] == BOS


def test_a_backlog_refuses_further_requests_but_no_single_large_one():
    collector = Collector()
    engine = Engine(tiny_model(), EngineConfig(num_blocks=64, max_num_seqs=2, max_backlog=2), collector)
    engine.start()
    try:
        # Five sequences of one request: two run, three wait, and they may, since nothing waited before them.
        engine.submit([make_request(f"n{i}", length=4, max_tokens=100) for i in range(5)])
        with pytest.raises(QueueFullError, match="at most 2 may"):
            engine.submit([make_request("late")])
        ids = [f"n{i}" for i in range(5)]
        engine.abort(ids[:2])
        assert {end.reason for end in collector.wait_for(*ids[:2])} == {"abort"}
        engine.submit([make_request("later", max_tokens=2)])
        assert [end.reason for end in collector.wait_for("later")] == ["length"]
    finally:
        engine.stop()
