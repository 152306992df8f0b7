"""The web page and the API documentation. Neither loads anything from another server."""

import json
from pathlib import Path

from fastapi import APIRouter, FastAPI, HTTPException
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from moleflow.model.verdict.heatmap import colour_table
from moleflow.service.headers import DOCS_POLICY, PAGE_POLICY

__all__ = ["PAGE", "add_pages"]

PAGE = Path(__file__).parent / "page"
"""Directory of the page's files."""

_COLOURS = f"export const COLOURS = {json.dumps(colour_table().round().astype(int).tolist())};\n"
"""The colours of the heat map as a script of the page: red, green, blue and opacity of each level."""

_router = APIRouter(include_in_schema=False)


def add_pages(app: FastAPI) -> None:
    """Serve the page at ``/`` and the documentation at ``/docs``; their files are under ``/page`` and ``/swagger``."""
    app.include_router(_router)
    app.mount("/page", _Files(directory=PAGE, check_dir=False), name="page")
    # This package bundles the files of Swagger UI.
    app.mount("/swagger", _Files(packages=[("fastapi_swagger", "resources")]), name="swagger")


@_router.get("/")
async def page() -> Response:
    return _html("index.html", PAGE_POLICY)


@_router.get("/docs")
async def docs() -> Response:
    return _html("docs.html", DOCS_POLICY)


@_router.get("/page/colours.js")
async def colours() -> Response:
    return Response(_COLOURS, media_type="text/javascript", headers={"Cache-Control": "no-cache"})


def _html(name: str, policy: str) -> Response:
    file = PAGE / name
    if not file.is_file():
        raise HTTPException(404, f"{name} is not part of this installation; /openapi.json describes the API.")
    return FileResponse(file, headers={"Cache-Control": "no-cache", "Content-Security-Policy": policy})


class _Files(StaticFiles):
    """Static files that browsers must revalidate, since their names do not change with the version."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if scope["method"] != "GET":  # HEAD arrives as GET
            raise StarletteHTTPException(405, headers={"Allow": "GET"})
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response
