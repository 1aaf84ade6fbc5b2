"""Find a lever: what the page finds is what the API finds, is tried live, and is kept in a request."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.served import MODEL_ID, Served, build_tiny_catalogues, serve_app
from tests.support.service.planted import PLANTED, save_planted_model
from tests.support.web.browser import PHONE, Tab, open_tab
from tests.support.web.neuron_pages import written as shown_number
from tests.support.web.write_page import stack

NEURON, WORDS = PLANTED["labour"]
PROMPT = "The king"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = save_planted_model(tmp_path_factory.mktemp("planted") / "model")
    build_tiny_catalogues(folder)
    with serve_app(folder) as service:
        yield service


@pytest.fixture(scope="module")
def found(planted: Served) -> dict[str, Any]:
    """The API's own answer."""
    reply = planted.post("/v1/levers", words=list(WORDS), prompt=PROMPT, max_cost=0.5, limit=5)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    assert answer["levers"]
    assert any(lever["neuron"] == NEURON for lever in answer["levers"])
    return answer


@pytest.fixture
def planted_tab(browser: Browser, planted: Served) -> Iterator[Tab]:
    with open_tab(browser, planted.url) as tab:
        yield tab


def address(words: str = ", ".join(WORDS)) -> str:
    return f"#/levers?words={quote(words)}&prompt={quote(PROMPT)}&max_cost=0.5"


def levers(page: Page) -> Locator:
    return page.get_by_role("listitem").filter(has=page.get_by_role("link", name="Keep it in a request"))


def expect_found(page: Page, found: dict[str, Any]) -> None:
    expect(levers(page)).to_have_count(len(found["levers"]), timeout=60_000)
    expect(page.get_by_role("heading", name=found["message"])).to_be_visible()
    for item, lever in zip(levers(page).all(), found["levers"], strict=True):
        expect(item.locator(".neuron-id").first).to_have_text(f"{lever['layer']}/{lever['neuron']}")
        expect(item).to_contain_text(f"{shown_number(abs(lever['log_odds']))} ±")
        cost = re.search(r"at a cost of (-?\d\.\d\d) nats", item.inner_text())
        assert cost is not None
        assert float(cost[1]) == pytest.approx(lever["cost"], abs=0.00501)
        item.get_by_text("As a table").click()
        expect(item.locator("tbody tr")).to_have_count(len(lever["curve"]))


def texts(item: Locator) -> list[str]:
    return [text or "" for text in item.locator(".written").all_text_contents()]


def test_words_are_typed_and_their_levers_are_those_of_the_api(planted_tab: Tab, found: dict[str, Any]) -> None:
    page = planted_tab.go("#/levers")
    button = page.get_by_role("button", name="Find levers")
    expect(button).to_be_disabled()
    page.get_by_role("textbox", name="Words to make likelier").fill(f" {WORDS[0]},{WORDS[1]} {WORDS[0]}")
    page.get_by_role("textbox", name="Prompt to try them on").fill(PROMPT)
    page.get_by_label("Cost, at most").select_option("0.5")
    with page.expect_request("**/v1/levers") as asked:
        button.click()
    wanted = {"model": MODEL_ID, "words": list(WORDS), "prompt": PROMPT, "max_cost": 0.5, "limit": 5, "stream": True}
    assert asked.value.post_data_json == wanted
    expect_found(page, found)
    for item, lever in zip(levers(page).all(), found["levers"], strict=True):
        assert texts(item) == [PROMPT + found["prompt"]["continuation"], PROMPT + lever["continuation"]]
    page.reload()
    expect_found(page, found)


def test_a_lever_is_tried_live_and_kept_in_a_request(planted_tab: Tab, planted: Served, found: dict[str, Any]) -> None:
    page = planted_tab.go(address())
    expect_found(page, found)
    edit = found["levers"][0]["intervention"] | {"positions": "continuation"}
    item = levers(page).first
    for seed, name in ((1, "Try it"), (2, "Try another seed")):
        with page.expect_response("**/v1/completions"):
            item.get_by_role("button", name=name).click()
        reply = planted.complete(
            prompt=PROMPT, seed=seed, max_tokens=48, temperature=0.7, interventions=[edit], compare=True
        )
        expect(item.locator(".written").first).to_have_text(PROMPT + reply["choices"][0]["text"])
        assert texts(item) == [PROMPT + choice["text"] for choice in reply["choices"]]
    item.get_by_role("link", name="Keep it in a request").click()
    expect(page.get_by_role("textbox", name="Prompt")).to_have_value(PROMPT)
    page.get_by_text("Edit as JSON").click()
    assert stack(page) == [edit]
    assert json.loads(unquote(re.findall(r"stack=([^&]*)", page.url)[0]).replace("+", " ")) == [edit]


