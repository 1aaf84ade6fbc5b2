"""The playground's view "Write": how it is opened, run and read."""

import json
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Locator, Page, Request, expect

from tests.support.served import MODEL_ID, Served
from tests.support.web.browser import Tab

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


def unlock(tab: Tab) -> None:
    page = tab.go()
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="Prompt")).to_be_visible()


def best_edit(served: Served, layer: int, neuron: int) -> dict[str, Any]:
    """What the page adds for a neuron: the value that its catalogue has measured to be best, or else the usual one.

    Its preset's value stands before that.
    """
    page = served.client.get(f"/v1/neurons/{layer}/{neuron}", params={"model": MODEL_ID}).json()
    presets = served.client.get(f"/v1/models/{MODEL_ID}").json()["topk"]["presets"]
    own = [each for each in presets if (each["layer"], each["neuron"]) == (layer, neuron)]
    best = (page.get("steering") or {"in_units_of_max": 0.4})["in_units_of_max"]
    if own and page["max"]:
        best = max(own, key=lambda each: each["found"]["log_odds"])["value"] / page["max"]
    value, unit = (float(f"{best:.3g}"), "max") if page["max"] else (1, "kth")
    return {"layer": layer, "neuron": neuron, "op": "add", "value": value, "unit": unit, "positions": "continuation"}
