"""Who may call: the check of an API key, for HTTP and gRPC alike."""

import hmac
from collections.abc import Sequence
from pathlib import Path

_SCHEME = "bearer"


def read_keys(path: Path) -> list[str]:
    """The keys of a file, one a line; empty lines and lines with # are skipped.

    Raises:
        ValueError: it cannot be read, or holds no key, or one that no header could carry.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"api_key_file {path} cannot be read: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"api_key_file {path} holds no key")
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise ValueError(f"a key in api_key_file {path} is not printable ASCII")
    return keys


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
