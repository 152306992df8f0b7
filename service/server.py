"""One server process: its app on listening sockets, stopped by Ctrl-C or SIGTERM."""

import contextlib
import gc
import logging
import os
import socket
from collections.abc import Callable, Sequence

import uvicorn
from fastapi import FastAPI

from moleflow.service.api.app import create_app
from moleflow.service.connections.acceptor import connection_limit
from moleflow.service.connections.lifecycle import Server
from moleflow.service.connections.registry import Connections, Limits
from moleflow.service.engine.predictor import Predictor
from moleflow.service.engine.termination import exit_now
from moleflow.service.environment import warn_about_unread_variables
from moleflow.service.listening import listening, url_of
from moleflow.service.logs import configure_logs
from moleflow.service.settings import Settings
from moleflow.service.siblings.link import Link

__all__ = ["make_server", "serve", "serve_on"]

_logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 75
"""Longer than proxies keep idle connections (60 s in nginx and cloud load balancers): otherwise the service might
close one just as the proxy reuses it."""


def serve(settings: Settings, *, on_ready: Callable[[str, Predictor], None] | None = None) -> None:
    """Serve in this process until told to stop; accepted requests are completed first.

    ``on_ready`` gets the service's URL and the model once images are accepted; by default a line is printed. Raises
    ``ConfigurationError`` when the address cannot be bound, and any error from loading the model. If the model hangs,
    this call ends the process.
    """
    configure_logs(settings.log_format, settings.log_level)
    warn_about_unread_variables(os.environ, Settings.model_fields)
    report_ready = on_ready or (_print_ready if settings.log_format == "text" else _log_ready)
    with listening(settings) as listeners:
        url = url_of(settings, listeners[0])
        serve_on(listeners, settings, on_ready=lambda predictor: report_ready(url, predictor))


def serve_on(
    listeners: Sequence[socket.socket],
    settings: Settings,
    *,
    on_ready: Callable[[Predictor], None],
    link: Link | None = None,
    accept_when_ready: bool = False,
) -> None:
    """As ``serve``, on sockets that listen already; ``link`` leads to other processes that listen on them too.

    ``accept_when_ready``: leave connections to them until the model is loaded.
    """
    failures: list[Exception] = []

    def settle(predictor: Predictor) -> None:
        # Loaded objects live as long as the process, so they are exempted from collection. The second collection resets
        # the collector's count of old objects: with the count from before the freeze, it would put off full collections
        # until a quarter as many new objects exist, and then block the event loop for a tenth of a second.
        gc.collect()
        gc.freeze()
        gc.collect()

    def start_with(predictor: Predictor) -> None:
        settle(predictor)
        on_ready(predictor)

    def stop_after(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(settings, on_ready=start_with, on_failure=stop_after, on_reload=settle, link=link)
    server = make_server(app, settings, shares_port=link is not None, accept_when_ready=accept_when_ready)
    # uvicorn re-raises the signal after a graceful stop; Ctrl-C is not an error here.
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=list(listeners))
    if not app.state.engine.is_stopped:
        exit_now()
    if failures:
        raise failures[0]


def make_server(
    app: FastAPI, settings: Settings, *, shares_port: bool = False, accept_when_ready: bool = False
) -> Server:
    """A server for the app, with defaults that are safe behind a proxy. Forwarded headers are trusted from this
    machine only, unless the environment variable ``FORWARDED_ALLOW_IPS`` says otherwise.

    Raises ``ConfigurationError`` when the limit of open files is too low.
    """
    limits = Limits(header_seconds=settings.header_timeout_seconds, send_seconds=settings.send_timeout_seconds)
    config = uvicorn.Config(
        app,
        lifespan="on",
        loop="asyncio",
        http="h11",
        ws="none",
        log_level=settings.log_level,
        log_config=None,  # see configure_logs
        access_log=False,  # moleflow.service.api.observing says more
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    return Server(
        config,
        app.state.engine,
        Connections(limits, app.state.metrics),
        connection_limit=connection_limit(settings.max_connections, settings.cpu_workers),
        lame_duck_seconds=settings.lame_duck_seconds,
        finish_seconds=settings.shutdown_timeout_seconds,
        shares_port=shares_port,
        accept_when_ready=accept_when_ready,
    )


def _print_ready(url: str, predictor: Predictor) -> None:
    print(_ready(url, predictor), flush=True)


def _log_ready(url: str, predictor: Predictor) -> None:
    _logger.info("%s", _ready(url, predictor))


def _ready(url: str, predictor: Predictor) -> str:
    products = ", ".join(info.name for info in predictor.tasks)
    return f"Serving {predictor.checkpoint.name} ({products}) on {predictor.device} at {url}"
