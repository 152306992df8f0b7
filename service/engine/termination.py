"""Ending a process with hanging threads, for which the interpreter would wait for ever."""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

__all__ = ["exit_now", "finishes_within", "log_thread_stacks"]

_STATUS = 1
"""Exit status, which tells a supervisor that this was not a clean exit."""

_logger = logging.getLogger(__name__)


def finishes_within(join: Callable[[], None], seconds: float) -> bool:
    """Run ``join`` in a daemon thread and return whether it returned in time."""
    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def log_thread_stacks() -> None:
    """Log the stacks of all threads."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = (
        f"Thread {names.get(identifier, identifier)}:\n{''.join(traceback.format_stack(frame))}"
        for identifier, frame in sys._current_frames().items()
    )
    _logger.critical("A thread hangs and is abandoned. The stacks of all threads:\n%s", "\n".join(stacks))


def exit_now() -> NoReturn:
    """End the process without waiting for its threads or running exit handlers."""
    logging.shutdown()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(_STATUS)
