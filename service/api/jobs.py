"""Routes for the jobs that learn products."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from moleflow.model.errors import MoLEFlowError
from moleflow.service.api import openapi_teaching as openapi
from moleflow.service.api.admin import audit, check_teacher
from moleflow.service.responses.teaching import Job, JobsResponse
from moleflow.service.teaching.jobs import ENDED
from moleflow.service.teaching.teaching import Teaching

__all__ = ["router"]

_LOOK_SECONDS = 0.5
"""Time between two looks at a job whose events somebody reads."""

_SILENCE_SECONDS = 15.0
"""After this long without an event a comment is sent, so that proxies keep the connection."""

router = APIRouter(dependencies=[Depends(check_teacher)])


@router.get("/jobs", response_model=JobsResponse, **openapi.JOBS)
async def jobs(request: Request) -> Response:
    found = await asyncio.to_thread(_teaching(request).jobs.all)
    return Response(JobsResponse(jobs=found[::-1]).model_dump_json(), media_type="application/json")


@router.get("/jobs/{id}", response_model=Job, **openapi.JOB)
async def job(request: Request, id: str) -> Response:
    found = await asyncio.to_thread(_teaching(request).jobs.find, id)
    return Response(found.model_dump_json(), media_type="application/json")


@router.delete("/jobs/{id}", response_model=Job, **openapi.CANCEL)
async def cancel(request: Request, id: str) -> Response:
    found = await _teaching(request).cancel(id)
    await audit(request)
    return Response(found.model_dump_json(), media_type="application/json")


@router.get("/jobs/{id}/events", **openapi.EVENTS)
async def events(request: Request, id: str) -> Response:
    found = await asyncio.to_thread(_teaching(request).jobs.find, id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold events back
    return StreamingResponse(_events(request, found), headers=headers, media_type="text/event-stream")


async def _events(request: Request, job: Job) -> AsyncIterator[str]:
    """The job at every change, as server-sent events; the last one is its end.

    The stream also ends, without that, when the service stops; browsers then connect again.
    """
    silent = 0.0
    yield _event(job)
    while job.state not in ENDED and not _is_stopping(request):
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            found = await asyncio.to_thread(_teaching(request).jobs.find, job.id)
        except MoLEFlowError:
            return  # its record was removed
        silent += _LOOK_SECONDS
        if found != job:
            job, silent = found, 0.0
            yield _event(job)
        elif silent >= _SILENCE_SECONDS:
            silent = 0.0
            yield ": still here\n\n"


def _event(job: Job) -> str:
    return f"event: {'end' if job.state in ENDED else 'job'}\ndata: {job.model_dump_json()}\n\n"


def _is_stopping(request: Request) -> bool:
    """Whether this process accepts no more connections; it waits for open responses."""
    connection = getattr(request.state, "connection", None)  # absent under another server
    return connection is not None and connection.registry.is_draining


def _teaching(request: Request) -> Teaching:
    return request.app.state.teaching
