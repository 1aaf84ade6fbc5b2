"""Writing and steering in the browser, by what a user sees and clicks, held to the API's own answers."""

import json
import re
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, expect

from tests.support.served import Served
from tests.support.web.browser import PHONE, Tab, open_tab
from tests.support.web.write_page import (
    ADD,
    NASTY,
    PROMPT,
    SET,
    opened,
    picker,
    rows,
    run,
    stack,
    unlock,
    without_stream,
    written,
)


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
    expect(page.get_by_text("was not applied")).to_be_visible()
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


def test_a_setting_that_is_refused_is_marked_and_shown(tab: Tab) -> None:
    page = opened(tab, max_tokens=4)
    more = page.get_by_text("More settings")
    cases = (
        ("Temperature", "3", "1"),
        ("Max tokens", "many", "4"),
        ("top_p", "2", "0.5"),
        ("Stop strings", "\n".join(f"stop {i}" for i in range(65)), ""),
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
    page.keyboard.press("ArrowLeft")
    expect(rows(page).get_by_label("Value", exact=True)).to_have_value("1.98")
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
