"""Forgetting and backward transfer follow their papers' formulae, over states that belong together."""

from datetime import UTC, datetime

import pytest

from moleflow.model.errors import ConfigurationError
from moleflow.training.evaluation.forgetting import (
    HIGHER_IS_BETTER,
    backward_transfer,
    check_sequence,
    continual_figures,
    forgetting,
)
from moleflow.training.evaluation.records import (
    METRICS,
    CategoryFigures,
    Confusion,
    Evaluation,
    Figures,
    Protocol,
    ServiceAnswers,
)

PRODUCTS = ("a", "b", "c")

NOTHING_REFUSED = ServiceAnswers(good_refused=0.0, defective_refused=0.0, sent_elsewhere=0.0)


def state(values: dict[str, float], *, good: int = 5, side: int = 256, products: int = 0) -> Evaluation:
    """An evaluation in which every figure of a category is one value."""
    known = PRODUCTS[: products or len(values)]
    rows = []
    for name, value in values.items():
        figures = Figures(**dict.fromkeys(METRICS, value))
        rows.append(
            CategoryFigures(
                category=name,
                good=good,
                defective=4,
                masked=4,
                seed=0,
                threshold=1.0,
                routing_accuracy=value,
                routed=figures,
                named=figures.model_copy(update={"image_auroc": 1.0}),
                service=NOTHING_REFUSED,
            )
        )
    return Evaluation(
        created=datetime(2026, 1, 1, tzinfo=UTC),
        checkpoint=f"{len(known)}.safetensors",
        digest="0" * 64,
        products=known,
        precision="fp32",
        protocol=Protocol(evaluation_side=side, fpr_limit=0.3),
        categories=tuple(rows),
        routing_accuracy=1.0,
        routed=rows[0].routed,
        named=rows[0].named,
        service=NOTHING_REFUSED,
        confusion=Confusion(categories=(), products=known, counts=()),
    )


def test_by_hand_over_three_tasks() -> None:
    after: list[list[float | None]] = [[0.9, None, None], [0.95, 0.8, None], [0.7, 0.85, 0.6]]
    # Chaudhry et al.: max(0.9, 0.95) - 0.7 and 0.8 - 0.85. Lopez-Paz and Ranzato: 0.7 - 0.9 and 0.85 - 0.8.
    assert forgetting(after) == pytest.approx((0.25 - 0.05) / 2)
    assert backward_transfer(after) == pytest.approx((-0.2 + 0.05) / 2)


def test_what_never_changes_is_neither_forgotten_nor_helped() -> None:
    after: list[list[float | None]] = [[0.9, None], [0.9, 0.4]]
    assert (forgetting(after), backward_transfer(after)) == (0, 0)


@pytest.mark.parametrize("after", [[[0.9]], [[None], [0.9]], [[0.9, None], [None, 0.5]]])
def test_without_an_earlier_figure_nothing_is_defined(after: list[list[float | None]]) -> None:
    assert forgetting(after) is None
    assert backward_transfer(after) is None


def test_every_figure_gets_its_own_table_as_routed_and_as_named() -> None:
    found = continual_figures([state({"a": 0.9}), state({"a": 0.6, "b": 0.8}), state({"a": 0.7, "b": 0.5, "c": 1})])
    assert found.states == (("a",), ("a", "b"), ("a", "b", "c"))
    assert found.categories == PRODUCTS
    assert found.routed["aupro"].after == ((0.9, None, None), (0.6, 0.8, None), (0.7, 0.5, 1.0))
    assert found.routed["aupro"].forgetting == pytest.approx((0.2 + 0.3) / 2)
    assert found.routed["aupro"].backward_transfer == pytest.approx((-0.2 - 0.3) / 2)
    assert found.routed["routing_accuracy"] == found.routed["aupro"]
    assert found.named["image_auroc"].forgetting == 0
    assert set(found.named) == set(HIGHER_IS_BETTER)


def test_a_category_that_is_not_asked_for_does_not_count() -> None:
    found = continual_figures([state({"a": 0.9}), state({"a": 0.9, "b": 0.8}), state({"b": 0.5}, products=3)][1:])
    assert found.categories == ("b",)
    assert found.routed["image_ap"].forgetting == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("products", "message"),
    [
        ([("b",), ("a", "b")], "is not an earlier state of"),
        ([("a", "b"), ("a", "b")], "is not an earlier state of"),
        ([("a", "b"), ("a",)], "oldest first"),
        ([("x",), ("x", "a")], "none of which is evaluated"),
    ],
)
def test_states_that_are_no_sequence_are_refused(products: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_sequence([(f"{len(each)}.safetensors", each) for each in products], ["a"])


def test_a_state_that_was_measured_otherwise_is_refused() -> None:
    last = state({"a": 0.9, "b": 0.8})
    with pytest.raises(ConfigurationError, match="another protocol"):
        continual_figures([state({"a": 0.9}, side=128), last])
    with pytest.raises(ConfigurationError, match="counts 7 good and 4 defective of 'a'"):
        continual_figures([state({"a": 0.9}, good=7), last])
    with pytest.raises(ConfigurationError, match="counts none of 'a'"):
        continual_figures([state({"b": 0.9}, products=2), state({"a": 1, "b": 1, "c": 1})])
