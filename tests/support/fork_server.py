"""Runs code in new processes without importing PyTorch each time: imports once, then forks.

Reads one JSON request per line and writes one JSON response per line: ``{"code", "stdout", "stderr", "environment"}``
starts a process and returns its PID; ``{"poll": pid}`` returns its exit status, or null while it runs.
"""

import gc
import json
import os
import sys
import traceback

import moleflow.cli
import moleflow.service.server
import moleflow.training.continual.sequence  # noqa: F401


def main() -> None:
    # Else a child's first full collection reads, and so copies, everything that was imported.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            done, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if done else None
        else:
            answer = os.fork()
            if answer == 0:
                run(request)
        print(json.dumps(answer), flush=True)
    os._exit(0)  # an orderly exit of PyTorch takes long


def run(request: dict) -> None:
    """Run the request in this process; never returns."""
    for target, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["environment"])
    status: object = 0
    try:
        exec(compile(request["code"], "<test>", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    main()
