"""A text over a model's checkpoints in the browser, held to the API's figures."""

import re

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.support.served import MODEL_ID, Served
from tests.support.web.browser import Tab
from tests.support.web.read_page import (
    STEPS,
    TEXT,
    busiest,
    shown_shades,
    steps_of_shade,
    tokens_of,
    trace_of,
    training_address,
)


def losses(served: Served) -> dict[str, float]:
    """The text's loss at every state, by its name on the page."""
    found = {}
    for name, model in [(f"step {step}", f"{MODEL_ID}@step-{step}") for step in STEPS] + [("final", MODEL_ID)]:
        reply = served.complete(model=model, prompt=TEXT, max_tokens=0, echo=True, logprobs=0)
        logprobs = reply["choices"][0]["logprobs"]["token_logprobs"]
        found[name] = -float(np.mean([value for value in logprobs if value is not None]))
    return found


def loss_shown(page: Page, name: str) -> Locator:
    row = page.get_by_role("row").filter(has=page.get_by_role("button", name=name, exact=True))
    return row.get_by_role("cell").last


def test_a_text_as_the_model_saw_it_at_each_step(tab: Tab, served: Served) -> None:
    trace = trace_of(served, model=f"{MODEL_ID}@step-64")
    neuron = busiest(trace, 1)
    page = tab.go(training_address(step=64, neuron=f"1/{neuron}"))
    expect(page.get_by_role("heading", name="As the model saw it at step 64")).to_be_visible()
    assert shown_shades(tokens_of(page, "step 64")) == steps_of_shade(trace.dense()[:, 1, neuron])
    expected = losses(served)
    assert float(loss_shown(page, "step 64").inner_text()) == pytest.approx(expected["step 64"], rel=5e-3)
    expect(loss_shown(page, "step 128")).to_have_text("–")

    slider = page.get_by_role("slider", name="Checkpoint")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", name="As the model saw it at step 128")).to_be_visible()
    expect(page).to_have_url(re.compile("step=128"))
    later = trace_of(served, model=f"{MODEL_ID}@step-128").dense()[:, 1, neuron]
    assert shown_shades(tokens_of(page, "step 128")) == steps_of_shade(later)
    assert list(later) != list(trace.dense()[:, 1, neuron])

    page.get_by_role("button", name="Run over all checkpoints").click()
    expect(loss_shown(page, "final")).not_to_have_text("–")
    assert {name: float(loss_shown(page, name).inner_text()) for name in expected} == pytest.approx(expected, rel=5e-3)
    expect(page.get_by_role("img", name="Loss by step")).to_be_visible()

    heat = page.get_by_role("img", name=f"Neuron 1/{neuron} by checkpoint and token")
    states = [*(f"{MODEL_ID}@step-{step}" for step in STEPS), MODEL_ID]
    values = [trace_of(served, model=state).dense()[:, 1, neuron] for state in states]
    expect(heat.locator(".cell")).to_have_count(int(np.count_nonzero(values)))


def test_a_step_that_was_read_is_not_asked_for_again(tab: Tab) -> None:
    page = tab.go(training_address(step=64))
    asked: list[str] = []
    expect(page.get_by_role("heading", name="As the model saw it at step 64")).to_be_visible()
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("button", name="Run over all checkpoints").click()
    expect(loss_shown(page, "final")).not_to_have_text("–")
    assert len([url for url in asked if url.endswith("v1/completions")]) == len(STEPS)
    page.get_by_role("button", name="final").click()
    expect(page.get_by_role("heading", name="As the final model sees it")).to_be_visible()
    page.get_by_role("button", name="step 64").click()
    expect(page.get_by_role("heading", name="As the model saw it at step 64")).to_be_visible()
    expect(page).to_have_url(re.compile("step=64"))
    assert len([url for url in asked if url.endswith("v1/completions")]) == len(STEPS)


def test_a_step_that_takes_long_can_be_stopped_and_read_later(tab: Tab) -> None:
    held: list[Route] = []
    page = tab.go(training_address())
    expect(page.get_by_role("heading", name="As the final model sees it")).to_be_visible()
    page.route("**/v1/completions", lambda route: held.append(route))
    page.get_by_role("slider", name="Checkpoint").press("Home")
    expect(page.get_by_text("Reading the text at step 64")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Not read at step 64.")).to_be_visible()

    page.get_by_role("button", name="Run over all checkpoints").click()
    expect(page.get_by_role("progressbar", name="Reading at step 64")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Run over all checkpoints")).to_be_visible()
    assert len(held) == 2
    page.unroute("**/v1/completions")
    page.get_by_role("button", name="Read it").click()
    expect(page.get_by_role("heading", name="As the model saw it at step 64")).to_be_visible()
    page.get_by_role("button", name="Run over all checkpoints").click()
    expect(page.get_by_role("img", name="Loss by step")).to_be_visible()
