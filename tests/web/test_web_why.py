"""Why: what the page says of a token's neurons, held to the API's own answers, and links that lead back to it."""

import json
import re
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Locator, Page, Response, expect

from tests.support.served import Served
from tests.support.web.browser import PHONE, Tab, open_tab
from tests.support.web.neuron_pages import until
from tests.support.web.neuron_pages import written as shown_number
from tests.support.web.read_page import read_address, tokens_of, trace_of
from tests.support.web.write_page import link, run, without_stream

TEXT = "Once upon a time, there was a king who had three sons"
NUM_SHOWN = 12
#: Edits whose positions are counted from the prompt's end.
EDITS = [
    {"layer": 0, "neuron": 3, "op": "add", "value": 6, "positions": "continuation"},
    {"layer": 1, "neuron": 5, "op": "set", "value": 4.5, "positions": {"start": 1, "end": -2}},
]


def ids_of(served: Served, text: str = TEXT) -> list[int]:
    ids: list[int] = served.post("/v1/tokenize", prompt=text, add_special_tokens=True).json()["tokens"]
    return ids


def why(ids: list[int], **fields: object) -> str:
    given = {"ids": ",".join(map(str, ids))} | fields
    return "#/why?" + "&".join(f"{name}={quote(str(value))}" for name, value in given.items())


