"""Writing and steering in the browser, by what a user sees and clicks, held to the API's own answers."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from google.protobuf import json_format
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect

from service.engine.core import EngineCore
from service.grpc_api.conversion import generation_from_pb
from service.pb import topk_pb2 as pb
from service.requests.parsing import validate
from service.requests.schema import CompletionRequest
from tests.model.test_steering import preset
from tests.support.browser import PHONE, Tab, open_tab
from tests.support.served import MODEL_ID, Served, serve_app
from topk_model.catalogue.file import weights_digest
from topk_model.steering.presets import write_presets

PROMPT = "Once upon a time, there was a king"
KEY = "a-key-for-tests"
ADD = {"layer": 0, "neuron": 3, "op": "add", "value": 2, "unit": "kth", "positions": "generated"}
SET = {"layer": [0, 1], "neuron": 5, "op": "set", "value": 4.5, "site": "pre_topk"}
#: What a shell, Python and JSON could each take for something else.
NASTY = "It's \"so\" \\n {x} $HOME `date` $(id) !! %s\n\tnext 'line' \\ ünïcødé 😀 \u2028 \x7f end\\"


def link(*stack: dict[str, Any], prompt: str = PROMPT, **fields: object) -> str:
    """The address of a draft."""
    fields = {"prompt": prompt, **fields}
    if stack:
        fields["stack"] = json.dumps(stack)
    return "#/write?" + "&".join(f"{name}={quote(str(value))}" for name, value in fields.items())


def opened(tab: Tab, *stack: dict[str, Any], **fields: Any) -> Page:
    page = tab.go(link(*stack, **({"trace": "off"} | fields)))
    expect(page.get_by_role("textbox", name="Prompt")).to_be_visible()
    return page


def run(page: Page) -> dict[str, Any]:
    """Press Run and wait for the end; the body of the one request that this makes."""
    asked: list[Request] = []
    note = lambda request: asked.append(request)  # noqa: E731
    page.on("request", note)
    with page.expect_request("**/v1/completions"):
        page.get_by_role("button", name="Run").click()
    expect(page.get_by_text("Done:").or_(page.get_by_role("alert"))).to_be_visible()
    page.remove_listener("request", note)
    (request,) = (request for request in asked if request.url.endswith("/v1/completions"))
    body: dict[str, Any] = request.post_data_json
    return body


def rows(page: Page) -> Locator:
    """The interventions of the stack."""
    return page.get_by_role("region", name="Interventions").locator("ol > li")


def stack(page: Page) -> list[dict[str, Any]]:
    """The stack as its JSON shows it."""
    found: list[dict[str, Any]] = json.loads(page.get_by_label("Interventions as JSON").input_value())
    return found


def written(page: Page, name: str) -> str:
    """What stands in a column after the prompt."""
    text = page.get_by_role("region", name=name, exact=True).locator(".written").text_content()
    assert text is not None
    assert text.startswith(PROMPT)
    return text.removeprefix(PROMPT)


def code(page: Page, language: str) -> str:
    page.get_by_role("tab", name=language).click()
    text = page.get_by_role("tabpanel").text_content()
    assert text is not None
    return text


def picker(page: Page) -> Locator:
    return page.get_by_role("search", name="Add a neuron")


def summaries(served: Served, **parameters: Any) -> list[dict[str, Any]]:
    reply = served.client.get("/v1/neurons", params={"model": MODEL_ID, "limit": 500} | parameters)
    found: list[dict[str, Any]] = reply.json()["data"]
    return found


def without_stream(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("stream", "stream_options")}


@pytest.fixture(scope="module")
def with_presets(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("presets") / "model"
    shutil.copytree(tiny_model_path, folder)
    presets = [preset("sea", value=2.5, words=("ship", "sea")), preset("war", neuron=9)]
    write_presets(folder, weights_digest(folder), 0.2, presets)
    with serve_app(folder, api_keys=KEY) as service:
        service.client.headers["Authorization"] = f"Bearer {KEY}"
        yield service


@pytest.fixture
def slow_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that can be watched and stopped while it writes."""
    step = EngineCore.step

    def step_late(*args: Any) -> None:
        time.sleep(0.02)
        step(*args)

    monkeypatch.setattr(EngineCore, "step", step_late)


