"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

__all__ = ["Count", "counting", "in_words", "showing"]

_LINE_SECONDS = 30.0
"""Time between two lines where standard error is no terminal."""


class Count:
    """The total number of files, once a thread has counted them."""

    def __init__(self) -> None:
        self.total: int | None = None


@contextmanager
def counting(files: Callable[[], Iterator[object]]) -> Iterator[Count]:
    """Count ``files`` in the background: the time left needs the total, but the first image must not wait for it."""
    count, stopped = Count(), threading.Event()

    def run() -> None:
        found = 0
        for _ in files():
            if stopped.is_set():
                return
            found += 1
        count.total = found

    thread = threading.Thread(target=run, name="count", daemon=True)
    thread.start()
    try:
        yield count
    finally:
        stopped.set()
        thread.join()


@contextmanager
def showing(count: Count) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows the progress, given the number of new rows and of files that had one already.

    The speed is that of new rows only.
    """
    started = perf_counter()
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        next_line = started + _LINE_SECONDS

        def show_line(new: int, skipped: int) -> None:
            nonlocal next_line
            if perf_counter() >= next_line:
                next_line = perf_counter() + _LINE_SECONDS
                of = "" if count.total is None else f" of {count.total:,}"
                text = f"{new + skipped:,}{of} images, {_pace(new, skipped, count.total, perf_counter() - started)}"
                print(text, file=sys.stderr, flush=True)

        yield show_line
        return
    columns = (TextColumn("[bold]images"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        bar = progress.add_task("images", total=None, pace="")

        def show_bar(new: int, skipped: int) -> None:
            pace = _pace(new, skipped, count.total, perf_counter() - started)
            progress.update(bar, completed=new + skipped, total=count.total, pace=pace)

        yield show_bar


def _pace(new: int, skipped: int, total: int | None, seconds: float) -> str:
    """Images a second and the time left."""
    rate = new / max(seconds, 1e-9)
    if total is None or not new:
        return f"{rate:.1f} images/s"
    return f"{rate:.1f} images/s, {in_words(max(0, total - new - skipped) / rate)} left"


def in_words(seconds: float) -> str:
    """A duration such as ``42 s``, ``3:07 min`` or ``2:15 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"
