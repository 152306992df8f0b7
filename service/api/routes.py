"""The routes of the API. The engine does the work; ``openapi`` holds the documentation."""

from contextlib import aclosing
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, HTTPException
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from moleflow.model.names import find_named
from moleflow.model.verdict.results import Finding, Prediction, TaskInfo
from moleflow.service.api import openapi
from moleflow.service.api.accept import choose_media_type
from moleflow.service.api.batch import respond_to_many
from moleflow.service.api.body import read_body
from moleflow.service.api.client_limits import limit_client
from moleflow.service.api.deadline import deadline_of
from moleflow.service.api.disconnect import unless_disconnected
from moleflow.service.api.observing import exchange_of, note_finding
from moleflow.service.api.options import PredictOptions, combine_options
from moleflow.service.api.processes import all_metrics
from moleflow.service.api.upload import Upload, read_upload
from moleflow.service.connections.sending import PiecesResponse, held_until_sent
from moleflow.service.engine.budget import Account
from moleflow.service.engine.engine import Engine
from moleflow.service.metrics import Metrics
from moleflow.service.responses.render import MEDIA_TYPES, ResponseFormat
from moleflow.service.responses.schemas import (
    BatchResponse,
    LiveResponse,
    PredictionResponse,
    ReadyResponse,
    ScoresResponse,
    TaskReference,
    TasksResponse,
)
from moleflow.service.settings import Settings

__all__ = ["router"]

_BINS = 24
"""Of a histogram of good scores; about what can be told apart in the page."""

router = APIRouter()


@router.post("/predict", response_model=PredictionResponse, **openapi.PREDICT)
async def predict(request: Request) -> Response:
    limit_client(request)
    engine, settings = _engine(request), _settings(request)
    query = request.query_params.multi_items()  # FastAPI would silently take the last of repeated parameters
    options, deadline = combine_options(query, (), PredictOptions), deadline_of(request, settings)
    media_type = choose_media_type(", ".join(request.headers.getlist("accept")), MEDIA_TYPES)
    if media_type is None:
        raise HTTPException(406, f"Accept must allow one of the supported media types: {', '.join(MEDIA_TYPES)}.")
    engine.check_task(options.task)
    engine.check_capacity()
    held = held_until_sent(request)
    async with deadline.enforced():
        with engine.upload_budget.account() as account:
            upload = await _read(request, settings, account)
            if upload.fields:
                options = combine_options(query, upload.fields, PredictOptions)
            held.enter_context(engine.admit())
            identifier = exchange_of(request).answer_id()
            work = engine.predict(
                upload.data,
                identifier=identifier,
                task=options.task,
                false_alarm_rate=options.false_alarm_rate,
                response_format=ResponseFormat(media_type, options.map, options.map_size),
                account=held.enter_context(engine.response_budget.account()),
                deadline=deadline,
            )
            response = await unless_disconnected(request, work)
    note_finding(request, response.finding)
    headers = {} if media_type == MEDIA_TYPES[0] else {"MoLEFlow-Id": identifier} | _verdict_headers(response.finding)
    return PiecesResponse(response.pieces, media_type, headers)


@router.post("/predict/batch", response_model=BatchResponse, **openapi.BATCH)
async def predict_batch(request: Request) -> Response:
    limit_client(request)
    return await respond_to_many(request, _engine(request), _settings(request), request.app.state.metrics)


@router.get("/tasks", response_model=TasksResponse, **openapi.TASKS)
async def tasks(request: Request) -> Response:
    predictor = _engine(request).predictor
    return _json(TasksResponse(checkpoint=predictor.checkpoint, tasks=predictor.tasks))


@router.get("/tasks/{name}", response_model=TaskInfo, **openapi.TASK)
async def task(request: Request, name: str) -> Response:
    return _json(find_named(name, _engine(request).predictor.tasks))


@router.get("/tasks/{name}/scores", response_model=ScoresResponse, **openapi.SCORES)
async def scores(request: Request, name: str) -> Response:
    predictor = _engine(request).predictor
    found = find_named(name, predictor.tasks)
    values = predictor.good_scores(found.index)
    counts, edges = np.histogram(values, _BINS, (values[0], max(values[-1], found.threshold)))
    return _json(
        ScoresResponse(
            task=TaskReference.model_validate(found),
            threshold=found.threshold,
            images=len(values),
            edges=edges.tolist(),
            counts=counts.tolist(),
        )
    )


@router.get("/health/live", **openapi.LIVE)
async def live(request: Request) -> LiveResponse:
    _engine(request).check_live()
    return LiveResponse()


@router.get("/health/ready", response_model=ReadyResponse, **openapi.READY)
async def ready(request: Request) -> Response:
    engine = _engine(request)
    predictor = engine.check_ready()
    return _json(
        ReadyResponse(
            checkpoint=predictor.checkpoint,
            tasks=len(predictor.tasks),
            device=str(predictor.device),
            precision=predictor.precision,
            damaged_products=engine.health.damaged,
            last_reload=engine.reloader.last,
            feedback=_settings(request).feedback is not None,
            teaching=request.app.state.teaching.is_on,
        )
    )


@router.get("/metrics", **openapi.METRICS)
async def metrics(request: Request) -> Response:
    return Response(await all_metrics(request), headers={"Content-Type": Metrics.content_type})


def _engine(request: Request) -> Engine:
    return request.app.state.engine


def _settings(request: Request) -> Settings:
    return request.app.state.settings


def _json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")


async def _read(request: Request, settings: Settings, account: Account) -> Upload:
    metrics: Metrics = request.app.state.metrics
    with metrics.uploads_in_progress.track_inprogress():
        async with aclosing(read_body(request, account, settings.upload_timeout_seconds)) as chunks:
            return await read_upload(request.headers, chunks, settings.max_upload_bytes)


def _verdict_headers(finding: Finding) -> dict[str, str]:
    """The verdict as headers, for responses that are not JSON. The product name is percent-encoded UTF-8."""
    headers = {"MoLEFlow-Verdict": finding.verdict.value}
    if isinstance(finding, Prediction):
        headers |= {
            "MoLEFlow-Task": quote(finding.task.name),
            "MoLEFlow-Score": repr(float(finding.score)),
            "MoLEFlow-P-Value": repr(float(finding.p_value)),
            "MoLEFlow-Threshold": repr(float(finding.threshold)),
            "MoLEFlow-Anomalous": "true" if finding.is_anomalous else "false",
        }
    return headers
