"""The end of a process in which threads hang: the interpreter would wait for them for ever."""

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

__all__ = ["end_at_once", "ends_within", "tell_of_threads"]

_STATUS = 1
"""Exit status: whoever supervises the process is to know that this was no orderly end."""

_logger = logging.getLogger(__name__)


def ends_within(join: Callable[[], None], seconds: float) -> bool:
    """Whether ``join`` returns in time; if not, it is left behind in a thread that keeps nobody from ending."""
    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def tell_of_threads() -> None:
    """Tell on standard error where each of the process' threads is."""
    _logger.error("A thread does not end, and is left behind. Where the threads are:")
    with suppress(OSError, ValueError):  # standard error may be closed
        faulthandler.dump_traceback(all_threads=True)


def end_at_once() -> NoReturn:
    """End the process without waiting for its threads; what was to be done at exit is not done."""
    logging.shutdown()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(_STATUS)
