"""Says by its exit status whether the server in this container is ready: 0 when it is, 1 when it is not.

It asks the address the server binds to (``MOLEFLOW_HOST``, ``MOLEFLOW_PORT``), directly and never through a proxy.
"""

import http.client
import os
import sys

__all__ = ["is_ready"]

TIMEOUT_SECONDS = 4
"""Below the five seconds after which the engine gives up on the check, so that the reason still gets into its log."""

LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where to reach a server that binds to every address."""


def is_ready(host: str, port: int) -> bool:
    """Whether ``/health/ready`` answers with 200. Prints the reason when it does not."""
    connection = http.client.HTTPConnection(LOOPBACK.get(host, host), port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        print(f"{host}:{port} does not answer: {error}")
        return False
    finally:
        connection.close()
    if response.status != http.client.OK:
        print(f"{host}:{port} answers {response.status} {response.reason}")
    return response.status == http.client.OK


if __name__ == "__main__":
    ready = is_ready(os.environ.get("MOLEFLOW_HOST", "0.0.0.0"), int(os.environ.get("MOLEFLOW_PORT", "8000")))
    sys.exit(0 if ready else 1)
