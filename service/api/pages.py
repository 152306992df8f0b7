"""What people look at in a browser: the page, and the documentation of the API. Neither needs another server."""

from pathlib import Path

from fastapi import APIRouter, FastAPI, HTTPException
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from moleflow.service.headers import DOCS_POLICY, PAGE_POLICY

__all__ = ["PAGE", "add_pages"]

PAGE = Path(__file__).parent / "page"
"""Folder of the page's files."""

_router = APIRouter(include_in_schema=False)


def add_pages(app: FastAPI) -> None:
    """Serve the page at ``/`` and the documentation at ``/docs``, with their files below ``/page`` and ``/swagger``."""
    app.include_router(_router)
    app.mount("/page", _Files(directory=PAGE, check_dir=False), name="page")
    # The package carries Swagger UI's own files; the names do not tell its version, so they are asked for again too.
    app.mount("/swagger", _Files(packages=[("fastapi_swagger", "resources")]), name="swagger")


@_router.get("/")
async def page() -> Response:
    return _html("index.html", PAGE_POLICY)


@_router.get("/docs")
async def docs() -> Response:
    return _html("docs.html", DOCS_POLICY)


def _html(name: str, policy: str) -> Response:
    file = PAGE / name
    if not file.is_file():
        raise HTTPException(404, f"This installation has no {name}; /openapi.json describes the API.")
    return FileResponse(file, headers={"Cache-Control": "no-cache", "Content-Security-Policy": policy})


class _Files(StaticFiles):
    """Files that a browser is to ask for again after each new version."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if scope["method"] != "GET":  # HEAD comes as GET
            raise StarletteHTTPException(405, headers={"Allow": "GET"})
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response