def test_default_and_steered_come_from_one_request(tab: Tab, served: Served) -> None:
    page = opened(tab, ADD, SET, max_tokens=24, seed=7, trace="on")
    body = run(page)
    assert body["stream"] is body["compare"] is True
    assert body["interventions"] == [ADD, SET]
    assert (body["seed"], body["max_tokens"], body["trace"]) == (7, 24, {})
    reply = served.post("/v1/completions", **without_stream(body)).json()
    default, steered = reply["choices"]
    assert default["text"] != steered["text"]
    assert written(page, "Default") == default["text"]
    assert written(page, "Steered") == steered["text"]
    tail = page.get_by_role("region", name="Steered", exact=True).locator("mark").text_content()
    assert tail
    assert default["text"].startswith(steered["text"].removesuffix(tail))
    expect(page.get_by_text("Done:")).to_contain_text(f"{reply['usage']['completion_tokens']} tokens")
    expect(page.get_by_role("region", name="Read the trace")).to_be_visible()


def test_receipts_say_what_each_intervention_did(tab: Tab, served: Served) -> None:
    page = opened(tab, ADD, SET, max_tokens=12)
    body = run(page)
    receipts = served.post("/v1/completions", **without_stream(body)).json()["choices"][1]["interventions"]
    shown = page.get_by_role("region", name="What the interventions did").get_by_role("listitem").all()
    assert len(shown) == len(receipts) == 2
    for item, receipt in zip(shown, receipts, strict=True):
        text = re.sub(r"\s+", " ", item.inner_text())
        assert f"Applied at {receipt['positions_applied']} tokens" in text
        assert f"positions {receipt['first']} to {receipt['last']}" in text
        before, after = re.findall(r"(-?[\d.]*\d(?:e[+-]\d+)?) → (-?[\d.]*\d(?:e[+-]\d+)?)", text)[0]
        assert float(before) == pytest.approx(receipt["mean_before"], rel=6e-3)
        assert float(after) == pytest.approx(receipt["mean_after"], rel=6e-3)
    assert receipts[1]["evicted"] > 0
    expect(shown[1]).to_contain_text("pushed another neuron out")


def test_an_intervention_that_did_nothing_is_warned_of(tab: Tab) -> None:
    never = ADD | {"when": [{"layer": 0, "neuron": 1, "is": "above", "value": 9999.0}]}
    page = opened(tab, never, max_tokens=8, trace="on")
    expect(rows(page)).to_contain_text("Also sent, as JSON: when")
    assert run(page)["interventions"] == [never]
    expect(page.get_by_text("was applied nowhere")).to_be_visible()
    expect(page.get_by_text("Applied nowhere.")).to_be_visible()
    expect(page.get_by_text("as the default")).to_be_visible()


def test_without_interventions_the_plain_continuation_is_written(tab: Tab, served: Served) -> None:
    page = opened(tab, max_tokens=8)
    body = run(page)
    assert "interventions" not in body
    assert "compare" not in body
    assert (
        written(page, "Default") == served.post("/v1/completions", **without_stream(body)).json()["choices"][0]["text"]
    )
    expect(page.get_by_role("region", name="Steered", exact=True)).to_be_hidden()


def test_text_streams_in_and_can_be_stopped(tab: Tab, served: Served, slow_engine: None) -> None:
    page = opened(tab, ADD, max_tokens=200, trace="on")
    page.get_by_role("button", name="Run").click()
    column = page.get_by_role("region", name="Steered", exact=True).locator(".written")
    expect(column).to_contain_text(re.compile(f"{re.escape(PROMPT)}.+"))
    early = len(column.text_content() or "")
    page.wait_for_function("n => document.querySelectorAll('.written')[1].textContent.length > n + 5", arg=early)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped after")).to_be_visible()
    expect(page.get_by_role("button", name="Run")).to_be_focused()
    assert served.wait_idle()
    tokens = int(re.findall(r"after (\d+) tokens", page.get_by_text("Stopped after").inner_text())[0])
    assert 2 <= tokens < 400
    assert len(column.text_content() or "") > early


