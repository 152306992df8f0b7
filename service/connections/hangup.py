"""SIGHUP: reload the checkpoint, as daemons do with their configuration."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable

__all__ = ["has_terminal", "on_hangup"]


def on_hangup(reload: Callable[[], None], stop: Callable[[], None]) -> None:
    """Call ``reload`` in the running event loop on SIGHUP, or ``stop`` if the terminal was closed, which sends it too.

    Does nothing outside the main thread, which alone gets signals, and where SIGHUP is ignored (``nohup``).
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        return
    had_terminal = has_terminal()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: stop() if had_terminal and not has_terminal() else reload())


def has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
        return True
    return False
