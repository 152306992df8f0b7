"""Sample images that the page offers to try: the files of a folder that the operator chose."""

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from moleflow.model.images.decode import SUFFIXES

__all__ = ["router"]

_MOST = 12
"""Samples that the page has room for; further files are not offered."""

router = APIRouter(include_in_schema=False)


@router.get("/samples")
async def samples(request: Request) -> Response:
    """The names of the sample images, in order."""
    return JSONResponse({"samples": await run_in_threadpool(_names, request.app.state.settings.samples)})


@router.get("/samples/{name}")
async def sample(request: Request, name: str) -> Response:
    """One of them. Only names that are listed lead to a file."""
    folder = request.app.state.settings.samples
    if folder is None or name not in await run_in_threadpool(_names, folder):
        raise HTTPException(404, f"There is no sample image {name!r}; GET /samples lists them.")
    return FileResponse(folder / name, headers={"Cache-Control": "no-cache"})


def _names(folder: Path | None) -> list[str]:
    if folder is None:
        return []
    try:
        found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError:  # removed since the start
        return []
    return found[:_MOST]
