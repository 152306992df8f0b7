"""Jobs as folders, ``jobs/ID`` in the folder for teaching, so that they outlive the service.

``job.json`` is the job, ``data`` the images that it learns from, ``progress.json`` what its process says about its
progress, ``output.txt`` what else it says, and ``cancel`` is there once somebody wants it cancelled. Several processes
may serve one folder: all of them create jobs and ask to cancel them; only the one that holds the lock ``.owner`` runs
jobs and changes ``job.json``. All methods block.
"""

import contextlib
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from moleflow.model.files.atomic import atomic_write
from moleflow.model.files.file_lock import release_lock, try_lock
from moleflow.model.files.regular_file import read_regular_file
from moleflow.service.errors import JobError, UnknownJobError
from moleflow.service.responses.teaching import Job, JobProgress
from moleflow.service.teaching.access import using

__all__ = ["ENDED", "Jobs"]

ENDED = frozenset({"done", "failed", "cancelled"})
"""States that a job does not leave."""

_KEPT = 100
"""Ended jobs that are remembered."""

_MOST_WAITING = 50

_LOCK_SECONDS = 10.0
"""How long to wait while another request creates a job; it may copy images."""

_logger = logging.getLogger(__name__)


class Jobs:
    """The jobs below ``folder``. Raises ``TeachingError`` where it cannot be read or written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owner: int | None = None

    # What any process may do

    def create(self, product: str, epochs: int | None, lay_out: Callable[[Path], tuple[int, int]]) -> Job:
        """A waiting job; ``lay_out`` puts the product's images below a folder, and counts them as
        ``TaughtImages.snapshot``.

        Raises ``JobError``: the product has a job that has not ended, there are too many, or no images.
        """
        with using(self._folder), self._alone():
            active = [job for job in self.all() if job.state not in ENDED]
            for job in active:
                if job.task == product:
                    raise JobError(f"Job {job.id} is {job.state} for {product!r} already; wait for it, or cancel it.")
            if len(active) >= _MOST_WAITING:
                raise JobError(f"{len(active)} jobs are waiting, which is the limit; wait for them, or cancel some.")
            identifier = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
            folder = self.folder_of(identifier)
            try:
                images, given = lay_out(folder / "data")
                if images == given:
                    raise JobError(
                        f"No good images of {product!r} were uploaded; send them to POST /tasks/{product}/images. "
                        "Those of feedback join them."
                    )
                job = Job(
                    id=identifier,
                    task=product,
                    state="waiting",
                    images=images,
                    feedback_images=given,
                    epochs=epochs,
                    created=datetime.now(UTC),
                    started=None,
                    ended=None,
                    attempts=0,
                    detail="",
                    warnings=[],
                    progress=None,
                )
                self._write(job)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return job

    def all(self) -> list[Job]:
        """The jobs, oldest first; without those whose file cannot be read, which the log names."""
        names: list[str] = []
        with using(self._folder), contextlib.suppress(FileNotFoundError):
            names = [path.name for path in self._folder.iterdir()]
        found = (self._read(name) for name in names if not name.startswith("."))
        return sorted((job for job in found if job is not None), key=lambda job: (job.created, job.id))

    def find(self, identifier: str) -> Job:
        """The job with its current progress. Raises ``UnknownJobError``."""
        is_name = identifier and "/" not in identifier and "\0" not in identifier and not identifier.startswith(".")
        job = self._read(identifier) if is_name else None
        if job is None:
            raise UnknownJobError(f"There is no job {identifier[:64]!r}; GET /jobs lists them.")
        return job

    def ask_to_cancel(self, identifier: str) -> None:
        """Ask the owner to cancel a job. Raises ``UnknownJobError``, and ``JobError`` if it has ended."""
        if (job := self.find(identifier)).state in ENDED:
            raise JobError(f"Job {job.id} has ended already; it is {job.state}.")
        with using(self._folder):
            (self.folder_of(identifier) / "cancel").touch()

    def is_to_be_cancelled(self, identifier: str) -> bool:
        return (self.folder_of(identifier) / "cancel").exists()

    def folder_of(self, identifier: str) -> Path:
        return self._folder / identifier

    # What the owner does

    def own(self) -> bool:
        """Become the owner, unless another process is; it stays so until ``disown`` or its end."""
        if self._owner is None:
            with using(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._owner = try_lock(self._folder / ".owner")
        return self._owner is not None

    def disown(self) -> None:
        if self._owner is not None:
            release_lock(self._folder / ".owner", self._owner)
            self._owner = None

    def change(self, job: Job, **values: object) -> Job:
        """The job with these values, written."""
        changed = job.model_copy(update=values)
        with using(self._folder):
            self._write(changed)
        return changed

    def end(self, job: Job, **values: object) -> Job:
        """The job in a final state; its images go, and so do the oldest ended jobs."""
        ended = self.change(job, ended=datetime.now(UTC), **values)
        shutil.rmtree(self.folder_of(job.id) / "data", ignore_errors=True)
        old = [each for each in self.all() if each.state in ENDED]
        for each in old[: max(0, len(old) - _KEPT)]:
            shutil.rmtree(self.folder_of(each.id), ignore_errors=True)
        return ended

    def _read(self, identifier: str) -> Job | None:
        folder = self.folder_of(identifier)
        try:
            job = Job.model_validate_json(read_regular_file(folder / "job.json"))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            _logger.error("The job in %s is left out, since it cannot be read: %s", folder, error)
            return None
        progress = None
        with contextlib.suppress(OSError, ValidationError):
            progress = JobProgress.model_validate_json(read_regular_file(folder / "progress.json"))
        return job.model_copy(update={"progress": progress})

    def _write(self, job: Job) -> None:
        stored = job.model_copy(update={"progress": None})
        with atomic_write(self.folder_of(job.id) / "job.json") as temporary:
            temporary.write_text(stored.model_dump_json(), encoding="utf-8")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other request create a job meanwhile."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path, deadline = self._folder / ".creating", time.monotonic() + _LOCK_SECONDS
        while (handle := try_lock(path)) is None:
            if time.monotonic() > deadline:
                raise JobError("Another job is being created; try again.")
            time.sleep(0.02)
        try:
            yield
        finally:
            release_lock(path, handle)
