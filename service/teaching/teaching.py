"""Teaching as a whole: what may be taught, and its images and jobs."""

import asyncio
import functools
import importlib.util
from collections.abc import Awaitable, Callable
from pathlib import Path

from moleflow.model.errors import CheckpointError
from moleflow.model.exported.folder import is_exported
from moleflow.model.names import product_name, same_name
from moleflow.model.verdict.records import TaskInfo
from moleflow.service.errors import JobError, ProductNameError, TeachingOffError
from moleflow.service.responses.teaching import Job
from moleflow.service.settings import Settings
from moleflow.service.teaching.images import TaughtImages
from moleflow.service.teaching.jobs import ENDED, Jobs
from moleflow.service.teaching.runner import Runner

__all__ = ["Teaching"]

_NEEDED = ("torch", "timm")
"""What learning needs beside what serving an exported folder does."""

_CANCEL_SECONDS = 10.0
"""How long to wait until a job has been cancelled."""


class Teaching:
    """The good images of products and the jobs that learn them, in the folder that the setting ``teaching`` names.

    ``serve_it`` has a changed checkpoint served. Without the setting ``images`` and ``jobs`` raise
    ``TeachingOffError``. All methods must be called from one event loop.
    """

    def __init__(self, settings: Settings, serve_it: Callable[[], Awaitable[object]]) -> None:
        self._settings = settings
        folder = settings.teaching
        self._images = None if folder is None else TaughtImages(folder / "images", settings)
        self._jobs = None if folder is None else Jobs(folder / "jobs")
        self._runner = None
        if self._jobs is not None:
            self._runner = Runner(settings, self._jobs, self._is_learned, serve_it)
        self.checking = asyncio.Lock()
        """Held while an image is decoded to check it: one at a time, so that predictions keep their decoders."""

    @property
    def is_on(self) -> bool:
        """Whether products can be taught here."""
        return self._images is not None and self._why_never is None

    @property
    def images(self) -> TaughtImages:
        """The good images. Raises ``TeachingOffError``."""
        if self._images is None:
            raise _off()
        return self._images

    @property
    def jobs(self) -> Jobs:
        """The jobs. Raises ``TeachingOffError``."""
        if self._jobs is None:
            raise _off()
        return self._jobs

    def start(self) -> None:
        """Take up the jobs that an earlier service left, and run those that come, unless another process does."""
        if self._runner is not None and self._why_never is None:
            self._runner.start()

    async def stop(self) -> None:
        """End a running job's process; the next service continues it."""
        if self._runner is not None:
            await self._runner.stop()

    def check(self) -> None:
        """Raise ``TeachingOffError``, or ``JobError`` where this service cannot learn anything."""
        if self._images is None:
            raise _off()
        if (why := self._why_never) is not None:
            raise JobError(why)

    def name_of(self, name: str) -> str:
        """A product's name in normal form. Raises ``ProductNameError`` for one that cannot be taught."""
        try:
            wanted = product_name(name)
        except ValueError as error:
            raise ProductNameError(f"{name[:64]!r} cannot be a product's name: {error}.") from error
        if wanted.startswith("."):
            raise ProductNameError(f"The folder of {wanted!r} would be hidden; choose a name without the dot.")
        return wanted

    async def learn(self, name: str, epochs: int | None = None) -> Job:
        """A new job that learns a product from its good images, or learns it again.

        Raises ``TeachingOffError``, ``TeachingError``, and ``JobError``, which says why it cannot be learned.
        """
        self.check()
        product, images, jobs = self.name_of(name), self.images, self.jobs

        def create() -> Job:
            try:
                self._check_learnable(product)
            except CheckpointError as error:
                path = self._settings.checkpoint
                raise JobError(str(error).replace(str(path), path.name)) from error
            return jobs.create(product, epochs, lambda folder: images.snapshot(product, folder))

        job = await asyncio.to_thread(create)
        self._wake()
        return job

    async def cancel(self, identifier: str) -> Job:
        """Cancel a job; as it is then. Raises ``UnknownJobError``, and ``JobError`` if it has ended."""
        await asyncio.to_thread(self.jobs.ask_to_cancel, identifier)
        self._wake()
        job = await asyncio.to_thread(self.jobs.find, identifier)
        deadline = asyncio.get_running_loop().time() + _CANCEL_SECONDS
        while job.state not in ENDED and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
            job = await asyncio.to_thread(self.jobs.find, identifier)
        return job

    def check_free(self, name: str, *, renaming_to: str | None = None) -> None:
        """Raise ``JobError`` while a job learns a product of one of these names, or waits to. Blocks."""
        for job in [] if self._jobs is None else self._jobs.all():
            if job.state in ENDED:
                continue
            if job.state == "running":
                raise JobError(f"Job {job.id} is learning {job.task!r}; wait for it, or cancel it.")
            if same_name(job.task, name) or (renaming_to is not None and same_name(job.task, renaming_to)):
                raise JobError(f"Job {job.id} waits to learn {job.task!r}; wait for it, or cancel it.")

    def rename(self, old: str, new: str) -> None:
        """Let the good images of a product that was renamed follow it. Blocks."""
        if self._images is not None:
            self._images.rename(self.name_of(old), self.name_of(new))

    def _wake(self) -> None:
        if self._runner is not None:
            self._runner.wake()

    @functools.cached_property
    def _why_never(self) -> str | None:
        """Why this service learns nothing, if so."""
        if is_exported(self._settings.checkpoint):
            return (
                "An exported folder is served, which learns nothing; teach where its checkpoint is, and export that "
                "again."
            )
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            return f"Learning needs PyTorch ({missing[0]} is not installed here): pip install 'moleflow[torch]'."
        return None

    def _is_learned(self, product: str) -> bool:
        return any(task.name == product for task in _products(self._settings.checkpoint)[0])

    def _check_learnable(self, product: str) -> None:
        """Raise ``JobError`` for a product that is learned and cannot be learned again."""
        known, sharing = _products(self._settings.checkpoint)
        found = next((task for task in known if task.name == product), None)
        if found is None:
            return
        if found.hidden:
            raise JobError(f"{product!r} is hidden; show it first (PATCH /tasks/{product}), or choose another name.")
        if sharing == "sequential":
            raise JobError("The base of this checkpoint learns with every product, so none can be learned again.")
        if found.index == 0 and len(known) > 1 and sharing != "separated":
            raise JobError(
                f"{product!r} was learned first, and with it the base that all others need, so learning it again would "
                "change every other product. Teach it under another name and hide this one, or train a new checkpoint."
            )


def _products(checkpoint: Path) -> tuple[tuple[TaskInfo, ...], str]:
    """The products of a checkpoint file, hidden ones too, and how they share a base."""
    from moleflow.model.store.checkpoint import Checkpoint  # needs PyTorch

    header = Checkpoint.open(checkpoint).header
    return header.tasks, header.config.flow.sharing


def _off() -> TeachingOffError:
    return TeachingOffError("This service is not taught; MOLEFLOW_TEACHING (--teaching) names the folder for it.")