def test_every_op_has_its_fields(tab: Tab) -> None:
    page = opened(tab, {"layer": 0, "neuron": 3, "op": "add", "value": 1, "unit": "raw"})
    page.get_by_text("Edit as JSON").click()
    row = rows(page).first
    expected = {
        "set": {"value": 1, "unit": "raw"},
        "scale": {"value": 2},
        "ablate": {},
        "clamp": {"min": 0, "max": 1, "unit": "max"},
        "add": {"value": 1, "unit": "max"},
    }
    for op, fields in expected.items():
        row.get_by_label("Do", exact=True).select_option(op)
        assert stack(page) == [{"layer": 0, "neuron": 3, "op": op} | fields]
    row.get_by_label("Value", exact=True).fill("-2.5")
    assert stack(page)[0]["value"] == -2.5
    row.get_by_role("slider").fill("3.05")
    assert stack(page)[0]["value"] == 3.05
    expect(row.get_by_label("Value", exact=True)).to_have_value("3.05")
    row.get_by_label("Unit").select_option("kth")
    row.get_by_label("At", exact=True).select_option("range")
    row.get_by_label("From token").fill("2")
    row.get_by_label("To, not included").fill("-1")
    row.get_by_text("Layers and site").click()
    row.get_by_label("1", exact=True).check()
    row.get_by_label("Site").select_option("pre_topk")
    positions = {"start": 2, "end": -1}
    common = {"neuron": 3, "op": "add", "value": 3.05, "unit": "kth", "site": "pre_topk", "positions": positions}
    assert stack(page) == [{"layer": [0, 1]} | common]
    row.get_by_label("All", exact=True).check()
    assert stack(page) == [{"layer": "all"} | common]
    assert run(page)["interventions"] == stack(page)
    expect(page.get_by_text("Done:")).to_be_visible()


def test_raw_values_and_multiples_of_the_maximum_follow_each_other(tab: Tab, served: Served) -> None:
    neuron = next(each for each in summaries(served) if each["max"])
    edit = {"layer": neuron["layer"], "neuron": neuron["neuron"], "op": "add", "value": 2, "unit": "max"}
    page = opened(tab, edit)
    page.get_by_text("Edit as JSON").click()
    expect(page.get_by_text("Its largest activation is")).to_be_visible()
    rows(page).get_by_label("Unit").select_option("raw")
    assert stack(page)[0]["value"] == pytest.approx(2 * neuron["max"], rel=5e-3)
    rows(page).get_by_label("Unit").select_option("max")
    assert stack(page)[0]["value"] == pytest.approx(2, rel=5e-3)


def test_a_neuron_is_found_by_a_word_by_a_text_and_by_its_name(tab: Tab, served: Served) -> None:
    label = next(each["label"] for each in summaries(served) if each["label"])
    word = re.findall(r"\w{3,}", label)[0]
    page = opened(tab)
    search = picker(page)
    search.get_by_role("searchbox").fill(word)
    found = search.get_by_role("listitem")
    expected = summaries(served, label=word, limit=8)
    expect(found).to_have_count(len(expected))
    names = [f"{each['layer']}/{each['neuron']}" for each in expected]
    assert [item.locator(".neuron-id").inner_text() for item in found.all()] == names
    found.last.get_by_role("button").click()
    expect(rows(page)).to_have_count(1)
    expect(rows(page).first.get_by_role("link", name=names[-1])).to_contain_text(expected[-1]["label"] or names[-1])
    expect(rows(page).first.get_by_label("Value", exact=True)).to_be_focused()

    search.get_by_label("by a text that it stands for").check()
    search.get_by_role("searchbox").fill("The soldier said no.")
    page.keyboard.press("Enter")
    matches = served.post("/v1/neurons/search", text="The soldier said no.", limit=8).json()["data"]
    expect(found).to_have_count(len(matches))
    first = f"{matches[0]['layer']}/{matches[0]['neuron']}"
    found.first.get_by_role("button", name=f"Add {first}").click()
    expect(rows(page).nth(1).get_by_role("link", name=first)).to_be_visible()

    search.get_by_role("searchbox").fill(" 1/17 ")
    search.get_by_role("button", name="Add", exact=True).click()
    page.get_by_text("Edit as JSON").click()
    expect(rows(page)).to_have_count(3)
    added = stack(page)[2]
    assert {name: added[name] for name in ("layer", "neuron", "op", "value", "positions")} == {
        "layer": 1,
        "neuron": 17,
        "op": "add",
        "value": 1,
        "positions": "generated",
    }


