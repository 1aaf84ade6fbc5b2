"""The engine's thread: it serves, reports, refuses what does not fit, and stops."""

import threading
import time

import pytest

from service.engine.config import EngineConfig
from service.engine.engine import Engine, EngineDeadError, QueueFullError
from service.engine.request import FinishEvent
from tests.support.tiny import make_request, tiny_model


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


@pytest.mark.usefixtures("slow_engine")
def test_a_full_queue_takes_all_or_nothing(threaded):
    engine, collector = threaded
    long = [make_request(f"long{i}", length=4, max_tokens=250) for i in range(2)]
    engine.submit(long)
    deadline = time.monotonic() + 10
    while engine.stats().num_running < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    with pytest.raises(QueueFullError, match="the limit is 3"):
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


@pytest.mark.usefixtures("slow_engine")
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


@pytest.mark.usefixtures("slow_engine")
def test_a_backlog_refuses_further_requests_but_no_single_large_one():
    collector = Collector()
    engine = Engine(tiny_model(), EngineConfig(num_blocks=64, max_num_seqs=2, max_backlog=2), collector)
    engine.start()
    try:
        # Five sequences of one request: two run, three wait, and they may, since nothing waited before them.
        engine.submit([make_request(f"n{i}", length=4, max_tokens=100) for i in range(5)])
        with pytest.raises(QueueFullError, match="the limit is 2"):
            engine.submit([make_request("late")])
        ids = [f"n{i}" for i in range(5)]
        engine.abort(ids[:2])
        assert {end.reason for end in collector.wait_for(*ids[:2])} == {"abort"}
        engine.submit([make_request("later", max_tokens=2)])
        assert [end.reason for end in collector.wait_for("later")] == ["length"]
    finally:
        engine.stop()
