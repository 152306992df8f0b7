"""The names by which the service is reached: hosts, origins (RFC 6454) and the path below which a proxy offers it."""

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

__all__ = ["HostList", "OriginList", "RootPath", "host_and_port", "is_loopback", "origin_parts"]

_DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"\[?[0-9a-f:.]*:[0-9a-f:.]*\]?|(\*\.)?[\w-]+(\.[\w-]+)*|\*")
_ROOT_PATH = re.compile(r"(/[\w.~-]+)*")


def host_and_port(authority: str) -> tuple[str, int | None]:
    """A host, in lower case and without brackets, and the port if there is one; the host is empty if it is none.

    ``authority`` is what the headers ``Host`` and ``X-Forwarded-Host`` hold.
    """
    try:
        parts = urlsplit(f"//{authority}")
        # A path, a query or a user's name is no part of these headers.
        if parts.netloc != authority or parts.username is not None:
            return "", None
        return (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "", None


def origin_parts(origin: str) -> tuple[str, int] | None:
    """Host and port of a page's origin; ``None`` for ``null`` and all that is no web page's."""
    scheme, separator, authority = origin.partition("://")
    host, port = host_and_port(authority)
    if not separator or scheme not in _DEFAULT_PORTS or not host:
        return None
    return host, port or _DEFAULT_PORTS[scheme]


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _split(value: Any) -> Any:
    """The parts of a text with commas; of a list, the list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not _HOST.fullmatch(host.lower()):
            raise ValueError(f"should hold names or addresses without scheme and port, which {host!r} is not")
    return tuple(host.lower().strip("[]").rstrip(".") for host in hosts)


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and origin_parts(origin.lower()) is None:
            raise ValueError(f"should hold origins such as https://mes.factory:8443, or *, which {origin!r} is not")
    return tuple(origin.lower() for origin in origins)


def _check_root_path(path: str) -> str:
    if not _ROOT_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise ValueError("should begin with a slash, end without one, and hold letters, digits and ._~- between them")
    return path


HostList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_hosts)]
OriginList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_origins)]
RootPath = Annotated[str, AfterValidator(_check_root_path)]