def test_a_neurons_page_sends_its_neuron_here(tab: Tab, served: Served) -> None:
    alive = next(each for each in summaries(served) if each["max"])
    name = f"{alive['layer']}/{alive['neuron']}"
    page = tab.go(f"#/write?model={MODEL_ID}&steer={name}")
    expect(rows(page)).to_have_count(1)
    expect(rows(page).get_by_role("link", name=name)).to_be_visible()
    expect(rows(page).get_by_label("Unit")).to_have_value("max")
    expect(page).not_to_have_url(re.compile("steer="))
    page.get_by_role("textbox", name="Prompt").fill("Kept")
    page.get_by_role("link", name="Explore").click()
    expect(page.get_by_role("heading", level=1, name="Explore")).to_be_visible()
    page.evaluate(f"location.hash = '#/write?model={MODEL_ID}&steer=1/3'")
    expect(rows(page)).to_have_count(2)
    expect(page.get_by_role("textbox", name="Prompt")).to_have_value("Kept")


def test_the_stack_can_be_ordered_copied_switched_off_and_cut(tab: Tab) -> None:
    page = opened(tab, ADD, SET, max_tokens=4)
    page.get_by_text("Edit as JSON").click()
    rows(page).nth(1).get_by_role("button", name="Move up").press("Enter")
    assert stack(page) == [SET, ADD]
    expect(rows(page).nth(0).get_by_role("button", name="Move down")).to_be_focused()  # there is no further up
    rows(page).nth(1).get_by_role("button", name="Duplicate").click()
    assert stack(page) == [SET, ADD, ADD]
    rows(page).nth(1).get_by_label("On", exact=True).uncheck()
    assert stack(page) == [SET, ADD | {"off": True}, ADD]
    rows(page).nth(0).get_by_role("button", name="Remove").click()
    assert stack(page) == [ADD | {"off": True}, ADD]
    expect(rows(page).nth(0).get_by_role("button", name="Remove")).to_be_focused()
    assert run(page)["interventions"] == [ADD]


def test_the_stack_can_be_pasted_as_json_and_is_sent_as_it_is(tab: Tab) -> None:
    page = opened(tab, max_tokens=4)
    page.get_by_text("Edit as JSON").click()
    field = page.get_by_label("Interventions as JSON")
    field.fill("[{]")
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_role("alert")).to_be_visible()
    expect(field).to_have_value("[{]")
    pasted = [SET | {"include_special": True, "when": [{"layer": 0, "neuron": 2, "is": "active"}]}, ADD]
    field.fill(json.dumps(pasted))
    page.get_by_role("button", name="Use it").click()
    expect(rows(page)).to_have_count(2)
    rows(page).nth(0).get_by_label("Value", exact=True).fill("3")
    pasted[0]["value"] = 3
    assert run(page)["interventions"] == pasted


