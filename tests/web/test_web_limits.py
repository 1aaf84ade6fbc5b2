"""Models that lack something: each view says what can be done with them, and why the rest cannot."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page, expect

from tests.support.served import Served, save_tiny_model, serve_app, tiny_text_config
from tests.support.web.browser import PHONE, Tab, open_tab
from tests.support.web.write_page import picker, run
from topk_model.modeling import TopKLMForCausalLM

VIEWS = (
    "#/write",
    "#/why",
    "#/levers",
    "#/read?text=The+king",
    "#/explore",
    "#/training?text=The+king",
    "#/neuron/0/3",
)


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A plain model, and a TopK model without a catalogue."""
    folder = tmp_path_factory.mktemp("lacking")
    plain, bare = save_tiny_model(folder / "plain"), save_tiny_model(folder / "bare", steps=(64,))
    config = tiny_text_config()
    config.n_nontopk = config.num_hidden_layers
    torch.manual_seed(0)
    TopKLMForCausalLM(config).save_pretrained(plain)
    with serve_app(plain, models={"bare": bare}) as service:
        yield service


def at(tab: Tab, view: str, model: str) -> Page:
    page = tab.go(f"{view}{'&' if '?' in view else '?'}model={model}")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    return page


@pytest.mark.parametrize("view", VIEWS)
def test_a_plain_model_says_in_each_view_that_it_has_no_neurons(browser: Browser, lacking: Served, view: str) -> None:
    with open_tab(browser, lacking.url, viewport=PHONE) as tab:
        page = at(tab, view, "tiny")
        expect(page.get_by_text("tiny is a plain model without TopK layers.")).to_be_visible()
        expect(page.get_by_text("All entries of its states are in use")).to_be_visible()
        page.wait_for_load_state("networkidle")
        expect(page.get_by_role("alert")).to_have_count(0)
        assert tab.violations() == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_model_without_a_catalogue_says_in_each_view_what_is_left(
    browser: Browser, lacking: Served, view: str
) -> None:
    with open_tab(browser, lacking.url, viewport=PHONE) as tab:
        page = at(tab, view, "bare")
        note = page.locator(".limits")
        expect(note).to_contain_text("bare has no neuron catalogue")
        expect(note).to_contain_text(re.compile("You can .* need"))
        if not note.get_by_text("topk catalogue --model").is_visible():
            note.get_by_text("How to build one").click()
        expect(note.get_by_text("topk catalogue --model")).to_be_visible()
        page.wait_for_load_state("networkidle")
        expect(page.get_by_role("alert")).to_have_count(0)
        assert tab.violations() == []


def test_a_plain_model_writes(browser: Browser, lacking: Served) -> None:
    with open_tab(browser, lacking.url) as tab:
        page = at(tab, "#/write?max_tokens=4", "tiny")
        expect(picker(page)).to_have_count(0)
        run(page)
        expect(page.get_by_text("Done:")).to_be_visible()
        expect(page.get_by_role("region", name="Read the trace")).to_have_count(0)


def test_a_complete_model_says_nothing(tab: Tab, tiny_model_path: Path) -> None:
    page = tab.go()
    expect(page.get_by_role("textbox", name="Prompt")).to_be_visible()
    expect(page.locator(".limits")).to_have_count(0)
