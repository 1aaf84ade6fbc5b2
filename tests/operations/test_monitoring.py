"""The alert rules and the dashboard in deploy/monitoring: valid, about metrics that exist, and with data."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.admission import ApiKeys
from service.observability.metrics import Metrics
from service.observability.metrics_page import Collected, collect, render
from service.pb import topk_pb2 as pb
from service.pb import topk_pb2_grpc as pb_grpc
from tests.support.engine_stats import STATS
from tests.support.operations.ray_metrics import OF_RAY
from tests.support.running import Running
from tests.support.served import MODEL_ID, free_port, wait_until
from tests.support.tools import tool

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "monitoring"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text())
CASE_FILES = sorted(FOLDER.glob("*.test.yaml"))
CASES = [case for path in CASE_FILES for case in yaml.safe_load(path.read_text())["tests"]]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
ALL_RULES = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL_RULES if "alert" in rule}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
#: What Prometheus itself knows of what it scrapes, and the labels that it or its operator puts on.
OF_PROMETHEUS = {"up", "ALERTS"}
#: What others in a cluster say, with the labels that they give: kuberay-operator, and kube-state-metrics.
OF_OTHERS = {
    "kuberay_service_condition_ready": {"name", "namespace", "condition"},
    "kube_pod_container_status_terminated": {"namespace", "pod", "container"},
    "kube_pod_deletion_timestamp": {"namespace", "pod"},
}
TARGET_LABELS = {"job", "instance", "namespace", "alertname", "alertstate"}
EDIT = {"layer": 0, "neuron": 3, "op": "set", "value": 9.0}

HINT = "Debian's package prometheus has it"


def filled_in(query: str, window: str = "1m") -> str:
    """A query of the dashboard as Grafana would send it, with everything chosen."""
    return re.sub(r"\$(job|model|namespace)", ".*", query.replace("$__rate_interval", window))


def queries() -> Iterator[tuple[str, str, str]]:
    """(panel, legend, query) of the dashboard."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["legendFormat"], target["expr"]


