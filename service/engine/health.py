"""Whether the service is well, and if not, why: what ``/health/ready`` and ``/health/live`` answer.

*Ready* says that the next image will be judged. *Live* says that the service can get ready again by itself: it fails
when nothing but a new process helps. The inference thread tells here what it is at and how that ended; the event loop
looks at it at regular intervals. Every attribute is replaced as a whole, so neither needs a lock.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from moleflow.model.errors import ExpertError, describe
from moleflow.model.runtime.faults import is_device_lost
from moleflow.model.verdict.results import Prediction
from moleflow.service.engine.inference import Outcome

__all__ = ["Health"]

LOOKS = 20
"""How often the event loop looks at a batch before its time is up."""

HOPELESS = 2
"""A batch that takes this many times its limit will not end: only a restart helps."""


@dataclass(slots=True)
class _Work:
    """What the inference thread is at, and how often the loop has found it at that.

    Time is counted in looks and not by the clock: a process that was suspended meanwhile did not hang.
    """

    what: str
    limit_seconds: float
    hopeless: int
    looks: int = 0


class Health:
    """What is known of the model and its thread.

    Args:
        batch_timeout_seconds: how long one batch may take.
        load_timeout_seconds: how long loading and warming up may take.
    """

    def __init__(self, batch_timeout_seconds: float, load_timeout_seconds: float) -> None:
        self._batch_timeout, self._load_timeout = batch_timeout_seconds, load_timeout_seconds
        self.look_seconds = batch_timeout_seconds / LOOKS
        self._work: _Work | None = None
        self._loaded = False
        self._beyond_repair: str | None = None
        self._failing: str | None = None
        self._not_decoding: str | None = None
        self._damaged: Mapping[str, str] = {}

    # --- told by the inference thread

    @contextmanager
    def loading(self) -> Iterator[None]:
        """The model is being loaded and warmed up meanwhile."""
        self._work = _Work("The loading of the model", self._load_timeout, 1)
        try:
            yield
        finally:
            self._work = None

    @contextmanager
    def working(self) -> Iterator[None]:
        """The model is at a batch meanwhile."""
        self._work = _Work("The model's last batch", self._batch_timeout, HOPELESS)
        try:
            yield
        finally:
            self._work = None

    def loaded(self) -> None:
        """The model is loaded and warmed up."""
        self._loaded = True

    def load_failed(self) -> None:
        """There will be no model in this process."""
        self._beyond_repair = "The model could not be loaded, and the service is of no use; its log says why."

    def thread_ended(self) -> None:
        """Nobody judges images any more."""
        self._beyond_repair = self._beyond_repair or "The inference thread ended, and no image can be judged any more."

    def failed(self, error: BaseException) -> None:
        """A call of the model failed; notes it when that is for good."""
        if is_device_lost(error):
            self._beyond_repair = f"The device is lost to this process ({describe(error)})."

    def note(self, outcomes: Sequence[Outcome]) -> None:
        """Keep in mind whose experts are damaged, and whose work."""
        told = {each.task: each.reason for each in outcomes if isinstance(each, ExpertError)}
        sound = {each.task.name for each in outcomes if isinstance(each, Prediction)} - told.keys()
        if told.keys() - self._damaged.keys() or sound & self._damaged.keys():
            self._damaged = {name: why for name, why in self._damaged.items() if name not in sound} | told
        if any(not isinstance(each, Exception) for each in outcomes):
            self._failing = None

    def tested(self, said: str | None) -> None:
        """A self-test ended: ``said`` is why the model does not work, ``None`` if it does."""
        self._failing = said

    # --- told by the event loop

    def decoding_tested(self, said: str | None) -> None:
        """A good image was to be decoded: ``said`` is why it could not be, ``None`` if it was."""
        self._not_decoding = said

    # --- asked by anybody

    @property
    def damaged(self) -> tuple[str, ...]:
        """The products whose experts were found damaged, in the order of their names."""
        return tuple(sorted(self._damaged))

    @property
    def is_failing(self) -> bool:
        """Whether the model failed last, on the self-test too."""
        return self._failing is not None

    @property
    def is_beyond_repair(self) -> bool:
        """Whether it makes no sense to try the model again."""
        return self._beyond_repair is not None

    def look(self) -> None:
        """To be called every ``look_seconds`` by one caller."""
        work = self._work
        if work is not None:
            work.looks += 1

    @property
    def busy_seconds(self) -> float:
        """How long the model has been at what it does now."""
        work = self._work
        return 0.0 if work is None else work.looks * self.look_seconds

    def stalled(self) -> str | None:
        """That a batch, or the loading, has taken longer than it may; ``None`` as long as that is not so."""
        work = self._work
        if work is None or work.looks * self.look_seconds < work.limit_seconds:
            return None
        return f"{work.what} has not ended within {work.limit_seconds:g} s."

    def why_not_live(self) -> str | None:
        """Why only a restart helps; ``None`` as long as that is not so."""
        if self._beyond_repair is not None:
            return self._beyond_repair
        work = self._work
        if work is not None and work.looks * self.look_seconds >= work.limit_seconds * work.hopeless:
            return f"{work.what} has not ended within {work.limit_seconds * work.hopeless:g} s."
        return None

    def why_not_judging(self) -> str | None:
        """Why no image is judged that has come as far as the model; ``None`` when it is."""
        if (reason := self.why_not_live() or self.stalled()) is not None:
            return reason
        if not self._loaded:
            return "The model is being loaded; try again in a few seconds."
        if self._failing is not None:
            return f"The model fails ({self._failing}). It is tested again and again; try later, or another instance."
        return None

    def why_not_ready(self) -> str | None:
        """Why no images are taken; ``None`` when they are."""
        if (reason := self.why_not_judging()) is not None or self._not_decoding is None:
            return reason
        return f"No image can be decoded ({self._not_decoding}). That is tried again; try later, or another instance."
