"""Earlier states of a checkpoint: evaluations that were stored, or checkpoints that are yet to be evaluated."""

from collections.abc import Sequence
from pathlib import Path

from moleflow.model.detector import Detector
from moleflow.training.data.datasets import Category
from moleflow.training.evaluation.evaluate import evaluate
from moleflow.training.evaluation.records import Evaluation, read_evaluation
from moleflow.training.progress import Reporter

__all__ = ["State", "evaluation_of", "name_and_products", "open_state"]

State = Evaluation | Detector


def open_state(path: Path, *, device: str, precision: str) -> State:
    """The evaluation in a ``.json`` file, or the checkpoint in any other. Errors as ``Detector.load``."""
    return read_evaluation(path) if path.suffix == ".json" else Detector.load(path, device=device, precision=precision)


def name_and_products(state: State) -> tuple[str, tuple[str, ...]]:
    """The checkpoint's file name, and its products in order of learning."""
    if isinstance(state, Detector):
        return state.checkpoint.name, tuple(each.name for each in state.tasks)
    return state.checkpoint, state.products


def evaluation_of(state: State, categories: Sequence[Category], batch_size: int, reporter: Reporter) -> Evaluation:
    """A stored evaluation as it is; of a checkpoint, that on those of ``categories`` which it has learned."""
    if isinstance(state, Evaluation):
        return state
    name, products = name_and_products(state)
    reporter.line(f"earlier state {name}")
    known = [each for each in categories if each.name in products]
    return evaluate(state, known, batch_size=batch_size, reporter=reporter)[0]
