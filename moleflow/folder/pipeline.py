"""From image files to rows: reading, decoding and rendering overlap with the model's work on the batch before."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from moleflow.folder.rows import FileState
from moleflow.image_files import ImageFile
from moleflow.model.errors import MoLEFlowError
from moleflow.model.files.file_names import as_text
from moleflow.model.files.outputs import reason
from moleflow.model.files.regular_file import read_regular_file
from moleflow.model.images.decode import DecodedImage
from moleflow.model.runtime.threads import helper_threads
from moleflow.model.verdict.results import Prediction
from moleflow.service.decoding.pool import DecoderPool
from moleflow.service.engine.inference import Outcome, judge
from moleflow.service.problems import problem_type
from moleflow.service.responses.render import Job, ResponseFormat, render

if TYPE_CHECKING:
    from moleflow.model.loading import AnyDetector

__all__ = ["BATCH_SIZE", "MAX_FILE_BYTES", "UNREADABLE", "Pipeline", "state_of"]

BATCH_SIZE = 8
"""Images per batch, as in the service."""

MAX_FILE_BYTES = 2**30
"""Maximum file size: more than any image within the pixel limit takes in any format."""

UNREADABLE = "urn:moleflow:problem:unreadable-file"
"""Type of the error of a file whose bytes could not be read."""

_DECODE_SECONDS = 60.0
"""CPU time limit for decoding one image. The service's limit protects other clients; here a slow image only costs its
own time."""

SaveOverlay = Callable[[ImageFile, Callable[[], bytes]], None]
"""Saves the overlay of an image; the second argument renders it as PNG."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A file that was read and decoded, or why not; ``data`` is empty unless an overlay needs it."""

    file: ImageFile
    state: FileState
    data: bytes = b""
    decoded: DecodedImage | None = None
    error: Exception | None = None
    seconds: float = 0.0


def state_of(path: Path) -> FileState:
    """The state of a file now."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return FileState(None, None)
    return FileState(found.st_size, found.st_mtime)


class Pipeline:
    """Makes one row of each image, in order. At most four batches are in memory, whatever the number of files.

    ``save_overlay`` is called in a thread for each image with a map, before its row is made.
    """

    def __init__(
        self, detector: "AnyDetector", *, task: str | None, max_pixels: int, save_overlay: SaveOverlay | None = None
    ) -> None:
        self._detector, self._task, self._save_overlay = detector, task, save_overlay
        self._workers = helper_threads()
        self._decoders = DecoderPool(self._workers, seconds=_DECODE_SECONDS, max_pixels=max_pixels)

    def rows(self, files: Iterable[ImageFile | None]) -> Iterator[dict[str, Any]]:
        """The rows of ``files``; where it yields ``None``, all rows of the files before come at once."""
        reading: deque[Future[_Read]] = deque()
        finishing: deque[Future[dict[str, Any]]] = deque()
        source, more = iter(files), True
        with closing(self._decoders), ThreadPoolExecutor(self._workers) as pool:
            self._decoders.start()
            try:
                while more or reading or finishing:
                    paused = False
                    while more and not paused and len(reading) < 2 * BATCH_SIZE:
                        try:
                            file = next(source)
                        except StopIteration:
                            more = False
                            break
                        paused = file is None
                        if file is not None:
                            reading.append(pool.submit(self._read, file))
                    while reading and (paused or not more or len(reading) >= 2 * BATCH_SIZE):
                        batch = [reading.popleft().result() for _ in range(min(BATCH_SIZE, len(reading)))]
                        finishing.extend(pool.submit(self._row, *each) for each in self._judge(batch))
                        while len(finishing) > BATCH_SIZE:
                            yield finishing.popleft().result()
                    while finishing and (paused or not more):
                        yield finishing.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, file: ImageFile) -> _Read:
        state = state_of(file.path)  # before reading: a file that changes meanwhile is done again next time
        started = perf_counter()
        try:
            data = read_regular_file(file.path, MAX_FILE_BYTES)
            decoded = self._decoders.decode(data, self._detector.preprocessing.image_size)
        except (OSError, MoLEFlowError) as error:
            return _Read(file, state, error=error)
        kept = b"" if self._save_overlay is None else data
        return _Read(file, state, kept, decoded, seconds=perf_counter() - started)

    def _judge(self, batch: list[_Read]) -> Iterator[tuple[_Read, Outcome | None, float]]:
        """Run the model on what could be decoded: each file with its outcome and the seconds of the batch."""
        images = [each.decoded.pixels for each in batch if each.decoded is not None]
        started = perf_counter()
        outcomes = iter(judge(self._detector, images, [self._task] * len(images)))
        seconds = perf_counter() - started
        return ((each, None if each.decoded is None else next(outcomes), seconds) for each in batch)

    def _row(self, read: _Read, outcome: Outcome | None, seconds: float) -> dict[str, Any]:
        head = {
            "path": as_text(read.file.path),
            "file": {"size": read.state.size, "modified": read.state.modified},
        }
        error = read.error or (outcome if isinstance(outcome, Exception) else None)
        if error is not None:
            checkpoint = self._detector.checkpoint
            named = {"name": checkpoint.name, "digest": checkpoint.digest}
            return head | {"error": _described(error), "checkpoint": named}
        assert read.decoded is not None
        assert outcome is not None and not isinstance(outcome, Exception)
        job = Job(
            data=read.data,
            width=read.decoded.width,
            height=read.decoded.height,
            finding=outcome,
            checkpoint=self._detector.checkpoint,
            forced=self._task is not None,
            decode_seconds=read.seconds,
            queue_seconds=0.0,
            inference_seconds=seconds,
        )
        if self._save_overlay is not None and isinstance(outcome, Prediction):
            png = ResponseFormat(media_type="image/png")
            self._save_overlay(read.file, lambda: render(job, png, self._decoders.open_rgb).content)
        return head | {"error": None} | json.loads(render(job, ResponseFormat(map_encoding="none")).content)


def _described(error: Exception) -> dict[str, str]:
    if isinstance(error, OSError):
        return {"type": UNREADABLE, "detail": f"The file cannot be read: {reason(error)}."}
    return {"type": problem_type(error), "detail": str(error)}
