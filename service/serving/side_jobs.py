"""Side jobs: long computations that run beside generations without holding them up, for HTTP and gRPC alike.

A replica has one `SideJobs` (`Replica.side_jobs`), whatever its number of models. Jobs run one at a time in a thread of
low priority, so the memory of all jobs is that of one; a few more wait, and the next is refused with a 429.

To add a kind of job:

1. Name it in `metrics.JobKind`.
2. Write the computation as a plain blocking function of a `SideJob`; it returns the reply, a dataclass. It calls
   `job.report(stage, done, total)` whenever it has come further, and `job.checkpoint()` often, at least every
   `MAX_STRETCH_S`: that is where the job ends if its client has gone or its time is up, and where it makes way for
   running generations.
   A `ServiceError` that it raises reaches the client; anything else is logged and becomes an internal error. Whatever
   the client can get wrong is best refused before the job begins.
3. Run it from the event loop and read what comes: any number of `Progress`, then the function's result.

        async with self.use(request.model, request.timeout_s) as served:
            ...  # check the request: raises BadRequestError
            async with aclosing(self.side_jobs.run("lever", work, timeout_s=timeout_s)) as events:
                async for event in events:
                    yield event

   Leaving the loop early, as a client that goes makes it, ends the job at its next checkpoint. `result_of(events)` is
   for a caller who wants the result alone.

4. Give it to clients. HTTP: a handler that returns `routes.job_reply(request, events, stream=…)`, one reply in JSON or,
   if the request says `"stream": true`, server-sent events. gRPC: an entry of `methods.STREAMS` whose response has the
   fields `progress` (the message `Progress`, of `conversion.fields_to_pb`), the result and `error`.

A thread that the job starts (torch's, the compiled step's) has the job's priority if the job's own thread starts it.
NumPy and the compiled step let go of Python's lock while they compute; long loops in Python do not, and would delay
every token of every stream.

Knows no transport, no model and no Ray.
"""

import asyncio
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from service.errors import DeadlineError, InternalError, QueueFullError, ServiceError, UnavailableError
from service.observability.metrics import JobKind, JobMetrics, JobOutcome

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Longest that a job should compute between two checkpoints, seconds.
MAX_STRETCH_S = 0.1
#: While generations run, a job pauses at a checkpoint for as long as it has computed since the last one, at most this
#: long: it has half of the time at most, even where the system knows no priorities or a quota of processor time is
#: shared.
MAX_PAUSE_S = 0.5
#: Least time between two events of progress, seconds.
PROGRESS_PERIOD_S = 0.1
#: What the thread gets on top of a deadline before the client is answered without it.
DEADLINE_GRACE_S = 2.0
#: Niceness of the thread: a tenth of the weight of those that generate. With less, a job that is put aside while it has
#: Python's lock would keep that lock, and everybody, for long.
NICENESS = 10
#: Longest that a stop waits for the job under way, seconds.
STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a side job has come."""

    object: Literal["job.progress"] = "job.progress"
    stage: Annotated[str, 'what it does; "waiting" until the jobs before it have ended']
    done: Annotated[int, "parts of the stage that are done"]
    total: Annotated[int, "parts of the stage"]


class JobCancelledError(Exception):
    """Nobody waits for the job's result any more. Raised by `checkpoint`; not to be caught by computations."""


class SideJob(Generic[Result]):
    """One job. `report` and `checkpoint` are for the computation; the rest is for `SideJobs`."""

    def __init__(
        self,
        kind: JobKind,
        work: "Callable[[SideJob[Result]], Result]",
        *,
        deadline: float,
        is_busy: Callable[[], bool],
    ) -> None:
        self.kind = kind
        self.deadline = deadline  # time.monotonic()
        self._work = work
        self._is_busy = is_busy
        self._is_cancelled = threading.Event()
        self._resumed_at = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._wakeup = asyncio.Event()
        self._has_ended = asyncio.Event()
        self._progress: Progress | None = None
        self._computed: tuple[Result | None, ServiceError | None] = None, None
        self._end: tuple[Result | None, ServiceError | None] | None = None  # as its reader knows it

    def report(self, stage: str, done: int, total: int) -> None:
        """Say how far the job has come; cheap, and what comes faster than clients can use it is passed over."""
        self._call(self._note, Progress(stage=stage, done=done, total=total))

    def checkpoint(self) -> None:
        """End the job if nobody waits for it or its time is up, and pause if generations run.

        Raises:
            JobCancelledError, DeadlineError: it has to end.
        """
        if self._is_cancelled.is_set():
            raise JobCancelledError
        if time.monotonic() > self.deadline:
            raise DeadlineError()
        if self._is_busy() and self._is_cancelled.wait(min(time.monotonic() - self._resumed_at, MAX_PAUSE_S)):
            raise JobCancelledError
        self._resumed_at = time.monotonic()

    def cancel(self) -> None:
        self._is_cancelled.set()

    def compute(self) -> JobOutcome:
        """Run the job to its end, in the calling thread; `tell_end` then tells its reader."""
        self._resumed_at = time.monotonic()
        try:
            self.checkpoint()
            self._computed = self._work(self), None
        except JobCancelledError:
            return "cancelled"
        except ServiceError as error:
            self._computed = None, error
            return "deadline" if isinstance(error, DeadlineError) else "refused"
        except Exception:
            logger.exception("a side job (%s) failed", self.kind)
            self._computed = None, InternalError("internal error; the log has it")
            return "failed"
        return "done"

    def tell_end(self) -> None:
        self._call(self._finish, *self._computed)

    async def events(self) -> AsyncIterator["Progress | Result"]:
        """Progress as it comes, then the result.

        Raises:
            ServiceError: the job failed, its time is up, or nothing more will come.
        """
        while self._end is None:
            try:
                async with asyncio.timeout(self.deadline + DEADLINE_GRACE_S - time.monotonic()):
                    await self._wakeup.wait()
            except TimeoutError:
                raise DeadlineError() from None
            self._wakeup.clear()
            if self._end is None and self._progress is not None:
                yield self._progress
                with suppress(TimeoutError):  # an end is told at once
                    async with asyncio.timeout(PROGRESS_PERIOD_S):
                        await self._has_ended.wait()
        result, error = self._end
        if error is not None:
            raise error
        yield result  # type: ignore[misc]  # without an error there is a result

    def fail(self, error: ServiceError) -> None:
        """End it for its reader; in the event loop's thread."""
        self._finish(None, error)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop has closed: nobody is left to be told
            self._loop.call_soon_threadsafe(function, *arguments)

    def _note(self, progress: Progress) -> None:
        self._progress = progress
        self._wakeup.set()

    def _finish(self, result: Result | None, error: ServiceError | None) -> None:
        if self._end is None:
            self._end = result, error
        self._has_ended.set()
        self._wakeup.set()


