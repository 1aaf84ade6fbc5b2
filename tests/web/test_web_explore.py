"""Explore, in a real browser: it finds the neurons that the API finds, and its address says how."""

from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.support.served import MODEL_ID, Served
from tests.support.web.browser import PHONE, Tab, open_tab
from tests.support.web.neuron_pages import PAGE, ask, expect_list, name_of, percent, rows, strongest, until, written
from tests.support.web.write_page import unlock

TEXT = "The soldier said that he would not go back to the war"
POSITIVE = ["The soldier said that he would not go back to the war.", "stop the project, stop the work"]
NEGATIVE = ["Once upon a time, there was a king who had three sons"]


def test_the_list_is_filtered_as_one_types_and_the_address_keeps_it(tab: Tab, served: Served) -> None:
    page = tab.go("#/explore")
    expect_list(page, served, order="-score")
    first = ask(served, order="-score", limit=1)["data"][0]
    assert rows(page, "Neurons")[0][2:6] == [
        percent(first["density"]),
        written(first["token_entropy"]),
        written(first["semantic_entropy"]),
        written(first["max"]),
    ]
    words = page.get_by_role("searchbox")
    words.press_sequentially("king", delay=30)
    assert 0 < ask(served, label="king")["total"] < 128
    expect_list(page, served, label="king")
    expect(words).to_be_focused()
    expect(words).to_have_value("king")
    page.get_by_role("combobox", name="Layer", exact=True).select_option("1")
    expect_list(page, served, label="king", layer=1)
    page.get_by_label("Order").select_option("densest first")
    expect_list(page, served, label="king", layer=1, order="-density")
    until(lambda: "order=" in page.url, page)  # once the typing has settled
    page.reload()
    expect_list(page, served, label="king", layer=1, order="-density")
    words.fill("")
    page.get_by_text("More filters").click()
    page.get_by_role("group", name="Density").get_by_label("from").fill("5")
    page.get_by_role("group", name="Density").get_by_label("to").fill("20")
    page.get_by_role("group", name="Token entropy").get_by_label("to").fill("5")
    bounds: dict[str, Any] = {"min_density": 0.05, "max_density": 0.2, "max_token_entropy": 5}
    assert 0 < ask(served, layer=1, **bounds)["total"] < 64
    expect_list(page, served, layer=1, order="-density", **bounds)
    page.get_by_role("group", name="Density").get_by_label("to").fill("101")
    expect(page.get_by_role("alert")).to_contain_text("max_density")
    page.get_by_role("group", name="Density").get_by_label("to").fill("20")
    words.fill("nothing of the kind")
    page.get_by_role("button", name="Show all neurons").click()
    expect_list(page, served, order="-score")


