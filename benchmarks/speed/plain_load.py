"""Replaces wrk where it is not installed: takes the same command line and prints what ``load.lua`` prints.

Each connection is a thread that sends the images in turn, starting with a different one. It takes more processor time
than wrk, so the figures are somewhat lower. ``wrk.py`` runs it only where wrk is missing.
"""

import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

STAGES = ("decode", "queue", "inference", "encode")
HEADERS = {"Content-Type": "application/octet-stream"}

TAIL = 600
"""Bytes at the end of an answer that hold ``timing_ms``; the map before it may have megabytes."""


def stages(body: bytes) -> list[str]:
    """Milliseconds of each stage from the answer's ``timing_ms``; ``nan`` without it."""
    end = body[-TAIL:].rpartition(b'"timing_ms":')[2]
    try:
        found = json.JSONDecoder().raw_decode(end.decode().lstrip())[0]
        return [repr(found[name]) for name in STAGES]
    except (ValueError, KeyError, TypeError):
        return ["nan"] * len(STAGES)


def send(address: str, path: str, bodies: Sequence[bytes], first: int, deadline: float, lines: list[str]) -> None:
    """One connection: send until the deadline, and add a line for each answer before it."""
    connection, turn = http.client.HTTPConnection(address), first
    while time.monotonic() < deadline:
        sent = time.monotonic()
        connection.request("POST", path, bodies[turn % len(bodies)], HEADERS)
        answer = connection.getresponse()
        body, ended, turn = answer.read(), time.monotonic(), turn + 1
        if ended < deadline:
            line = f"{ended * 1e6:.0f} {(ended - sent) * 1e6:.0f} {answer.status} {len(body)}"
            lines.append(" ".join([line, *stages(body)]))
    connection.close()


def main(arguments: Sequence[str]) -> int:
    """Understands wrk's ``-c`` and ``-d`` and the address at the end; 1 when the service cannot be reached."""
    options = {word[:2]: word[2:] for word in arguments if word.startswith("-")}
    address, lines, failures = urlsplit(arguments[-1]).netloc, list[str](), list[str]()
    bodies = [Path(name).read_bytes() for name in os.environ["LOAD_IMAGES"].split("\n")]
    deadline = time.monotonic() + int(options["-d"].rstrip("s"))

    def work(number: int) -> None:
        try:
            send(address, os.environ["LOAD_PATH"], bodies, number, deadline, lines)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(int(options["-c"]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("\n".join(lines))
    if failures:
        print(f"{address} does not answer: {failures[0]}", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
