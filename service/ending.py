"""The end of a process in which threads hang: the interpreter would wait for them for ever."""

import faulthandler
import logging
import os
import sys
from typing import NoReturn

__all__ = ["end_at_once"]

_STATUS = 1
"""Exit status: whoever supervises the process is to know that this was no orderly end."""

_logger = logging.getLogger(__name__)


def end_at_once() -> NoReturn:
    """End the process without waiting for its threads; standard error tells where each of them is.

    What was to be done at exit is not done: nothing of the service's own depends on that.
    """
    _logger.error("A thread does not end, so the process ends without it. Where its threads are:")
    logging.shutdown()
    sys.stdout.flush()
    faulthandler.dump_traceback(all_threads=True)
    os._exit(_STATUS)
