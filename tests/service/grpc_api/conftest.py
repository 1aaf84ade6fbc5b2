"""A client of the service that all tests share."""

from collections.abc import Iterator

import pytest

from service.client.client import Client
from tests.support.running import Running


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[Client]:
    with Client(running.target) as client:
        yield client
