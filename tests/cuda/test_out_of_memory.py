"""A batch that exceeds a GPU's memory is split until its parts fit, and what fits later is not affected."""

import gc
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from agreement import relative_error
from device_cases import Case, MakeCase

from moleflow.model.detector import Detector
from moleflow.model.runtime.faults import is_out_of_memory
from moleflow.model.verdict.results import Prediction

COUNT = 64
"""Images of a batch that exceeds the memory."""

ON_A_CPU = 5
"""Images that a CPU, in place of a GPU, pretends to have memory for."""


@pytest.fixture
def case(make_case: MakeCase) -> Case:
    """Images of a real size: of tiny ones, even many take no memory worth mentioning."""
    return make_case("wide main")


@pytest.fixture
def detector(case: Case, device: torch.device) -> Iterator[Detector]:
    """One of its own, whose memory is given back."""
    made = Detector(case.checkpoint, device=str(device), precision="fp32", unknown_limit=0)
    yield made
    made.free_memory()


def reserved(detector: Detector, work: Callable[[], object]) -> int:
    """The most memory that PyTorch holds while ``detector`` does some work, starting with nothing to spare."""
    detector.free_memory()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(detector.device)
    work()
    torch.cuda.synchronize(detector.device)
    return torch.cuda.max_memory_reserved(detector.device)


@pytest.fixture
def make_short(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Iterator[Callable]:
    """Leaves a detector memory for single images but not for all at once."""

    def on_cuda(detector: Detector, images: Sequence[np.ndarray]) -> None:
        before = reserved(detector, lambda: None)  # by the detectors of other tests
        few = reserved(detector, lambda: [detector.predict([image]) for image in images[:9]])
        many = reserved(detector, lambda: detector.predict(images))
        assert many - before > 1.2 * (few - before), f"{many} bytes for all images, {few} for each, {before} before"
        detector.free_memory()
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((few + many) / 2 / total)

    def on_cpu(detector: Detector, images: Sequence[np.ndarray]) -> None:
        plain = detector.predict

        def predict(images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None) -> list:
            if len(images) > ON_A_CPU:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
            return plain(images, tasks)

        monkeypatch.setattr(detector, "predict", predict)

    yield on_cuda if device.type == "cuda" else on_cpu
    monkeypatch.undo()
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_every_image_of_a_batch_that_exceeds_the_memory_gets_its_finding(
    case: Case, detector: Detector, make_short: Callable, device: torch.device
) -> None:
    from moleflow.service.engine.inference import judge

    count = COUNT if device.type == "cuda" else ON_A_CPU + 1
    rows = [number % len(case.images) for number in range(count)]
    images = [case.images[row] for row in rows]
    failures: list[tuple[BaseException, int]] = []

    def note(error: BaseException, size: int) -> bool:
        failures.append((error.with_traceback(None), size))
        return True

    make_short(detector, images)
    outcomes = judge(detector, images, [None] * count, on_failure=note)
    assert failures[0][1] == count  # all at once do not fit
    assert all(is_out_of_memory(error) for error, _ in failures)
    for row, found in zip(rows, outcomes, strict=True):
        assert isinstance(found, Prediction)
        expected = case.expected.predictions[row]
        assert found.task.name == expected.task.name
        assert found.score == pytest.approx(expected.score, rel=1e-3)
        assert relative_error(found.grid_map, expected.grid_map) < 1e-3
    # What was tried in vain leaves nothing behind that takes memory: the same batch is judged again.
    assert all(isinstance(each, Prediction) for each in judge(detector, images, [None] * count, on_failure=note))


def test_a_detector_goes_on_after_it_ran_out_of_memory(
    case: Case, detector: Detector, make_short: Callable, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = (case.images * COUNT)[: COUNT if device.type == "cuda" else ON_A_CPU + 1]
    make_short(detector, images)
    with pytest.raises(torch.OutOfMemoryError):
        detector.predict(images)
    gc.collect()  # the error's frames keep the batch
    for image, expected in zip(case.images[:3], case.expected.predictions, strict=False):
        (found,) = detector.predict([image])
        assert isinstance(found, Prediction)
        assert relative_error(found.grid_map, expected.grid_map) < 1e-3
    monkeypatch.undo()
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)
    for number, found in enumerate(detector.predict(images)):
        assert isinstance(found, Prediction)
        assert relative_error(found.grid_map, case.expected.predictions[number % len(case.images)].grid_map) < 1e-3


def test_free_memory_gives_experts_back(cuda: torch.device, case: Case, detector: Detector) -> None:
    detector.predict(case.images[:3])
    used = torch.cuda.memory_allocated(cuda)
    detector.free_memory()
    assert torch.cuda.memory_allocated(cuda) < used - 20 * 2**20