def test_words_that_nothing_moves_are_said_to_be_so(planted_tab: Tab, planted: Served) -> None:
    reply = planted.post("/v1/levers", words=["xylophonist"], prompt=PROMPT, max_cost=0.5, limit=5).json()
    page = planted_tab.go(address("xylophonist"))
    expect(page.get_by_role("heading", name=reply["message"])).to_be_visible(timeout=60_000)
    if not reply["is_moved"]:
        expect(page.get_by_text("What came nearest:")).to_be_visible()
        expect(levers(page)).to_have_count(0)
    expect(page.get_by_text("Counted as whole sequences:")).to_be_visible()


TEXTS = {"towards": ["the work and the project", "work and project"], "away": ["Once upon a time", "the king said"]}


def texts_address(towards: list[str], away: list[str]) -> str:
    sides = "&".join(f"{name}={quote(chr(10).join(lines))}" for name, lines in (("towards", towards), ("away", away)))
    return f"#/levers/texts?{sides}&prompt={quote(PROMPT)}&max_cost=0.5"


def test_texts_are_set_against_others_as_the_api_does(planted_tab: Tab, planted: Served) -> None:
    found = planted.post("/v1/levers", texts=TEXTS, prompt=PROMPT, max_cost=0.5, limit=5).json()
    page = planted_tab.go("#/levers")
    page.get_by_role("link", name="For texts").click()
    button = page.get_by_role("button", name="Find levers")
    page.get_by_label("Texts to steer towards").fill("\n".join(TEXTS["towards"]) + "\n\n")
    expect(button).to_be_disabled()
    page.get_by_label("Texts to steer away from").fill("\n".join(TEXTS["away"]))
    page.get_by_role("textbox", name="Prompt to try them on").fill(PROMPT)
    page.get_by_label("Cost, at most").select_option("0.5")
    with page.expect_request("**/v1/levers") as asked:
        button.click()
    assert asked.value.post_data_json["texts"] == TEXTS
    assert "words" not in asked.value.post_data_json
    assert found["levers"]
    expect_found(page, found)
    expect(levers(page).first).to_contain_text("nats per token of the texts over the others")
    page.reload()
    expect_found(page, found)
    # Neither way loses what the other one was asked.
    page.get_by_role("link", name="For words").click()
    expect(page.get_by_role("textbox", name="Words to make likelier")).to_be_visible()
    page.get_by_role("link", name="For texts").click()
    expect(page.get_by_label("Texts to steer away from")).to_have_value("\n".join(TEXTS["away"]))
    expect_found(page, found)


def test_a_single_text_a_side_says_that_it_was_measured_on_what_it_was_found_on(planted_tab: Tab) -> None:
    page = planted_tab.go(texts_address(TEXTS["towards"][:1], TEXTS["away"][:1]))
    expect(page.get_by_text("Found and measured on the same texts")).to_be_visible(timeout=60_000)


def test_an_error_is_told_in_the_services_words(planted_tab: Tab) -> None:
    page = planted_tab.go(address("x" * 300))
    expect(page.get_by_role("alert")).to_contain_text("words")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_fits_a_phone(
    browser: Browser, planted: Served, found: dict[str, Any], scheme: Any
) -> None:
    with open_tab(browser, planted.url, color_scheme=scheme, viewport=PHONE) as tab:
        page = tab.go(address())
        expect(levers(page)).to_have_count(len(found["levers"]), timeout=60_000)
        assert tab.violations() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page = tab.go(texts_address(TEXTS["towards"][:1], TEXTS["away"][:1]))
        expect(page.get_by_text("Found and measured on the same texts")).to_be_visible(timeout=60_000)
        assert tab.violations() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
