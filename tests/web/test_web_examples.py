"""The stored examples that the page opens with: shown as they were stored, and written again by one click."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.served import MODEL_ID, Served, build_tiny_catalogues, serve_app
from tests.support.service.planted import VALUE, make_examples, save_planted_model
from tests.support.web.browser import PHONE, Tab, open_tab
from tests.support.web.write_page import best_edit, link, opened, picker, run, stack, without_stream


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = save_planted_model(tmp_path_factory.mktemp("planted") / "model")
    build_tiny_catalogues(folder)
    with ThreadPoolExecutor(1) as other:  # Playwright's event loop runs in this thread
        assert other.submit(make_examples, folder).result() == 0
    with serve_app(folder) as service:
        yield service


@pytest.fixture
def planted_tab(browser: Browser, planted: Served) -> Iterator[Tab]:
    with open_tab(browser, planted.url) as tab:
        yield tab


def examples(service: Served) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service.client.get(f"/v1/models/{MODEL_ID}").json()["topk"]["examples"]
    assert len(found) == 2
    return found


def shown(page: Page) -> Locator:
    return page.get_by_role("region", name=re.compile("^Example: "))


def choice(page: Page, name: str) -> Locator:
    return page.get_by_role("group", name="Examples").get_by_role("button", name=name)


def texts(example: Locator) -> list[str]:
    return [text.strip() for text in example.locator(".written").all_text_contents()]


def expect_shown(page: Page, one: dict[str, Any]) -> None:
    expect(shown(page)).to_have_attribute("aria-label", f"Example: {one['name']}")
    assert texts(shown(page)) == [(one["prompt"] + one[name]).strip() for name in ("default", "steered")]
    marked = {word.lower() for word in shown(page).locator("mark").all_inner_texts()}
    assert marked == set(one["words"])
    name = f"{one['layer']}/{one['neuron']}"
    expect(shown(page).get_by_role("link", name=name)).to_have_attribute("href", re.compile(f"neuron/{name}"))


def test_the_page_opens_with_the_best_and_one_click_shows_another(planted_tab: Tab, planted: Served) -> None:
    first, second = examples(planted)
    page = planted_tab.go()
    expect_shown(page, first)
    expect(choice(page, first["name"])).to_have_attribute("aria-pressed", "true")
    neuron = planted.client.get(f"/v1/neurons/{first['layer']}/{first['neuron']}", params={"model": MODEL_ID}).json()
    expect(shown(page).get_by_role("listitem")).to_have_count(min(3, len(neuron["top_examples"])))
    choice(page, second["name"]).click()
    expect_shown(page, second)
    expect(page).to_have_url(re.compile(f"example={second['name']}"))
    page.reload()
    expect_shown(page, second)


def test_run_it_live_sends_the_same_request_and_writes_the_same_texts(planted_tab: Tab, planted: Served) -> None:
    page = planted_tab.go()
    _, one = examples(planted)
    choice(page, one["name"]).click()
    with page.expect_request("**/v1/completions") as asked:
        page.get_by_role("button", name="Run it live").click()
    body = asked.value.post_data_json
    assert {name: body[name] for name in ("prompt", "max_tokens", "temperature", "seed")} == {
        name: one[name] for name in ("prompt", "max_tokens", "temperature", "seed")
    }
    edit = {"layer": one["layer"], "neuron": one["neuron"], "op": "add", "value": one["value"]}
    assert body["interventions"] == [edit | {"positions": "continuation"}]
    expect(page.get_by_text(f"exactly the stored texts of the example {one['name']}")).to_be_visible()
    expect(shown(page)).to_have_count(0)
    for variant, name in (("Default", "default"), ("Steered", "steered")):
        text = page.get_by_role("region", name=variant, exact=True).locator(".written").text_content() or ""
        assert text.strip() == (one["prompt"] + one[name]).strip()
    page.get_by_text("Edit as JSON").click()
    assert stack(page) == body["interventions"]
    # Another request is no example's, and says nothing of one.
    page.get_by_label("Seed").fill("12345")
    assert without_stream(run(page))["seed"] == 12345
    expect(page.get_by_text("the example")).to_have_count(0)


def test_texts_that_differ_from_the_stored_ones_are_said_to(planted_tab: Tab, planted: Served) -> None:
    first, _ = examples(planted)

    def changed(route: Any) -> None:
        card = route.fetch().json()
        card["data"][0]["topk"]["examples"][0]["steered"] = "another text"
        route.fulfill(json=card)

    planted_tab.page.route("**/v1/models", changed)
    page = planted_tab.go()
    page.get_by_role("button", name="Run it live").click()
    expect(page.get_by_text(f"The stored texts of the example {first['name']} differ")).to_be_visible()


def test_a_link_to_a_request_shows_no_example_until_one_is_chosen(planted_tab: Tab, planted: Served) -> None:
    page = planted_tab.go(link(prompt="The king", max_tokens=4))
    expect(page.get_by_role("textbox", name="Prompt")).to_have_value("The king")
    expect(shown(page)).to_have_count(0)
    first, _ = examples(planted)
    choice(page, first["name"]).click()
    expect_shown(page, first)
    expect(page.get_by_role("textbox", name="Prompt")).to_have_value("The king")  # nothing typed is lost by a look


def test_a_model_without_examples_opens_with_the_first_steps(tab: Tab) -> None:
    page = tab.go()
    expect(page.get_by_text("Write the beginning of a text.")).to_be_visible()
    expect(page.get_by_role("group", name="Examples")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_examples_are_accessible_and_fit_a_phone(browser: Browser, planted: Served, scheme: Any) -> None:
    with open_tab(browser, planted.url, color_scheme=scheme, viewport=PHONE) as tab:
        page = tab.go()
        expect(shown(page).get_by_role("listitem").first).to_be_visible()
        assert tab.violations() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_on_a_phone_run_brings_the_result_into_view(browser: Browser, planted: Served) -> None:
    with open_tab(browser, planted.url, viewport=PHONE, reduced_motion="reduce") as tab:
        for begin, button in ((tab.go, "Run it live"), (partial(opened, tab, max_tokens=4), "Run")):
            page = begin()
            page.get_by_role("button", name=button, exact=True).click()
            result = page.get_by_role("region", name="Default", exact=True)
            expect(result.get_by_role("heading")).to_be_in_viewport()
            expect(page.get_by_text("Done:")).to_be_visible()


def test_a_window_that_shows_the_result_stays_where_it_is(planted_tab: Tab) -> None:
    page = opened(planted_tab, max_tokens=4)
    page.get_by_role("textbox", name="Prompt").press("Control+Enter")
    expect(page.get_by_text("Done:")).to_be_visible()
    assert page.evaluate("scrollY") == 0


def test_a_neuron_with_a_preset_is_added_at_the_presets_strength(planted_tab: Tab, planted: Served) -> None:
    page = opened(planted_tab, max_tokens=4)
    picker(page).get_by_role("searchbox").fill("1/3")
    picker(page).get_by_role("button", name="Add", exact=True).click()
    page.get_by_text("Edit as JSON").click()
    edit = best_edit(planted, 1, 3)
    assert stack(page) == [edit]
    neuron = planted.client.get("/v1/neurons/1/3", params={"model": MODEL_ID}).json()
    assert edit["value"] == pytest.approx(VALUE / neuron["max"], rel=5e-3)
