"""A real Chromium, and pages in it that must neither fail in silence nor ask any other host for anything.

Debian's packages chromium-headless-shell (which starts in half the time) or chromium, or any Chromium or Chrome on the
path; without one the tests are skipped and say so.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.support.served import Served
from tests.support.tools import tool

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = {"width": 360, "height": 740}
TIMEOUT_MS = 15_000  # of a look at the page: this machine may do much else
expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for the tests of a file; Playwright's loop would be in the way of those of other files."""
    path = next(filter(None, map(shutil.which, NAMES)), None) or tool(
        "chromium-headless-shell", "Debian has it as a package"
    )
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium's sandbox refuses to run as root
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=arguments)
        yield started
        started.close()


class Tab:
    """A page of the playground.

    Attributes:
        page: Playwright's.
        failures: messages of the console, uncaught errors and requests to other hosts; must be empty in the end.
        num_bytes: transferred so far, headers included.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.failures: list[str] = []
        self.num_bytes = 0
        page.set_default_timeout(TIMEOUT_MS)
        page.on("console", self._note_message)
        page.on("pageerror", lambda error: self.failures.append(f"uncaught: {error}"))
        page.on("request", self._note_request)
        page.on("requestfinished", self._note_size)

    def _note_message(self, message: ConsoleMessage) -> None:
        # A refused request is no fault of the page; Chromium names it "Failed to load resource".
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.failures.append(f"{message.type}: {message.text}")

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.failures.append(f"asked another host: {request.url}")

    def _note_size(self, request: Request) -> None:
        sizes = request.sizes()
        self.num_bytes += sizes["responseBodySize"] + sizes["responseHeadersSize"]

    def go(self, address: str = "") -> Page:
        """Open a place, as in "#/explore", with a fresh page."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}/{address}")
        return self.page

    def violations(self) -> list[str]:
        """What axe-core finds wrong with the page as it stands, one line a rule."""
        found = Axe().run(self.page).response["violations"]
        return [f"{rule['id']}: {rule['help']}: {[node['html'][:200] for node in rule['nodes'][:3]]}" for rule in found]


@contextmanager
def open_tab(browser: Browser, url: str, **options: Any) -> Iterator[Tab]:
    """A tab with cookies, storage and clipboard of its own; `options` are those of a Playwright context."""
    context = browser.new_context(**options)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    tab = Tab(context.new_page(), url)
    try:
        yield tab
    finally:
        context.close()
    assert tab.failures == []


@pytest.fixture
def tab(browser: Browser, served: Served) -> Iterator[Tab]:
    """A tab on the service that all tests share."""
    with open_tab(browser, served.url) as opened:
        yield opened
