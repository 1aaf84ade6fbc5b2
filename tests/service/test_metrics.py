"""The page of metrics: what it counts, under which names, and how replicas and models are merged into it."""

import json
import socket
import subprocess
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.request import FinishReason
from service.observability.metrics import Metrics
from service.observability.metrics_page import Collected, collect, render
from tests.support.engine_stats import STATS
from tests.support.served import MODEL_ID, Served, wait_until
from tests.support.tiny import make_request, tiny_model
from tests.support.tools import tool
from topk_model.interventions import Op

#: Every label that a metric of ours may have.
LABELS = {
    "serve_replica", "model", "version", "transport", "route", "status", "reason", "finished_reason", "op", "le",
    "kind", "outcome",
}  # fmt: skip
ENGINE_GAUGES = ("num_requests_waiting", "num_requests_running", "max_num_seqs", "kv_cache_usage_ratio")


def replica(name: str, **num_tokens: int) -> Collected:
    """A replica's metrics, with so many generated tokens of each model."""
    metrics = Metrics()
    for model, count in num_tokens.items():
        metrics.of(model).generation_tokens.inc(count)
        metrics.of(model).watch(lambda: STATS)
    return Collected(replicas=[collect(metrics, name)], num_asked=1)


def together(*pages: Collected, num_asked: int | None = None) -> Collected:
    replicas = [one for page in pages for one in page.replicas]
    return Collected(replicas=replicas, num_asked=num_asked or len(replicas))


def series(name: str, labels: dict[str, str]) -> str:
    """As `name{a="b",c="d"}`, labels in alphabetical order."""
    return name + "{" + ",".join(f'{label}="{value}"' for label, value in sorted(labels.items())) + "}"


def values(page: bytes | str) -> dict[str, float]:
    """The page's samples by `series`."""
    text = page.decode() if isinstance(page, bytes) else page
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {series(sample.name, sample.labels): sample.value for sample in samples}


def test_replicas_and_models_are_merged_under_one_head_each() -> None:
    page = render(together(replica("r1", a=5, b=7), replica("r2", a=11)))
    lines = page.decode().splitlines()
    heads = [line.split()[1:3] for line in lines if line.startswith("#")]
    assert len(heads) == len({tuple(head) for head in heads}) > 60
    found = values(page)
    tokens = {key: value for key, value in found.items() if key.startswith("topk_generation_tokens_total")}
    assert tokens == {
        'topk_generation_tokens_total{model="a",serve_replica="r1"}': 5,
        'topk_generation_tokens_total{model="b",serve_replica="r1"}': 7,
        'topk_generation_tokens_total{model="a",serve_replica="r2"}': 11,
    }
    assert found['topk_kv_cache_usage_ratio{model="b",serve_replica="r1"}'] == 0.25
    assert found['topk_num_loaded_models{serve_replica="r1"}'] == 2


def test_a_queue_that_lacks_blocks_shows_though_some_are_free() -> None:
    engine = Engine(tiny_model(), EngineConfig(num_blocks=32, max_num_seqs=4, prefix_cache=False), lambda _: None)
    metrics = Metrics()
    metrics.of("m").watch(engine.stats)
    for name, length in (("long", 29 * 16), ("next", 4 * 16)):
        engine._core.add(make_request(name, length=length, max_tokens=4))
    engine._core.scheduler.admit()
    found = values(render(Collected(replicas=[collect(metrics, "r")], num_asked=1)))
    shown = {name: found[f'topk_{name}{{model="m",serve_replica="r"}}'] for name in ENGINE_GAUGES}
    assert shown == pytest.approx(
        {"num_requests_waiting": 1, "num_requests_running": 1, "max_num_seqs": 4, "kv_cache_usage_ratio": 29 / 32}
    )


def test_labels_come_from_a_closed_list_and_every_sample_has_its_replica() -> None:
    page = render(together(replica("r1", a=1))).decode()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            assert set(sample.labels) <= LABELS, sample
            assert "serve_replica" in sample.labels or sample.name.startswith("topk_metrics_replicas_"), sample


def test_what_has_not_happened_yet_is_zero_and_not_absent() -> None:
    found = values(render(replica("r", m=0)))
    for reason in get_args(FinishReason):
        if reason in ("stop", "length"):
            assert found[f'topk_request_success_total{{finished_reason="{reason}",model="m",serve_replica="r"}}'] == 0
        else:
            assert found[f'topk_request_failure_total{{model="m",reason="{reason}",serve_replica="r"}}'] == 0
    for op in get_args(Op):
        assert found[f'topk_interventions_total{{model="m",op="{op}",serve_replica="r"}}'] == 0
    for reason in ("queue_full", "too_many_requests", "too_many_jobs", "invalid_api_key", "permission_denied"):
        assert found[f'topk_request_rejections_total{{reason="{reason}",serve_replica="r"}}'] == 0


