"""The stack of interventions in the browser: how neurons come into it, and how they are changed."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Route, expect

from tests.support.served import MODEL_ID, Served, serve_app
from tests.support.web.browser import Tab, open_tab
from tests.support.web.write_page import (
    ADD,
    SET,
    best_edit,
    opened,
    picker,
    rows,
    run,
    stack,
    summaries,
    unlock,
    without_stream,
)


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
    row.get_by_label("Unit").select_option("kth")
    row.get_by_role("slider").fill("3.05")
    assert stack(page)[0]["value"] == 3.05
    expect(row.get_by_label("Value", exact=True)).to_have_value("3.05")
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
    assert stack(page)[2] == best_edit(served, 1, 17)


def test_a_neurons_page_sends_its_neuron_here(tab: Tab, served: Served) -> None:
    alive = next(each for each in summaries(served) if each["max"])
    name = f"{alive['layer']}/{alive['neuron']}"
    page = tab.go(f"#/write?model={MODEL_ID}&steer={name}")
    expect(rows(page)).to_have_count(1)
    expect(rows(page).get_by_role("link", name=name)).to_be_visible()
    page.get_by_text("Edit as JSON").click()
    assert stack(page) == [best_edit(served, alive["layer"], alive["neuron"])]
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


def test_a_model_without_a_catalogue_takes_neurons_by_name(
    browser: Browser, tiny_model_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder, ignore=shutil.ignore_patterns("catalogue*", "checkpoints"))
    with serve_app(folder) as service, open_tab(browser, service.url) as tab:
        page = opened(tab, max_tokens=4)
        expect(page.get_by_text("has no neuron catalogue")).to_be_visible()
        picker(page).get_by_role("searchbox").fill("0/3")
        page.keyboard.press("Enter")
        expect(rows(page).get_by_label("Unit")).to_have_value("kth")
        assert run(page)["interventions"] == [ADD | {"value": 1, "positions": "continuation"}]
        expect(page.get_by_text("Done:")).to_be_visible()


CURVE = ((0.0, 0.002, 0.0, 0.0), (0.1, 0.01, 0.8, 0.05), (0.25, 0.06, 2.0, 0.3), (1.0, 0.5, 5.0, 2.5))


def with_steering(route: Route) -> None:
    """The service's answer about a neuron, as if raising it had been measured."""
    names = ("in_units_of_max", "share", "log_odds", "cost")
    points = [dict(zip(names, point, strict=True)) for point in CURVE]
    words = [{"token_id": 5, "token": " king", "value": 2.0}]
    page = route.fetch().json()
    steering = {"words": words, "value": 0.25 * page["max"], "in_units_of_max": 0.25, "curve": points}
    route.fulfill(json=page | {"steering": steering})


def test_a_neuron_is_added_at_its_best_strength_on_a_scale_of_effect_and_cost(tab: Tab, served: Served) -> None:
    alive = next(each for each in summaries(served) if each["max"])
    tab.page.route(re.compile(rf"/v1/neurons/{alive['layer']}/{alive['neuron']}\?"), with_steering)
    page = tab.go(f"#/write?steer={alive['layer']}/{alive['neuron']}")
    row = rows(page).first
    expect(row.get_by_label("Value", exact=True)).to_have_value("0.25")
    slider = row.get_by_role("slider")
    expect(slider).to_have_attribute("min", "0")
    expect(slider).to_have_attribute("max", "1")
    expect(row.get_by_text("best 0.25")).to_be_visible()
    told = row.get_by_text("of the next tokens")
    expect(told).to_have_text(
        "Its words are 6 % of the next tokens (0.2 % without it), at a cost of 0.30 nats per token."
    )
    slider.fill("0.05")
    expect(told).to_contain_text("0.6 % of the next tokens")  # half of the way to the next point
    expect(told).to_contain_text("cost of 0.03 nats")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("^0.05: Its words are 0.6 %"))
    assert tab.violations() == []
    # The same scale in raw values, and none where nothing was measured.
    row.get_by_label("Unit").select_option("raw")
    assert float(slider.get_attribute("max") or "") == pytest.approx(alive["max"], rel=1e-3)
    expect(told).to_contain_text("0.6 % of the next tokens")
    row.get_by_label("Value", exact=True).fill("-1")
    expect(row.get_by_text("Not measured this far.")).to_be_visible()
    row.get_by_label("Do", exact=True).select_option("set")
    expect(told).to_have_count(0)
    expect(row.locator(".scale")).to_have_count(0)


def test_a_neurons_page_says_what_raising_it_does_before_what_its_weights_say(tab: Tab, served: Served) -> None:
    alive = next(each for each in summaries(served) if each["max"])
    tab.page.route(re.compile(rf"/v1/neurons/{alive['layer']}/{alive['neuron']}\?"), with_steering)
    page = tab.go(f"#/neuron/{alive['layer']}/{alive['neuron']}")
    raising = page.get_by_role("region", name="What raising it does")
    expect(raising).to_contain_text("It brings king")
    expect(raising).to_contain_text("these are 6 % of the next tokens instead of 0.2 %, at a cost of 0.30 nats")
    headings = page.get_by_role("heading").all_inner_texts()
    order = [
        headings.index(name) for name in ("What raising it does", "Measured by ablating it", "Read from the weights")
    ]
    assert order == sorted(order)
    assert tab.violations() == []
