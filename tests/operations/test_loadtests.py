"""The load tests: what they ask, what they refuse and watch, and a short run against the real service."""

import asyncio
import json
import math
import random
import re
import subprocess
import time
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import pytest

from loadtests import export_check, load, open_loop, server_metrics, trace_throughput
from loadtests.asking import Served, find
from loadtests.local_service import exit_status
from loadtests.open_loop import Run, run_open_loop
from loadtests.results import Objective
from loadtests.server_metrics import ServerSample, wait_idle
from loadtests.server_metrics import sample as read_sample
from loadtests.workload import MIX, Workload, arrivals, log_uniform
from tests.support.running import Running
from tests.support.tools import ROOT


def test_arrivals_are_poisson_and_the_same_for_a_seed() -> None:
    times = list(arrivals(20.0, 500.0, seed=3))
    assert times == list(arrivals(20.0, 500.0, seed=3)) != list(arrivals(20.0, 500.0, seed=4))
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, abs=4 * math.sqrt(10_000))
    assert gaps.mean() == pytest.approx(0.05, rel=0.05)
    assert gaps.std() == pytest.approx(0.05, rel=0.1)  # of an exponential, the mean
    assert np.quantile(gaps, 0.5) == pytest.approx(0.05 * math.log(2), rel=0.1)


def test_what_is_asked_is_the_same_at_every_rate_and_has_every_kind() -> None:
    slow, fast = (list(Workload(rate=rate, seconds=100, seed=1).calls((0, 2), 64)) for rate in (5.0, 10.0))
    asked = [(call.kind, call.prompt, call.max_tokens, call.seed, call.edit) for call in fast]
    assert [(call.kind, call.prompt, call.max_tokens, call.seed, call.edit) for call in slow] == asked[: len(slow)]
    assert {call.kind for call in fast} == set(MIX)
    assert {call.edit.layer for call in fast if call.edit is not None} == {0, 2}
    assert all((call.edit is not None) == call.kind.is_steered for call in fast)
    assert all((call.cancel_after_s is not None) == call.kind.is_cancelled for call in fast)
    lengths = [call.max_tokens for call in fast]
    assert (min(lengths), max(lengths)) >= (8, 100)
    assert max(lengths) <= 128


def test_lengths_are_within_their_bounds_at_both_ends() -> None:
    rng = random.Random(0)
    assert {log_uniform(rng, 1, 4) for _ in range(300)} == {1, 2, 3, 4}
    assert {log_uniform(rng, 7, 7) for _ in range(20)} == {7}


@pytest.mark.parametrize(("name", "value"), [("rate", 0.0), ("prompt_words", (5, 4)), ("mix", ())])
def test_a_workload_that_cannot_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name if name != "mix" else "kind"):
        Workload(**({"rate": 1.0, "seconds": 1.0} | {name: value}))


@pytest.mark.parametrize(
    ("program", "options", "says"),
    [
        (load, "--capacity 0", "with --capacity 0, rate is 0 and seconds 600; both must be above 0"),
        (load, "--capacity -3", "with --capacity -3, rate is -2.1 and"),
        (load, "--capacity nan", "with --capacity nan, rate is nan and"),
        (load, "--capacity 5000 --seconds 9", "with --capacity 5000, rate is 15000 and seconds 90; .* at most 10000,"),
        (load, "--capacity 3000", "with --capacity 3000, rate is 2100 and seconds 600; .* both together 1000000"),
        (load, "--stage-seconds 0", "rate is 2 and seconds 0; both must be above 0"),
        (open_loop, "--rate 1 --timeout-s -1", "--timeout-s is -1, must be above 0 and at most 3600"),
        (open_loop, "--rate 1 --timeout-s inf", "--timeout-s is inf, must be"),
        (open_loop, "--rate 9999 --seconds 9999", "rate is 9999 and seconds 9999; .* both together 1000000"),
        (open_loop, "--rate 1 --url 127.0.0.1:8000", "--url is '127.0.0.1:8000', must be http:// or https://"),
        (open_loop, "--rate 1 --url http://127.0.0.1:x", "--url is 'http://127.0.0.1:x': Invalid port"),
        (open_loop, "--rate 1 --url http://example.org/", "'example.org' is not on this machine"),
        (trace_throughput, "--url localhost:8000", "--url is 'localhost:8000', must be http:// or https://"),
    ],
)
def test_options_that_cannot_be_are_told_before_anything_is_started(
    program: ModuleType, options: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(options.split())
    assert ended.value.code == 2
    assert re.search(f"error: .*{says}", capsys.readouterr().err)


def test_a_record_is_kept_though_the_run_after_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self: load.Job, served: object, name: str, rate: float, seconds: float) -> Run:
        if name == "over":
            raise RuntimeError("the service is gone")
        return Run(outcomes=(), samples=(), record={"failed": 3})

    monkeypatch.setattr(load.Job, "measure", measure)
    job = load.parse(["--capacity", "3", "--output", str(tmp_path)])
    with pytest.raises(RuntimeError, match="gone"):
        load.run(job, Served(url="", target="", model_id="m", topk_layers=(0,), hidden_size=4))
    record = json.loads((tmp_path / "below.json").read_text())
    assert record["failed"] == 3
    assert "failed <= 0: it is 3" in record["problems"]


def metrics_page(*rows: tuple[str, str, int]) -> str:
    """`/metrics` of (replica, model, how busy it is) rows."""
    gauges = {"topk_num_requests_running": 3, "topk_num_requests_waiting": 0, "topk_kv_cache_usage_ratio": 0.5}
    return "".join(
        f"# TYPE {name} gauge\n"
        + "".join(
            f'{name}{{model="{model}",serve_replica="{replica}"}} {value * busy}\n' for replica, model, busy in rows
        )
        for name, value in gauges.items()
    )


