"""Interactive documentation that needs no network: Swagger UI's files come with a package."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from api.http.problems import documented
from common.errors import SetupProblem
from common.settings import origin_of

PACKAGE = "fastapi_swagger"
ASSETS = "/docs/assets"
OF_KEYS = (401, 403, 422, 429, 503)
"""How any operation that asks for a key may answer: X-Tenant-Id and Postgres may be wrong too."""
OF_QUERIES = (414,)
FASTAPIS = "HTTPValidationError"
OF_BODIES = (400, 408, 413, 415, 422)

TAGS = [
    {"name": "jobs", "description": "Recordings come in, their text goes out."},
    {"name": "streams", "description": "Words while people speak; and `WS /ws/transcribe`."},
    {"name": "openai", "description": "The same for clients of OpenAI's audio API."},
    {"name": "asr", "description": "The same for clients of whisper-asr-webservice."},
    {"name": "moderation", "description": "Texts are judged at once."},
    {"name": "models", "description": "What can be asked for by name."},
    {"name": "webhooks", "description": "Who is told of the ends of jobs, and how that went."},
    {"name": "keys", "description": "Who may ask, and how much."},
    {"name": "health", "description": "For those who keep it running."},
]
"""What the routes are grouped by, in this order."""


def install(app: FastAPI, public_url: str | None) -> None:
    """Serve ``/docs``, whose pages may ask the gateway itself, and the ``public_url`` it is at."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            _document_common_answers(describe())
        return describe()

    app.openapi = described  # type: ignore[method-assign] # FastAPI's documented way to extend it
    app.mount(ASSETS, StaticFiles(directory=_assets()), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def _docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "").rstrip("/")
        page = get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title} API",
            swagger_js_url=f"{root}{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{root}{ASSETS}/favicon-32x32.png",
            swagger_ui_parameters={
                "tryItOutEnabled": True,
                "displayRequestDuration": True,
                "validatorUrl": None,  # it would be told of every description that is looked at
            },
        )
        page.headers["Content-Security-Policy"] = _policy(bytes(page.body).decode(), public_url)
        return page


def _policy(page: str, public_url: str | None) -> str:
    """Its own script, as it is written, and Swagger UI's files; nothing from anywhere else."""
    scripts = [
        b64encode(sha256(script.encode()).digest()).decode()
        for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    ]
    allowed = " ".join(f"'sha256-{script}'" for script in scripts)
    asked = "'self'" if public_url is None else f"'self' {origin_of(public_url)}"
    return (
        f"default-src 'none'; script-src 'self' {allowed}; style-src 'self' 'unsafe-inline'; "
        f"img-src 'self' data:; connect-src {asked}; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _document_common_answers(description: dict[str, Any]) -> None:
    """Add to every operation how it answers a wrong key, a wrong body, or too long a query."""
    for operations in description["paths"].values():
        for operation in operations.values():
            statuses = (
                *(OF_KEYS if "security" in operation else ()),
                *(OF_BODIES if "requestBody" in operation else ()),
                *(OF_QUERIES if _has_query(operation) else ()),
            )
            responses = operation["responses"]
            if FASTAPIS in str(responses.get("422")):
                del responses["422"]  # no wrong value is answered as FastAPI would
                statuses = (*statuses, 422)
            for status, answer in documented(*statuses).items():
                responses.setdefault(str(status), answer)
    for name in (FASTAPIS, "ValidationError"):
        description.get("components", {}).get("schemas", {}).pop(name, None)


def _has_query(operation: Mapping[str, Any]) -> bool:
    return any(each["in"] == "query" for each in operation.get("parameters", ()))


def _assets() -> Path:
    # Found and not imported: the package patches applications, and only its files are wanted.
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SetupProblem(problem=f"{PACKAGE} is not installed", remedy="Run the set-up again")
    return Path(spec.origin).parent / "resources"
