"""Reading traces in the browser, by what a user sees and clicks, held to the API's figures."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.served import MODEL_ID, Served, save_tiny_model, serve_app
from tests.support.web.browser import PHONE, Tab, open_tab
from tests.support.web.read_page import (
    TEXT,
    busiest,
    read_address,
    shown_shades,
    steps_of_shade,
    tokens_of,
    trace_of,
    training_address,
)
from topk_model.traces import Trace

WIDE = {"width": 1280, "height": 900}


def panel_rows(page: Page, layer: int) -> list[tuple[str, float]]:
    """What the open panel lists of a layer: neuron and value."""
    rows = page.get_by_role("list", name=re.compile(f"^Layer {layer} ")).get_by_role("listitem")
    return [
        (row.get_by_role("link").locator(".neuron-id").inner_text(), float(row.locator(".value").inner_text()))
        for row in rows.all()
    ]


def test_tokens_are_shaded_as_the_trace_says(tab: Tab, served: Served) -> None:
    trace = trace_of(served)
    neuron = busiest(trace, 1)
    values = trace.dense()[:, 1, neuron]
    page = tab.go(read_address(f"1/{neuron}"))
    tokens = tokens_of(page)
    expect(tokens).to_have_count(len(trace.tokens))
    assert shown_shades(tokens) == steps_of_shade(values)
    titles = [tokens.nth(i).get_attribute("title") for i in range(tokens.count())]
    assert [float(title or 0) for title in titles] == pytest.approx(list(values), rel=5e-3)
    shown = page.get_by_role("listbox").evaluate("box => box.textContent")
    assert shown == "".join("␣" if token == " " else token.replace("\n", "↵\n") for token in trace.tokens)
    expect(page.get_by_text("in every layer")).to_contain_text(f"1/{neuron}")


def test_another_neuron_is_found_by_its_name_or_by_a_word_and_stays_in_the_address(tab: Tab, served: Served) -> None:
    trace = trace_of(served)
    page = tab.go(read_address())
    expect(tokens_of(page)).to_have_count(len(trace.tokens))
    assert set(shown_shades(tokens_of(page))) == {0}
    field = page.get_by_label("Shade by neuron")

    neuron = busiest(trace, 0)
    field.fill(f"0/{neuron}")
    field.press("Enter")
    expect(page).to_have_url(re.compile(re.escape(quote(f"0/{neuron}", safe=""))))
    assert shown_shades(tokens_of(page)) == steps_of_shade(trace.dense()[:, 0, neuron])
    page.reload()
    expect(tokens_of(page)).to_have_count(len(trace.tokens))
    assert shown_shades(tokens_of(page)) == steps_of_shade(trace.dense()[:, 0, neuron])

    listed = served.client.get("/v1/neurons", params={"model": MODEL_ID, "limit": 500}).json()["data"]
    label = next(row["label"] for row in listed if row["label"])
    first = next(row for row in listed if label in (row["label"] or ""))
    field.fill(label.upper())
    expect(page.locator("datalist option").first).to_have_attribute("value", f"{first['layer']}/{first['neuron']}")
    field.press("Enter")
    expect(field).to_have_value(f"{first['layer']}/{first['neuron']}")

    for wrong, problem in (("2/3", "not a TopK layer"), ("0/64", "neurons 0 to 63"), ("zxqv", "has “zxqv”")):
        field.fill(wrong)
        field.press("Enter")
        expect(page.get_by_role("status").filter(has_text=problem)).to_be_visible()
    page.get_by_role("button", name="No shading").click()
    expect(field).to_have_value("")
    expect(page).not_to_have_url(re.compile("neuron="))


def test_a_token_lists_its_k_active_neurons_strongest_first(tab: Tab, served: Served) -> None:
    trace = trace_of(served)
    page = tab.go(read_address())
    tokens_of(page).nth(5).click()
    expect(page.get_by_role("heading", name=f"Active at “{trace.tokens[5].strip()}”")).to_be_visible()
    for place, layer in enumerate((0, 1)):
        values = trace.dense()[5, place]
        order = [int(index) for index in np.argsort(-values)[: trace.k]]
        rows = panel_rows(page, layer)
        assert [name for name, _ in rows] == [f"{layer}/{index}" for index in order]
        assert [value for _, value in rows] == pytest.approx([float(values[index]) for index in order], rel=5e-3)

    name = panel_rows(page, 1)[0][0]
    page.get_by_role("button", name=f"Shade by {name}", exact=True).click()
    neuron = int(name.split("/")[1])
    expect(page.get_by_label("Shade by neuron")).to_have_value(name)
    assert shown_shades(tokens_of(page)) == steps_of_shade(trace.dense()[:, 1, neuron])
    page.get_by_role("list", name=re.compile("^Layer 1 ")).get_by_role("link").first.click()
    expect(page).to_have_url(re.compile(f"#/neuron/1/{neuron}"))


def test_it_is_read_by_keyboard_alone(tab: Tab, served: Served) -> None:
    page = tab.go("#/read")
    page.get_by_label("Text", exact=True).focus()
    page.keyboard.insert_text(TEXT)
    page.keyboard.press("Control+Enter")
    tokens = tokens_of(page)
    count = len(trace_of(served).tokens)
    expect(tokens).to_have_count(count)
    expect(page.get_by_text(f"{count} of 256 tokens")).to_be_visible()

    page.get_by_label("Shade by neuron").focus()
    while not page.evaluate("document.activeElement.matches('[role=option]')"):
        page.keyboard.press("Tab")
    for key, token in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", count - 1), ("Home", 0)):
        page.keyboard.press(key)
        expect(tokens.nth(token)).to_be_focused()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.offsetTop") > tokens.nth(0).evaluate("token => token.offsetTop")
    page.keyboard.press("ArrowUp")
    expect(tokens.nth(0)).to_be_focused()

    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    panel = page.get_by_role("region", name="Active at")
    expect(panel).to_be_visible()
    expect(tokens.nth(1)).to_have_attribute("aria-selected", "true")
    while not page.evaluate("document.activeElement.matches('.active-neurons a')"):
        page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    expect(panel).to_have_count(0)
    expect(tokens.nth(1)).to_be_focused()
    assert page.locator("[role=option][tabindex='0']").count() == 1


def test_the_map_shows_the_neuron_in_every_layer(tab: Tab, served: Served) -> None:
    trace = trace_of(served)
    neuron = busiest(trace, 1)
    values = trace.dense()[:, :, neuron]
    page = tab.go(read_address(f"1/{neuron}"))
    cells = page.get_by_role("img", name=f"Neuron {neuron} by layer and token")
    expect(cells.locator(".cell")).to_have_count(int(np.count_nonzero(values)))
    cells.locator(".cell").first.click()
    chosen = page.locator("[role=option][aria-selected='true']")
    expect(chosen).to_have_count(1)
    token = int(chosen.get_attribute("data-token") or -1)
    assert values[token, 0] != 0
    expect(cells.locator(".map-chosen")).to_have_attribute("x", str(14 * token))

    page.get_by_text("As a table").click()
    active = [i for i in range(len(values)) if values[i].any()]
    rows = page.get_by_role("region", name="as a table").get_by_role("row")
    expect(rows).to_have_count(1 + len(active))
    shown = [[float(cell) for cell in row.get_by_role("cell").all_inner_texts()] for row in rows.all()[1:]]
    assert [row[0] for row in shown] == active
    assert [row[1:] for row in shown] == [pytest.approx([float(v) for v in values[i]], rel=5e-3) for i in active]


def test_neurons_that_stand_out_are_offered(tab: Tab) -> None:
    page = tab.go("#/read?text=" + quote("stop the project, stop the work; the work was done"))
    offered = page.locator(".standing-out button")
    offered.first.click()
    name = offered.first.locator(".neuron-id").inner_text()
    expect(page.get_by_label("Shade by neuron")).to_have_value(name)
    assert max(shown_shades(tokens_of(page))) == 8


def test_a_text_that_cannot_be_read_says_why_and_keeps_what_was_typed(tab: Tab) -> None:
    page = tab.go("#/read")
    field = page.get_by_label("Text", exact=True)
    expect(page.get_by_role("button", name="Read", exact=True)).to_be_disabled()
    field.fill("the work " * 300)
    expect(page.get_by_text("too many to read")).to_be_visible()
    page.get_by_role("button", name="Read", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("input")
    assert len(field.input_value()) == 2700
    field.fill("the work " * 40_000)
    expect(page.get_by_text("too many to read")).to_be_hidden()
    field.fill("the work")
    page.get_by_role("button", name="Read", exact=True).click()
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(tokens_of(page)).not_to_have_count(0)


def test_a_link_that_is_followed_while_it_is_open_is_taken_and_a_bare_one_changes_nothing(
    tab: Tab, served: Served
) -> None:
    busy = busiest(trace_of(served), 1)
    page = tab.go(read_address(text="Once upon a time"))
    expect(tokens_of(page)).to_have_count(len(trace_of(served, "Once upon a time").tokens))
    page.get_by_label("Text", exact=True).fill("something else")
    expect(page).to_have_url(re.compile("something"))
    for text in (TEXT, "Once upon a time", TEXT):
        page.evaluate(f"location.hash = {read_address(f'1/{busy}', text)!r}")
        expect(tokens_of(page)).to_have_count(len(trace_of(served, text).tokens))
        expect(page.get_by_label("Text", exact=True)).to_have_value(text)
    expect(page.get_by_label("Shade by neuron")).to_have_value(f"1/{busy}")
    expect(page).to_have_url(re.compile(r"\?text=Once\+upon.*soldier.*&neuron=1%2F"))  # as the page itself writes it
    address = page.url
    page.get_by_role("link", name="Read", exact=True).click()
    expect(page).to_have_url(address)
    expect(page.get_by_label("Text", exact=True)).to_have_value(TEXT)
    page.evaluate(f"location.hash = '#/training?step=64&neuron=1/{busy}'")
    expect(page.get_by_role("heading", name="As the model saw it at step 64")).to_be_visible()
    page.evaluate("location.hash = '#/training?step=256&neuron=0/3'")
    expect(page.get_by_role("heading", name="As the model saw it at step 256")).to_be_visible()
    expect(page.get_by_label("Shade by neuron")).to_have_value("0/3")


def test_a_long_text_is_shaded_and_chosen_from_end_to_end(tab: Tab, served: Served) -> None:
    text = ("The soldier said that he would not go back to the war, and his mother was glad. " * 20)[:800]
    trace = trace_of(served, text)
    assert len(trace.tokens) > 200
    neuron = busiest(trace, 0)
    page = tab.go(read_address(f"0/{neuron}", text))
    tokens = tokens_of(page)
    expect(tokens).to_have_count(len(trace.tokens))
    assert shown_shades(tokens) == steps_of_shade(trace.dense()[:, 0, neuron])
    tokens.last.click()
    expect(page.get_by_text(f"position {len(trace.tokens) - 1}")).to_be_visible()
    # A choice draws no token anew: what stood there still stands there.
    page.evaluate("for (const token of document.querySelectorAll('[role=option]')) token.isOld = true")
    tokens.first.click()
    assert page.evaluate("[...document.querySelectorAll('[role=option]')].every((token) => token.isOld)")
    expect(tokens.first).to_have_attribute("aria-selected", "true")
    expect(tokens.last).to_have_attribute("aria-selected", "false")


def test_neurons_that_changed_between_default_and_steered(tab: Tab, served: Served) -> None:
    edit = {"layer": 0, "neuron": 7, "op": "set", "value": 9.0, "positions": "generated"}
    request = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0.7, "seed": 1}
    reply = served.complete(**request, interventions=[edit], compare=True, trace={})
    before, after = (Trace.read(choice["trace"]) for choice in reply["choices"])

    page = tab.go(f"#/write?prompt=Once+upon+a+time&max_tokens=24&stack={quote(json.dumps([edit]))}")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("heading", name="Neurons that changed")).to_be_visible()
    stronger = page.get_by_role("region", name="Stronger in steered")
    weaker = page.get_by_role("region", name="Weaker in steered")

    means = [trace.dense()[~np.array(trace.is_special)].mean(axis=0) for trace in (before, after)]
    difference = means[1] - means[0]
    edited = stronger.get_by_role("row").filter(has=page.get_by_role("button", name="Shade by 0/7", exact=True))
    expect(edited.get_by_role("cell").nth(2)).to_have_text(f"{means[1][0, 7]:.3g}")  # once all has been written
    for table, sign in ((stronger, 1), (weaker, -1)):
        rows = table.get_by_role("row").all()[1:]
        best = np.argsort(-sign * difference, axis=None)[: len(rows)]
        assert len(rows) == min(12, int((sign * difference > 0).sum()))
        for row, flat in zip(rows, best, strict=True):
            layer, neuron = divmod(int(flat), after.hidden_size)
            assert row.locator(".neuron-id").inner_text() == f"{layer}/{neuron}"
            shown = [float(cell) for cell in row.locator(".number").all_inner_texts()]
            expected = [means[0][layer, neuron], means[1][layer, neuron], difference[layer, neuron]]
            assert shown == pytest.approx([float(value) for value in expected], rel=5e-3)

    page.get_by_label("Mean activation per token").select_option("shared")
    shared = next(i for i, (a, b) in enumerate(zip(before.token_ids, after.token_ids, strict=False)) if a != b)
    expect(page.get_by_label("Mean activation per token")).to_contain_text(f"the {shared} tokens that both begin with")
    page.get_by_label("Mean activation per token").select_option("all")
    name = weaker.locator(".neuron-id").first.inner_text()
    page.get_by_role("button", name=f"Shade by {name}", exact=True).first.click()
    expect(page.get_by_label("Shade by neuron")).to_have_value(name)
    layer, neuron = map(int, name.split("/"))
    values = [trace.dense()[:, layer, neuron] for trace in (before, after)]
    both = steps_of_shade(np.concatenate(values))
    assert shown_shades(tokens_of(page, "Default")) == both[: len(values[0])]
    assert shown_shades(tokens_of(page, "Steered")) == both[len(values[0]) :]


def test_a_model_without_catalogue_and_checkpoints_is_read_without_labels(browser: Browser, tmp_path: Path) -> None:
    with serve_app(save_tiny_model(tmp_path / "plain")) as served, open_tab(browser, served.url) as tab:
        trace = trace_of(served)
        page = tab.go(read_address())
        tokens_of(page).nth(2).click()
        assert len(panel_rows(page, 1)) == trace.k
        expect(page.get_by_text("More active here")).to_have_count(0)
        tab.go("#/training")
        expect(page.get_by_text("has no training checkpoints")).to_be_visible()


@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)])
def test_everyone_can_read_it(browser: Browser, served: Served, scheme: Any, size: Any) -> None:
    neuron = busiest(trace_of(served), 1)
    with open_tab(browser, served.url, viewport=size, color_scheme=scheme) as tab:
        for address, name in ((read_address(f"1/{neuron}"), "Text"), (training_address(neuron=f"1/{neuron}"), "final")):
            page = tab.go(address)
            tokens_of(page, name).nth(4).click()
            page.get_by_text("As a table").first.click()
            if name == "final":
                page.get_by_role("button", name="Run over all checkpoints").click()
                expect(page.get_by_role("img", name="by checkpoint and token")).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
            assert tab.violations() == []
        tab.go("#/read")
        expect(page.get_by_label("Text", exact=True)).to_be_visible()
        assert tab.violations() == []
