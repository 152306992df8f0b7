"""Loading the data of a product: its good images, and its labelled test images with masks.

The layouts are described in ``moleflow.training.data.layouts``. Unused files and oddities become warnings; the files
themselves are checked by ``moleflow.training.data.checks``. Files are in natural order (``2.png`` before ``10.png``).
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from moleflow.model.errors import ImageError
from moleflow.model.files.file_names import as_line
from moleflow.model.images.bit_depth import FULL_SCALE
from moleflow.model.images.decode import open_for_model, open_rgb
from moleflow.training.data.checks import check_training, with_checks
from moleflow.training.data.folders import (
    SUFFIXES_LISTED,
    Reason,
    UnusedFile,
    child,
    describe_contents,
    entries,
    folders,
    images,
    is_folder,
    unused_files,
)
from moleflow.training.data.layouts import Files, layout_of, mvtec_files, plain_files, visa_files, visa_listed
from moleflow.training.data.product_folders import checked_name, folders_by_name, product_folder
from moleflow.training.data.samples import Category, Layout, Sample, is_good
from moleflow.training.data.visa_table import VISA_TABLE, visa_rows
from moleflow.training.data.warnings import DataWarning, WarningList
from moleflow.training.errors import DatasetError

__all__ = ["Category", "Sample", "discover", "load_categories", "load_category", "read_image", "stray_images"]

_DEPTH_OF_PRODUCTS = 3
"""Levels of folders between a product and its images, at most (``Data/Images/Normal``)."""

_PARTS = frozenset({"train", "test", "ground_truth", "validation"})
"""Subfolders of a product in MVTec AD's layout."""

_VISA_IMAGES = ["data", "images"]

_TEST_FOLDERS = frozenset({"test", "ground_truth", "anomaly", "masks"})
"""Folders whose contents are only used for testing."""

_MEANINGS = {
    Reason.SUFFIX: f"They are ignored; supported suffixes are {SUFFIXES_LISTED}.",
    Reason.HIDDEN: "They are ignored; rename them if they are images.",
    Reason.DEEPER: "They are ignored; move them up one folder, or away.",
    Reason.UNLISTED: "They are ignored.",
    Reason.ELSEWHERE: "They are ignored.",
    Reason.NO_FILE: "They are ignored; restore their targets, or remove them.",
    Reason.LINKED_FOLDER: "Their contents are ignored.",
    Reason.BARRED: "Their contents are ignored; check their permissions.",
}


def discover(root: Path) -> tuple[str, ...]:
    """Names of the products below ``root``, in natural order.

    Raises:
        DatasetError: there are none, two have the same name, a name is invalid, or ``root`` is itself a product or
            inside one.
    """
    _refuse_product(root)
    names = tuple(folders_by_name(folder for folder in folders(root) if layout_of(folder) is not None))
    if not names:
        deeper = [folder for folder in folders(root) if any(layout_of(each) is not None for each in folders(folder))]
        hint = f"There are products in {deeper[0]}: use that folder. " if deeper else ""
        raise DatasetError(
            f"{root} contains no product; there should be one folder per product, in MVTec AD or VisA layout or with "
            f"good images directly inside. {hint}{describe_contents(root)}"
        )
    return names


def stray_images(root: Path) -> list[DataWarning]:
    """Warnings about images that ``discover`` ignores: in folders without a known layout, or beside the products."""
    warnings = WarningList(root, root.resolve().name)
    others = [folder for folder in folders(root) if layout_of(folder) is None]
    missed = [folder for folder in others if any(each.is_image for each in unused_files(folder, (), [folder]))]
    warnings.add(
        "training",
        "folders with images that are not products",
        missed,
        "They are ignored; a product has train/good (MVTec AD), Data/Images (VisA), or images directly inside.",
    )
    warnings.add("training", "images beside the products", images(root), "They are ignored.")
    lost = [path for path in entries(root) if path.is_symlink() and not path.exists()]
    warnings.add("training", "broken links beside the products", lost, "Restore their targets.")
    return warnings.found


def load_category(root: Path, name: str, *, check: bool = True) -> Category:
    """Find one product's files and, with ``check``, decode every training image once.

    Test images and masks are only listed here; ``moleflow.training.data.mask_checks`` checks them. A defective test
    image may lack a mask.

    Raises:
        DatasetError: a folder is missing, there are no good images, one of them is unreadable, or a mask has no image.
    """
    category = _find(root, name)
    return _checked([category])[0] if check else category


def load_categories(root: Path, names: Sequence[str]) -> list[Category]:
    """``load_category`` for several products; one ``DatasetError`` names every unusable image."""
    return _checked([_find(root, name) for name in names])


def _checked(categories: Sequence[Category]) -> list[Category]:
    return with_checks("training images", categories, check_training)