class SideJobs:
    """The side jobs of one replica. All methods belong to one event loop.

    Args:
        max_jobs: most jobs that run or wait; one that runs and has lost its client counts until its next checkpoint.
        is_busy: whether generations run; asked from the jobs' thread.
    """

    def __init__(
        self,
        metrics: JobMetrics,
        *,
        max_jobs: int,
        retry_after_s: float,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._metrics = metrics
        self._max_jobs, self._retry_after_s = max_jobs, retry_after_s
        self._is_busy = is_busy
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[SideJob[Any]] = deque()
        self._running: SideJob[Any] | None = None
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        metrics.waiting.set_function(lambda: len(self._waiting))
        metrics.running.set_function(lambda: self._running is not None)

    @property
    def num_jobs(self) -> int:
        """Jobs that run or wait."""
        return len(self._waiting) + (self._running is not None)

    async def run(
        self, kind: JobKind, work: Callable[[SideJob[Result]], Result], *, timeout_s: float
    ) -> AsyncGenerator[Progress | Result, None]:
        """Run `work` in the jobs' thread: its progress as it comes, the first event at once, then its result.

        Raises:
            QueueFullError: too many jobs run and wait.
            ServiceError: it failed, its time is up, or the replica stops.
        """
        job, num_before = self._submit(kind, work, timeout_s)
        try:
            yield Progress(stage="waiting", done=0, total=num_before)
            async for event in job.events():
                yield event
        finally:
            self._release(job)

    async def stop(self) -> None:
        """Take no more jobs, end those that there are, and end the thread."""
        with self._changed:
            self._is_stopping = True
            jobs = [*self._waiting, *([self._running] if self._running is not None else [])]
            self._changed.notify()
        for job in jobs:
            job.fail(UnavailableError("the replica is stopping", code="stopping"))
            self._release(job)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, STOP_TIMEOUT_S)
            if self._thread.is_alive():
                logger.error("a side job hangs and is left behind")

    def _submit(
        self, kind: JobKind, work: Callable[[SideJob[Result]], Result], timeout_s: float
    ) -> tuple[SideJob[Result], int]:
        """The job, and how many stand before it."""
        deadline = time.monotonic() + timeout_s
        job = SideJob(kind, work, deadline=deadline, is_busy=self._is_busy)
        with self._changed:
            if self._is_stopping:
                raise UnavailableError("the replica is stopping", code="stopping")
            if (num_before := self.num_jobs) >= self._max_jobs:
                self._metrics.jobs.labels(kind, "rejected").inc()
                raise QueueFullError(
                    f"{num_before} computations beside generations run or wait, the most that may",
                    code="too_many_jobs",
                    retry_after_s=self._retry_after_s,
                )
            self._waiting.append(job)
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="side-jobs", daemon=True)
            self._thread.start()
        return job, num_before

    def _release(self, job: SideJob[Any]) -> None:
        """Let go of a job: one that waits is gone at once, one that runs at its next checkpoint."""
        job.cancel()
        with self._changed, suppress(ValueError):
            self._waiting.remove(job)
            self._metrics.jobs.labels(job.kind, "cancelled").inc()

    def _next(self) -> SideJob[Any] | None:
        """The next job, once there is one; None: stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_stopping)
            self._running = None if self._is_stopping else self._waiting.popleft()
            return self._running

    def _run(self) -> None:
        yield_to_others()
        while (job := self._next()) is not None:
            began = time.monotonic()
            outcome = job.compute()
            self._metrics.jobs.labels(job.kind, outcome).inc()
            self._metrics.seconds.labels(job.kind).observe(time.monotonic() - began)
            with self._changed:
                self._running = None
            job.tell_end()


async def result_of(events: AsyncGenerator[Progress | Result, None]) -> Result:
    """The result of a job's events.

    Raises:
        ServiceError: as `SideJobs.run`.
    """
    async with aclosing(events):
        async for event in events:
            if not isinstance(event, Progress):
                return event
    raise AssertionError("a job's events end with its result")


def yield_to_others() -> None:
    """Give the calling thread, and those that it starts, a low priority, where threads have priorities."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
