"""OpenVINO, imported without its telemetry.

Importing ``openvino`` reports that to its makers unless the user has opted out, and does so in a process that it forks:
a copy of a service with its sockets, in which a lock of another thread may stay locked for ever.
"""

import sys
from typing import Any

__all__ = ["import_openvino"]

_TELEMETRY = "openvino_telemetry"
"""OpenVINO goes on without this package, with a stub of its own."""


def import_openvino() -> Any:
    """The module ``openvino``."""
    if _TELEMETRY not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # importing it raises ImportError
    import openvino

    return openvino
