"""The check of an API key."""

import hmac

import pytest

from service import admission


def test_every_key_is_compared_in_constant_time_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []
    compare = hmac.compare_digest

    def noted(offered: bytes, key: bytes) -> bool:
        compared.append(key)
        return compare(offered, key)

    monkeypatch.setattr(admission.hmac, "compare_digest", noted)
    keys = ("first-key-1", "second-key-2", "third-key-3")
    for offered, is_right in (("first-key-1", True), ("third-key-3", True), ("first-key-", False), ("", False)):
        compared.clear()
        assert admission.is_accepted(f"Bearer {offered}", keys) is is_right
        assert compared == [key.encode() for key in keys]


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Basic first-key-1", "first-key-1", "Bearer first-key-1 x", "Bearer \udcff"]
)
def test_what_is_no_bearer_of_a_key_is_refused(authorization: str | None) -> None:
    assert not admission.is_accepted(authorization, ("first-key-1",))
    assert admission.is_accepted(authorization, ())