def read_image(path: Path, side: int | None = None, *, white_level: int = FULL_SCALE) -> np.ndarray:
    """Decode one image to RGB, ``(height, width, 3)``. ``DatasetError`` if that fails.

    With ``side``, at the model's input size exactly as the service decodes it: uint8, or uint16 for 16-bit images. Else
    at full size in uint8, with 16-bit values scaled from 0…``white_level``.
    """
    try:
        return open_rgb(path, white_level=white_level) if side is None else open_for_model(path, side).pixels
    except ImageError as error:
        raise DatasetError(str(error)) from error


def _find(root: Path, name: str) -> Category:
    """One product's files, without opening them. Errors as ``load_category``."""
    name = checked_name(name)
    _refuse_product(root)
    folder = product_folder(root, name)
    if not is_folder(folder):
        raise DatasetError(f"There is no folder {folder} for product {name!r}. {describe_contents(root)}")
    warnings = WarningList(root, name)
    layout = layout_of(folder)
    match layout:
        case Layout.MVTEC:
            files = mvtec_files(folder, warnings)
        case Layout.VISA:
            by_table = (root / VISA_TABLE).is_file()
            files = visa_listed(folder, visa_rows(root, name)) if by_table else visa_files(folder)
            if by_table and not files.train:
                raise DatasetError(
                    f"{root / VISA_TABLE} lists no normal training image of object {name!r}; add such rows, or remove "
                    "the table to train on every normal image."
                )
        case Layout.FOLDER:
            files = plain_files(folder)
        case None:
            raise DatasetError(
                f"{folder} is not a product: it has neither train/good (MVTec AD), nor Data/Images (VisA), nor images "
                f"with suffix {SUFFIXES_LISTED}. {describe_contents(folder)}"
            )
    if not files.train:
        source = child(folder, "train") / "good" if layout is Layout.MVTEC else folder / "Data/Images/Normal"
        raise DatasetError(
            f"{source} contains no good images to train on; add some, with suffix {SUFFIXES_LISTED}. "
            f"{describe_contents(source if is_folder(source) else source.parent)}"
        )
    _warn_of_unused(folder, files, warnings)
    _warn_of_labels(files, warnings)
    return Category(
        name=name,
        root=root,
        layout=layout,
        train=tuple(files.train),
        test=(*files.good, *files.bad),
        good_masks=tuple(files.good_masks),
        warnings=tuple(warnings.found),
    )


def _warn_of_unused(folder: Path, files: Files, warnings: WarningList) -> None:
    """Warn of unused files that could be images, once per reason and folder."""

    def group(each: UnusedFile) -> tuple[str, str]:
        return str(each.place), each.reason

    found = sorted(unused_files(folder, files.used(), files.read), key=group)  # stable: natural order within a group
    for _, members in groupby(found, group):
        listed = list(members)
        first = listed[0]
        inside = first.place.relative_to(folder).parts
        is_testing = not _TEST_FOLDERS.isdisjoint(part.casefold() for part in first.path.relative_to(folder).parts)
        warnings.add(
            "testing" if is_testing else "training",
            f"{first.reason} ({as_line('/'.join(inside) or first.place.name)})",
            [each.path for each in listed],
            _MEANINGS[first.reason],
        )


def _warn_of_labels(files: Files, warnings: WarningList) -> None:
    unmarked = [sample.path for sample in files.bad if not sample.masks]
    warnings.add(
        "testing", "defective images without a mask", unmarked, "They count for image metrics only, not pixel metrics."
    )
    if files.bad and not files.good:
        warnings.add(
            "testing",
            "test folders without good images",
            [files.bad[0].path.parent.parent],
            "Without them there is no AUROC, no AP and no false-alarm rate; add some to test/good.",
        )
    if files.good and not files.bad:
        warnings.add(
            "testing",
            "test folders without defective images",
            [files.good[0].path.parent.parent],
            "Without them there is no AUROC, no AP and no recall of defects.",
        )


def _refuse_product(root: Path) -> None:
    """Raise ``DatasetError`` if ``root``, which should contain products, is a product itself or inside one."""
    here = root.resolve()
    for product in (here, *here.parents[:_DEPTH_OF_PRODUCTS]):
        inside = [part.casefold() for part in here.relative_to(product).parts]
        if (not inside or inside[0] in _PARTS or inside[:2] == _VISA_IMAGES) and _is_marked_product(product):
            what = "is a product itself" if not inside else f"is inside the product {product}"
            raise DatasetError(
                f"{root} {what}; use the folder that contains the products, {product.parent}, with "
                f"--task {product.name}."
            )


def _is_marked_product(folder: Path) -> bool:
    """Whether a folder has the layout of MVTec AD or VisA, including its folder of good images."""
    visa = child(child(child(folder, "Data"), "Images"), "Normal")
    return is_folder(visa) or any(is_good(each.name) for each in folders(child(folder, "train")))
