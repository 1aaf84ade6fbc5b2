"""What the API says of neurons, what the playground shows of them, and how it writes a number."""

import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, expect

from tests.support.served import MODEL_ID, Served

PAGE = 50  # neurons of a page of the list


def ask(served: Served, path: str = "", **query: Any) -> Any:
    reply = served.client.get(f"/v1/neurons{path}", params={"model": MODEL_ID} | query)
    assert reply.status_code == 200, reply.text
    return reply.json()


def strongest(served: Served) -> dict[str, Any]:
    """The page of a neuron that has most of what a page can have."""
    best = ask(served, order="-max", min_density=0.05, limit=1)["data"][0]
    page: dict[str, Any] = ask(served, f"/{best['layer']}/{best['neuron']}")
    return page


def name_of(neuron: dict[str, Any]) -> str:
    return f"{neuron['layer']}/{neuron['neuron']}"


def written(value: float | None) -> str:
    """A number as the page writes it."""
    if value is None:
        return "–"
    if value and not 0.001 <= abs(value) < 1000:
        return re.sub(r"e([+-])0", r"e\1", f"{value:.1e}")
    return f"{float(f'{value:.3g}'):.10g}"


def percent(share: float) -> str:
    return f"{written(100 * share)} %"


def visible(token: str) -> str:
    """A token as the page shows it on its own."""
    return "␣" * len(token) if token and not token.strip(" ") else token.replace("\n", "↵").replace("\t", "⇥")


def rows(page: Page, name: str) -> list[list[str]]:
    """The cells of the table in the region of this name."""
    body = page.get_by_role("region", name=name, exact=True).locator("tbody tr")
    cells: list[list[str]] = body.evaluate_all("all => all.map((row) => [...row.cells].map((cell) => cell.innerText))")
    return cells


def listed(page: Page) -> list[str]:
    """The neurons in the list, as `layer/neuron`."""
    return page.get_by_role("region", name="Neurons", exact=True).locator(".neuron-id").all_inner_texts()


def until(is_true: Callable[[], bool], page: Page) -> None:
    for _ in range(100):
        if is_true():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not come to be")


def expect_list(page: Page, served: Served, **query: Any) -> None:
    """Wait until the list is what the API says to the query."""
    found = ask(served, **({"limit": PAGE} | query))
    wanted = [name_of(neuron) for neuron in found["data"]]
    until(lambda: listed(page) == wanted, page)
    expect(page.get_by_role("status").filter(has_text=re.compile(rf"^{found['total']} neuron"))).to_be_visible()
