"""A dummy model, so that tests of the service need no weights."""

import threading
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE, Calibration, TaskCalibration
from moleflow.model.verdict.results import Candidate, CheckpointInfo, Failure, Finding, Prediction, Refusal, TaskInfo
from moleflow.service.responses.encode import MapEncoding, base64_pieces, describe_map
from moleflow.service.responses.schemas import AnomalyMap

SIZE, CELLS = 64, 8


def calibration(threshold: float) -> Calibration:
    """A calibration with a hundred scores and this threshold at the default rate."""
    shape = Calibration.fit(-np.log((np.arange(100) + 0.5) / 100))
    return Calibration.fit(shape.scores + (threshold - shape.threshold(DEFAULT_FALSE_ALARM_RATE)))


CALIBRATION = TaskCalibration(
    scores=calibration(100.0), peaks=calibration(90.0), grounds=calibration(10.0), distances=calibration(250.0)
)


def task_info(name: str, index: int) -> TaskInfo:
    return TaskInfo(
        name=name,
        index=index,
        learned_at=datetime(2026, 1, 1, tzinfo=UTC),
        train_images=20,
        held_out_images=5,
        folds=1,
        epochs=3,
        seed=0,
        false_alarm_rate=0.01,
        threshold=100.0,
        pixel_threshold=90.0,
        parameters=1000,
        profile_sha256="ef" * 32,
        sha256="ab" * 32,
    )


class DummyDetector:
    """The brightest channel of an image decides its product, and the brightness of a patch its score.

    A black image shows no known product. A white image makes the whole batch fail.
    """

    checkpoint = CheckpointInfo("dummy.safetensors", "cd" * 32)
    preprocessing = Preprocessing(image_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    device, precision = "cpu", "fp32"

    def __init__(self, names: Sequence[str] = ("red", "green", "blue")) -> None:
        self.tasks = tuple(task_info(name, index) for index, name in enumerate(names))
        self.batches: list[int] = []  # sizes, in order
        self.warmed_up: list[int] = []
        self.gate = threading.Event()  # while cleared, the model blocks
        self.gate.set()
        self.entered = threading.Event()  # set when a batch has reached the model

    def predict(
        self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None
    ) -> list[Finding | Failure]:
        self.batches.append(len(images))
        self.entered.set()
        assert self.gate.wait(120)
        if any(image.min() == 255 for image in images):
            raise ArithmeticError("the dummy fails on white")
        return [self._judge(image, task) for image, task in zip(images, tasks or [None] * len(images), strict=True)]

    def _judge(self, image: np.ndarray, task: str | None) -> Finding:
        if image.dtype == np.uint16:
            image = (image // 257).astype(np.uint8)
        distances = 255 - image.mean((0, 1))[: len(self.tasks)]
        found = [Candidate(info.name, info.index, float(distances[info.index]), 0.5, 0.1) for info in self.tasks]
        nearest = tuple(sorted(found, key=lambda candidate: candidate.distance))
        if task is None and image.max() == 0:
            return Refusal(nearest)
        chosen = nearest[0] if task is None else next(c for c in found if c.name == task)
        step = SIZE // CELLS
        grid = image.astype(np.float32).mean(2).reshape(CELLS, step, CELLS, step).mean((1, 3)) - 50
        return Prediction(nearest, chosen, float(np.sort(grid.ravel())[-3:].mean()), grid, SIZE, CALIBRATION)

    def good_scores(self, index: int) -> np.ndarray:
        return CALIBRATION.scores.scores

    def free_memory(self) -> None:
        pass

    def warm_up(self, batch_size: int = 1) -> None:
        self.warmed_up.append(batch_size)


def encode_map(values: np.ndarray, encoding: MapEncoding) -> AnomalyMap:
    """A map's entry in the JSON response, with its data."""
    described, data = describe_map(values, encoding)
    return described.model_copy(update={"data": b"".join(base64_pieces(data)).decode("ascii")})
