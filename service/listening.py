"""The sockets that the service listens on."""

import contextlib
import errno
import logging
import socket
from collections.abc import Iterator

from moleflow.model.errors import ConfigurationError
from moleflow.service.names import is_loopback
from moleflow.service.settings import Settings

__all__ = ["bind", "listening", "url_of"]

_BACKLOG = 2048
"""uvicorn's default."""

_WILDCARDS = frozenset({"0.0.0.0", "::", ""})
"""Hosts that mean every interface; a browser cannot open them."""

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[list[socket.socket]]:
    """The listening sockets: that of the port, and that of the second one, if any. Warns if everybody may use it.

    Raises ``ConfigurationError``.
    """
    if settings.api_keys is None and not is_loopback(settings.host):
        _logger.warning(
            "Everybody who reaches %s:%d may use the service: there are no API keys (MOLEFLOW_API_KEYS). Publish it in "
            "a trusted network only, or behind a proxy that authenticates.",
            settings.host,
            settings.port,
        )
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(contextlib.closing(bind(settings.host, settings.port)))]
        if settings.admin_port is not None:
            more = bind(settings.host, settings.admin_port, "admin_port")
            listeners.append(stack.enter_context(contextlib.closing(more)))
        yield listeners


def url_of(settings: Settings, listener: socket.socket) -> str:
    """The address for a browser on this machine."""
    host, port = settings.host, listener.getsockname()[1]
    if host in _WILDCARDS:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
