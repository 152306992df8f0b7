"""Says by its exit status whether the server in this container is ready: 0 when it is, 1 when it is not.

It asks the address the server binds to (``MOLEFLOW_HOST``, ``MOLEFLOW_PORT``), directly and never through a proxy.
"""

import http.client
import os
import sys

__all__ = ["chosen_port", "is_ready"]

DEFAULT_PORT = 8000
"""Where the server listens unless told otherwise."""

TIMEOUT_SECONDS = 4
"""Below the five seconds after which the engine gives up on the check, so that the reason still gets into its log."""

MOST_BYTES = 1000
"""Of an answer that says what is wrong, so much gets into the log."""

LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where to reach a server that binds to every address."""


def is_ready(host: str, port: int) -> bool:
    """Whether ``/health/ready`` answers with 200. Prints the reason when it does not."""
    connection = http.client.HTTPConnection(LOOPBACK.get(host, host), port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        said = response.read(MOST_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        print(f"{host}:{port} does not answer: {error}")
        return False
    finally:
        connection.close()
    if response.status != http.client.OK:
        print(f"{host}:{port} answers {response.status} {response.reason}: {said}")
    return response.status == http.client.OK


def chosen_port(value: str) -> int:
    """The port that ``MOLEFLOW_PORT`` names. Kubernetes sets it to ``tcp://…`` for a service that is called moleflow;
    the server passes over that, and so does this. Raises ``ValueError`` for what is no port."""
    return DEFAULT_PORT if not value or "://" in value else int(value)


if __name__ == "__main__":
    try:
        port = chosen_port(os.environ.get("MOLEFLOW_PORT", ""))
    except ValueError:
        sys.exit(
            f"MOLEFLOW_PORT cannot be {os.environ['MOLEFLOW_PORT']!r}: it should be a number such as {DEFAULT_PORT}"
        )
    sys.exit(0 if is_ready(os.environ.get("MOLEFLOW_HOST", "0.0.0.0"), port) else 1)
