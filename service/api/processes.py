"""What needs all processes of a service, if there are several (``Settings.processes``)."""

import asyncio
from collections.abc import Mapping

from starlette.requests import Request

from moleflow.service.audit import Change
from moleflow.service.engine.engine import Engine
from moleflow.service.engine.feedback import TrueVerdict
from moleflow.service.engine.predictor import Predictor
from moleflow.service.exchange import random_id
from moleflow.service.metrics import Metrics
from moleflow.service.responses.schemas import FeedbackResponse
from moleflow.service.siblings.exposition import merge
from moleflow.service.siblings.link import Answering, Link

__all__ = ["all_metrics", "answers", "keep_feedback", "new_identifier", "reload_all"]

_METRICS_SECONDS = 5.0
"""Half of Prometheus's default timeout for a scrape."""

_RELOAD_SECONDS = 600.0
"""As long as loading the model may take by default."""

_FEEDBACK_SECONDS = 30.0
"""Writing one image takes far less, even to a network share."""


def answers(engine: Engine, metrics: Metrics) -> Mapping[str, Answering]:
    """What a process answers to the others."""

    async def metrics_text() -> str:
        return (await asyncio.to_thread(metrics.render)).decode()

    async def reload() -> str:
        await engine.reloader.reload(Change("another process"))
        return ""

    async def feedback(id: str, verdict: TrueVerdict, product: str | None) -> str:
        kept = await _keep(engine, metrics, id, verdict, product)
        return "" if kept is None else kept.model_dump_json()

    return {"metrics": metrics_text, "reload": reload, "feedback": feedback}


def new_identifier(link: Link | None) -> str:
    """A new id of a request or an answer."""
    return random_id() if link is None else link.new_identifier()


async def all_metrics(request: Request) -> str | bytes:
    """The metrics in the Prometheus text format, of all processes that answer."""
    metrics: Metrics = request.app.state.metrics
    text = await asyncio.to_thread(metrics.render)  # takes 15 ms, too long for the event loop
    if (link := _link(request)) is None:
        return text
    texts = await link.ask_others("metrics", seconds=_METRICS_SECONDS)
    return await asyncio.to_thread(merge, dict(sorted((texts | {link.index: text.decode()}).items())))


async def reload_all(engine: Engine, link: Link | None, change: Change) -> Predictor:
    """Let all processes serve the checkpoint's current content, which this one audits; its model.

    Raises ``ReloadError`` and ``NotReadyError`` if this one cannot. Another one that cannot does so when it starts.
    """
    predictor = await engine.reloader.reload(change)
    if link is not None:
        await link.ask_others("reload", seconds=_RELOAD_SECONDS)
    return predictor


async def keep_feedback(
    request: Request, id: str, verdict: TrueVerdict, product: str | None
) -> FeedbackResponse | None:
    """Keep the image of an answer, in the process that remembers it; ``None`` if there is no product to keep it for.

    By default it is the product that the answer named. Raises ``UnknownAnswerError`` and ``FeedbackError``.
    """
    link = _link(request)
    if link is None or (owner := link.owner(id)) == link.index:
        return await _keep(request.app.state.engine, request.app.state.metrics, id, verdict, product)
    said = await link.ask(owner, "feedback", seconds=_FEEDBACK_SECONDS, id=id, verdict=verdict, product=product)
    return FeedbackResponse.model_validate_json(said) if said else None


async def _keep(
    engine: Engine, metrics: Metrics, id: str, verdict: TrueVerdict, product: str | None
) -> FeedbackResponse | None:
    named = engine.feedback.product_of(id)
    if (product := product or named) is None:
        return None
    file = await asyncio.to_thread(engine.feedback.keep, id, verdict, product)
    metrics.feedback.labels(product, verdict).inc()
    return FeedbackResponse(id=id, task=product, verdict=verdict, file=file.as_posix())


def _link(request: Request) -> Link | None:
    link: Link | None = request.app.state.link
    return link
