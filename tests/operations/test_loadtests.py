"""The load tests' own arithmetic on known inputs, and a short run against the real service."""

import asyncio
import json
import math
import re
import subprocess
import time
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import pytest

from loadtests import export_check, faults, load, open_loop, server_metrics, trace_throughput
from loadtests.asking import EventReader, Outcome, RefusedError, Served, find
from loadtests.capacity import search
from loadtests.faults import fault_record
from loadtests.load import over_capacity
from loadtests.local_service import exit_status
from loadtests.open_loop import Run, run_open_loop
from loadtests.results import Objective, Threshold, drift, figures, is_good, problems, summarize, tpot_s, ttft_s
from loadtests.server_metrics import ServerSample, wait_idle
from loadtests.server_metrics import sample as read_sample
from loadtests.soak import slope_mb_per_min
from loadtests.workload import MIX, Call, Kind, Workload, arrivals, log_uniform
from tests.support.running import Running
from tests.support.tools import ROOT

STREAM = Kind(name="stream", share=1, is_stream=True)
WHOLE = Kind(name="whole", share=1)


def outcome(*, arrival: float = 0.0, kind: Kind = STREAM, **fields) -> Outcome:
    """A stream of four tokens, sent 0.5 s late: the first after 1 s, then one every 0.1 s."""
    call = Call(kind=kind, arrival_s=arrival, prompt="a", max_tokens=4, seed=0)
    items = [arrival + t for t in (1.0, 1.1, 1.2, 1.3)] if kind.is_stream else []
    defaults = {"items_s": items, "ended_s": arrival + 1.3, "num_prompt_tokens": 2, "num_output_tokens": 4}
    return Outcome(**({"call": call, "sent_s": arrival + 0.5} | defaults | fields))


def sample(elapsed: float, *replicas: str) -> ServerSample:
    return ServerSample(elapsed_s=elapsed, num_running=0, num_waiting=0, kv_cache_usage=0, replicas=frozenset(replicas))


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
    import random

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


def test_latencies_count_from_the_scheduled_arrival() -> None:
    late = outcome(arrival=10.0)
    assert ttft_s(late) == pytest.approx(1.0)
    assert tpot_s(late) == pytest.approx(0.3 / 3)
    assert tpot_s(outcome(num_output_tokens=1)) is None
    assert ttft_s(outcome(kind=WHOLE)) is None


def test_figures_have_vllms_names_and_known_values() -> None:
    record = figures([outcome(), outcome(arrival=1.0, status="refused", code="429")], 2.0, Objective(ttft_s=1.001))
    assert record["completed"] == record["refused"] == 1
    assert record["request_throughput"] == 0.5
    assert record["output_throughput"] == 2.0
    assert record["total_token_throughput"] == 3.0
    assert record["request_goodput"] == record["goodput_ratio"] == 0.5
    assert record["mean_ttft_ms"] == record["median_ttft_ms"] == record["p99_ttft_ms"] == pytest.approx(1000)
    assert (record["mean_itl_ms"], record["mean_tpot_ms"]) == (pytest.approx(100), pytest.approx(100))
    assert record["p99_e2el_ms"] == pytest.approx(1300)
    assert figures([], 1.0, Objective())["p99_ttft_ms"] is None


def test_percentiles_interpolate_as_numpy_does() -> None:
    many = [outcome(ended_s=float(end)) for end in range(1, 102)]
    record = figures(many, 1.0, Objective())
    assert (record["p50_e2el_ms"], record["p90_e2el_ms"], record["p99_e2el_ms"]) == (51_000, 91_000, 100_000)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"status": "refused"}, False),
        ({"status": "failed"}, False),
        ({"items_s": [1.01, 1.1]}, False),  # the first token came late
        ({"ended_s": 1.0 + 0.61}, False),  # the other three took 0.61 s
        ({"kind": WHOLE, "ended_s": 1.59}, True),
        ({"kind": WHOLE, "ended_s": 1.61}, False),
    ],
)
def test_good_is_what_the_objective_promises(fields: dict, expected: bool) -> None:
    assert is_good(outcome(**fields), Objective(ttft_s=1.0, tpot_s=0.2)) is expected


def test_requests_that_the_client_left_count_neither_way() -> None:
    record = figures([outcome(), outcome(status="cancelled")], 1.0, Objective())
    assert (record["goodput_ratio"], record["cancelled"], record["completed"]) == (1.0, 1, 1)


def test_errors_and_refusals_are_counted_apart() -> None:
    outcomes = [
        outcome(),
        outcome(status="failed", code="503"),
        outcome(status="failed", code="timeout"),
        outcome(status="refused", code="429", retry_after_s=1.0, ended_s=0.25),
        outcome(status="refused", code="429", ended_s=0.75),
    ]
    record = summarize(outcomes, 2.0, Objective())
    assert record["errors"] == {"503": 1, "timeout": 1}
    assert record["hung"] == 1
    refusals = record["refusals"]
    assert (refusals["codes"], refusals["retry_after_s"], refusals["without_retry_after"]) == ({"429": 2}, {"1": 1}, 1)
    assert refusals["mean_latency_ms"] == pytest.approx(500)
    assert record["client"]["p99_lateness_ms"] == pytest.approx(500)
    assert record["kinds"]["stream"]["failed"] == 2


def test_drift_is_the_last_third_over_the_first() -> None:
    slower = [outcome(arrival=float(i), items_s=[i + (1.0 if i < 6 else 1.5)], ended_s=i + 2.5) for i in range(9)]
    assert drift(slower)["median_ttft"] == pytest.approx(1.5)
    assert drift(slower)["p90_tpot"] == pytest.approx(1.0 / 1.5)
    assert drift([outcome()])["median_ttft"] is None


