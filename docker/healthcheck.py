"""Health check of the container: exits with status 0 if the server is ready, else 1.

Connects directly to the address that the server binds to (``MOLEFLOW_HOST``, ``MOLEFLOW_PORT``), never through a proxy.
"""

import http.client
import os
import sys

__all__ = ["chosen_port", "is_ready"]

DEFAULT_PORT = 8000

TIMEOUT_SECONDS = 4
"""Less than the five seconds after which Docker kills the check, so that the reason still gets into its log."""

MAX_LOGGED_BYTES = 1000
"""How much of an error response is logged."""

LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses at which to reach a server that binds to every interface."""


def is_ready(host: str, port: int) -> bool:
    """Whether ``/health/ready`` responds with 200. Prints the reason if it does not."""
    connection = http.client.HTTPConnection(LOOPBACK.get(host, host), port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        detail = response.read(MAX_LOGGED_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        print(f"{host}:{port} does not respond: {error}")
        return False
    finally:
        connection.close()
    if response.status != http.client.OK:
        print(f"{host}:{port} responds with {response.status} {response.reason}: {detail}")
    return response.status == http.client.OK


def chosen_port(value: str) -> int:
    """The port in ``MOLEFLOW_PORT``, or the default. Kubernetes sets the variable to ``tcp://…`` for a service called
    moleflow, which the server ignores too. Raises ``ValueError`` for anything else that is not a number."""
    return DEFAULT_PORT if not value or "://" in value else int(value)


if __name__ == "__main__":
    try:
        port = chosen_port(os.environ.get("MOLEFLOW_PORT", ""))
    except ValueError:
        sys.exit(f"MOLEFLOW_PORT cannot be {os.environ['MOLEFLOW_PORT']!r}: it must be a number such as {DEFAULT_PORT}")
    sys.exit(0 if is_ready(os.environ.get("MOLEFLOW_HOST", "0.0.0.0"), port) else 1)