def test_an_unloaded_model_has_no_state_and_keeps_its_counts() -> None:
    metrics = Metrics()
    checkpoint = metrics.of("m@step-1")
    checkpoint.generation_tokens.inc(5)
    checkpoint.watch(lambda: STATS)
    assert 'topk_num_requests_running{model="m@step-1",serve_replica="r"}' in values(
        render(Collected(replicas=[collect(metrics, "r")], num_asked=1))
    )
    checkpoint.unwatch()
    found = values(render(Collected(replicas=[collect(metrics, "r")], num_asked=1)))
    assert not any(key.startswith("topk_num_requests_running") for key in found)
    assert found['topk_generation_tokens_total{model="m@step-1",serve_replica="r"}'] == 5
    assert found['topk_num_loaded_models{serve_replica="r"}'] == 0
    assert metrics.of("m@step-1") is checkpoint


def test_a_page_without_a_replica_says_so() -> None:
    found = values(render(together(replica("r1", a=1), num_asked=2)))
    assert found["topk_metrics_replicas_asked{}"] == 2
    assert found["topk_metrics_replicas_answered{}"] == 1


def test_promtool_finds_nothing_wrong_with_the_page(served: Served) -> None:
    served.complete(max_tokens=2)
    for page in (served.client.get("/metrics").content, render(together(replica("r1", a=1, b=2), replica("r2", a=3)))):
        checked = subprocess.run(
            [tool("promtool", "Debian's package prometheus has it"), "check", "metrics"],
            input=page,
            capture_output=True,
            check=False,
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def counted(served: Served, route: str, status: str) -> float:
    page = values(served.client.get("/metrics").text)
    return page.get(f'topk_requests_total{{route="{route}",serve_replica="0",status="{status}",transport="http"}}', 0.0)


def test_requests_are_counted_by_route_and_end(served: Served) -> None:
    cases = {("/v1/completions", "200"), ("/v1/completions", "400"), ("/v1/models/{model_id:path}", "404"),
             ("/v1/completions", "405"), ("none", "404")}  # fmt: skip
    before = {case: counted(served, *case) for case in cases}
    served.complete(max_tokens=1)
    served.post("/v1/completions", prompt=1.5)
    served.client.get("/v1/models/not-a-model-of-ours")
    served.client.delete("/v1/completions")
    served.client.get("/not-a-route-of-ours")
    # A request ends just after its client has the reply.
    assert wait_until(lambda: all(counted(served, *case) == before[case] + 1 for case in cases), 1)
    page = served.client.get("/metrics").text
    assert "of-ours" not in page
    assert 'route="/metrics"' not in page
    assert 'topk_requests_in_progress{serve_replica="0",transport="http"} 0.0' in page
    assert (
        f'topk_build_info{{serve_replica="0",version="{served.client.get("/version").json()["version"]}"}} 1.0' in page
    )


@pytest.mark.usefixtures("slow_engine")
def test_a_stream_that_breaks_is_counted_as_the_error_that_it_ends_with(served: Served) -> None:
    before = counted(served, "/v1/completions", "408"), counted(served, "/v1/completions", "200")
    body = {"prompt": "Once", "max_tokens": 200, "n": 16, "stream": True, "ignore_eos": True, "timeout_s": 0.1}
    reply = served.post("/v1/completions", **body)
    if reply.status_code == 200:  # and not a machine too busy for a first token in that time
        assert "deadline_exceeded" in reply.text
    assert wait_until(lambda: counted(served, "/v1/completions", "408") == before[0] + 1, 1)
    assert counted(served, "/v1/completions", "200") == before[1]


@pytest.mark.usefixtures("slow_engine")
def test_a_client_that_goes_is_counted_as_gone(served: Served) -> None:
    before = counted(served, "/v1/completions", "499")
    body = {"model": MODEL_ID, "prompt": "Once", "max_tokens": 200, "n": 8, "ignore_eos": True, "stream": True}
    data = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1]))) as client:
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        assert wait_until(lambda: served.model.stats().num_running == 8, 5)
    assert wait_until(lambda: counted(served, "/v1/completions", "499") == before + 1, 2)
    assert served.wait_idle()


def test_the_times_of_a_sequence_add_up(served: Served) -> None:
    names = ("queue_time", "prefill_time", "decode_time")

    def sums() -> dict[str, float]:
        page = values(served.client.get("/metrics").text)
        found = {
            name: page[f'topk_request_{name}_seconds_sum{{model="{MODEL_ID}",serve_replica="0"}}'] for name in names
        }
        return found | {"e2e": page[f'topk_e2e_request_latency_seconds_sum{{model="{MODEL_ID}",serve_replica="0"}}']}

    before = sums()
    served.complete(max_tokens=32, ignore_eos=True)
    taken = {name: value - before[name] for name, value in sums().items()}
    assert all(value >= 0 for value in taken.values())
    assert taken["prefill_time"] > 0
    assert taken["decode_time"] > taken["prefill_time"]
    parts = sum(taken[name] for name in names)
    assert parts <= taken["e2e"] + 1e-6
    assert parts == pytest.approx(taken["e2e"], abs=0.1)
