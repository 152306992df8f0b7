"""The server process: one listening socket, one app, stopped by Ctrl-C or SIGTERM."""

import contextlib
import errno
import gc
import logging
import os
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from moleflow.model.errors import ConfigurationError
from moleflow.service.api.app import create_app
from moleflow.service.connections.acceptor import connection_limit
from moleflow.service.connections.lifecycle import Server
from moleflow.service.connections.registry import Connections, Limits
from moleflow.service.engine.predictor import Predictor
from moleflow.service.engine.termination import exit_now
from moleflow.service.environment import warn_about_unread_variables
from moleflow.service.logs import configure_logs
from moleflow.service.names import is_loopback
from moleflow.service.settings import Settings

__all__ = ["bind", "make_server", "serve"]

_logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 75
"""Longer than proxies keep idle connections (60 s in nginx and cloud load balancers): otherwise the service might
close one just as the proxy reuses it."""

_BACKLOG = 2048
"""uvicorn's default."""

_WILDCARDS = frozenset({"0.0.0.0", "::", ""})
"""Hosts that mean every interface; a browser cannot open them."""


def serve(settings: Settings, *, on_ready: Callable[[str, Predictor], None] | None = None) -> None:
    """Serve until told to stop; accepted requests are completed first.

    ``on_ready`` gets the service's URL and the model once images are accepted; by default a line is printed. Raises
    ``ConfigurationError`` when the address cannot be bound, and any error from loading the model. If the model hangs,
    this call ends the process.
    """
    configure_logs(settings.log_format, settings.log_level)
    warn_about_unread_variables(os.environ, Settings.model_fields)
    report_ready = on_ready or (_print_ready if settings.log_format == "text" else _log_ready)
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
        report_ready(url, predictor)

    def stop_after(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    if settings.api_keys is None and not is_loopback(settings.host):
        _logger.warning(
            "Everybody who reaches %s:%d may use the service: there are no API keys (MOLEFLOW_API_KEYS). Publish it in "
            "a trusted network only, or behind a proxy that authenticates.",
            settings.host,
            settings.port,
        )
    with contextlib.closing(bind(settings.host, settings.port)) as listener, _admin_listener(settings) as more:
        url = _url(settings.host, listener.getsockname()[1])
        app = create_app(settings, on_ready=start_with, on_failure=stop_after, on_reload=settle)
        server = make_server(app, settings)
        # uvicorn re-raises the signal after a graceful stop; Ctrl-C is not an error here.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener, *more])
    if not app.state.engine.is_stopped:
        exit_now()
    if failures:
        raise failures[0]


def make_server(app: FastAPI, settings: Settings) -> Server:
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
    )


@contextlib.contextmanager
def _admin_listener(settings: Settings) -> Iterator[list[socket.socket]]:
    """The socket of the second port, if there is one. Raises ``ConfigurationError``."""
    if settings.admin_port is None:
        yield []
        return
    with contextlib.closing(bind(settings.host, settings.admin_port, "admin_port")) as listener:
        yield [listener]


def bind(host: str, port: int, setting: str = "port") -> socket.socket:
    """A listening TCP socket; port 0 lets the system choose. Raises ``ConfigurationError``."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(
            f"host (MOLEFLOW_HOST) cannot be {host!r}: it cannot be resolved ({error.strerror or error}). "
            "Use 127.0.0.1 for this machine only, or 0.0.0.0 for every interface."
        ) from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # The port can be reused at once after a restart, while old connections are in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(_explain(error, host, port, setting)) from error
    return listener


def _explain(error: OSError, host: str, port: int, setting: str) -> str:
    variable = f"{setting} (MOLEFLOW_{setting.upper()})"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{variable} cannot be {port}: another program is listening on {host}:{port}. "
            "Stop that program, or choose another port."
        )
    if error.errno == errno.EACCES:
        return f"{variable} cannot be {port}: this user may not listen on it. Choose 1024 or higher."
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"host (MOLEFLOW_HOST) cannot be {host!r}: it is not an address of this machine. "
            "Use 127.0.0.1 for this machine only, or 0.0.0.0 for every interface."
        )
    return f"Cannot listen on {host}:{port}: {error.strerror or error}. Choose another host or port."


def _url(host: str, port: int) -> str:
    if host in _WILDCARDS:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _print_ready(url: str, predictor: Predictor) -> None:
    print(_ready(url, predictor), flush=True)


def _log_ready(url: str, predictor: Predictor) -> None:
    _logger.info("%s", _ready(url, predictor))


def _ready(url: str, predictor: Predictor) -> str:
    products = ", ".join(info.name for info in predictor.tasks)
    return f"Serving {predictor.checkpoint.name} ({products}) on {predictor.device} at {url}"
