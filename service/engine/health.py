"""The health of the service, as reported by ``/health/ready`` and ``/health/live``.

*Ready* means that the next image will be processed. *Live* means that the service can become ready again without a
restart. The inference thread records what it is doing and how that ended; the event loop checks on it at regular
intervals. Attributes are only ever replaced as a whole, so no lock is needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from moleflow.model.errors import ExpertError, describe
from moleflow.model.runtime.faults import is_device_lost
from moleflow.model.verdict.results import Prediction
from moleflow.service.engine.inference import Outcome

__all__ = ["Health"]

CHECKS_PER_TIMEOUT = 20
"""How often the event loop checks on a batch before it times out."""

HANG_FACTOR = 2
"""A batch that takes this many times its timeout is taken to hang for ever."""


@dataclass(slots=True)
class _Work:
    """What the inference thread is doing, and how many checks it has taken.

    Time is counted in checks, not by the clock, so that a process that was suspended does not seem to hang.
    """

    what: str
    timeout: float
    hang_factor: int
    checks: int = 0


class Health:
    """The state of the model and its thread.

    Args:
        batch_timeout_seconds: timeout for one batch.
        load_timeout_seconds: timeout for loading and warming up the model.
    """

    def __init__(self, batch_timeout_seconds: float, load_timeout_seconds: float) -> None:
        self._batch_timeout, self._load_timeout = batch_timeout_seconds, load_timeout_seconds
        self.check_interval_seconds = batch_timeout_seconds / CHECKS_PER_TIMEOUT
        self._work: _Work | None = None
        self._loaded = False
        self._beyond_repair: str | None = None
        self._failing: str | None = None
        self._not_decoding: str | None = None
        self._damaged: Mapping[str, str] = {}

    # --- called by the inference thread

    def loading(self) -> AbstractContextManager[None]:
        """The block loads and warms up the model."""
        return self._at(_Work("Loading the model", self._load_timeout, 1))

    def working(self) -> AbstractContextManager[None]:
        """The block processes a batch."""
        return self._at(_Work("The last batch", self._batch_timeout, HANG_FACTOR))

    @contextmanager
    def _at(self, work: _Work) -> Iterator[None]:
        self._work = work
        try:
            yield
        finally:
            self._work = None

    def loaded(self) -> None:
        self._loaded = True

    def replaced(self) -> None:
        """Another model serves from now on, which works."""
        self._damaged, self._failing = {}, None

    def load_failed(self) -> None:
        """This process will never have a model."""
        self._beyond_repair = "The model could not be loaded; see the log of the service."

    def thread_ended(self) -> None:
        self._beyond_repair = (
            self._beyond_repair or "The inference thread has died; the service can no longer process images."
        )

    def record_failure(self, error: BaseException) -> None:
        """A model call failed, perhaps because the device is lost."""
        if is_device_lost(error):
            self._beyond_repair = f"The device is lost ({describe(error)})."

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Record which experts are damaged and which work."""
        failed = {each.task: each.reason for each in outcomes if isinstance(each, ExpertError)}
        intact = {each.task.name for each in outcomes if isinstance(each, Prediction)} - failed.keys()
        if failed.keys() - self._damaged.keys() or intact & self._damaged.keys():
            self._damaged = {name: why for name, why in self._damaged.items() if name not in intact} | failed
        if any(not isinstance(each, Exception) for each in outcomes):
            self._failing = None

    def record_self_test(self, failure: str | None) -> None:
        """A self-test ended: ``failure`` says why the model does not work, ``None`` that it does."""
        self._failing = failure

    # --- called by the event loop

    def record_decoder_test(self, failure: str | None) -> None:
        """A test of the decoders ended: ``failure`` says why they do not work, ``None`` that they do."""
        self._not_decoding = failure

    # --- called by any thread

    @property
    def damaged(self) -> tuple[str, ...]:
        """The products whose experts are damaged, sorted by name."""
        return tuple(sorted(self._damaged))

    @property
    def is_failing(self) -> bool:
        """Whether the model failed the last self-test."""
        return self._failing is not None

    @property
    def is_beyond_repair(self) -> bool:
        """Whether trying the model again is pointless."""
        return self._beyond_repair is not None

    def check(self) -> None:
        """To be called every ``check_interval_seconds`` by one caller."""
        work = self._work
        if work is not None:
            work.checks += 1

    @property
    def busy_seconds(self) -> float:
        """How long the current batch, or loading, has taken so far."""
        work = self._work
        return 0.0 if work is None else work.checks * self.check_interval_seconds

    def stalled(self) -> str | None:
        """Message that the current batch, or loading, exceeds its timeout; ``None`` if not."""
        work = self._work
        if work is None or work.checks * self.check_interval_seconds < work.timeout:
            return None
        return f"{work.what} has not finished within {work.timeout:g} s."

    def why_not_live(self) -> str | None:
        """Why the service must be restarted; ``None`` if it need not be."""
        if self._beyond_repair is not None:
            return self._beyond_repair
        work = self._work
        if work is not None and work.checks * self.check_interval_seconds >= work.timeout * work.hang_factor:
            return f"{work.what} has not finished within {work.timeout * work.hang_factor:g} s."
        return None

    def why_not_predicting(self) -> str | None:
        """Why the model cannot process images; ``None`` if it can."""
        if (reason := self.why_not_live() or self.stalled()) is not None:
            return reason
        if not self._loaded:
            return "The model is loading; try again in a few seconds."
        if self._failing is not None:
            return f"The model fails ({self._failing}). Self-tests continue; try again later, or another instance."
        return None

    def why_not_ready(self) -> str | None:
        """Why the service accepts no images; ``None`` if it does."""
        if (reason := self.why_not_predicting()) is not None or self._not_decoding is None:
            return reason
        return f"No image can be decoded ({self._not_decoding}). Tests continue; try again later, or another instance."
