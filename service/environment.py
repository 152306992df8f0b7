"""The ``MOLEFLOW_*`` variables: which of them are the service's, and which somebody else's or a slip of the pen."""

import difflib
import logging
import re
from collections.abc import Iterable, Mapping

__all__ = ["ENVIRONMENT_PREFIX", "own_variables", "report_foreign_variables"]

ENVIRONMENT_PREFIX = "MOLEFLOW_"
"""What the names of all environment variables begin with."""

_OTHERS = frozenset({"DATA", "IMAGE", "MEMORY", "MODELS", "PUBLISH", "THREADS"})
"""Read by the container's entry point, the compose file and ``moleflow.model.runtime.threads``."""

_SERVICE_LINK = re.compile(r".*_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|.*_SERVICE_HOST|.*_SERVICE_PORT(_\w+)?")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*", re.IGNORECASE)
"""Kubernetes tells every container of a namespace about every service in it, in the form of Docker's old links: of a
service called ``moleflow``, ``MOLEFLOW_SERVICE_HOST`` and ``MOLEFLOW_PORT=tcp://10.0.0.1:8000`` among others."""

_logger = logging.getLogger(__name__)


def own_variables(environment: Mapping[str, str | None]) -> dict[str, str | None]:
    """The variables without those by which Kubernetes tells of a service."""
    return {name: value for name, value in environment.items() if not _is_service_link(name, value or "")}


def report_foreign_variables(environment: Mapping[str, str], settings: Iterable[str]) -> None:
    """Warn of variables that nothing reads, each with the nearest name of one that is read.

    ``settings`` are the names of the settings, in lower case and without prefix.
    """
    known = _OTHERS | {name.upper() for name in settings}
    names = sorted(name for name in environment if name.upper().startswith(ENVIRONMENT_PREFIX))
    links = [name for name in names if _is_service_link(name, environment[name])]
    if links:
        _logger.warning("Passed over what Kubernetes tells of its services: %s.", ", ".join(links))
    for name in names:
        rest = name.upper().removeprefix(ENVIRONMENT_PREFIX)
        if name in links or rest in known:
            continue
        nearest = difflib.get_close_matches(rest, known, n=1)
        hint = f"; is {ENVIRONMENT_PREFIX}{nearest[0]} meant?" if nearest else "."
        _logger.warning("Nothing reads the environment variable %s%s", name, hint)


def _is_service_link(name: str, value: str) -> bool:
    """Whether a variable is Kubernetes' own. Of a name that a setting could have, the value tells."""
    name = name.upper()
    if not name.startswith(ENVIRONMENT_PREFIX):
        return False
    is_address = name.endswith("_PORT") and _SERVICE_ADDRESS.fullmatch(value) is not None
    return is_address or _SERVICE_LINK.fullmatch(name) is not None
