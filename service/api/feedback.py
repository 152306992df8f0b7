"""The route for feedback: whether an answer was right."""

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from moleflow.service.api import openapi_changes as openapi
from moleflow.service.api.body import read_json
from moleflow.service.api.processes import keep_feedback
from moleflow.service.engine.engine import Engine
from moleflow.service.engine.feedback import TrueVerdict
from moleflow.service.responses.schemas import FeedbackResponse
from moleflow.service.settings import Settings

__all__ = ["router"]

router = APIRouter()


class GivenFeedback(BaseModel):
    """What somebody who looked at the part says."""

    model_config = ConfigDict(extra="forbid")

    verdict: TrueVerdict
    task: str | None = Field(None, description="the true product; by default the one that the answer named")


@router.post("/predictions/{id}/feedback", response_model=FeedbackResponse, **openapi.FEEDBACK)
async def feedback(request: Request, id: str) -> Response:
    engine: Engine = request.app.state.engine
    settings: Settings = request.app.state.settings
    with engine.upload_budget.account() as account:
        given = await read_json(request, GivenFeedback, account, settings.upload_timeout_seconds)
    kept = await keep_feedback(request, id, given.verdict, engine.check_task(given.task))
    if kept is None:
        raise HTTPException(422, "The answer named no product, since it is unknown; name the true one as task.")
    return Response(kept.model_dump_json(), media_type="application/json")
