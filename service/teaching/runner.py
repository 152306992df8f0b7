"""The owner of the jobs: runs one at a time, and takes up those that an earlier owner left."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from moleflow.model.errors import CheckpointInUseError, MoLEFlowError, describe
from moleflow.model.files.exclusive import exclusive
from moleflow.service.errors import TeachingError
from moleflow.service.responses.teaching import Job
from moleflow.service.settings import Settings
from moleflow.service.teaching.jobs import ENDED, Jobs
from moleflow.service.teaching.process import TrainingProcess, train_command

__all__ = ["MAX_ATTEMPTS", "Runner"]

MAX_ATTEMPTS = 3
"""How often a job's process is started, if something kills it: memory may run out again."""

_LOOK_SECONDS = 1.0
"""Time between two looks for new jobs; those of this process are noticed at once."""

_LOOK_AGAIN_SECONDS = 10.0
"""The same while the folder cannot be used."""

_POLL_SECONDS = 0.2
"""Time between two looks at a running process."""

_logger = logging.getLogger(__name__)


class Runner:
    """Runs the waiting jobs of ``jobs`` in one event loop, unless another process does.

    ``is_learned`` tells whether the checkpoint has a product, and blocks; ``serve_it`` has the changed checkpoint
    served.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        is_learned: Callable[[str], bool],
        serve_it: Callable[[], Awaitable[object]],
    ) -> None:
        self._settings, self._jobs = settings, jobs
        self._is_learned, self._serve_it = is_learned, serve_it
        self._wake, self._is_stopping = asyncio.Event(), False
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to run jobs."""
        self._running = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Look for new jobs, or for one to cancel, at once."""
        self._wake.set()

    async def stop(self) -> None:
        """End the running process; the next owner continues its job."""
        self._is_stopping = True
        self.wake()
        if self._running is not None:
            await self._running
        self._jobs.disown()

    async def _run(self) -> None:
        while not self._is_stopping:
            seconds = _LOOK_SECONDS
            try:
                if await asyncio.to_thread(self._jobs.own) and await self._work():
                    continue
            except TeachingError:  # logged; the next request is told
                seconds = _LOOK_AGAIN_SECONDS
            except Exception:
                _logger.exception("Looking for jobs failed; they are looked for again.")
                seconds = _LOOK_AGAIN_SECONDS
            await self._wait(seconds)

    async def _work(self) -> bool:
        """Run the oldest job that is not waiting for another writer; whether there was one."""
        for job in await asyncio.to_thread(self._jobs.all):
            if job.state in ENDED or self._is_stopping:
                continue
            if self._jobs.is_to_be_cancelled(job.id):
                await self._end(job, state="cancelled", detail="It was cancelled.")
                continue
            if job.attempts >= MAX_ATTEMPTS:
                await self._end(job, state="failed", detail=f"It was interrupted {job.attempts} times. {job.detail}")
                continue
            if (why := await asyncio.to_thread(self._why_not_now)) is not None:
                if job.detail != why or job.state != "waiting":
                    await asyncio.to_thread(self._jobs.change, job, state="waiting", detail=why)
                return False
            await self._learn(job)
            return True
        return False

    def _why_not_now(self) -> str | None:
        """Why no training can begin at the moment: another process writes to the checkpoint."""
        try:
            with exclusive(self._settings.checkpoint):
                return None
        except CheckpointInUseError:
            return "It waits until another process has written to the checkpoint."
        except MoLEFlowError:
            return None  # the training says what is wrong

    async def _learn(self, job: Job) -> None:
        folder = self._jobs.folder_of(job.id)
        try:
            replace = await asyncio.to_thread(self._is_learned, job.task)
            job = await asyncio.to_thread(
                lambda: self._jobs.change(
                    job, state="running", started=datetime.now(UTC), attempts=job.attempts + 1, detail=""
                )
            )
            command = train_command(self._settings, job, folder, replace=replace)
            # Not in a thread: the process ends with the thread that started it.
            process = TrainingProcess(command, folder, self._settings.teaching_threads)
        except (MoLEFlowError, OSError) as error:
            await self._end(job, state="failed", detail=f"It could not be started ({self._public(error, folder)}).")
            return
        _logger.info("Job %s learns %r from %d images.", job.id, job.task, job.images)
        try:
            while process.status is None and not self._is_stopping and not self._jobs.is_to_be_cancelled(job.id):
                await self._wait(_POLL_SECONDS)
        finally:
            status = process.status
            if status is None:
                await asyncio.to_thread(process.stop)
        said, warnings = await asyncio.to_thread(process.said)
        job = job.model_copy(update={"warnings": [self._public(each, folder) for each in warnings]})
        await self._judge(job, status, self._public(said, folder))

    async def _judge(self, job: Job, status: int | None, said: str) -> None:
        """What becomes of a job whose process ended with ``status``, or was stopped here."""
        if status == 0:
            await self._end(job, state="done", detail=await self._served())
        elif self._jobs.is_to_be_cancelled(job.id):
            await self._end(job, state="cancelled", detail="It was cancelled.")
        elif status is None:
            detail = "The service stopped; it continues where it was."
            await asyncio.to_thread(self._jobs.change, job, state="waiting", attempts=job.attempts - 1, detail=detail)
        elif TrainingProcess.is_killed(status):
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"status {status}"
            detail = f"Its process was killed ({name}); perhaps memory ran out."
            if job.attempts < MAX_ATTEMPTS:
                again = f"{detail} It continues where it was, attempt {job.attempts + 1} of {MAX_ATTEMPTS}."
                await asyncio.to_thread(self._jobs.change, job, state="waiting", detail=again)
            else:
                await self._end(job, state="failed", detail=f"{detail} That happened {job.attempts} times.")
        else:
            await self._end(job, state="failed", detail=said)

    async def _served(self) -> str:
        """Have the result served; what the job says then."""
        try:
            await self._serve_it()
        except Exception as error:
            known = isinstance(error, MoLEFlowError)
            return f"It was learned, but is not served yet. {error if known else describe(error)}"
        return "It was learned, and is served."

    async def _end(self, job: Job, **values: object) -> None:
        ended = await asyncio.to_thread(lambda: self._jobs.end(job, **values))
        _logger.info("Job %s is %s: %s", ended.id, ended.state, ended.detail)

    def _public(self, said: object, folder: Path) -> str:
        """A message without the folders of this machine."""
        text, checkpoint = str(said), self._settings.checkpoint
        for path in (f"{folder / 'data'}/", f"{folder}/", f"{checkpoint.resolve().parent}/", f"{checkpoint.parent}/"):
            text = text.replace(path, "") if len(path) > len("./") else text
        return text

    async def _wait(self, seconds: float) -> None:
        """Until somebody wakes this, or a time has passed."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