def attribution(served: Served, **body: Any) -> dict[str, Any]:
    reply = served.post("/v1/attributions", **body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def once_each(neurons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The strongest of those that are one neuron at one token."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for each in neurons:
        found.setdefault((each["neuron"], each["position"]), each)
    return list(found.values())[:NUM_SHOWN]


def rows(page: Page) -> Locator:
    return page.get_by_role("region", name="It rests on").get_by_role("listitem")


def expect_effects(page: Page, found: dict[str, Any]) -> None:
    """Wait until the list is that of an attribution."""
    wanted = [
        (
            f"{'−' if each['effect'] < 0 else '+'}{shown_number(abs(each['effect']))}",
            f"{each['layer']}/{each['neuron']}",
        )
        for each in once_each(found["neurons"])
    ]

    def is_shown() -> bool:
        values = rows(page).locator(".value").all_inner_texts()
        return list(zip(values, rows(page).locator(".neuron-id").all_inner_texts(), strict=False)) == wanted

    until(is_shown, page)
    for row, each in zip(rows(page).all(), once_each(found["neurons"]), strict=True):
        if each["label"]:
            expect(row).to_contain_text(each["label"])


def shades(page: Page) -> list[int]:
    """Of the text's tokens: the level of colour, below 0 if a token holds the target down."""
    found = []
    for name in page.locator(".why-tokens .token:not(.next)").evaluate_all("all => all.map((one) => one.className)"):
        level = re.search(r"(shade|cold)-(\d)", name)
        found.append(0 if level is None else int(level[2]) * (1 if level[1] == "shade" else -1))
    return found


def test_a_token_of_a_text_says_what_it_rests_on(tab: Tab, served: Served) -> None:
    page = tab.go(read_address(text=TEXT))
    at = len(trace_of(served, TEXT).tokens) - 2
    tokens_of(page).nth(at).click()
    page.get_by_role("link", name="Why this token?").click()
    expect(page.get_by_role("heading", level=1, name="Why")).to_be_visible()
    ids = ids_of(served)
    found = attribution(served, prompt=ids[: at + 1], target={"position": at}, top_n=60)
    expect_effects(page, found)
    target = page.get_by_role("region", name="What is explained")
    expect(target).to_contain_text(f"“{found['target']['token']['token'].strip()}” has a probability of")
    expect(target).to_contain_text(f"{shown_number(found['num_neurons'])} active neurons before it were ablated")
    most = max(abs(each["effect"]) for each in found["positions"])
    for each, level in zip(found["positions"], shades(page), strict=False):
        assert level * each["effect"] >= 0
        assert (abs(level) == 8) == (abs(each["effect"]) > most * 7 / 8)
    assert len(shades(page)) == len(ids)
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    expect_effects(page, found)


def test_another_token_is_asked_about_by_a_click_and_what_follows_too(tab: Tab, served: Served) -> None:
    ids = ids_of(served)
    page = tab.go(why(ids, trail=5))
    expect_effects(page, attribution(served, prompt=ids[:6], target={"position": 5}, top_n=60))
    page.locator(".why-tokens .token").nth(3).click()
    expect_effects(page, attribution(served, prompt=ids[:4], target={"position": 3}, top_n=60))
    page.get_by_role("link", name="what follows?").click()
    expect_effects(page, attribution(served, prompt=ids, target={"position": len(ids)}, top_n=60))
    page.go_back()
    expect_effects(page, attribution(served, prompt=ids[:4], target={"position": 3}, top_n=60))


def test_a_neuron_is_walked_back_to_what_holds_it_up(tab: Tab, served: Served) -> None:
    ids = ids_of(served)
    first = attribution(served, prompt=ids, target={"position": len(ids)}, top_n=60)
    page = tab.go(why(ids))
    expect_effects(page, first)
    shown = [(each["neuron"], each["position"]) for each in once_each(first["neurons"])]
    # One that is active in several layers is asked about in the last of them.
    each = next(each for each in first["neurons"] if each["layer"] == 1 and (each["neuron"], each["position"]) in shown)
    place = shown.index((each["neuron"], each["position"]))
    rows(page).nth(place).get_by_role("link", name=re.compile("^What holds")).click()
    at = each["position"]
    target = {"position": at, "layer": each["layer"], "neuron": each["neuron"]}
    expect_effects(page, attribution(served, prompt=ids[: at + 1], target=target, top_n=60))
    expect(page.get_by_role("region", name="What is explained")).to_contain_text(shown_number(each["value"]))
    trail = page.get_by_role("navigation", name="The way back")
    expect(trail.get_by_role("listitem")).to_have_count(2)
    trail.get_by_role("link").first.click()
    expect_effects(page, first)
    expect(trail).to_have_count(0)


def rewritten(page: Page) -> list[str]:
    section = page.get_by_role("region", name="Without the neuron")
    expect(section.locator(".written")).to_have_count(2)
    return [text or "" for text in section.locator(".written").all_text_contents()]


def test_the_text_is_written_without_a_neuron_at_once(tab: Tab, served: Served) -> None:
    ids = ids_of(served)
    page = tab.go(why(ids))
    first = once_each(attribution(served, prompt=ids, target={"position": len(ids)}, top_n=60)["neurons"])[0]
    rows(page).first.get_by_role("link", name="Without it").or_(
        rows(page).first.get_by_role("link", name=re.compile("^Write without"))
    ).first.click()
    texts = rewritten(page)
    positions = {"start": first["position"], "end": first["position"] + 1}
    ablation = {"layer": first["layer"], "neuron": first["neuron"], "op": "ablate", "include_special": True}
    for text, edits in zip(texts, ([], [ablation | {"positions": positions}]), strict=True):
        reply = served.complete(prompt=ids, max_tokens=24, temperature=0, interventions=edits)
        assert text == TEXT + reply["choices"][0]["text"]
    page.reload()
    assert rewritten(page) == texts
    page.get_by_role("link", name="Close").click()
    expect(page.get_by_role("region", name="Without the neuron")).to_have_count(0)


def test_what_was_written_under_edits_is_asked_about_under_them(tab: Tab, served: Served) -> None:
    page = tab.go(link(prompt=TEXT, stack=json.dumps(EDITS), max_tokens=12, seed=5, temperature=0.9))
    body = run(page)
    steered = served.post("/v1/completions", **without_stream(body)).json()["choices"][1]
    trace = steered["trace"]
    tokens = tokens_of(page, "Steered")
    at = len(trace["tokens"]) - 2
    tokens.nth(at).click()

    def is_attribution(reply: Response) -> bool:
        return reply.url.endswith("/v1/attributions")

    with page.expect_response(is_attribution) as answered:
        page.get_by_role("link", name="Why this token?").click()
    asked = answered.value.request.post_data_json
    start = trace["phases"].index("generated")
    positions = [{"start": start - 1}, {"start": 1, "end": start - 2}]
    assert asked["interventions"] == [edit | {"positions": p} for edit, p in zip(EDITS, positions, strict=True)]
    assert asked["prompt"] == trace["token_ids"][: at + 1]
    found = attribution(served, **{name: asked[name] for name in ("prompt", "target", "interventions", "top_n")})
    expect_effects(page, found)
    # The default of the two texts is the one that was written, to the letter.
    rows(page).first.get_by_role("link", name=re.compile("^Write without")).click()
    assert rewritten(page)[0] == TEXT + steered["text"]


def test_a_text_can_be_typed(tab: Tab, served: Served) -> None:
    page = tab.go("#/why")
    page.get_by_role("textbox", name="Text").fill(TEXT)
    page.get_by_role("button", name="Ask why").click()
    ids = ids_of(served)
    expect_effects(page, attribution(served, prompt=ids, target={"position": len(ids)}, top_n=60))
    expect(page).to_have_url(re.compile("ids="))


def test_what_cannot_be_asked_is_told_in_the_services_words(tab: Tab) -> None:
    page = tab.go(why([0, 99999, 5]))
    expect(page.get_by_role("alert").first).to_contain_text("99999")
    for address in ("#/why?ids=x,y&trail=nothing", "#/why?ids=&trail=3/4@5&edits=[{", "#/why?ids=1,2,3&trail=99"):
        page = tab.go(address)
        expect(page.get_by_role("heading", level=1, name="Why")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_fits_a_phone(browser: Browser, served: Served, scheme: Any) -> None:
    ids = ids_of(served)
    strongest = attribution(served, prompt=ids, target={"position": len(ids)}, top_n=1)["neurons"][0]
    place = f"{strongest['layer']}/{strongest['neuron']}@{strongest['position']}"
    with open_tab(browser, served.url, color_scheme=scheme, viewport=PHONE) as tab:
        page = tab.go(why(ids, trail=f"{len(ids)};{place}" if strongest["layer"] else len(ids), without=place))
        expect(page.get_by_role("region", name="What is explained")).to_be_visible()
        rewritten(page)
        assert tab.violations() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
