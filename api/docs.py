"""Interactive documentation that needs no network: Swagger UI's files come with a package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from common.errors import SetupProblem

PACKAGE = "fastapi_swagger"
ASSETS = "/docs/assets"

TAGS = [
    {"name": "jobs", "description": "Recordings come in, their text goes out."},
    {"name": "moderation", "description": "Texts are judged at once."},
    {"name": "models", "description": "What can be asked for by name."},
    {"name": "health", "description": "For those who keep it running."},
]
"""What the routes are grouped by, in this order."""


def install(app: FastAPI) -> None:
    """Serve ``/docs``."""
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


def _assets() -> Path:
    # Found and not imported: the package patches applications, and only its files are wanted.
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SetupProblem(problem=f"{PACKAGE} is not installed", remedy="Run the set-up again")
    return Path(spec.origin).parent / "resources"
