"""An evaluation counts what the detector finds, as routed and as named, and chooses nothing."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from tiny_model import tiny_checkpoint, write_product, write_tested_product

from moleflow.model.detector import Detector
from moleflow.model.errors import UnknownTaskError
from moleflow.model.verdict.results import Refusal
from moleflow.training.data.datasets import read_image
from moleflow.training.data.masks import read_mask
from moleflow.training.data.selection import load_test_categories
from moleflow.training.errors import DatasetError
from moleflow.training.evaluation.evaluate import Measured, evaluate
from moleflow.training.evaluation.records import METRICS, Evaluation, read_evaluation, write_json
from moleflow.training.progress import Reporter

PRODUCTS = ["bolt", "nut", "gear"]
Evaluated = tuple[Evaluation, list[Measured]]


def predictions(detector: Detector, folder: Path, task: str | None) -> tuple[list, list[bool]]:
    """What ``predict`` says of all test images of one product, one at a time, and their labels."""
    paths = sorted((folder / "test").glob("*/*.png"))
    found = [detector.predict([read_image(path)], [task], refuse_unknown=False)[0] for path in paths]
    return found, [path.parent.name == "spot" for path in paths]


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("way", ["routed", "named"])
def test_image_figures_are_those_of_the_detectors_own_predictions(
    evaluated: Evaluated, tiny_detector: Detector, tested_products: Path, product: str, way: str
) -> None:
    found, labels = predictions(tiny_detector, tested_products / product, product if way == "named" else None)
    figures = evaluated[0].category(product)
    assert figures is not None
    scores = [each.score for each in found]
    measured = getattr(figures, way)
    assert measured.image_auroc == pytest.approx(roc_auc_score(labels, scores))
    assert measured.image_ap == pytest.approx(average_precision_score(labels, scores))
    called = np.array([each.is_anomalous for each in found])
    assert measured.defect_recall == pytest.approx(called[labels].mean())
    assert measured.false_alarm_rate == pytest.approx(called[~np.array(labels)].mean())


@pytest.mark.parametrize("limit", [0.0, 0.02, 0.43])
def test_the_service_answers_are_those_of_predictions_that_may_be_refused(
    tmp_path: Path, tested_products: Path, limit: float
) -> None:
    detector = Detector.load(tiny_checkpoint(tmp_path / "factory.safetensors").path, device="cpu", unknown_limit=limit)
    evaluation, _ = evaluate(detector, load_test_categories(tested_products, PRODUCTS))
    refused_at_all = 0
    for product in PRODUCTS:
        answers: dict[str, list[str]] = {"good": [], "spot": []}
        for path in sorted((tested_products / product / "test").glob("*/*.png")):
            (found,) = detector.predict([read_image(path)])
            answers[path.parent.name].append("unknown" if isinstance(found, Refusal) else found.task.name)
        category = evaluation.category(product)
        assert category is not None
        every = [*answers["good"], *answers["spot"]]
        shares = [names.count("unknown") / len(names) for names in answers.values()]
        assert [category.service.good_refused, category.service.defective_refused] == pytest.approx(shares)
        elsewhere = sum(name not in ("unknown", product) for name in every) / len(every)
        assert category.service.sent_elsewhere == pytest.approx(elsewhere)
        refused_at_all += every.count("unknown")
    assert evaluation.service.good_refused == pytest.approx(
        np.mean([each.service.good_refused for each in evaluation.categories])
    )
    assert (refused_at_all > 0) == (limit > 0)


def test_pixel_figures_leave_out_defective_images_without_mask(
    evaluated: Evaluated, tiny_detector: Detector, tested_products: Path
) -> None:
    maps, masks = [], []
    for path in sorted((tested_products / "nut" / "test").glob("*/*.png")):
        mask = tested_products / "nut" / "ground_truth" / "spot" / f"{path.stem}_mask.png"
        if path.parent.name == "good" or mask.exists():
            found = tiny_detector.predict([read_image(path)], ["nut"])[0]
            maps.append(found.pixel_map(256, 256).ravel())
            masks.append(read_mask(mask, 256, 256).ravel() if mask.exists() else np.zeros(256 * 256, bool))
    assert len(maps) == 6
    expected = roc_auc_score(np.concatenate(masks), np.concatenate(maps))
    figures = evaluated[0].category("nut")
    assert figures is not None
    assert (figures.good, figures.defective, figures.masked) == (4, 3, 2)
    assert figures.named.pixel_auroc == pytest.approx(expected, abs=1e-4)


def test_a_product_without_masks_has_image_figures_only(evaluated: Evaluated) -> None:
    gear = evaluated[0].category("gear")
    assert gear is not None
    assert gear.routed.image_auroc is not None
    assert (gear.routed.pixel_auroc, gear.routed.pixel_ap, gear.routed.aupro) == (None, None, None)


def test_the_mean_is_over_those_categories_that_have_the_figure(evaluated: Evaluated) -> None:
    evaluation = evaluated[0]
    by_name = {each.category: each.routed for each in evaluation.categories}
    bolt, nut = by_name["bolt"].aupro, by_name["nut"].aupro
    assert bolt is not None and nut is not None
    assert evaluation.routed.aupro == pytest.approx((bolt + nut) / 2)
    assert evaluation.routed.image_ap == pytest.approx(np.mean([each.image_ap for each in by_name.values()]))


def test_an_image_that_is_routed_elsewhere_is_counted_and_judged_by_that_expert(evaluated: Evaluated) -> None:
    evaluation, measured = evaluated
    assert evaluation.confusion.products == tuple(PRODUCTS)
    row = evaluation.confusion.counts[0]
    assert sum(row) == 8
    assert row[1] >= 1
    bolt = evaluation.category("bolt")
    assert bolt is not None
    assert bolt.routing_accuracy == pytest.approx(row[0] / 8)
    stray = next(each for each in measured[0].outcomes if each.sample.path.name == "300.png")
    assert (stray.routed.task.name, stray.named.task.name) == ("nut", "bolt")
    assert bolt.routed != bolt.named


def test_the_threshold_and_seed_are_those_that_the_checkpoint_stores(
    evaluated: Evaluated, tiny_detector: Detector
) -> None:
    for each, task in zip(evaluated[0].categories, tiny_detector.tasks, strict=True):
        assert (each.category, each.threshold, each.seed) == (task.name, task.threshold, task.seed)


def test_an_evaluation_comes_back_from_its_json(evaluated: Evaluated, tmp_path: Path) -> None:
    write_json("the figures", tmp_path / "out.json", evaluated[0])
    assert read_evaluation(tmp_path / "out.json") == evaluated[0]


def test_every_figure_is_a_share(evaluated: Evaluated) -> None:
    for each in evaluated[0].categories:
        values = [getattr(figures, name) for figures in (each.routed, each.named) for name in METRICS]
        assert all(value is None or 0 <= value <= 1 for value in values)


def test_by_default_all_that_is_learned_and_has_test_images_is_evaluated_and_the_rest_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tested_product(tmp_path, "bolt", 0)
    write_tested_product(tmp_path, "screw", 3)
    write_product(tmp_path, "nut", 1, count=2)
    found = load_test_categories(tmp_path, PRODUCTS, reporter=Reporter())
    assert [each.name for each in found] == ["bolt"]
    reported = capsys.readouterr().err
    assert "not learned: screw" in reported
    assert "gear" in reported
    assert "no test images: nut" in reported


def test_products_come_in_the_order_of_learning(tested_products: Path) -> None:
    wanted = ["gear", "bolt"]
    assert [each.name for each in load_test_categories(tested_products, PRODUCTS, wanted)] == ["bolt", "gear"]


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        (["screw"], UnknownTaskError, "No product named 'screw' was learned; learned: bolt, nut, gear"),
        (["gear"], DatasetError, "gear"),
        (["nut"], DatasetError, "has no test images"),
    ],
)
def test_a_product_that_cannot_be_evaluated_is_refused(
    tmp_path: Path, wanted: list[str], error: type[Exception], message: str
) -> None:
    write_tested_product(tmp_path, "bolt", 0)
    write_product(tmp_path, "nut", 1, count=2)
    with pytest.raises(error, match=message):
        load_test_categories(tmp_path, PRODUCTS, wanted)


def test_without_any_common_product_both_sides_are_named(tmp_path: Path) -> None:
    write_tested_product(tmp_path, "screw", 3)
    with pytest.raises(DatasetError, match=r"none of those in the data \(screw\) was learned \(bolt, nut, gear\)"):
        load_test_categories(tmp_path, PRODUCTS)


def test_training_images_are_not_read(tmp_path: Path) -> None:
    folder = write_tested_product(tmp_path, "bolt", 0)
    (folder / "train" / "good" / "0.png").write_bytes(b"broken")
    assert len(load_test_categories(tmp_path, PRODUCTS, ["bolt"])[0].test) == 7