def test_a_value_that_is_refused_marks_its_row_and_field(tab: Tab) -> None:
    bad = {"layer": 0, "neuron": 9, "op": "set", "value": 1, "positions": {"start": 0}}
    page = opened(tab, ADD | {"off": True}, ADD, bad, max_tokens=4)
    row = rows(page).nth(2)

    def expect_marked(field: Locator) -> None:
        run(page)
        expect(page.get_by_role("alert")).to_contain_text("interventions[1].")
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(field).to_have_accessible_description(re.compile(r"interventions\[1\]"))
        expect(page.locator("[aria-invalid]")).to_have_count(1)

    for label, typed, good in (
        ("Value", "1e9", None),
        ("Value", "much", None),
        ("Value", "", "1"),
        ("From token", "-999", "0"),
    ):
        field = row.get_by_label(label, exact=True)
        field.fill(typed)
        expect_marked(field)
        expect(field).to_have_value(typed)
        if good is not None:
            field.fill(good)
    for name, label in (("unit", "Unit"), ("layer", None), ("when[0].value", None)):
        page.route("**/v1/completions", refusing(f"interventions[1].{name}"), times=1)
        if label is not None:
            expect_marked(row.get_by_label(label, exact=True))
        else:
            run(page)
            expect(row.get_by_text(f"interventions[1].{name} is refused")).to_be_visible()
    run(page)
    expect(page.get_by_text("Done:")).to_be_visible()
    expect(page.locator("[aria-invalid], .fault")).to_have_count(0)


def refusing(param: str) -> Callable[[Route], None]:
    """Answers as the service does to a field that it refuses."""
    error = {"message": f"{param} is refused", "type": "invalid_request_error", "param": param, "code": None}
    return lambda route: route.fulfill(status=400, json={"error": error})


def test_a_setting_that_is_refused_is_marked_and_shown(tab: Tab) -> None:
    page = opened(tab, max_tokens=4)
    more = page.get_by_text("More settings")
    cases = (
        ("Temperature", "3", "1"),
        ("Max tokens", "many", "4"),
        ("top_p", "2", "0.5"),
        ("Stop strings", "a\nb\nc\nd\ne", ""),
    )
    for label, bad, good in cases:
        field = page.get_by_label(label)
        if not field.is_visible():
            more.click()
        field.fill(bad)
        if label in ("top_p", "Stop strings"):
            more.click()  # shut
        run(page)
        expect(field).to_be_visible()
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(field).to_have_value(bad)
        field.fill(good)
    run(page)
    expect(page.get_by_text("Done:")).to_be_visible()
    expect(page.locator("[aria-invalid]")).to_have_count(0)


def test_a_lost_connection_loses_nothing_that_was_typed(tab: Tab) -> None:
    page = opened(tab, ADD, max_tokens=4)
    page.get_by_role("textbox", name="Prompt").fill(NASTY)
    page.route("**/v1/completions", lambda route: route.abort(), times=1)
    run(page)
    expect(page.get_by_role("alert")).to_contain_text("connection to the service was lost")
    expect(page.get_by_role("textbox", name="Prompt")).to_have_value(NASTY)
    expect(rows(page)).to_have_count(1)
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("Done:")).to_be_visible()


def test_a_link_reproduces_everything_and_runs_nothing(browser: Browser, tab: Tab) -> None:
    page = opened(tab, ADD, SET | {"off": True}, {"preset": "sea@1", "strength": 0.5}, prompt=NASTY)
    settings = {"Max tokens": "9", "Temperature": "0.25", "Seed": "12", "top_p": "0.9", "top_k": "40", "min_p": "0.05"}
    page.get_by_text("More settings").click()
    for label, value in settings.items():
        page.get_by_label(label).fill(value)
    page.get_by_label("Stop strings").fill("\\n\n###")
    page.get_by_role("button", name="New seed").click()
    expect(page.get_by_label("Seed", exact=True)).not_to_have_value("12")
    settings["Seed"] = page.get_by_label("Seed", exact=True).input_value()
    page.wait_for_url(lambda url: f"seed={settings['Seed']}" in url)
    address = page.url
    with open_tab(browser, tab.url) as other:
        asked: list[str] = []
        other.page.on("request", lambda request: asked.append(request.url))
        again = other.go(address.removeprefix(f"{tab.url}/"))
        again.get_by_text("More settings").click()
        for label, value in settings.items():
            expect(again.get_by_label(label)).to_have_value(value)
        expect(again.get_by_label("Stop strings")).to_have_value("\\n\n###")
        expect(again.get_by_role("textbox", name="Prompt")).to_have_value(NASTY)
        assert stack(again) == [ADD, SET | {"off": True}, {"preset": "sea@1", "strength": 0.5}]
        again.wait_for_load_state("networkidle")
        assert not any("completions" in url for url in asked)
        again.wait_for_timeout(400)
        assert again.url == address


