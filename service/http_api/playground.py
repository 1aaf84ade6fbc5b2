"""The playground: the page at the root and its files in `web/`. Knows no model.

Every file comes from the service. The content security policy lets the page reach only the service that it came
from, run only these scripts, and never turn a string into HTML.
"""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import FastAPI, Response
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent.parent / "web"
#: Path of the page's files; like the page, they need no key.
FILES_PATH = "/web"


class WebFiles(StaticFiles):
    """Files that a browser revalidates every time, which is cheap if they have not changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update({"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"})
        return response


def add_playground(app: FastAPI) -> None:
    """`/` and `/web/…`."""
    page = FOLDER / "index.html"
    headers = {
        "Content-Security-Policy": content_security_policy(page.read_text(encoding="utf-8")),
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    @app.api_route("/", methods=["GET", "HEAD"], response_class=Response, include_in_schema=False)
    async def playground() -> Response:
        return FileResponse(page, headers=headers)

    app.mount(FILES_PATH, GZipMiddleware(WebFiles(directory=FOLDER)))


def content_security_policy(page: str) -> str:
    """The policy for `page`, whose only inline script, the import map, is allowed by its hash."""
    (import_map,) = re.findall(r'<script type="importmap">(.*?)</script>', page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(import_map.encode()).digest()).decode()
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' 'sha256-{digest}'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
