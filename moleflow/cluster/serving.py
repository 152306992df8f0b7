"""The service as a Ray Serve deployment: the same app and engine in every replica.

    serve run moleflow.cluster.serving:build checkpoint=/models/factory.safetensors

A replica takes requests once its model is loaded, collects batches as the service does, and takes over a changed
checkpoint by itself, so all replicas do. ``docker/serve.yaml`` adds automatic scaling.

Requests that name their product in the header ``serve_multiplexed_model_id`` go to a replica that has its expert
(model multiplexing): with many products, each replica then keeps those of a part of them (``docs/scaling.md``).
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from moleflow.model.exported.folder import is_exported
from moleflow.model.runtime.lru import MAX_EXPERTS
from moleflow.model.runtime.threads import configure_threads, prepare_threads
from moleflow.service.api.app import create_app
from moleflow.service.settings import Settings, load_settings

__all__ = ["Replica", "build"]

_EVERYBODY = "0.0.0.0"
"""Ray Serve listens, not the app; as with this address, the app accepts every host name (MOLEFLOW_ALLOWED_HOSTS)."""


@serve.ingress()
class Replica:
    """One replica of the service. ``arguments`` are settings by name, as ``moleflow serve`` takes them."""

    def __init__(self, arguments: dict[str, str]) -> None:
        prepare_threads()
        self._settings = load_settings(**{"host": _EVERYBODY} | arguments)
        if not is_exported(self._settings.checkpoint):
            configure_threads()

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._app = application(self._settings)
        self._app.add_middleware(_ByProduct, hold=self._hold)
        return self._app

    @serve.multiplexed(max_num_models_per_replica=MAX_EXPERTS)
    async def _hold(self, product: str) -> str:
        """Tell Serve that this replica has the product; the engine loads its expert itself."""
        return product

    def check_health(self) -> None:
        """Raise ``NotReadyError`` with the reason if this replica cannot predict; Serve then replaces it."""
        self._app.state.engine.check_ready()


class _ByProduct:
    """Notes the product that a request names in Serve's header."""

    def __init__(self, app: ASGIApp, hold: Callable[[str], Awaitable[str]]) -> None:
        self._app, self._hold = app, hold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        product = serve.get_multiplexed_model_id() if scope["type"] == "http" else ""
        if product:
            await self._hold(product)
        await self._app(scope, receive, send)


def application(settings: Settings) -> FastAPI:
    """The app of the service, whose start ends when the model is loaded: until then there are no requests."""
    app = create_app(settings)
    start = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(here: FastAPI) -> AsyncIterator[None]:
        async with start(here):
            await here.state.engine.wait_until_ready()
            yield

    app.router.lifespan_context = lifespan
    return app


def build(arguments: dict[str, str]) -> serve.Application:
    """The application for ``serve run`` and Serve's configuration files.

    Requests beyond ``queue_size`` of a replica wait at Serve's proxies, where they count for automatic scaling.

    Raises:
        ConfigurationError: a setting is invalid.
    """
    settings = load_settings(**{"host": _EVERYBODY} | arguments)
    return serve.deployment(Replica, name="moleflow", max_ongoing_requests=settings.queue_size).bind(arguments)
