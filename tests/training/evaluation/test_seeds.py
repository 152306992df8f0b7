"""Mean and spread over several runs, which must be different checkpoints measured alike."""

import statistics
from typing import cast

import pytest

from moleflow.model.errors import ConfigurationError
from moleflow.training.evaluation.evaluate import Measured
from moleflow.training.evaluation.forgetting import continual_figures
from moleflow.training.evaluation.records import METRICS, CategoryFigures, Evaluation
from moleflow.training.evaluation.seeds import summarise


def varied(evaluation: Evaluation, seed: int, shift: float) -> Evaluation:
    """The same evaluation of another checkpoint, all of whose image APs are lower."""

    def lower(each: CategoryFigures) -> CategoryFigures:
        assert each.routed.image_ap is not None
        routed = each.routed.model_copy(update={"image_ap": each.routed.image_ap - shift})
        return each.model_copy(update={"seed": seed, "routed": routed})

    return evaluation.model_copy(
        update={"digest": f"{seed}" * 64, "categories": tuple(lower(each) for each in evaluation.categories)}
    )


@pytest.fixture
def runs(evaluated: tuple[Evaluation, list[Measured]]) -> list[Evaluation]:
    return [varied(evaluated[0], seed, 0.05 * seed**2) for seed in range(3)]


def test_mean_and_sample_deviation_are_those_of_the_runs(runs: list[Evaluation]) -> None:
    summary = summarise(runs)
    for index, row in enumerate(summary.categories):
        values = [cast(float, run.categories[index].routed.image_ap) for run in runs]
        found = row.routed["image_ap"]
        assert found is not None
        assert found.mean == pytest.approx(statistics.fmean(values))
        assert found.deviation == pytest.approx(statistics.stdev(values))
        assert found.runs == tuple(values)
    assert summary.seeds == ((0, 0, 0), (1, 1, 1), (2, 2, 2))


def test_a_figure_that_is_not_there_has_no_spread(runs: list[Evaluation]) -> None:
    gear = summarise(runs).categories[2]
    assert gear.name == "gear"
    assert gear.routed["aupro"] is None
    assert set(gear.routed) == set(METRICS)


def test_forgetting_is_summed_up_where_every_run_has_it(runs: list[Evaluation]) -> None:
    assert summarise(runs).forgetting is None
    with_states = []
    for run in runs:
        first = run.model_copy(update={"products": ("bolt",), "categories": run.categories[:1]})
        with_states.append(run.model_copy(update={"continual": continual_figures([first, run])}))
    summary = summarise(with_states)
    assert summary.forgetting is not None
    assert summary.forgetting["aupro"] is not None
    assert summary.forgetting["aupro"].mean == 0
    assert summarise([*with_states[:2], runs[2]]).forgetting is None


def test_one_run_has_no_spread(runs: list[Evaluation]) -> None:
    with pytest.raises(ConfigurationError, match="1 evaluation has no spread"):
        summarise(runs[:1])


def test_the_same_checkpoint_does_not_count_twice(runs: list[Evaluation]) -> None:
    with pytest.raises(ConfigurationError, match="is given twice"):
        summarise([runs[0], runs[1], runs[0]])


def test_runs_on_other_images_or_products_are_refused(runs: list[Evaluation]) -> None:
    other = runs[1].categories[0].model_copy(update={"good": 99})
    with pytest.raises(ConfigurationError, match="bolt on 99 good and 3 defective images, 3 with mask against bolt"):
        summarise([runs[0], runs[1].model_copy(update={"categories": (other, *runs[1].categories[1:])})])
    with pytest.raises(ConfigurationError, match="other categories"):
        summarise([runs[0], runs[1].model_copy(update={"categories": runs[1].categories[:2]})])