def test_what_was_written_is_still_there_after_a_look_at_a_neuron(tab: Tab) -> None:
    page = opened(tab, ADD, max_tokens=6)
    run(page)
    text = written(page, "Steered")
    page.get_by_role("region", name="What the interventions did").get_by_role("link", name="0/3").click()
    expect(page.get_by_role("textbox", name="Prompt")).to_be_hidden()
    page.go_back()
    expect(page.get_by_role("region", name="Steered", exact=True)).to_be_visible()
    assert written(page, "Steered") == text


def test_presets_are_added_and_their_strength_is_sent(browser: Browser, with_presets: Served) -> None:
    with open_tab(browser, with_presets.url) as tab:
        unlock(tab)
        page = tab.page
        page.get_by_text("Add a preset (2)").click()
        page.get_by_role("button", name="Add sea@1").click()
        expect(rows(page)).to_contain_text("For ship, sea.")
        rows(page).get_by_role("slider").fill("0.5")
        rows(page).get_by_label("At", exact=True).select_option("generated")
        body = run(page)
        assert body["interventions"] == [{"preset": "sea@1", "strength": 0.5, "positions": "generated"}]
        reply = with_presets.post("/v1/completions", **without_stream(body)).json()
        receipt = reply["choices"][1]["interventions"][0]
        assert receipt["mean_after"] - receipt["mean_before"] == pytest.approx(1.25)
        shown = f"{receipt['mean_before']:.2f} → {receipt['mean_after']:.2f}"
        expect(page.get_by_role("region", name="What the interventions did")).to_contain_text(shown)


def test_the_code_takes_the_key_from_the_environment(browser: Browser, with_presets: Served) -> None:
    with open_tab(browser, with_presets.url) as tab:
        unlock(tab)
        tab.page.get_by_label("Max tokens").fill("4")
        for language in ("curl", "Python", "gRPC"):
            text = code(tab.page, language)
            assert "TOPK_API_KEY" in text
            assert KEY not in text
        key = {"TOPK_API_KEY": KEY}
        assert json.loads(shell(code(tab.page, "curl"), **key))["choices"][0]["text"]
        assert python(code(tab.page, "Python"), **key).strip()


def unlock(tab: Tab) -> None:
    page = tab.go()
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="Prompt")).to_be_visible()


def shell(text: str, **environment: str) -> str:
    return output(["sh", "-c", text.replace("curl ", "curl -s ", 1)], environment)


def python(text: str, **environment: str) -> str:
    return output([sys.executable, "-c", text], environment)