#: What is on the page whatever the replicas say.
NO_REPLICA = "# TYPE topk_metrics_replicas_answered gauge\ntopk_metrics_replicas_answered 0\n"


def metrics_client(*pages: str | None) -> httpx.AsyncClient:
    """A service whose `/metrics` says one page after the other, then the last for ever; None: it cannot be had."""
    left = list(pages)

    def answer(_: httpx.Request) -> httpx.Response:
        page = left.pop(0) if len(left) > 1 else left[0]
        return httpx.Response(503) if page is None else httpx.Response(200, text=page)

    return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://service")


def test_the_service_is_at_rest_when_all_models_of_all_replicas_are() -> None:
    page = metrics_page(("r1", "a", 1), ("r1", "b", 0), ("r2", "a", 0), ("r2", "b", 0))

    async def sampled() -> ServerSample:
        async with metrics_client(page) as http:
            return await read_sample(http, 2.0)

    found = asyncio.run(sampled())
    assert found == ServerSample(
        elapsed_s=2.0, num_running=3, num_waiting=0, kv_cache_usage=0.5, replicas=frozenset({"r1", "r2"})
    )
    assert not found.is_idle


def waited(*pages: str | None) -> ServerSample:
    async def wait() -> ServerSample:
        async with metrics_client(*pages) as http:
            return await wait_idle(http, time.monotonic)

    return asyncio.run(wait())


def test_a_service_is_waited_for_whose_replicas_do_not_answer_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_metrics, "POLL_S", 0.01)
    empty = metrics_page()  # the families, and no sample
    assert waited(NO_REPLICA, empty, None, metrics_page(("r", "a", 1)), metrics_page(("r", "a", 0))).is_idle


@pytest.mark.parametrize("page", [NO_REPLICA, metrics_page(), None], ids=["no family", "no sample", "no page"])
def test_a_service_without_replicas_is_told_in_a_line(
    page: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_metrics, "POLL_S", 0.01)
    monkeypatch.setattr(server_metrics, "IDLE_TIMEOUT_S", 0.05)
    assert exit_status("soak", lambda: [str(waited(page))]) == 1
    assert capsys.readouterr().err == "soak: error: no replica answered /metrics 0.05 s after the load\n"


def test_watching_leaves_out_what_no_replica_answered() -> None:
    async def watched() -> list[ServerSample]:
        samples: list[ServerSample] = []
        async with metrics_client(NO_REPLICA, metrics_page(), None, metrics_page(("r", "a", 1))) as http:
            watching = asyncio.create_task(server_metrics.watch(http, time.monotonic, 0.01, samples))
            while not samples and not watching.done():
                await asyncio.sleep(0.01)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        return samples

    assert [one.num_running for one in asyncio.run(watched())][:1] == [3]


def test_a_short_run_on_the_service_gives_a_record_a_plot_and_a_status(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "out" / "run.json"
    options = ["--url", running.url + "/", "--target", running.target, "--rate", "12", "--seconds", "4"]
    options += ["--prompt-words", "1", "6", "--output-tokens", "2", "16", "--output", str(path)]
    # A bound that nothing can keep: a failing threshold is what the status is for.
    assert open_loop.main([*options, "--threshold", "p99_ttft_ms<=0"]) == 1
    record = json.loads(path.read_text())
    assert record["failed"] == record["refused"] == 0, record["errors"]
    assert record["completed"] + record["cancelled"] == record["num_prompts"] == len(list(arrivals(12, 4, 0)))
    assert record["total_output_tokens"] > 0
    assert 0 < record["median_ttft_ms"] <= record["p99_ttft_ms"]
    # Replies that are no streams have no time to first token, so only within one kind is it never above the whole.
    streamed = record["kinds"]["http_stream_traced"]
    assert 0 < streamed["p99_ttft_ms"] <= streamed["p99_e2el_ms"]
    assert record["server_after"]["num_running"] == record["server_after"]["kv_cache_usage"] == 0
    assert {"http", "http_stream_traced", "grpc_stream"} <= record["kinds"].keys()
    assert record["problems"][0].startswith("p99_ttft_ms <= 0: it is ")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_answers_have_as_many_tokens_as_were_asked_for(running: Running) -> None:
    workload = Workload(rate=10, seconds=2, seed=5, prompt_words=(1, 4), output_tokens=(2, 9))
    run = asyncio.run(run_open_loop(find(running.url, running.target), workload, Objective()))
    answered = [one for one in run.outcomes if one.status == "ok"]
    assert answered
    assert all(one.num_output_tokens == one.call.max_tokens for one in answered)
    assert all(len(one.items_s) <= one.num_output_tokens + 1 for one in answered)


def test_a_service_that_is_not_there_is_an_error_and_not_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert open_loop.main(["--url", "http://127.0.0.1:1", "--target", "127.0.0.1:1", "--rate", "1"]) == 1
    assert "does not answer" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        open_loop.main(["--target", "example.org:9000", "--rate", "1"])


@pytest.mark.parametrize("program", [open_loop, export_check, trace_throughput])
def test_what_a_run_leaves_behind_git_ignores(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        program.main(["--help"])
    (path,) = re.findall(r"--output \w+ .*\((.*)\)", capsys.readouterr().out)
    for name in (path, str(Path(path).with_suffix(".png"))):
        assert subprocess.run(["git", "check-ignore", "--quiet", name], cwd=ROOT).returncode == 0, name


def test_a_missing_service_is_told_by_find() -> None:
    with pytest.raises(httpx.HTTPError):
        find("http://127.0.0.1:1", "127.0.0.1:1")
