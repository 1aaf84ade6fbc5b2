"""Who may call: the check of an API key, for HTTP and gRPC alike."""

import hmac
from collections.abc import Sequence

_SCHEME = "bearer"


def is_accepted(authorization: str | None, keys: Sequence[str]) -> bool:
    """Whether an `Authorization` value carries one of `keys`; all pass where there are none.

    The time does not tell how close a wrong key came, nor to which.
    """
    if not keys:
        return True
    if authorization is None:
        return False
    scheme, _, offered = authorization.partition(" ")
    offered_bytes = offered.strip().encode("utf-8", "surrogatepass")
    matches = [hmac.compare_digest(offered_bytes, key.encode()) for key in keys]
    return scheme.lower() == _SCHEME and any(matches)