def output(arguments: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        arguments, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_code_on_the_screen_does_what_run_does(tab: Tab, served: Served) -> None:
    every = ADD | {"include_special": True, "when": [{"layer": 0, "neuron": 2, "is": "above", "value": -0.5}]}
    ranged = SET | {"positions": {"start": 1, "end": None}, "unit": "raw"}
    everywhere = {
        "layer": "all",
        "neuron": 4,
        "op": "clamp",
        "min": -1,
        "max": 0.5,
        "unit": "kth",
        "positions": "prompt",
    }
    fields = {"max_tokens": 6, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "stop": "'it\"s'\n\\n\\n"}
    page = opened(tab, every, ranged, everywhere, prompt=NASTY, **fields)
    body = without_stream(run(page))
    assert body["stop"] == ["'it\"s'", "\n\n"]
    reply = served.post("/v1/completions", **body).json()
    texts = [choice["text"] for choice in reply["choices"]]

    by_curl = json.loads(shell(code(page, "curl")))
    assert [choice["text"] for choice in by_curl["choices"]] == texts
    assert by_curl["choices"][1]["interventions"] == reply["choices"][1]["interventions"]
    assert python(code(page, "Python")) == f"default: {texts[0]}\nsteered: {texts[1]}\n"

    command = code(page, "gRPC")
    assert f":{served.client.get('/version').json()['grpc_port']}/topk.v1.TopKService/Generate" in command
    (sent,) = re.findall(r"-d ('.*') \\\n", command, re.DOTALL)
    message = json_format.Parse(shell(f"printf %s {sent}"), pb.GenerateRequest())
    assert generation_from_pb(message) == validate(CompletionRequest, body)

    page.get_by_label("with the trace").check()
    assert '"trace": {}' in code(page, "curl")
    page.get_by_role("button", name="Copy the code").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == code(page, "curl")


def test_everything_can_be_done_by_keyboard(tab: Tab) -> None:
    page = opened(tab, max_tokens=6, trace="on")
    page.get_by_role("textbox", name="Prompt").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type(PROMPT)

    def tab_to(name: str, role: Any) -> None:
        target = page.get_by_role(role, name=name).first
        for _ in range(150):
            page.keyboard.press("Tab")
            if target.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"Tab does not reach {name}")

    tab_to("Add a neuron", "searchbox")
    page.keyboard.type("0/3")
    page.keyboard.press("Enter")
    expect(rows(page).get_by_label("Value", exact=True)).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("2")
    tab_to("Value, by a slider", "slider")
    page.keyboard.press("ArrowRight")
    expect(rows(page).get_by_label("Value", exact=True)).to_have_value("2.05")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("Done:")).to_be_visible()
    expect(page.get_by_role("region", name="Steered", exact=True)).to_be_visible()
    tab_to("Run", "button")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Done:")).to_be_visible()
    tab_to("curl", "tab")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="gRPC")).to_be_focused()
    expect(page.get_by_role("tabpanel")).to_contain_text("buf curl")


@pytest.mark.parametrize(("scheme", "viewport"), [("light", {"width": 1200, "height": 900}), ("dark", PHONE)])
def test_the_view_is_accessible_with_everything_in_it(
    browser: Browser, with_presets: Served, scheme: Any, viewport: Any
) -> None:
    with open_tab(browser, with_presets.url, color_scheme=scheme, viewport=viewport) as tab:
        unlock(tab)
        page = tab.page
        stacked = json.dumps(
            [ADD | {"positions": {"start": 0}}, SET, {"preset": "sea@1"}, ADD | {"value": 1e9, "off": True}]
        )
        page.evaluate("hash => (location.hash = hash)", f"#/write?stack={quote(stacked)}&max_tokens=12")
        expect(rows(page)).to_have_count(4)
        for summary in page.locator("main summary").all():
            summary.click()
        picker(page).get_by_role("searchbox").fill("1/1")
        run(page)
        expect(page.get_by_text("Done:")).to_be_visible()
        expect(page.get_by_role("region", name="Read the trace").get_by_text("Click a token")).to_be_visible()
        assert tab.violations() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        rows(page).nth(3).get_by_label("On", exact=True).check()
        run(page)
        expect(page.locator("[aria-invalid]")).to_have_count(1)
        assert tab.violations() == []


def test_a_model_without_a_catalogue_takes_neurons_by_name(
    browser: Browser, tiny_model_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder, ignore=shutil.ignore_patterns("catalogue*", "checkpoints"))
    with serve_app(folder) as service, open_tab(browser, service.url) as tab:
        page = opened(tab, max_tokens=4)
        expect(picker(page)).to_contain_text("no catalogue")
        picker(page).get_by_role("searchbox").fill("0/3")
        page.keyboard.press("Enter")
        expect(rows(page).get_by_label("Unit")).to_have_value("kth")
        assert run(page)["interventions"] == [ADD | {"value": 1}]
        expect(page.get_by_text("Done:")).to_be_visible()
