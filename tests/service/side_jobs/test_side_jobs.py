"""Computations beside generations: in which order, how many, how they end, and what they make way for."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from service.errors import BadRequestError, DeadlineError, InternalError, QueueFullError, UnavailableError
from service.observability.metrics import Metrics
from service.serving.side_jobs import NICENESS, Progress, SideJob, SideJobs, result_of


@dataclass(frozen=True)
class Reply:
    text: str


class Bench:
    """A facility of side jobs with its metrics."""

    def __init__(self, max_jobs: int = 2, is_busy: Callable[[], bool] = lambda: False) -> None:
        self.metrics = Metrics()
        self.jobs = SideJobs(self.metrics.side_jobs, max_jobs=max_jobs, retry_after_s=3.0, is_busy=is_busy)

    def start(
        self, work: Callable[[SideJob[Reply]], Reply], timeout_s: float = 10
    ) -> AsyncGenerator[Progress | Reply, None]:
        return self.jobs.run("lever", work, timeout_s=timeout_s)

    def count(self, outcome: str) -> float | None:
        labels = {"kind": "lever", "outcome": outcome}
        return self.metrics.registry.get_sample_value("topk_side_jobs_total", labels)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


async def until(is_true: Callable[[], bool]) -> None:
    while not is_true():
        await asyncio.sleep(0.01)


def until_cancelled(job: SideJob[Reply]) -> Reply:
    while True:
        time.sleep(0.005)
        job.checkpoint()


def test_a_job_tells_its_progress_and_then_its_result() -> None:
    def work(job: SideJob[Reply]) -> Reply:
        for part in range(3):
            job.report("halves", part, 3)
            job.checkpoint()
            time.sleep(0.15)
        return Reply("whole")

    async def test() -> None:
        bench = Bench()
        events = [event async for event in bench.start(work)]
        assert events[0] == Progress(stage="waiting", done=0, total=0)
        stages = [(e.stage, e.done, e.total) for e in events[1:-1] if isinstance(e, Progress)]
        assert ("halves", 2, 3) in stages
        assert stages == sorted(stages)
        assert events[-1] == Reply("whole")
        assert bench.count("done") == 1
        await bench.jobs.stop()

    run(test)


def test_progress_that_nobody_can_follow_is_passed_over_and_the_result_is_told_at_once() -> None:
    def work(job: SideJob[Reply]) -> Reply:
        for part in range(1000):
            job.report("parts", part, 1000)
        return Reply("whole")

    async def test() -> None:
        bench = Bench()
        began = time.monotonic()
        events = [event async for event in bench.start(work)]
        assert len(events) < 20
        assert time.monotonic() - began < 1
        await bench.jobs.stop()

    run(test)


def test_jobs_run_one_at_a_time_and_one_too_many_is_refused() -> None:
    running, most = 0, 0

    def work(_: SideJob[Reply]) -> Reply:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.1)
        running -= 1
        return Reply("")

    async def test() -> None:
        bench = Bench(max_jobs=2)
        tasks = [asyncio.create_task(result_of(bench.start(work))) for _ in range(2)]
        await until(lambda: bench.jobs.num_jobs == 2)
        with pytest.raises(QueueFullError) as caught:
            await result_of(bench.start(work))
        assert (caught.value.code, caught.value.retry_after_s) == ("too_many_jobs", 3.0)
        assert "2 computations" in caught.value.message
        await asyncio.gather(*tasks)
        assert most == 1
        assert bench.count("rejected") == 1
        # There is room as soon as a reply is there.
        assert await result_of(bench.start(work)) == Reply("")
        await bench.jobs.stop()

    run(test)


def test_a_job_ends_when_its_reader_goes_whether_it_runs_or_waits() -> None:
    async def test() -> None:
        bench = Bench()
        running = asyncio.create_task(result_of(bench.start(until_cancelled)))
        await until(lambda: bench.jobs.num_jobs == 1)
        waiting = asyncio.create_task(result_of(bench.start(until_cancelled)))
        await until(lambda: bench.jobs.num_jobs == 2)
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert bench.jobs.num_jobs == 1
        running.cancel()
        await until(lambda: bench.jobs.num_jobs == 0)
        assert bench.count("cancelled") == 2
        await bench.jobs.stop()

    run(test)


def test_a_job_whose_time_is_up_ends_while_it_runs_and_while_it_waits() -> None:
    async def test() -> None:
        bench = Bench()
        running = asyncio.create_task(result_of(bench.start(until_cancelled, timeout_s=0.2)))
        await until(lambda: bench.jobs.num_jobs == 1)
        waiting = asyncio.create_task(result_of(bench.start(until_cancelled, timeout_s=0.1)))
        for task in (running, waiting):
            with pytest.raises(DeadlineError):
                await task
        assert bench.count("deadline") == 2
        await bench.jobs.stop()

    run(test)


@pytest.mark.parametrize(
    ("raised", "told", "outcome"),
    [
        (BadRequestError("no such word", param="words"), BadRequestError, "refused"),
        (KeyError("x"), InternalError, "failed"),
    ],
)
def test_what_a_job_raises_reaches_its_reader_and_the_next_job_runs(
    raised: Exception, told: type[Exception], outcome: str
) -> None:
    def work(_: SideJob[Reply]) -> Reply:
        raise raised

    async def test() -> None:
        bench = Bench()
        with pytest.raises(told):
            await result_of(bench.start(work))
        assert bench.count(outcome) == 1
        assert await result_of(bench.start(lambda _: Reply("next"))) == Reply("next")
        await bench.jobs.stop()

    run(test)


def test_a_job_has_a_low_priority_and_gives_generations_half_of_its_time() -> None:
    found: dict[str, float] = {}
    is_busy = False

    def work(job: SideJob[Reply]) -> Reply:
        found["niceness"] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        began = time.monotonic()
        for _ in range(20):
            time.sleep(0.01)
            job.checkpoint()
        found["seconds"] = time.monotonic() - began
        return Reply("")

    async def test() -> None:
        nonlocal is_busy
        bench = Bench(is_busy=lambda: is_busy)
        before = os.getpriority(os.PRIO_PROCESS, 0)
        await result_of(bench.start(work))
        idle_s, is_busy = found["seconds"], True
        await result_of(bench.start(work))
        assert found["niceness"] == NICENESS
        assert os.getpriority(os.PRIO_PROCESS, 0) == before
        assert found["seconds"] > 1.6 * idle_s
        await bench.jobs.stop()

    run(test)


def test_stopping_ends_every_job_and_takes_no_more() -> None:
    async def test() -> None:
        bench = Bench()
        tasks = [asyncio.create_task(result_of(bench.start(until_cancelled))) for _ in range(2)]
        await until(lambda: bench.jobs.num_jobs == 2)
        await bench.jobs.stop()
        for task in tasks:
            with pytest.raises(UnavailableError):
                await task
        with pytest.raises(UnavailableError):
            await result_of(bench.start(until_cancelled))
        assert bench.jobs.num_jobs == 0

    run(test)


def test_leaving_the_events_early_ends_the_job() -> None:
    async def test() -> None:
        bench = Bench()
        async with aclosing(bench.start(until_cancelled)) as events:
            async for _ in events:
                break
        await until(lambda: bench.jobs.num_jobs == 0)
        await bench.jobs.stop()

    run(test)
