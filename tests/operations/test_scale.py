"""Several replicas: on two nodes of a Ray that runs already, and as many as the load needs."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from service.rayserve.deployment import scale
from service.settings import Settings
from tests.support.operations.traffic import Traffic
from tests.support.running import Running, descendants, is_alive, replicas_below, topk_serve
from tests.support.served import wait_until
from tests.support.tools import ROOT

#: Starts on a machine that does much else.
STARTED_S = 60.0
#: Both replicas' starts, one after the other.
TOLD_S = 2 * STARTED_S


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_replicas": 2, "max_replicas": 3}, "num_replicas and max_replicas are both given"),
        ({"min_replicas": 1}, "min_replicas is given without max_replicas"),
        ({"downscale_delay_s": 1}, "downscale_delay_s is given without max_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, r"min_replicas is 3, above max_replicas \(2\)"),
        ({"max_replicas": 2, "target_ongoing_requests": 600}, r"above max_ongoing_requests \(512\)"),
        ({"num_replicas": 0}, "greater than or equal to 1"),
    ],
)
def test_a_scale_that_contradicts_itself_is_refused(fields: dict[str, int], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Settings.model_validate(fields)


def test_serve_gets_a_fixed_number_or_one_that_follows_the_load() -> None:
    assert scale(Settings()) == {"num_replicas": 1}
    assert scale(Settings(num_replicas=3)) == {"num_replicas": 3}
    varying = scale(Settings(max_replicas=4, min_replicas=2, target_ongoing_requests=5, upscale_delay_s=1))
    autoscaling = varying["autoscaling_config"]
    assert (autoscaling.min_replicas, autoscaling.max_replicas) == (2, 4)
    assert (autoscaling.target_ongoing_requests, autoscaling.upscale_delay_s) == (5, 1)
    assert "num_replicas" not in varying
    half_full = scale(Settings(max_replicas=4, max_num_seqs=40, max_step_tokens=256))["autoscaling_config"]
    assert half_full.target_ongoing_requests == 20


class Nodes:
    """Two nodes' Ray, in a process that does what it is told."""

    def __init__(self, process: "subprocess.Popen[str]", address: str, log: Path) -> None:
        self.process = process
        self.address = address
        self._log = log

    def tell(self, command: str) -> None:
        """Returns when it is done; fails after `TOLD_S` seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        # It answers with one line, so none can be left in the reader's buffer.
        answered, _, _ = select.select([self.process.stdout], [], [], TOLD_S)
        assert answered, f"{command!r} was not done within {TOLD_S:.0f} s: {self._log.read_text()[-3000:]}"
        said = self.process.stdout.readline()
        assert said == f"done {command}\n", self._log.read_text()[-3000:]

    def replicas(self) -> set[int]:
        return replicas_below(self.process.pid)


@contextmanager
def two_nodes(folder: Path) -> Iterator[Nodes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOPK_", "RAY_"))}
    output = folder / "nodes.txt"
    with output.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.operations.two_nodes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=environment,
        )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, output.read_text()[-3000:]
        yield Nodes(process, address, output)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:  # it still does what it was told
            for pid in (*descendants(process.pid), process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(20)


def named_in_metrics(service: Running) -> set[str]:
    """Replicas on the metrics' page."""
    page = httpx.get(f"{service.url}/metrics", timeout=10).text
    lines = [line for line in page.splitlines() if line.startswith("topk_kv_cache_usage_ratio{")]
    return {line.split('serve_replica="')[1].split('"')[0] for line in lines}


def served_by(service: Running) -> set[str]:
    """Replicas that have answered requests."""
    page = httpx.get(f"{service.url}/metrics", timeout=10).text
    lines = [line for line in page.splitlines() if line.startswith("topk_request_success_total{")]
    return {line.split('serve_replica="')[1].split('"')[0] for line in lines if float(line.rpartition(" ")[2]) > 0}


def quietly(is_true: Callable[[], bool]) -> Callable[[], bool]:
    """False, too, where the service cannot be asked just now."""

    def answer() -> bool:
        try:
            return is_true()
        except httpx.HTTPError:
            return False

    return answer


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_share_the_load_and_one_outlives_the_other(tiny_model_path: Path, tmp_path: Path) -> None:
    """On a Ray that runs already; an update of all replicas under load fails no request."""
    with (
        two_nodes(tmp_path) as nodes,
        topk_serve(
            tiny_model_path,
            tmp_path,
            *("--ray-address", nodes.address, "--num-replicas", "2", "--proxy", "python"),
        ) as service,
    ):
        with Traffic(service.url, rate=10) as spread:
            assert wait_until(quietly(lambda: len(served_by(service)) == 2), STARTED_S)
            first = nodes.replicas()
            names = named_in_metrics(service)
            nodes.tell(f"update {tiny_model_path}")
            assert wait_until(lambda: not any(map(is_alive, first)), STARTED_S)
            assert wait_until(quietly(lambda: len(served_by(service) - names) == 2), STARTED_S)
        assert spread.failed() == []
        assert len(first) == 2

        before = nodes.replicas()
        with Traffic(service.url, rate=10) as traffic:
            nodes.tell("kill")
            assert wait_until(lambda: len([pid for pid in before if is_alive(pid)]) == 1, STARTED_S)
            assert wait_until(quietly(lambda: len(named_in_metrics(service)) == 1), STARTED_S)
            nodes.tell("add")
            assert wait_until(quietly(lambda: len(named_in_metrics(service)) == 2), STARTED_S)
            assert wait_until(quietly(lambda: len(served_by(service)) == 2), STARTED_S)
        assert traffic.counts()[200] > 10 * len(traffic.failed())
        assert all(outcome.status in (503, None) for outcome in traffic.failed())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_replicas_follow_the_load(tiny_model_path: Path, tmp_path: Path) -> None:
    options = ("--max-replicas", "2", "--target-ongoing-requests", "2", "--num-cpus", "0.5")
    delays = ("--upscale-delay-s", "1", "--downscale-delay-s", "2", "--drain-timeout-s", "5")
    with topk_serve(tiny_model_path, tmp_path, *options, *delays, slowable=True) as service:
        assert len(named_in_metrics(service)) == 1
        service.slow_down(0.04)  # so that answers take longer than a replica may that drains
        with Traffic(service.url, rate=6, max_tokens=240) as busy:
            assert wait_until(quietly(lambda: len(named_in_metrics(service)) == 2), STARTED_S)
        assert max(outcome.ended_at - outcome.began_at for outcome in busy.outcomes) > 10
        service.speed_up()
        with Traffic(service.url, rate=1) as quiet:
            assert wait_until(quietly(lambda: len(named_in_metrics(service)) == 1), STARTED_S)
        assert {outcome.status for outcome in busy.outcomes} <= {200, 429}
        assert quiet.failed() == []