def test_the_list_has_pages(tab: Tab, served: Served) -> None:
    page = tab.go("#/explore?order=index")
    expect_list(page, served)
    expect(page.get_by_role("button", name="Previous")).to_be_disabled()
    page.get_by_role("button", name="Next").click()
    expect_list(page, served, offset=PAGE)
    expect(page.get_by_text("51 to 100")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect_list(page, served, offset=2 * PAGE)
    expect(page.get_by_role("button", name="Next")).to_be_focused()
    assert "page=3" in page.url
    page.get_by_role("link", name="1/40").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("1/40")
    page.go_back()
    expect_list(page, served, offset=2 * PAGE)
    page.get_by_role("button", name="Previous").click()
    page.get_by_role("combobox", name="Layer", exact=True).select_option("0")  # from the first page again
    expect_list(page, served, layer=0)


def test_neurons_for_a_text_are_those_of_the_api(tab: Tab, served: Served) -> None:
    page = tab.go("#/explore")
    page.get_by_role("link", name="By a text").click()
    expect(page.get_by_role("button", name="Find neurons")).to_be_disabled()
    page.get_by_role("textbox", name="Text").fill(TEXT)
    page.get_by_role("button", name="Find neurons").click()
    found = served.post("/v1/neurons/search", text=TEXT, limit=20).json()
    wanted = [
        [
            name_of(match),
            written(match["score"]),
            f"{match['active']} of {found['num_tokens']}",
            percent(match["density"]),
        ]
        for match in found["data"]
    ]
    until(lambda: without_labels(rows(page, "Neurons found")) == wanted, page)
    until(lambda: "text=" in page.url, page)  # once the typing has settled
    page.reload()
    until(lambda: without_labels(rows(page, "Neurons found")) == wanted, page)
    expect(page.get_by_role("textbox", name="Text")).to_have_value(TEXT)
    page.get_by_role("combobox", name="Layer", exact=True).select_option("1")
    found = served.post("/v1/neurons/search", text=TEXT, limit=20, layers=[1]).json()
    names = [name_of(match) for match in found["data"]]
    until(lambda: [row[0] for row in without_labels(rows(page, "Neurons found"))] == names, page)
    page.get_by_role("link", name="All neurons").click()
    page.get_by_role("link", name="By a text").click()
    expect(page.get_by_role("textbox", name="Text")).to_have_value(TEXT)
    page.get_by_role("button", name="The little dog").click()
    expect(page.get_by_role("textbox", name="Text")).to_have_value("The little dog barked at the cat")


def test_neurons_for_a_contrast_are_those_of_the_api(tab: Tab, served: Served) -> None:
    page = tab.go("#/explore/contrast")
    page.get_by_label("Texts with it, one per line").fill("\n".join(POSITIVE))
    expect(page.get_by_role("button", name="Find neurons")).to_be_disabled()
    page.get_by_label("Texts without it").fill(f"{NEGATIVE[0]}\n\n")
    page.get_by_role("button", name="Find neurons").click()
    found = served.post("/v1/neurons/search", contrast={"positive": POSITIVE, "negative": NEGATIVE}, limit=20).json()
    wanted = [
        [
            name_of(match),
            written(match["score"]),
            f"{match['active']} of {found['num_tokens']}",
            f"{match['active_negative']} of {found['num_tokens_negative']}",
            percent(match["density"]),
        ]
        for match in found["data"]
    ]
    assert len(wanted) > 1
    until(lambda: without_labels(rows(page, "Neurons found")) == wanted, page)
    until(lambda: "negative=" in page.url, page)  # once the typing has settled
    page.reload()
    until(lambda: without_labels(rows(page, "Neurons found")) == wanted, page)
    page.get_by_role("region", name="Neurons found").get_by_role("link").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(wanted[0][0])


def without_labels(cells: list[list[str]]) -> list[list[str]]:
    """Rows whose first cell is the neuron's name alone."""
    return [[row[0].split()[0], *row[1:]] for row in cells]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_views_are_accessible_on_a_phone(browser: Browser, served: Served, scheme: Any) -> None:
    known = strongest(served)
    step = "?step=64" if scheme == "dark" else ""  # a shorter page: axe takes seconds for a long one
    with open_tab(browser, served.url, color_scheme=scheme, viewport=PHONE) as tab:
        for address, region in (
            (f"#/neuron/{name_of(known)}{step}", "The neuron at each checkpoint"),
            ("#/explore?density_from=22", "Neurons"),
            ("#/explore/contrast?positive=the+war&negative=the+king", "Neurons found"),
        ):
            page = tab.go(address)
            expect(page.get_by_role("region", name=region, exact=True)).to_be_visible()
            page.wait_for_load_state("networkidle")
            page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
            assert tab.violations() == []
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_explore_begins_with_the_neurons_whose_labels_fit_each_of_them_once(tab: Tab, served: Served) -> None:
    expected: list[str] = []
    seen: set[tuple[int, int]] = set()
    for neuron in ask(served, order="-score", limit=500)["data"]:
        if not neuron["score"] or (neuron["layer"], neuron["neuron"]) in seen:
            continue
        seen |= {(layer, neuron["neuron"]) for layer in (neuron["layer"], *neuron.get("also_in", ()))}
        expected.append(name_of(neuron))
    page = tab.go("#/explore")
    begin = page.get_by_role("region", name="Neurons to begin with")
    expect(begin.get_by_role("listitem")).to_have_count(min(12, len(expected)))
    assert begin.locator(".neuron-id").all_inner_texts() == expected[:12]
    begin.get_by_role("link", name="Steer with it").first.click()
    expect(page.get_by_role("region", name="Interventions").get_by_role("link", name=expected[0])).to_be_visible()
    page.go_back()
    page.get_by_role("searchbox").fill("king")
    expect(begin).to_have_count(0)


def test_with_presets_it_begins_with_what_steers(browser: Browser, with_presets: Served) -> None:
    presets = with_presets.client.get(f"/v1/models/{MODEL_ID}").json()["topk"]["presets"]
    labelled = []
    for preset in presets:
        found = ask(with_presets, f"/{preset['layer']}/{preset['neuron']}")
        if found["label"] and found["label"]["score"] > 0:
            labelled.append((-found["label"]["score"] * preset["found"]["log_odds"], name_of(found), preset["name"]))
    with open_tab(browser, with_presets.url) as tab:
        unlock(tab)
        tab.page.evaluate("location.hash = '#/explore'")
        begin = tab.page.get_by_role("region", name="Neurons to begin with")
        expect(tab.page.get_by_role("heading", name="All neurons")).to_be_visible()
        expect(begin.get_by_role("listitem")).to_have_count(len(labelled))
        assert [(name, word) for _, name, word in sorted(labelled)] == list(
            zip(begin.locator(".neuron-id").all_inner_texts(), begin.locator("strong").all_inner_texts(), strict=True)
        )