def test_thresholds_fail_by_name() -> None:
    record = {"failed": 2, "drift": {"median_ttft": 1.1}, "goodput_ratio": 0.98, "p99_ttft_ms": None}
    assert problems(record, ["failed<=2", "drift.median_ttft<=1.1", "goodput_ratio>=0.98"]) == []
    found = problems(record, ["failed<=0", "goodput_ratio >= 0.99", "p99_ttft_ms<=1000", "drift.nothing<=1"])
    assert found == [
        "failed <= 0: it is 2",
        "goodput_ratio >= 0.99: it is 0.98",
        "p99_ttft_ms <= 1000: there is no such figure",
        "drift.nothing <= 1: there is no such figure",
    ]
    with pytest.raises(ValueError, match="a threshold is as"):
        Threshold.parse("failed=0")


def test_overload_is_held_to_twice_the_latency_below_capacity() -> None:
    below = {"p99_e2el_ms": 1000.0, "p99_tpot_ms": 20.0}
    wanted = [text for text in over_capacity(below) if text.startswith(("p99_e2el", "p99_tpot"))]
    assert problems({"p99_e2el_ms": 1999.0, "p99_tpot_ms": 40.1}, wanted) == ["p99_tpot_ms <= 40: it is 40.1"]


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


@pytest.mark.parametrize("limit", [3.0, 17.0, 64.0])
def test_the_search_finds_the_highest_rate_that_is_kept(limit: float) -> None:
    assert limit / 1.1 <= search(lambda rate: rate <= limit) <= limit


def test_the_search_says_where_there_is_nothing_to_find() -> None:
    with pytest.raises(RuntimeError, match="too many already"):
        search(lambda rate: False)
    with pytest.raises(RuntimeError, match="no rate"):
        search(lambda rate: True)


def test_a_slope_is_in_megabytes_a_minute() -> None:
    times = [0.0, 30.0, 60.0, 120.0]
    assert slope_mb_per_min(times, [1e8 + 2e6 * t / 60 for t in times]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="three samples"):
        slope_mb_per_min([0.0, 1.0], [1.0, 2.0])


def test_service_is_full_again_once_replicas_are_replaced_and_nothing_fails() -> None:
    failed = [outcome(arrival=t, status="failed", ended_s=t + 1) for t in (9.5, 10.5, 14.0)]
    samples = [sample(9, "a", "b"), sample(11, "b"), sample(13, "b", "c"), sample(20, "c", "d")]
    record = fault_record("kill", 10.0, failed, samples, 2)
    assert (record["replaced_after_s"], record["full_service_after_s"]) == (3, 4)
    assert (record["failed_in_flight"], record["failed_just_after"], record["failed_later"]) == (1, 1, 1)
    assert fault_record("update", 10.0, [], samples, 2)["full_service_after_s"] == 10
    assert fault_record("kill", 10.0, [], samples[:2], 2)["full_service_after_s"] is None


@pytest.mark.parametrize(("lost", "says"), [("failed", "failed <= 0: it is 1"), ("refused", "refused <= 0: it is 1")])
def test_an_update_may_lose_no_request_and_a_kill_only_its_own(lost: str, says: str) -> None:
    outcomes = [outcome(), outcome(arrival=10.5, status=lost, code="503")]
    record = summarize(outcomes, 30.0, Objective())
    record["server_after"] = {"num_running": 0, "num_waiting": 0, "kv_cache_usage": 0}
    samples = [sample(9, "a", "b"), sample(15, "c", "d")]
    for kind, expected in (("update", [says]), ("kill", [])):
        record["fault"] = fault_record(kind, 10.0, outcomes, samples, 2)
        assert problems(record, faults.THRESHOLDS[kind]) == expected


def metrics_page(*rows: tuple[str, str, int]) -> str:
    """`/metrics` of (replica, model, how busy it is) rows."""
    gauges = {"topk_num_requests_running": 3, "topk_num_requests_waiting": 0, "topk_kv_cache_usage_ratio": 0.5}
    return "".join(
        f"# TYPE {name} gauge\n"
        + "".join(f'{name}{{model="{model}",replica="{replica}"}} {value * busy}\n' for replica, model, busy in rows)
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


def test_events_are_timed_from_the_first_with_text() -> None:
    begun = outcome(items_s=[], num_output_tokens=0)
    reader = EventReader(begun)
    piece = lambda text: b"data: " + json.dumps({"choices": [{"text": text}]}).encode() + b"\n\n"  # noqa: E731
    reader.feed(piece(""), 1.0)
    reader.feed(piece("a") + piece("b")[:5], 2.0)
    reader.feed(piece("b")[5:], 3.0)
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    reader.feed(b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n", 4.0)
    reader.end()
    assert begun.items_s == [2.0, 3.0]
    assert (begun.num_prompt_tokens, begun.num_output_tokens) == (3, 2)


def test_a_stream_that_ends_by_an_error_or_too_early_has_failed() -> None:
    with pytest.raises(RefusedError, match="event engine_dead"):
        EventReader(outcome()).feed(b'data: {"error":{"code":"engine_dead"}}\n\n', 1.0)
    reader = EventReader(outcome())
    reader.feed(b'data: {"choices": [{"text": "a"}]}\n\n', 1.0)
    with pytest.raises(RefusedError, match="cut off"):
        reader.end()


@pytest.mark.ray
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
    assert 0 < record["median_ttft_ms"] <= record["p99_ttft_ms"] <= record["p99_e2el_ms"]
    assert record["server_after"]["num_running"] == record["server_after"]["kv_cache_usage"] == 0
    assert {"http", "http_stream_traced", "grpc_stream"} <= record["kinds"].keys()
    assert record["problems"][0].startswith("p99_ttft_ms <= 0: it is ")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.ray
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
