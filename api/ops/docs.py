"""Interactive documentation that needs no network: Swagger UI's files are in a package."""

from __future__ import annotations

import re
from base64 import b64encode
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
WITH_KEYS = (401, 403, 422, 429, 503)
"""Errors of any operation that requires a key, including those of X-Tenant-Id and Postgres."""
WITH_QUERIES = (414,)
FASTAPI_ERROR = "HTTPValidationError"
WITH_BODIES = (400, 408, 413, 415, 422)

TAGS = [
    {"name": "jobs", "description": "Transcribe recordings."},
    {"name": "streams", "description": "Transcribe live audio; see also `WS /ws/transcribe`."},
    {"name": "openai", "description": "For clients of OpenAI's audio API."},
    {"name": "asr", "description": "For clients of whisper-asr-webservice."},
    {"name": "search", "description": "What was said, and when."},
    {"name": "enhanced-ai", "description": "What a language model makes of transcripts."},
    {"name": "voices", "description": "People who are recognized in later recordings."},
    {"name": "moderation", "description": "Moderate texts."},
    {"name": "models", "description": "The available weights."},
    {"name": "webhooks", "description": "Notifications of jobs that end, and their deliveries."},
    {"name": "keys", "description": "API keys, their limits and usage."},
    {"name": "health", "description": "For operators."},
]
"""The groups of routes, in order."""


def install(app: FastAPI, public_url: str | None) -> None:
    """Serve ``/docs``; its page may send requests to this host and to ``public_url``."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            _document_common_errors(describe())
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
                "validatorUrl": None,  # a service of third parties
            },
        )
        page.headers["Content-Security-Policy"] = _policy(bytes(page.body).decode(), public_url)
        return page


def _policy(page: str, public_url: str | None) -> str:
    """The page's content policy: its inline script, and Swagger UI's files."""
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


def _document_common_errors(description: dict[str, Any]) -> None:
    """Document the errors for keys, bodies and queries at every operation that has them."""
    for operations in description["paths"].values():
        for operation in operations.values():
            places = {parameter["in"] for parameter in operation.get("parameters", ())}
            statuses = (
                *(WITH_KEYS if "security" in operation else ()),
                *(WITH_BODIES if "requestBody" in operation else ()),
                *(WITH_QUERIES if "query" in places else ()),
            )
            responses = operation["responses"]
            if FASTAPI_ERROR in str(responses.get("422")):
                del responses["422"]  # our errors replace FastAPI's
                statuses = (*statuses, 422)
            for status, answer in documented(*statuses).items():
                responses.setdefault(str(status), answer)
    for name in (FASTAPI_ERROR, "ValidationError"):
        description.get("components", {}).get("schemas", {}).pop(name, None)


def _assets() -> Path:
    # Located without importing it: the package patches applications, and only its files are needed.
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SetupProblem(problem=f"{PACKAGE} is not installed", remedy="Run the set-up again")
    return Path(spec.origin).parent / "resources"
