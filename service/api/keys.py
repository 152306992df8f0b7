"""API keys: who may predict, teach and administer, by a file that may change while the service runs.

Each line of the file is ``NAME SCOPE KEY``: a name for the log; ``predict``, ``teach`` or ``admin``, each of which
includes those before; and the key, or its digest as ``sha256:HEX``. Empty lines and those that begin with ``#`` count
for nothing.
"""

import hashlib
import hmac
import logging
import re
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from time import monotonic

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from moleflow.model.errors import ConfigurationError
from moleflow.service.errors import NoKeyError, NotAllowedError
from moleflow.service.problems import error_response

__all__ = ["Access", "KeyGuard", "Keys", "needed_access", "read_keys"]

MIN_KEY_LENGTH = 20
"""Shorter keys can be guessed. ``openssl rand -hex 16`` prints one of 32 characters."""

_LOOK_SECONDS = 1.0
"""Time between two looks at the file."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")

_OPEN = ("/health/", "/page/", "/samples/", "/swagger/", "/v2/health/")
_OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/samples"})
"""Without a key: probes, the page itself, which asks for one, and samples, which everybody may see."""

_TEACHING = re.compile(r"/jobs(/|$)|/tasks/[^/]+/images(/|$)|/tasks/[^/]+:train$")
"""Good images and the jobs that learn from them; also to look at, since the images may be confidential."""

_READING = frozenset({"GET", "HEAD", "OPTIONS"})

_logger = logging.getLogger(__name__)


class Access(IntEnum):
    """What a key allows; each level includes those below."""

    PREDICT = 1
    TEACH = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Key:
    """A key's owner, what it allows, and its SHA-256 digest."""

    name: str
    access: Access
    digest: bytes


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file. Raises ``ConfigurationError``, which names the line but never a key."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The API keys in {path} cannot be read ({error}).") from error
    keys = [_key(path, number, line) for number, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]
    if not keys:
        raise ConfigurationError(f"{path} has no API key; write lines such as 'line-1 predict KEY', or unset api_keys.")
    if len({key.digest for key in keys}) < len(keys):
        raise ConfigurationError(f"{path} has the same API key twice; give every client one of its own.")
    return tuple(keys)


def _key(path: Path, number: int, line: str) -> Key:
    where = f"Line {number} of {path}"
    parts = line.split()
    if len(parts) != 3:
        raise ConfigurationError(f"{where} must have three words, NAME SCOPE KEY; it has {len(parts)}.")
    name, scope, secret = parts
    if scope.upper() not in Access.__members__:
        raise ConfigurationError(f"{where} has the scope {scope[:40]!r}; it must be predict, teach or admin.")
    if (digest := _DIGEST.fullmatch(secret)) is not None:
        return Key(name, Access[scope.upper()], bytes.fromhex(digest[1]))
    if secret.startswith("sha256:"):
        raise ConfigurationError(f"{where} has a digest that is not sha256: and 64 hexadecimal digits in lower case.")
    if len(secret) < MIN_KEY_LENGTH:
        raise ConfigurationError(
            f"{where} has a key of {len(secret)} characters; use at least {MIN_KEY_LENGTH}, as of openssl rand -hex 16."
        )
    return Key(name, Access[scope.upper()], hashlib.sha256(secret.encode()).digest())


class Keys:
    """The keys of a file, read again when it has changed. A file that has become invalid changes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked, self._seen = monotonic(), _identity(path)
        self._keys = read_keys(path)

    def find(self, secret: str) -> Key | None:
        """The key, if there is such a one. Takes the same time for every wrong key."""
        self._look()
        digest, found = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest(), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _look(self) -> None:
        if monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = monotonic()
        if (identity := _identity(self._path)) == self._seen:
            return
        self._seen = identity
        try:
            self._keys = read_keys(self._path)
        except ConfigurationError as error:
            _logger.error("The API keys that were read before still apply. %s", error)
        else:
            _logger.info("Read %d API keys from %s.", len(self._keys), self._path)


def needed_access(method: str, path: str) -> Access | None:
    """What a request needs; ``None`` if it needs no key."""
    if path in _OPEN_PATHS or path.startswith(_OPEN):
        return None
    if _TEACHING.match(path):
        return Access.TEACH
    if path.startswith("/admin") or (path.startswith("/tasks") and method not in _READING):
        return Access.ADMIN
    return Access.TEACH if path.startswith("/predictions") else Access.PREDICT


class KeyGuard:
    """Rejects requests without a key that allows them."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._app
        if scope["type"] == "http":
            try:
                self._check(scope)
            except (NoKeyError, NotAllowedError) as error:
                app = error_response(Request(scope), error)
        await app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raise ``NoKeyError`` or ``NotAllowedError``; else note the key's owner as ``request.state.client``."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        access = needed_access(scope["method"], path)
        if access is None:
            return
        secret = _presented(Headers(scope=scope))
        key = None if secret is None else self._keys.find(secret)
        if key is None:
            what = "This needs an API key" if secret is None else "The API key is not known"
            raise NoKeyError(f"{what}. Send one of the service's as Authorization: Bearer KEY.")
        if key.access < access:
            raise NotAllowedError(
                f"The API key of {key.name!r} allows to {key.access.name.lower()}, and this needs one that allows to "
                f"{access.name.lower()}."
            )
        scope.setdefault("state", {})["client"] = key.name


def _presented(headers: Headers) -> str | None:
    """The key of a request, from ``Authorization: Bearer`` or ``X-API-Key``."""
    kind, _, secret = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return secret.strip()
    return headers.get("x-api-key")


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
