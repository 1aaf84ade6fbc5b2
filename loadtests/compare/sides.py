"""The processes of the comparison, seen from the one that asks: start them, give each its turns, note what failed."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

from loadtests.compare.measured.worker import Done, Turn

ROOT = Path(__file__).parents[2]
#: vLLM compiles the first time, and two do so at once.
START_TIMEOUT_S = 600.0
TURN_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 15.0


class SideError(Exception):
    """A side did not start, or failed in a turn."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A side to be: which program measures, and what."""

    name: str  # as "vLLM"
    module: str  # of loadtests.compare.measured
    arguments: tuple[str, ...]
    python: Path = Path(sys.executable)
    environment: tuple[tuple[str, str], ...] = ()


class Side:
    """A side's process. Its turns are asked for one at a time."""

    def __init__(self, plan: Plan) -> None:
        self.name = plan.name
        self.facts: dict[str, Any] = {}
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 as long as the process
        self._process = subprocess.Popen(
            [str(plan.python), "-m", f"loadtests.compare.measured.{plan.module}", *plan.arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **dict(plan.environment)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def wait_started(self, deadline: float) -> None:
        """Raises SideError if it has not loaded its model by then."""
        self.facts = self._answer(deadline - time.monotonic())["facts"]

    def measure(self, turn: Turn) -> Done:
        """Raises SideError if it fails, or takes too long."""
        pipe = cast(IO[bytes], self._process.stdin)
        try:
            pipe.write(json.dumps(asdict(turn)).encode() + b"\n")
            pipe.flush()
        except OSError:
            raise SideError(f"its process has ended: {self._last_words()}") from None
        return Done(**self._answer(TURN_TIMEOUT_S))

    def stop(self) -> None:
        """End the process."""
        cast(IO[bytes], self._process.stdin).close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        cast(IO[bytes], self._process.stdout).close()
        self._log.close()

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        pipe = cast(IO[bytes], self._process.stdout)
        # A whole line is written at once, and there is never more than one.
        if not select.select([pipe], [], [], max(0.0, timeout_s))[0]:
            self._process.kill()  # else it would compute on, in the turns of others
            raise SideError(f"no answer within {timeout_s:.0f} s")
        line = pipe.readline()
        if not line:
            raise SideError(f"its process has ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideError(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return " ".join("\n".join(lines[-5:]).split())[-500:]


class Sides:
    """All sides of a shape, in a `with` statement; those that fail are left out and `skipped` says why."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.skipped: dict[str, str] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self._sides = {plan.name: Side(plan) for plan in plans}

    def __enter__(self) -> "Sides":
        deadline = time.monotonic() + START_TIMEOUT_S
        for name, side in tuple(self._sides.items()):
            try:
                side.wait_started(deadline)
                self.facts[name] = side.facts
            except SideError as error:
                self._skip(name, f"did not start: {error}")
        return self

    def __exit__(self, *_: object) -> None:
        for side in self._sides.values():
            side.stop()
        self._sides.clear()

    def has(self, name: str) -> bool:
        return name in self._sides

    def measure(self, name: str, turn: Turn) -> Done | None:
        """A side's turn; None if it failed, and then it gets no other."""
        try:
            return self._sides[name].measure(turn)
        except SideError as error:
            self._skip(name, f"{turn.case}, {turn.num_rows} rows: {error}")
            return None

    def _skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        print(f"left out: {name}: {reason}", file=sys.stderr)
        self._sides.pop(name).stop()
