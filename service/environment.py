"""The ``MOLEFLOW_*`` environment variables: filters out those set by Kubernetes, and warns about misspelt ones."""

import difflib
import logging
import re
from collections.abc import Iterable, Mapping

__all__ = ["ENVIRONMENT_PREFIX", "warn_about_unread_variables", "without_service_links"]

ENVIRONMENT_PREFIX = "MOLEFLOW_"
"""Prefix of all environment variables of the project."""

_OTHERS = frozenset({"DATA", "IMAGE", "MEMORY", "MODELS", "PUBLISH", "THREADS"})
"""Read by the container's entrypoint, the compose file and ``moleflow.model.runtime.threads``."""

_SERVICE_LINK = re.compile(r".*_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|.*_SERVICE_HOST|.*_SERVICE_PORT(_\w+)?")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*", re.IGNORECASE)
"""Kubernetes sets Docker-style link variables for every service of a namespace in each of its containers. A service
called ``moleflow`` yields ``MOLEFLOW_SERVICE_HOST``, ``MOLEFLOW_PORT=tcp://10.0.0.1:8000`` and others."""

_logger = logging.getLogger(__name__)


def without_service_links(environment: Mapping[str, str | None]) -> dict[str, str | None]:
    """The variables without those that Kubernetes sets for services."""
    return {name: value for name, value in environment.items() if not _is_service_link(name, value or "")}


def warn_about_unread_variables(environment: Mapping[str, str], settings: Iterable[str]) -> None:
    """Warn about variables that nothing reads, and suggest the closest known name.

    ``settings`` are the names of the settings in lower case, without prefix.
    """
    known = _OTHERS | {name.upper() for name in settings}
    names = sorted(name for name in environment if name.upper().startswith(ENVIRONMENT_PREFIX))
    links = [name for name in names if _is_service_link(name, environment[name])]
    if links:
        _logger.warning("Ignored the variables that Kubernetes sets for services: %s.", ", ".join(links))
    for name in names:
        rest = name.upper().removeprefix(ENVIRONMENT_PREFIX)
        if name in links or rest in known:
            continue
        nearest = difflib.get_close_matches(rest, known, n=1)
        hint = f" Did you mean {ENVIRONMENT_PREFIX}{nearest[0]}?" if nearest else ""
        _logger.warning("Unknown environment variable %s is ignored.%s", name, hint)


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes set a variable. ``MOLEFLOW_PORT`` may also be a setting; its value decides."""
    name = name.upper()
    if not name.startswith(ENVIRONMENT_PREFIX):
        return False
    is_address = name.endswith("_PORT") and _SERVICE_ADDRESS.fullmatch(value) is not None
    return is_address or _SERVICE_LINK.fullmatch(name) is not None
