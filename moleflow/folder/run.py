"""`moleflow predict --output`: predictions for files and folders as rows of a file, resumable."""

import contextlib
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from moleflow.folder.delivery import Delivery
from moleflow.folder.output import open_output
from moleflow.folder.pipeline import Pipeline, state_of
from moleflow.folder.progress import Count, counting, in_words, showing
from moleflow.folder.rows import FileState, Known
from moleflow.folder.sinks import Sink
from moleflow.folder.watch import follow
from moleflow.image_files import ImageFile
from moleflow.model.errors import ConfigurationError, MoLEFlowError
from moleflow.model.files.file_names import as_line, as_text
from moleflow.model.files.outputs import write_bytes
from moleflow.model.images.decode import MAX_PIXELS
from moleflow.model.verdict.records import Verdict

if TYPE_CHECKING:
    from moleflow.model.loading import AnyDetector

__all__ = ["Done", "Request", "Tally", "check_same", "predict_into"]

_OF_THE_IMAGE = ("unsupported-image", "image-too-large")
"""Errors that the same bytes give again; files with another one are tried again by the next run."""

WATCH_SECONDS = 2.0
"""Time between two looks at a folder."""

Find = Callable[[Callable[[Path, str], None]], Iterator[ImageFile]]
"""Lists the files; the argument is told of folders that cannot be used."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to predict, and where the results go."""

    find: Find
    output: Path
    task: str | None
    max_pixels: int | None
    overlays: Path | None
    watch: bool


@dataclass(slots=True)
class Tally:
    """What the rows say, of this run and of those before: verdicts, errors, and problems that have no row."""

    verdicts: Counter[str] = field(default_factory=Counter)
    errors: int = 0
    problems: int = 0

    def add(self, verdict: str | None, error: str | None) -> None:
        if error is not None:
            self.errors += 1
        elif verdict is not None:
            self.verdicts[verdict] += 1

    def report(self, path: Path, problem: object) -> None:
        """A problem that has no row: printed and counted."""
        self.problems += 1
        print(f"error: {as_line(path)}: {problem}", file=sys.stderr)

    def __str__(self) -> str:
        counts = [f"{self.verdicts[each]:,} {each.replace('_', ' ')}" for each in Verdict]
        return ", ".join([*counts, f"{self.errors:,} with an error"])


def predict_into(detector: "AnyDetector", request: Request, sinks: Sequence[Sink] = ()) -> Tally:
    """Predict for every file that has no row yet, send its row to ``sinks``, which are closed, and append it.

    Raises:
        ConfigurationError: the output holds rows of another checkpoint or other options, or cannot be written.
    """
    tally, output = Tally(), open_output(request.output)
    with contextlib.closing(output):
        done = Done(tally)
        for known in output.known():
            check_same(known, detector, request)
            done.add_known(known)
        stop = threading.Event()
        delivery = Delivery(sinks, output, request.output)
        with _stopping(stop) if request.watch else contextlib.nullcontext(), delivery.running():
            _run(detector, request, delivery, done, stop)
        output.finish()
    if delivery.undelivered:
        tally.problems += delivery.undelivered
        print(f"error: {delivery.undelivered:,} rows could not be delivered", file=sys.stderr)
    return tally


class Done:
    """The files that have a row, by a hash of path and state: about 70 bytes each."""

    def __init__(self, tally: Tally) -> None:
        self.tally, self._keys = tally, set[int]()

    def add_known(self, known: Known) -> None:
        """A row of an earlier run, unless its file should be tried again."""
        if known.error is None or known.error.endswith(_OF_THE_IMAGE):
            self.tally.add(known.verdict, known.error)
            self._keys.add(known.state.key(known.path))

    def add(self, file: ImageFile, state: FileState) -> None:
        self._keys.add(state.key(as_text(file.path)))

    def __call__(self, file: ImageFile, state: FileState) -> bool:
        return bool(self._keys) and state.key(as_text(file.path)) in self._keys


def _run(detector: "AnyDetector", request: Request, delivery: Delivery, done: Done, stop: threading.Event) -> None:
    tally, skipped = done.tally, 0
    pipeline = Pipeline(
        detector,
        task=request.task,
        max_pixels=request.max_pixels or MAX_PIXELS,
        save_overlay=None if request.overlays is None else _overlay_saver(request.overlays, tally),
    )

    def remaining() -> Iterator[ImageFile]:
        nonlocal skipped
        for file in request.find(tally.report):
            if done(file, state_of(file.path)):
                skipped += 1
            else:
                yield file

    def followed() -> Iterator[ImageFile | None]:
        folders = _Once(tally)
        for file in follow(lambda: request.find(folders), done, stop, WATCH_SECONDS):
            if file is not None:
                done.add(file, state_of(file.path))
            yield file

    started, new = perf_counter(), 0
    with _counted(request) as count, showing(count) as show:
        for row in pipeline.rows(followed() if request.watch else remaining()):
            delivery.put(row)
            tally.add(row.get("verdict"), None if row["error"] is None else row["error"]["type"])
            new += 1
            show(new, skipped)
    seconds = perf_counter() - started
    before = f"{skipped:,} had a row already; " if skipped else ""
    pace = f"{new / seconds:.1f} images/s" if new else "nothing to do"
    print(f"{new:,} images in {in_words(seconds)}, {pace}; {before}rows: {tally}", file=sys.stderr)


def _counted(request: Request) -> contextlib.AbstractContextManager[Count]:
    if request.watch:
        return contextlib.nullcontext(Count())
    return counting(lambda: request.find(lambda path, problem: None))


class _Once:
    """Reports each folder that cannot be read once, although a watched folder is listed again and again."""

    def __init__(self, tally: Tally) -> None:
        self._tally, self._told = tally, set[Path]()

    def __call__(self, path: Path, problem: str) -> None:
        if path not in self._told and "contains no image" not in problem:  # it may soon
            self._told.add(path)
            self._tally.report(path, problem)


def check_same(known: Known, detector: "AnyDetector", request: Request) -> None:
    """Rows of another model or other thresholds must not be mixed into one file."""
    wanted: Iterable[tuple[str, Any, Any]] = [("checkpoint", known.checkpoint, detector.checkpoint.digest)]
    if known.error is None:
        wanted = [
            *wanted,
            ("false-alarm rate", known.false_alarm_rate, detector.false_alarm_rate),
            ("--task", known.task if known.forced else None, request.task),
        ]
    for what, there, here in wanted:
        if there != here:
            raise ConfigurationError(
                f"the output {str(request.output)!r} holds rows with another {what} ({there} instead of {here}); "
                "choose another name, or give the same one again."
            )


def _overlay_saver(folder: Path, tally: Tally) -> Callable[[ImageFile, Callable[[], bytes]], None]:
    def save(file: ImageFile, make: Callable[[], bytes]) -> None:
        target = folder / file.overlay
        try:
            target.lstat()
        except FileNotFoundError:
            pass
        except OSError as error:  # a name that is too long affects this image only
            tally.report(target, f"the overlay cannot be written: {error.strerror}.")
            return
        try:
            content = make()
        except MoLEFlowError as error:
            tally.report(target, error)
        else:
            write_bytes("the overlay", target, content)

    return save


@contextlib.contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets ``stop``, so that what was begun is completed; a second acts as usual."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: object) -> None:
        stop.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
