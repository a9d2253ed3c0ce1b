"""Interactive documentation that needs no network: Swagger UI's files come with a package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from api.problems import documented
from common.errors import SetupProblem

PACKAGE = "fastapi_swagger"
ASSETS = "/docs/assets"
OF_KEYS = (401, 403, 422, 429, 503)
"""How any operation that asks for a key may answer: X-Tenant-Id and Postgres may be wrong too."""

TAGS = [
    {"name": "jobs", "description": "Recordings come in, their text goes out."},
    {"name": "moderation", "description": "Texts are judged at once."},
    {"name": "models", "description": "What can be asked for by name."},
    {"name": "keys", "description": "Who may ask, and how much."},
    {"name": "health", "description": "For those who keep it running."},
]
"""What the routes are grouped by, in this order."""


def install(app: FastAPI) -> None:
    """Serve ``/docs``."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            _tell_of_keys(describe())
        return describe()

    app.openapi = described  # type: ignore[method-assign] # FastAPI's documented way to extend it
    app.mount(ASSETS, StaticFiles(directory=_assets()), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def _docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=app.openapi_url or "/openapi.json",
            title=f"{app.title} API",
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{ASSETS}/favicon-32x32.png",
            swagger_ui_parameters={"tryItOutEnabled": True, "displayRequestDuration": True},
        )


def _tell_of_keys(description: dict[str, Any]) -> None:
    """Add to every operation that asks for a key how it answers a wrong one."""
    for operations in description["paths"].values():
        for operation in operations.values():
            if operation.get("security"):
                for status, answer in documented(*OF_KEYS).items():
                    operation["responses"].setdefault(str(status), answer)


def _assets() -> Path:
    # Found and not imported: the package patches applications, and only its files are wanted.
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SetupProblem(problem=f"{PACKAGE} is not installed", remedy="Run the set-up again")
    return Path(spec.origin).parent / "resources"
