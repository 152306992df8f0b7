"""Selecting and checking the categories of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

from moleflow.model.errors import UnknownTaskError
from moleflow.model.names import product_name, same_name
from moleflow.training.data.checks import with_checks
from moleflow.training.data.datasets import Category, discover, load_category, stray_images
from moleflow.training.data.mask_checks import check_testing
from moleflow.training.data.warnings import report_warnings
from moleflow.training.errors import DatasetError
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
    """The categories to evaluate: ``wanted``, or all in ``data`` that were learned and have test images.

    In training order. Every test image and mask is decoded once. Skipped categories and warnings go to ``reporter``.

    Raises:
        UnknownTaskError: a wanted category was not learned.
        DatasetError: a wanted category is missing or has no test images; no category is left; images or masks are
            unusable (all are named); or there are warnings and ``strict`` is set.
    """
    categories = checked_for_testing(_find_test_categories(data, learned, wanted, reporter, strict))
    report_warnings(
        (warning for each in categories for warning in each.warnings_on("testing")), reporter, strict=strict
    )
    return categories


def checked_for_testing(categories: Sequence[Category]) -> list[Category]:
    """``categories`` with the warnings about their test images and masks.

    Raises:
        DatasetError: some of these files are unusable; all are named.
    """
    return with_checks("test images and masks", categories, check_testing)


def _find_test_categories(
    data: Path, learned: Sequence[str], wanted: Sequence[str], reporter: Reporter | None, strict: bool
) -> list[Category]:
    """``load_test_categories`` without decoding the files."""
    for name in wanted:
        if not any(same_name(name, each) for each in learned):
            raise UnknownTaskError(name, tuple(learned))
    wanted = [product_name(name) for name in wanted]
    if wanted:
        categories = [load_category(data, name, check=False) for name in learned if name in wanted]
        for category in categories:
            if not category.test:
                raise DatasetError(
                    f"{category.root / category.name} has no test images ({category.layout}); add good ones to "
                    "test/good and defective ones to test/DEFECT, or leave the product out."
                )
        return categories
    found = discover(data)
    categories = [load_category(data, name, check=False) for name in learned if name in found]
    tested = [category for category in categories if category.test]
    if not tested:
        raise DatasetError(
            f"no product in {data} can be evaluated: none of those in the data ({', '.join(found)}) was learned "
            f"({', '.join(learned)}) and has test images."
        )
    if reporter is not None:
        _report_skipped("not learned", [name for name in found if name not in learned], reporter)
        _report_skipped(f"not in {data}", [name for name in learned if name not in found], reporter)
        _report_skipped("no test images", [each.name for each in categories if not each.test], reporter)
        report_warnings(stray_images(data), reporter, strict=strict)
    return tested


def _report_skipped(reason: str, names: Sequence[str], reporter: Reporter) -> None:
    if names:
        reporter.line(f"skipped, {reason}: {', '.join(names)}")
