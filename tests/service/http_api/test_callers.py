"""By which names and from which web pages a service may be asked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.http_api.callers import Callers
from service.http_api.shapes import ErrorResponse
from service.settings import Settings
from tests.support.served import MODEL_ID, Served, serve_app

KEY = "a-long-key"
PAGE = "https://page.example"
NAMES_OF_LOOPBACK = ("localhost", "LOCALHOST:8000", "localhost.", "app.localhost:1", "127.0.0.1", "127.0.0.1:8000",
                     "127.9.9.9:1", "[::1]", "[::1]:8000")  # fmt: skip
OTHER_NAMES = ("evil.example:8000", "evil.example", "localhost.evil.example", "notlocalhost", "127.0.0.1.evil.example",
               "192.0.2.1:8000", "[2001:db8::1]:80", "0.0.0.0:8000", "", ":8000")  # fmt: skip


def callers(**fields: Any) -> Callers:
    return Callers.of(Settings(**fields))


def test_a_service_on_loopback_without_keys_has_loopbacks_names_alone() -> None:
    assert [name for name in NAMES_OF_LOOPBACK if not callers().is_host(name)] == []
    assert [name for name in OTHER_NAMES if callers().is_host(name)] == []


@pytest.mark.parametrize("fields", [{"api_keys": KEY}, {"host": "0.0.0.0", "api_keys": KEY}, {"allowed_hosts": "*"}])
def test_a_key_or_a_setting_lets_any_name_pass(fields: dict[str, str]) -> None:
    assert all(map(callers(**fields).is_host, (*NAMES_OF_LOOPBACK, *OTHER_NAMES)))


@pytest.mark.parametrize(
    ("allowed", "host", "passes"),
    [
        ("a.example", "a.example:8000", True),
        ("A.example", "a.EXAMPLE", True),
        ("a.example", "b.a.example", False),
        ("*.a.example", "b.a.example:1", True),
        ("*.a.example", "c.b.a.example", True),
        ("*.a.example", "a.example", False),
        ("*.a.example", "evila.example", False),
        ("a.example, b.example", "b.example", True),
        ("192.0.2.1", "192.0.2.1:8000", True),
        ("2001:db8::1", "[2001:db8::1]:8000", True),
        ("a.example", "127.0.0.1:8000", True),
    ],
)
def test_allowed_hosts_are_names_and_all_below_a_name(allowed: str, host: str, passes: bool) -> None:
    assert callers(allowed_hosts=allowed).is_host(host) == passes
    assert callers(allowed_hosts=allowed, api_keys=KEY).is_host(host) == passes


def test_the_host_that_it_listens_on_is_its_name() -> None:
    only = callers(host="box.example", api_keys=KEY, allowed_hosts="a.example")
    assert (only.is_host("box.example:8000"), only.is_host("c.example")) == (True, False)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"allowed_hosts": "a.example:80"}, "'a.example:80' must be a name or an address without scheme, port"),
        ({"allowed_hosts": "https://a.example"}, "must be a name"),
        ({"allowed_hosts": "a.*.example"}, "must be a name"),
        ({"allowed_origins": "a.example"}, "'a.example' must be an origin such as https://"),
        ({"allowed_origins": "https://a.example/"}, "must be an origin"),
    ],
)
def test_names_that_could_never_match_are_told_at_the_start(fields: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Settings(**fields)  # type: ignore[arg-type]


READS = ("/v1/models", "/metrics", "/openapi.json", "/version", "/", "/web/main.js", "/v1/neurons", "/nowhere")


def check_refused(reply: httpx.Response, code: str) -> None:
    assert reply.status_code == 403
    error = ErrorResponse.model_validate_json(reply.content).error
    assert (error.type, error.code) == ("permission_error", code)
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("path", READS)
def test_a_rebound_name_reads_nothing(served: Served, path: str) -> None:
    check_refused(served.client.get(path, headers={"Host": "evil.example:8000"}), "host_not_allowed")


def test_a_rebound_name_writes_nothing_either(served: Served) -> None:
    body = {"model": MODEL_ID, "prompt": "a", "max_tokens": 1}
    reply = served.client.post("/v1/completions", json=body, headers={"Host": "evil.example:8000"})
    check_refused(reply, "host_not_allowed")


def test_health_is_told_by_whatever_name_a_probe_uses(served: Served) -> None:
    assert served.client.get("/health/ready", headers={"Host": "10.1.2.3:8000"}).status_code == 200


@pytest.mark.parametrize("origin", [PAGE, "http://127.0.0.1:1", "null", "chrome-extension://abc"])
def test_a_page_of_another_origin_is_refused_without_a_setting(served: Served, origin: str) -> None:
    body = {"model": MODEL_ID, "prompt": "a", "max_tokens": 1}
    check_refused(served.client.post("/v1/completions", json=body, headers={"Origin": origin}), "origin_not_allowed")
    ask = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    check_refused(served.client.options("/v1/completions", headers=ask), "origin_not_allowed")


def test_the_services_own_page_is_no_stranger(served: Served) -> None:
    assert served.client.get("/v1/models", headers={"Origin": served.url}).status_code == 200
    other_name = served.url.replace("127.0.0.1", "localhost")
    headers = {"Origin": other_name, "Host": other_name.removeprefix("http://")}
    assert served.client.get("/v1/models", headers=headers).status_code == 200


@pytest.fixture(scope="module")
def with_key(tiny_model_path: Path) -> Iterator[Served]:
    with serve_app(tiny_model_path, api_keys=KEY, allowed_origins=PAGE) as service:
        yield service


def test_an_allowed_page_may_ask_first_and_needs_no_key_for_that(with_key: Served) -> None:
    ask = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        "Access-Control-Request-Private-Network": "true",
    }
    reply = with_key.client.options("/v1/chat/completions", headers=ask)
    assert (reply.status_code, reply.content) == (204, b"")
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert reply.headers["access-control-allow-headers"] == ask["Access-Control-Request-Headers"]
    assert reply.headers["access-control-allow-private-network"] == "true"
    assert "Origin" in reply.headers["vary"]


@pytest.mark.parametrize(("key", "status"), [(KEY, 200), ("wrong", 401), (None, 401)])
def test_an_allowed_page_reads_answers_and_errors_but_needs_the_key(
    with_key: Served, key: str | None, status: int
) -> None:
    headers = {"Origin": PAGE} | ({"Authorization": f"Bearer {key}"} if key else {})
    reply = with_key.client.get("/v1/models", headers=headers)
    assert reply.status_code == status
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert "X-Request-Id" in reply.headers["access-control-expose-headers"]
    assert "Origin" in reply.headers["vary"]


def test_a_key_guards_a_service_so_that_other_pages_are_left_to_the_browser(with_key: Served) -> None:
    headers = {"Origin": "https://other.example", "Authorization": f"Bearer {KEY}"}
    reply = with_key.client.get("/v1/models", headers=headers)
    assert reply.status_code == 200
    assert "access-control-allow-origin" not in reply.headers
    ask = {"Origin": "https://other.example", "Access-Control-Request-Method": "GET"}
    assert "access-control-allow-origin" not in with_key.client.options("/v1/models", headers=ask).headers


def test_a_star_lets_every_page_in(tiny_model_path: Path) -> None:
    with serve_app(tiny_model_path, allowed_origins="*") as service:
        reply = service.client.get("/v1/models", headers={"Origin": PAGE})
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, PAGE)
        check_refused(
            service.client.get("/v1/models", headers={"Origin": PAGE, "Host": "evil.example"}), "host_not_allowed"
        )
