"""Parsing and validation of host names, origins (RFC 6454) and the root path."""

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
    """Host, in lower case and without brackets, and port of a ``Host`` or ``X-Forwarded-Host`` header.

    The host is empty if the header is invalid.
    """
    try:
        parts = urlsplit(f"//{authority}")
        # These headers cannot have a path, a query or a user name.
        if parts.netloc != authority or parts.username is not None:
            return "", None
        return (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "", None


def origin_parts(origin: str) -> tuple[str, int] | None:
    """Host and port of an origin; ``None`` for ``null`` and anything that is not the origin of a web page."""
    scheme, separator, authority = origin.partition("://")
    host, port = host_and_port(authority)
    if not separator or scheme not in _DEFAULT_PORTS or not host:
        return None
    return host, port or _DEFAULT_PORTS[scheme]


def is_loopback(host: str) -> bool:
    """Whether a listening address can be reached from this machine only."""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _split(value: Any) -> Any:
    """The comma-separated parts of a string; anything else unchanged."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not _HOST.fullmatch(host.lower()):
            raise ValueError(f"should list host names or addresses without scheme and port; {host!r} is neither")
    return tuple(host.lower().strip("[]").rstrip(".") for host in hosts)


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and origin_parts(origin.lower()) is None:
            raise ValueError(f"should list origins such as https://mes.factory:8443, or *; {origin!r} is neither")
    return tuple(origin.lower() for origin in origins)


def _check_root_path(path: str) -> str:
    if not _ROOT_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise ValueError("should start but not end with a slash, and consist of letters, digits and ._~-/")
    return path


HostList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_hosts)]
OriginList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_origins)]
RootPath = Annotated[str, AfterValidator(_check_root_path)]
