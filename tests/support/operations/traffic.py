"""Requests that come at a steady pace whatever becomes of them, and what became of each."""

import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx

from tests.support.served import MODEL_ID

TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One request's end. Times are of `time.monotonic`."""

    began_at: float
    ended_at: float
    status: int | None  # none if the connection ended without a reply
    text: str


class Traffic:
    """A request every `1 / rate` seconds, in a thread of its own each, for as long as the `with` block lasts."""

    def __init__(self, url: str, *, rate: float, client: httpx.Client | None = None, **body: Any) -> None:
        self.outcomes: list[Outcome] = []
        self._client = client or httpx.Client(timeout=TIMEOUT_S, limits=httpx.Limits(max_keepalive_connections=0))
        self._url = f"{url}/v1/completions"
        self._body = {"model": MODEL_ID, "prompt": "Once", "max_tokens": 4, "ignore_eos": True} | body
        self._period_s = 1 / rate
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._pacer = threading.Thread(target=self._pace)

    def __enter__(self) -> "Traffic":
        self._pacer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._pacer.join()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S)
        assert not any(thread.is_alive() for thread in self._threads), "a request hangs"

    def _pace(self) -> None:
        while not self._stopping.wait(self._period_s):
            self._threads.append(threading.Thread(target=self._ask))
            self._threads[-1].start()

    def _ask(self) -> None:
        began_at = time.monotonic()
        status, text = None, ""
        try:
            reply = self._client.post(self._url, json=self._body)
            status, text = reply.status_code, reply.text
        except httpx.HTTPError as error:
            text = repr(error)
        self.outcomes.append(Outcome(began_at=began_at, ended_at=time.monotonic(), status=status, text=text))

    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status != 200]

    def counts(self) -> Counter[int | None]:
        return Counter(outcome.status for outcome in self.outcomes)
