"""Reloading: the model is replaced by the current content of its checkpoint file while it serves.

The new model is opened, verified and warmed up beside the old one, in a thread of its own, and takes its place between
two batches. If any of that fails, the old one stays.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from moleflow.model.errors import MoLEFlowError, describe, one_line
from moleflow.service.audit import Audit, Change
from moleflow.service.engine.predictor import Predictor
from moleflow.service.engine.worker import Worker
from moleflow.service.errors import ReloadError
from moleflow.service.metrics import Metrics
from moleflow.service.settings import Settings

__all__ = ["Reload", "ReloadModel", "Reloader"]

ReloadModel = Callable[[Predictor], Predictor]
"""Loads the current content of the checkpoint file, given the model that it is to replace."""

Identity = tuple[int, int, int, int]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reload:
    """The outcome of a reload: ``detail`` says why it failed, and is empty if it did not."""

    at: datetime
    succeeded: bool
    detail: str = ""


class Reloader:
    """Replaces the model of ``worker`` on request, and whenever its file changes. For one event loop."""

    def __init__(self, settings: Settings, worker: Worker, metrics: Metrics, audit: Audit) -> None:
        self._path, self._interval = settings.checkpoint, settings.reload_seconds
        self._timeout = settings.load_timeout_seconds
        self._worker, self._metrics, self._audit = worker, metrics, audit
        self._lock = asyncio.Lock()
        self._load: ReloadModel | None = None
        self._known: Identity | None = None
        self._watching: asyncio.Task[None] | None = None
        self._requested: set[asyncio.Task[None]] = set()
        self.last: Reload | None = None
        """The last reload."""
        self.on_reload: Callable[[Predictor], None] = lambda predictor: None
        """Called with every model that takes another's place."""
        for outcome in ("succeeded", "failed"):
            metrics.reloads.labels(outcome)
        metrics.reload_failed.set_function(lambda: self.last is not None and not self.last.succeeded)

    def start(self, load: ReloadModel | None) -> None:
        """To be called before the worker loads the first model. Without ``load`` there is nothing to reload."""
        self._load = load
        if load is not None and self._interval:
            self._known = _identity(self._path)
            self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Reload whenever the file has changed, once it has stayed the same from one look to the next."""
        try:
            await asyncio.shield(asyncio.wrap_future(self._worker.loaded))
        except Exception:
            return  # the service cannot start; it says so itself
        seen = self._known
        while True:
            await asyncio.sleep(self._interval)
            found = await asyncio.to_thread(_identity, self._path)
            # A file that is missing is about to be replaced, or was moved away; what is loaded can still be served.
            if found not in (None, self._known) and found == seen:
                with contextlib.suppress(ReloadError):
                    await self.reload(Change("changed file"))
            seen = found

    def request(self) -> None:
        """Begin a reload; its outcome is in the log, the metrics and ``last``."""

        async def reload() -> None:
            with contextlib.suppress(MoLEFlowError):
                await self.reload(Change("SIGHUP"))

        task = asyncio.create_task(reload())
        self._requested.add(task)  # the event loop itself keeps no task alive
        task.add_done_callback(self._requested.discard)

    async def reload(self, change: Change) -> Predictor:
        """The model with the file's current content, once it serves. ``change`` is why, for the audit log.

        Raises ``ReloadError`` if that fails, so that the old one still serves, and ``NotReadyError`` before the first
        one is loaded.
        """
        if self._load is None:
            raise ReloadError("The model was not loaded from a file, so there is nothing to reload.")
        async with self._lock:
            old, load = self._worker.predictor, self._load
            # A broken file is not tried again until it changes.
            self._known = await asyncio.to_thread(_identity, self._path)
            try:
                async with asyncio.timeout(self._timeout):
                    new = await asyncio.wrap_future(_in_new_thread(lambda: self._warmed_up(load(old))))
                    await asyncio.wrap_future(self._worker.exchange(new))
            except Exception as error:
                failed = self._failed(error)
                await asyncio.to_thread(self._audit.record_failure, change, old, str(self.last and self.last.detail))
                raise failed from error
            self._metrics.reloads.labels("succeeded").inc()
            self._metrics.keep_products({task.name for task in new.tasks})
            self.last = Reload(datetime.now(UTC), succeeded=True)
            _logger.info("Reloaded %s: %s.", self._path, _difference(old, new))
            self.on_reload(new)
            await asyncio.to_thread(self._audit.record_served, change, old, new)
            return new

    async def stop(self) -> None:
        """Begin no more reloads, and wait for one in progress; may be cancelled."""
        self._load = None
        try:
            async with self._lock:
                pass
        finally:
            if self._watching is not None:
                self._watching.cancel()

    def _warmed_up(self, predictor: Predictor) -> Predictor:
        self._worker.warm_up(predictor)
        return predictor

    def _failed(self, error: Exception) -> ReloadError:
        known = isinstance(error, MoLEFlowError)
        if isinstance(error, TimeoutError):
            reason = f"Loading {self._path.name!r} has not finished within {self._timeout:g} s."
        else:
            # The folder of the checkpoint is for the log only.
            reason = one_line(str(error) if known else describe(error)).replace(str(self._path), self._path.name)
        _logger.error(
            "%s was not reloaded; what was loaded before is still served. %s",
            self._path,
            reason,
            exc_info=None if known else error,
        )
        self._metrics.reloads.labels("failed").inc()
        self.last = Reload(datetime.now(UTC), succeeded=False, detail=reason)
        return ReloadError(f"The checkpoint was not reloaded, and what was loaded before is still served: {reason}")


def _identity(path: Path) -> Identity | None:
    """What changes with a file's content; ``None`` if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _in_new_thread(work: Callable[[], Predictor]) -> "Future[Predictor]":
    """Run ``work`` in a thread that ends with it, and with it the threads that PyTorch starts for each thread."""
    result: Future[Predictor] = Future()
    result.set_running_or_notify_cancel()  # so that nobody can cancel it any more

    def run() -> None:
        try:
            made = work()
        except Exception as error:
            result.set_exception(error)
        except BaseException as error:  # re-raised in the event loop, it would end the service
            failure = RuntimeError(f"loading the model ended with {describe(error)}")
            failure.__cause__ = error
            result.set_exception(failure)
        else:
            result.set_result(made)

    threading.Thread(target=run, name="reload", daemon=True).start()
    return result


def _difference(old: Predictor, new: Predictor) -> str:
    """The products that came and went, for the log."""
    before, after = ([task.name for task in each.tasks] for each in (old, new))
    parts = [f"{len(after)} products", f"digest {new.checkpoint.digest[:12]}"]
    for what, names in (("added", set(after) - set(before)), ("gone", set(before) - set(after))):
        if names:
            parts.append(f"{what}: {', '.join(sorted(names))}")
    return ", ".join(parts)
