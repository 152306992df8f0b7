"""``python -m moleflow.service.teaching.launch PARENT COMMAND …``: become a command that yields to everything else.

It gets the processor when nothing else wants it, is the first to go when memory runs out, and ends with the process
``PARENT`` that started it.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

__all__ = ["main"]

_NICENESS = 19
"""The lowest priority of ordinary processes."""

_PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal to get when the parent ends. It stays in force across execve(2)."""

_FIRST_TO_GO = "1000"
"""The highest value in /proc/self/oom_score_adj (proc(5))."""


def main() -> None:
    """See the module."""
    parent, *command = sys.argv[1:]
    with contextlib.suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it has ended already
        sys.exit(1)
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO, encoding="ascii")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
