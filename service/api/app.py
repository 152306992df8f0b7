"""The web application: routes, problem documents, metrics and the web page, around one engine."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

import moleflow
from moleflow.model.errors import MoLEFlowError
from moleflow.service.api import admin, areas, feedback, jobs, oip, openapi, teaching
from moleflow.service.api.admin_port import AdminPort
from moleflow.service.api.client_limits import ClientLimits
from moleflow.service.api.guard import add_guards
from moleflow.service.api.keys import KeyGuard, Keys
from moleflow.service.api.methods import HeadAsGet
from moleflow.service.api.observing import Observed
from moleflow.service.api.pages import add_pages
from moleflow.service.api.prefix import UnderPrefix
from moleflow.service.api.processes import answers, new_identifier, reload_all
from moleflow.service.api.routes import router
from moleflow.service.api.samples import router as samples
from moleflow.service.audit import Change
from moleflow.service.connections.sending import Sending
from moleflow.service.engine.engine import Engine
from moleflow.service.engine.predictor import Predictor, load_predictor, reload_predictor
from moleflow.service.errors import NotLiveError
from moleflow.service.headers import SecurityHeaders
from moleflow.service.metrics import Metrics
from moleflow.service.problems import add_problem_handlers
from moleflow.service.settings import Settings
from moleflow.service.siblings.link import Link
from moleflow.service.teaching.teaching import Teaching

__all__ = ["create_app"]

_logger = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    detector: Predictor | None = None,
    *,
    on_ready: Callable[[Predictor], None] | None = None,
    on_failure: Callable[[Exception], None] | None = None,
    on_reload: Callable[[Predictor], None] | None = None,
    link: Link | None = None,
) -> FastAPI:
    """The application. It accepts connections at once and loads the model in the background, unless given one.

    ``on_ready`` is called in the event loop once the model is loaded and warmed up, ``on_reload`` when another one has
    taken its place, ``on_failure`` when loading fails or when the service has been unrecoverable for a minute. With a
    ``link`` it is one of several processes behind one port. An app can be started only once.
    """
    metrics = Metrics()
    engine = Engine(settings, metrics)
    taught = Teaching(settings, functools.partial(reload_all, engine, link, Change("learning")))
    if on_reload is not None:
        engine.reloader.on_reload = on_reload

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if detector is None:
            engine.start(
                functools.partial(load_predictor, settings), reload=functools.partial(reload_predictor, settings)
            )
        else:
            engine.start(lambda: detector)
        if link is not None:
            await link.start(answers(engine, metrics))
        reporting = asyncio.gather(
            _report_loading(engine, on_ready, on_failure), _report_unrecoverable(engine, on_failure)
        )
        taught.start()
        try:
            yield
        finally:
            await taught.stop()
            if link is not None:
                await link.stop()
            await engine.stop()
            reporting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reporting

    app = FastAPI(
        title="MoLE-Flow",
        description=openapi.DESCRIPTION,
        version=moleflow.__version__,
        lifespan=lifespan,
        docs_url=None,  # would load its scripts from another server
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.settings, app.state.engine, app.state.metrics = settings, engine, metrics
    app.state.teaching, app.state.link = taught, link
    app.state.client_limits = ClientLimits.of(settings)
    documented = router, feedback.router, teaching.router, jobs.router, admin.router, areas.router
    app.state.routes = [route for each in documented for route in each.routes]
    for each in documented:
        app.include_router(each, responses=openapi.COMMON)
    app.include_router(samples)
    app.include_router(oip.router)
    add_pages(app)
    # Each middleware wraps those added before it: what observes must wrap everything that makes a response.
    add_problem_handlers(app)
    if settings.api_keys is not None:
        app.add_middleware(KeyGuard, keys=Keys(settings.api_keys))
    if settings.admin_port is not None:
        app.add_middleware(AdminPort, port=settings.admin_port)
    add_guards(app, settings)
    app.add_middleware(oip.OipErrors)
    app.add_middleware(Sending)
    app.add_middleware(Observed, metrics=metrics, new_id=functools.partial(new_identifier, link))
    app.add_middleware(UnderPrefix, root_path=settings.root_path)
    app.add_middleware(HeadAsGet)
    app.add_middleware(SecurityHeaders)
    return app


async def _report_unrecoverable(engine: Engine, on_failure: Callable[[Exception], None] | None) -> None:
    """Report that the service is stuck, so that its process can exit and be restarted."""
    error = NotLiveError(f"{await engine.wait_until_unrecoverable()} The service exits so that it can be restarted.")
    _logger.error("%s", error)
    if on_failure is not None:
        on_failure(error)


async def _report_loading(
    engine: Engine, on_ready: Callable[[Predictor], None] | None, on_failure: Callable[[Exception], None] | None
) -> None:
    try:
        predictor = await engine.wait_until_ready()
    except Exception as error:
        _logger.error("The model cannot be loaded: %s", error, exc_info=not isinstance(error, MoLEFlowError))
        if on_failure is not None:
            on_failure(error)
        return
    if on_ready is not None:
        try:
            on_ready(predictor)
        except Exception:
            # For example because standard output is closed, which does not affect the service.
            _logger.exception("The service is ready, but reporting it failed.")
