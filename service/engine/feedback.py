"""Feedback: images of recent answers, and the folder that keeps those whose true verdict somebody tells.

The folder has the layout of MVTec AD, which training, evaluation and recalibration read: ``PRODUCT/train/good/ID.png``
and ``PRODUCT/test/defect/ID.png``, each file as it was uploaded.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moleflow.model.errors import describe
from moleflow.model.files.atomic import atomic_write
from moleflow.model.files.sizes import bytes_below
from moleflow.model.images.formats import SUFFIX_OF, image_format
from moleflow.service.errors import FeedbackError, UnknownAnswerError
from moleflow.service.settings import Settings

__all__ = ["Feedback", "TrueVerdict"]

TrueVerdict = Literal["good", "defect"]
"""What somebody who looked at the part says."""

_PLACES: dict[TrueVerdict, Path] = {"good": Path("train", "good"), "defect": Path("test", "defect")}


@dataclass(slots=True)
class _Answer:
    """An uploaded image, the product that its answer named, and the file that keeps it, if any."""

    data: bytes
    product: str | None
    file: Path | None = None


class Feedback:
    """Thread-safe. Without the setting ``feedback`` nothing is remembered and nothing kept."""

    def __init__(self, settings: Settings) -> None:
        self._folder, self._most = settings.feedback, int(settings.feedback_bytes)
        self._memory, self._remembered = int(settings.feedback_memory), 0
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._lock = threading.Lock()  # of the answers; the event loop takes it too, so it is never held for long
        self._writing = threading.Lock()  # of the folder
        self._kept: int | None = None  # bytes in the folder, once they were counted

    def remember(self, identifier: str, data: bytes, product: str | None) -> None:
        """Remember the image of an answer; the oldest ones are forgotten when memory is used up."""
        if self._folder is None or len(data) > self._memory:
            return
        with self._lock:
            self._answers[identifier] = _Answer(data, product)
            self._remembered += len(data)
            while self._remembered > self._memory:
                self._remembered -= len(self._answers.popitem(last=False)[1].data)

    def product_of(self, identifier: str) -> str | None:
        """The product that an answer named. Raises ``UnknownAnswerError``."""
        with self._lock:
            return self._find(identifier).product

    def keep(self, identifier: str, verdict: TrueVerdict, product: str) -> Path:
        """Keep the image of an answer as one of ``product``; its file, relative to the folder.

        A second call for the same answer replaces the first. Blocks. Raises ``UnknownAnswerError``, and
        ``FeedbackError`` when the folder is full or cannot be written.
        """
        with self._writing:
            with self._lock:
                answer, folder = self._find(identifier), self._folder
            assert folder is not None  # else there are no answers
            name = identifier + SUFFIX_OF[image_format(answer.data) or "PNG"]
            file = Path(product) / _PLACES[verdict] / name
            if file == answer.file:
                return file
            if self._kept is None:
                self._kept = bytes_below(folder)
            freed = 0 if answer.file is None else len(answer.data)
            if self._kept - freed + len(answer.data) > self._most:
                raise FeedbackError(
                    f"The feedback folder is full ({self._kept:,} of {self._most:,} bytes); move its images away, then "
                    "restart the service, or raise MOLEFLOW_FEEDBACK_BYTES."
                )
            try:
                with atomic_write(folder / file) as temporary:
                    temporary.write_bytes(answer.data)
                self._kept += len(answer.data)
                if answer.file is not None:
                    (folder / answer.file).unlink(missing_ok=True)
                    self._kept -= len(answer.data)
            except OSError as error:
                raise FeedbackError(f"The image cannot be kept ({error.strerror or describe(error)}).") from error
            answer.file = file
            return file

    def _find(self, identifier: str) -> _Answer:
        if self._folder is None:
            raise UnknownAnswerError("No feedback is kept; MOLEFLOW_FEEDBACK (--feedback) names the folder for it.")
        answer = self._answers.get(identifier)
        if answer is None:
            raise UnknownAnswerError(
                f"No recent answer has the id {identifier[:64]!r}: images of the last {self._memory:,} bytes "
                "(MOLEFLOW_FEEDBACK_MEMORY) are remembered, since the start of the service."
            )
        return answer
