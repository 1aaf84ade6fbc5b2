"""The playground's frame, in a real browser: what it may reach, what it costs, what it does when the service fails."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from service.http_api import playground
from tests.support.served import MODEL_ID, Served, free_port, serve_app
from tests.support.web.browser import PHONE, Tab, open_tab

HOSTILE = '<img src="x" onerror="window.hacked=1">&lt;script>window.hacked=1</script>{{7*7}}${hacked}'
#: Fields whose strings come from a text, a model or a user.
SAID_BY_MODELS = frozenset(
    ("text", "tokens", "token", "label", "top_tokens", "evidence", "source", "note", "warnings", "words", "message")
)
KEY = "a-key-for-tests"
MAX_FIRST_VIEW_BYTES = 200_000
VENDORED = re.compile(r"\| `(?P<file>[^`]+)` \| `[^`]+` \| `(?P<digest>[0-9a-f]{64})` \|")


def page_heading(page: Page) -> Locator:
    return page.get_by_role("heading", level=1)


def test_vendored_files_are_those_of_their_packages() -> None:
    folder = playground.FOLDER / "vendor"
    listed = {found["file"]: found["digest"] for found in VENDORED.finditer((folder / "README.md").read_text())}
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()} == listed | {
        "README.md": hashlib.sha256((folder / "README.md").read_bytes()).hexdigest()
    }


def test_files_are_served_with_their_types_and_nothing_outside_the_folder(served: Served) -> None:
    for name, kind in {
        "main.js": "text/javascript",
        "vendor/htm/htm.mjs": "text/javascript",
        "base.css": "text/css",
    }.items():
        reply = served.client.get(f"/web/{name}")
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith(kind)
        again = served.client.get(f"/web/{name}", headers={"If-None-Match": reply.headers["etag"]})
        assert again.status_code == 304
    for name in ("nothing.js", "vendor", "../settings.py", "%2e%2e/settings.py", "..%2fsettings.py"):
        reply = served.client.get(f"/web/{name}")
        assert reply.status_code == 404
        assert reply.json()["error"]["code"] == "unknown_route"


def test_the_first_view_is_small_and_asks_no_other_host(tab: Tab) -> None:
    page = tab.go()
    page.wait_for_load_state("networkidle")
    expect(page_heading(page)).to_be_visible()
    assert 10_000 < tab.num_bytes < MAX_FIRST_VIEW_BYTES


def test_the_policy_keeps_the_page_from_other_hosts_inline_scripts_and_strings_as_html(tab: Tab) -> None:
    page = tab.go()
    expect(page_heading(page)).to_be_visible()
    other = f"http://127.0.0.1:{free_port()}/"
    assert page.evaluate("url => fetch(url).then(() => 'reached', () => 'refused')", other) == "refused"
    assert "TrustedHTML" in page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x' } catch (e) { return e.message } }"
    )
    page.evaluate(
        """() => {
            const style = document.createElement('style');
            style.textContent = 'main {display: none}';
            document.body.append(style);
        }"""
    )
    expect(page.get_by_role("main")).to_be_visible()
    blocked = {re.sub(r"\s+", " ", failure)[:400] for failure in tab.failures}
    assert any("connect-src" in failure for failure in blocked)
    assert any("style-src" in failure for failure in blocked)
    tab.failures.clear()  # they were wanted


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", ["", "#/nowhere", "#/explore?model=nothing"])
def test_the_frame_is_accessible(browser: Browser, served: Served, scheme: Any, address: str) -> None:
    with open_tab(browser, served.url, color_scheme=scheme, viewport=PHONE) as tab:
        page = tab.go(address)
        expect(page.get_by_role("combobox", name="Model")).to_be_visible()
        page.wait_for_load_state("networkidle")
        rules = [rule for rule in tab.violations() if address == "" or "page-has-heading-one" not in rule]
        assert rules == []
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_keyboard_reaches_the_content_and_the_views(tab: Tab) -> None:
    page = tab.go()
    expect(page_heading(page)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.get_by_role("link", name="Explore").focus()
    page.keyboard.press("Enter")
    expect(page_heading(page)).to_be_focused()
    assert page.title().startswith("Explore")
    link = page.get_by_role("main").get_by_role("link").filter(has_text=re.compile(r"\d+.\d+")).first
    [name] = re.findall(r"\d+/\d+", link.inner_text())
    link.press("Enter")
    expect(page.get_by_role("heading", level=1, name=name)).to_be_focused()
    page.go_back()
    expect(page.get_by_role("link", name="Explore")).to_have_attribute("aria-current", "page")
    page.go_back()
    expect(page.get_by_role("link", name="Write and steer")).to_have_attribute("aria-current", "page")


def test_an_unknown_view_and_an_unknown_model_are_told(tab: Tab) -> None:
    expect(tab.go("#/nowhere").get_by_text("There is no page nowhere.")).to_be_visible()
    expect(page_heading(tab.go("#/constructor"))).to_have_text("No such page")
    page = tab.go("#/write?model=nothing")
    expect(page.get_by_text("No model nothing is served here.")).to_be_visible()
    page.get_by_role("combobox", name="Model").select_option(MODEL_ID)
    expect(page_heading(page)).to_be_visible()


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser: Browser, tiny_model_path: Path) -> None:
    with serve_app(tiny_model_path, api_keys=KEY) as service, open_tab(browser, service.url) as tab:
        page = tab.go()
        page.get_by_label("API key").fill("not-the-key")
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_role("alert")).to_have_text("The service refused this key.")
        expect(page.get_by_label("API key")).to_be_focused()
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page_heading(page)).to_be_visible()
        expect(page.get_by_label("API key")).to_be_hidden()
        assert KEY not in page.url
        assert page.evaluate("Object.values(localStorage)") == []
        assert page.context.cookies() == []
        page.reload()
        expect(page_heading(page)).to_be_visible()


def test_what_is_refused_again_and_again_is_told_and_asked_for_again_by_hand(tab: Tab) -> None:
    asked: list[Route] = []
    page = tab.go("#/neuron/0/1")
    expect(page_heading(page)).to_be_visible()

    def refuse(route: Route) -> None:
        asked.append(route)
        route.fulfill(status=503, json={"error": {"message": "no room", "type": "unavailable", "code": "stopping"}})

    page.route("**/v1/neurons/0/2?**", refuse)
    page.evaluate("location.hash = '#/neuron/0/2'")
    expect(page.get_by_role("alert").filter(has_text="no room")).to_be_visible()
    page.wait_for_timeout(9000)  # the page looks every 1.5 seconds whether the service is there
    assert len(asked) == 5
    page.unroute("**/v1/neurons/0/2?**")
    page.get_by_role("button", name="Try again").first.click()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_models_are_asked_for_again_by_hand(tab: Tab) -> None:
    page = tab.page
    page.route("**/v1/models", lambda route: route.fulfill(status=500, body="broken"))
    tab.go()
    expect(page.get_by_role("alert")).to_contain_text("500 broken")
    page.unroute("**/v1/models")
    page.get_by_role("button", name="Try again").click()
    expect(page_heading(page)).to_be_visible()


def test_a_reply_that_is_cut_off_is_a_lost_connection(tab: Tab) -> None:
    page = tab.page
    page.route(
        "**/v1/neurons?**", lambda route: route.fulfill(status=200, body='{"data": [', content_type="application/json")
    )
    tab.go("#/explore")
    expect(page.get_by_role("alert")).to_have_text(re.compile("The connection to the service was lost."))


def test_the_page_outlives_the_service_and_keeps_what_was_typed(browser: Browser, tiny_model_path: Path) -> None:
    port = free_port()
    typed = "The ship that was typed"
    with open_tab(browser, f"http://127.0.0.1:{port}") as tab:
        with serve_app(tiny_model_path, port=port):
            page = tab.go()
            page.get_by_role("textbox", name="Prompt").fill(typed)
        page.get_by_role("button", name="Run").click()
        expect(page.get_by_text("The service does not answer.")).to_be_visible()
        with serve_app(tiny_model_path, port=port):
            expect(page.get_by_text("The service does not answer.")).to_be_hidden()
            expect(page.get_by_role("textbox", name="Prompt")).to_have_value(typed)
            page.get_by_role("button", name="Run").click()
            expect(page.get_by_role("heading", name="Default")).to_be_visible()
            expect(page.get_by_role("alert")).to_be_hidden()


def with_hostile_strings(value: Any, key: str = "") -> Any:
    """The same JSON with every string that a user or a model could have made replaced by markup."""
    if isinstance(value, dict):
        return {name: with_hostile_strings(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [with_hostile_strings(each, key) for each in value]
    return HOSTILE if isinstance(value, str) and key in SAID_BY_MODELS else value


def answer_hostilely(route: Route) -> None:
    reply = route.fetch()
    if "application/json" in reply.headers["content-type"]:
        route.fulfill(response=reply, body=json.dumps(with_hostile_strings(reply.json())))
    elif "text/event-stream" in reply.headers["content-type"]:
        lines = [
            f"data: {json.dumps(with_hostile_strings(json.loads(line[6:])))}" if line.startswith("data: {") else line
            for line in reply.text().split("\n")
        ]
        route.fulfill(response=reply, body="\n".join(lines))


def test_no_string_ever_becomes_markup(browser: Browser, served: Served) -> None:
    """Every string that the service says of texts, tokens and neurons is markup here, and the user's words are too."""
    with open_tab(browser, served.url) as tab:
        tab.page.route("**/v1/**", answer_hostilely)
        page = tab.go()
        page.get_by_role("textbox", name="Prompt").fill(HOSTILE)
        page.get_by_role("button", name="Run").click()
        expect(page.get_by_role("heading", name="Default")).to_be_visible()
        shown = 0
        for address in (
            "",
            "#/read?text=a",
            "#/explore?label=a",
            "#/explore/text?text=a",
            "#/neuron/0/1",
            "#/training?text=a",
        ):
            if address:
                page = tab.go(address)
            page.wait_for_load_state("networkidle")
            shown += "onerror" in (page.get_by_role("main").text_content() or "")
            assert page.locator("img, script:not(head script)").count() == 0
            assert page.evaluate("window.hacked") is None
        assert shown >= 4, "the hostile strings were not even shown"