def metrics_with_labels() -> dict[str, set[str]]:
    """Every series name of the page, and of the recorded rules, with the labels that it may have."""
    metrics = Metrics()
    metrics.of("m").watch(lambda: STATS)
    metrics.watch_keys(ApiKeys())
    metrics.requests.labels("http", "/", "200")
    metrics.request_duration.labels("http", "/")
    known = dict.fromkeys(OF_PROMETHEUS | {r["record"] for r in ALL_RULES if "record" in r}, TARGET_LABELS)
    known |= {name: labels | TARGET_LABELS for name, labels in (OF_RAY | OF_OTHERS).items()}
    page = render(Collected(replicas=[collect(metrics, "r")], num_asked=1)).decode()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            known[sample.name] = known.get(sample.name, TARGET_LABELS) | set(sample.labels)
    return known


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """(name, labels that are asked about) of every series that a query selects."""
    found: list[tuple[str, set[str]]] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name, {matcher.name for matcher in node.matchers.matchers}))

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def test_every_query_is_about_metrics_that_exist() -> None:
    known = metrics_with_labels()
    everything = [filled_in(query) for _, _, query in queries()] + [rule["expr"] for rule in ALL_RULES]
    everything += [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"][1:]]
    everything += [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
    for query in everything:
        inner = re.fullmatch(r"label_values\((.*), \w+\)", query)
        found = selectors(filled_in(inner[1] if inner else query))
        assert found, query
        for name, labels in found:
            assert name in known, f"{name} in {query}"
            assert labels <= known[name], f"{name} has no {labels - known[name]}: {query}"


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {name for _, _, query in queries() for name, _ in selectors(filled_in(query))}
    known = {re.sub("_(bucket|sum|count)$", "", name) for name in metrics_with_labels() if name.startswith("topk_")}
    left_out = known - {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    assert left_out == set()


def test_every_query_of_the_dashboard_is_of_the_namespace_chosen() -> None:
    for panel, _, query in queries():
        num_selected = len(selectors(filled_in(query)))
        assert query.count('namespace=~"$namespace"') == num_selected, f"{panel}: {query}"


def test_no_label_is_one_by_which_thanos_drops_copies() -> None:
    """Ray's own label of that name is renamed when it is scraped."""
    assert not [name for name, labels in metrics_with_labels().items() if "replica" in labels and name not in OF_RAY]
    _, rays = yaml.safe_load_all((FOLDER / "monitors.yaml").read_text())
    (endpoint,) = rays["spec"]["podMetricsEndpoints"]
    assert {"action": "labeldrop", "regex": "replica"} in endpoint["metricRelabelings"]


def test_the_dashboard_is_whole() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == ["Traffic", "Latency", "Engine", "Steering, traces and checkpoints", "Replicas"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert all(0 <= x < 24 for x, _ in cells)
        taken |= cells
    for panel in PANELS:
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    subprocess.run([tool("promtool", HINT), "check", "rules", FOLDER / "rules.yaml"], check=True, capture_output=True)


@pytest.mark.long
def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    done = subprocess.run(
        [tool("promtool", HINT), "test", "rules", *CASE_FILES],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    checks = [check for case in CASES for check in case.get("alert_rule_test", [])]
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == set(ALERTS)
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == set(ALERTS)


def test_every_alert_says_what_it_is_and_where_its_first_steps_are() -> None:
    headings = re.findall(r"^## (\w+)$\n\n(Critical|Warning)\.", (FOLDER / "RUNBOOK.md").read_text(), re.MULTILINE)
    assert {name: severity.lower() for name, severity in headings} == {
        name: rule["labels"]["severity"] for name, rule in ALERTS.items()
    }
    for name, rule in ALERTS.items():
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        url = f"https://git.example.com/topk-serve/deploy/monitoring/RUNBOOK.md#{name.lower()}"
        assert rule["annotations"]["runbook_url"] == url  # README.md says how to put your own in its place


def test_the_operators_rules_are_the_same() -> None:
    """`make rules` writes them."""
    assert yaml.safe_load((FOLDER / "prometheus-rule.yaml").read_text())["spec"] == RULES


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, query: str) -> list[dict[str, Any]]:
        """Samples of an instant query."""
        reply = httpx.get(f"{self.url}/api/v1/query", params={"query": query}).json()
        assert reply["status"] == "success", f"{query}: {reply}"
        result: list[dict[str, Any]] = reply["data"]["result"]
        return result

    def value(self, query: str) -> float:
        samples = self.query(query)
        return float(samples[0]["value"][1]) if samples else 0.0


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """One that scrapes `target` each second as the job `topk`, under our rules."""
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FOLDER / "rules.yaml")],
        "scrape_configs": [{"job_name": "topk", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        tool("prometheus", HINT),
        f"--config.file={folder}/prometheus.yaml",
        f"--storage.tsdb.path={folder}/data",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        ready = lambda: is_ready(f"http://{address}/-/ready")  # noqa: E731
        assert wait_until(ready, 20), (folder / "log").read_text()[-2000:]
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(20)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def use(running: Running) -> None:
    """A little of everything that is counted, over both transports."""
    ask: dict[str, Any] = {"model": MODEL_ID, "prompt": "Once upon a time", "max_tokens": 6}
    completions = f"{running.url}/v1/completions"
    httpx.post(completions, json=ask | {"stream": True, "interventions": [EDIT], "trace": {}}).raise_for_status()
    httpx.post(completions, json=ask | {"n": 2, "ignore_eos": True}).raise_for_status()
    assert httpx.post(completions, json=ask | {"max_tokens": -1}).status_code == 400
    with grpc.insecure_channel(running.target) as channel:
        stub = pb_grpc.TopKServiceStub(channel)
        request = pb.GenerateRequest(
            model=MODEL_ID, prompt=pb.Prompt(text="Once"), max_tokens=4, trace=pb.TraceOptions()
        )
        stub.Generate(request, timeout=30)


def test_a_prometheus_that_scrapes_the_service_answers_every_query(running: Running, tmp_path: Path) -> None:
    with prometheus(f"127.0.0.1:{running.port}", tmp_path) as server:
        use(running)
        assert wait_until(lambda: server.value("topk_generation_tokens_total") > 0, 10)
        for _ in range(2):
            use(running)
            time.sleep(1)
        assert wait_until(lambda: server.value('sum(rate(topk_requests_total{transport="grpc"}[1m]))') > 0, 10)
        for panel, legend, query in queries():
            samples = server.query(filled_in(query))
            assert samples, f"{panel} has no data: {query}"
            for label in re.findall(r"\{\{(\w+)\}\}", legend):
                assert any(label in sample["metric"] for sample in samples), f"{panel}: no {label} in {query}"
        groups = httpx.get(f"{server.url}/api/v1/rules").json()["data"]["groups"]
        states = {rule["name"]: rule for group in groups for rule in group["rules"]}
        assert len(states) == len(ALL_RULES)
        assert {name: rule.get("lastError") for name, rule in states.items() if rule["health"] != "ok"} == {}
        for rule in ALL_RULES:
            if "record" in rule:
                assert server.query(rule["record"]), f"{rule['record']} has no data"
        assert not server.query('ALERTS{alertstate="firing"}')
        assert server.value("job:topk_request_errors:ratio_rate5m") == 0
        for counted in (
            'topk_trace_bytes_total{transport="http"}',
            'topk_trace_bytes_total{transport="grpc"}',
            'topk_interventions_total{op="set"}',
            'topk_requests_total{route="Generate", status="OK"}',
        ):
            assert server.value(counted) > 0, counted
