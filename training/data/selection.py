"""Which categories are measured, after a look into their test images and masks."""

from collections.abc import Sequence
from pathlib import Path

from moleflow.model.errors import DatasetError, UnknownTaskError
from moleflow.model.names import product_name, same_name
from moleflow.training.data.checks import refuse_unusable
from moleflow.training.data.datasets import Category, discover, load_category, passed_over, with_warnings
from moleflow.training.data.mask_checks import check_testing
from moleflow.training.data.warnings import tell
from moleflow.training.progress import Reporter

__all__ = ["checked_for_testing", "load_test_categories"]


def load_test_categories(
    data: Path,
    learned: Sequence[str],
    wanted: Sequence[str] = (),
    reporter: Reporter | None = None,
    *,
    strict: bool = False,
) -> list[Category]:
    """The categories to evaluate: ``wanted``, or else all of ``data`` that were learned and have test images.

    In order of learning. Every test image and mask is decoded once. What the default leaves out, and what is odd about
    the data, is told to ``reporter``.

    Raises:
        UnknownTaskError: a wanted category was not learned.
        DatasetError: a wanted category is not there or has no test images, or none is left; images or masks, all of
            which are named, cannot be used; or there are warnings, where they are errors by ``strict``.
    """
    categories = checked_for_testing(_find_test_categories(data, learned, wanted, reporter, strict))
    tell((warning for each in categories for warning in each.warnings_on("testing")), reporter, strict=strict)
    return categories


def checked_for_testing(categories: Sequence[Category]) -> list[Category]:
    """``categories`` with the warnings that a look into their test images and masks gives.

    Raises:
        DatasetError: some of them, all of which are named, cannot be used.
    """
    checked = [check_testing(each.name, each.root, each.test, each.train, each.good_masks) for each in categories]
    refuse_unusable("test images and masks", checked)
    return [with_warnings(each, found) for each, found in zip(categories, checked, strict=True)]


def _find_test_categories(
    data: Path, learned: Sequence[str], wanted: Sequence[str], reporter: Reporter | None, strict: bool
) -> list[Category]:
    """``load_test_categories`` without a look into the files."""
    for name in wanted:
        if not any(same_name(name, each) for each in learned):
            raise UnknownTaskError(name, tuple(learned))
    wanted = [product_name(name) for name in wanted]
    if wanted:
        categories = [load_category(data, name, check=False) for name in learned if name in wanted]
        for category in categories:
            if not category.test:
                raise DatasetError(
                    f"{category.root / category.name} holds no test images ({category.layout}); put good ones into "
                    "test/good and defective ones into test/DEFECT, or leave the product out."
                )
        return categories
    found = discover(data)
    categories = [load_category(data, name, check=False) for name in learned if name in found]
    tested = [category for category in categories if category.test]
    if not tested:
        raise DatasetError(
            f"no product of {data} can be evaluated: it holds {', '.join(found)}; learned were {', '.join(learned)}; "
            f"with test images among both: none."
        )
    if reporter is not None:
        _tell("not learned", [name for name in found if name not in learned], reporter)
        _tell(f"not in {data}", [name for name in learned if name not in found], reporter)
        _tell("without test images", [each.name for each in categories if not each.test], reporter)
        tell(passed_over(data), reporter, strict=strict)
    return tested


def _tell(reason: str, names: Sequence[str], reporter: Reporter) -> None:
    if names:
        reporter.line(f"left out, {reason}: {', '.join(names)}")
