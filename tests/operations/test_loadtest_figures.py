"""The load tests' own arithmetic, on known inputs."""

import json

import numpy as np
import pytest

from loadtests import faults, storage
from loadtests.asking import EventReader, Outcome, RefusedError
from loadtests.capacity import search
from loadtests.faults import fault_record
from loadtests.load import over_capacity
from loadtests.results import Objective, Threshold, drift, figures, is_good, problems, summarize, tpot_s, ttft_s
from loadtests.server_metrics import ServerSample
from loadtests.soak import slope_mb_per_min
from loadtests.workload import Call, Kind
from topk_model.traces import TraceSpec, select_entries

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
    with pytest.raises(ValueError, match="a threshold must be like"):
        Threshold.parse("failed=0")


def test_overload_is_held_to_twice_the_latency_below_capacity() -> None:
    below = {"p99_e2el_ms": 1000.0, "p99_tpot_ms": 20.0}
    wanted = [text for text in over_capacity(below) if text.startswith(("p99_e2el", "p99_tpot"))]
    assert problems({"p99_e2el_ms": 1999.0, "p99_tpot_ms": 40.1}, wanted) == ["p99_tpot_ms <= 40: it is 40.1"]


@pytest.mark.parametrize("limit", [3.0, 17.0, 64.0])
def test_the_search_finds_the_highest_rate_that_is_kept(limit: float) -> None:
    assert limit / 1.1 <= search(lambda rate: rate <= limit) <= limit


def test_the_search_says_where_there_is_nothing_to_find() -> None:
    with pytest.raises(RuntimeError, match="already too many"):
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


def test_the_effect_of_a_storage_is_counted_in_states_neurons_and_texts() -> None:
    def reading(*rows: list[int], texts: list[list[int]]) -> storage.Reading:
        counts = np.array([[len(row)] for row in rows])
        indices = np.concatenate([np.array(row, dtype=np.int32) for row in rows])
        chunk = select_entries(TraceSpec(layers=(0,)), 0, 1, counts, indices, np.ones(len(indices), dtype=np.float32))
        return storage.Reading(losses=[1.0, 2.0], traces=[chunk], texts=texts)

    reference = reading([1, 2], [3, 4], [5, 6], [7, 8], texts=[[1, 2, 3], [4, 5, 6]])
    other = reading([1, 2], [3, 9], [5, 6], [8, 9], texts=[[1, 2, 3], [4, 5, 7]])
    found = storage.effect("int8", other, reference)
    assert (found.loss, found.changed_states, found.changed_neurons) == (1.5, 2 / 4, 2 / 8)
    assert (found.changed_texts, found.first_difference) == (1 / 2, 2.0)
    same = storage.effect("float32", reference, reference)
    assert (same.changed_states, same.changed_neurons, same.changed_texts, same.first_difference) == (0, 0, 0, None)
