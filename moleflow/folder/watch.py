"""Following folders by polling: files are taken once they are no longer being written."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from moleflow.folder.pipeline import state_of
from moleflow.folder.rows import FileState
from moleflow.image_files import ImageFile

__all__ = ["follow"]

_OLD_SECONDS = 60.0
"""A file that was last modified this long ago is complete, so that what a folder holds at the start need not wait."""


def follow(
    find: Callable[[], Iterable[ImageFile]],
    is_done: Callable[[ImageFile, FileState], bool],
    stop: threading.Event,
    interval_seconds: float,
) -> Iterator[ImageFile | None]:
    """The files that ``find`` lists and that are not done, again and again until ``stop`` is set.

    A file is yielded when its size and time are those of the poll before. ``None`` follows every poll: there is nothing
    to do for now.
    """
    growing: dict[str, FileState] = {}
    while not stop.is_set():
        seen: dict[str, FileState] = {}
        for file in find():
            if stop.is_set():
                return
            state, path = state_of(file.path), str(file.path)
            if state.modified is None or is_done(file, state):
                continue
            if growing.get(path) == state or time.time() - state.modified >= _OLD_SECONDS:
                yield file
            else:
                seen[path] = state
        growing = seen
        yield None
        stop.wait(interval_seconds)
