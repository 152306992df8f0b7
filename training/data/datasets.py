"""Data sets of one product each: where its good images are, and which test images and masks belong to it.

The layouts are those of ``moleflow.training.data.layouts``. Whatever in a product's folder is not used, or looks odd,
is noted as a warning; ``moleflow.training.data.checks`` looks into the files themselves. Files are in natural order of
their names (``2.png`` before ``10.png``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from moleflow.model.errors import DatasetError, ImageError
from moleflow.model.files.file_names import as_line
from moleflow.model.images.bit_depth import FULL_SCALE
from moleflow.model.images.decode import open_for_model, open_rgb
from moleflow.training.data.checks import Checked, check_training, refuse_unusable
from moleflow.training.data.folders import (
    SUFFIXES_LISTED,
    Leftover,
    Reason,
    child,
    entries,
    folders,
    images,
    is_folder,
    leftovers,
    what_is_in,
)
from moleflow.training.data.layouts import Files, layout_of, mvtec_files, plain_files, visa_files, visa_listed
from moleflow.training.data.product_folders import checked_name, folders_by_name, product_folder
from moleflow.training.data.samples import Layout, Sample, is_good
from moleflow.training.data.visa_table import VISA_TABLE, visa_rows
from moleflow.training.data.warnings import Concern, DataWarning, WarningList

__all__ = [
    "Category",
    "Layout",
    "Sample",
    "discover",
    "load_categories",
    "load_category",
    "passed_over",
    "read_image",
    "with_warnings",
]

_DEPTH_OF_PRODUCTS = 3
"""How many folders lie at most between a product's folder and one that images are in (``Data/Images/Normal``)."""

_PARTS = frozenset({"train", "test", "ground_truth", "validation"})
"""Folders that a product's folder holds, as far as they are read, or known from published data."""

_VISA_IMAGES = ["data", "images"]

_TEST_FOLDERS = frozenset({"test", "ground_truth", "anomaly", "masks"})
"""What lies in these concerns testing alone."""

_MEANINGS = {
    Reason.SUFFIX: f"They are not read; image files end in {SUFFIXES_LISTED}.",
    Reason.HIDDEN: "They are not read; rename them if they are images.",
    Reason.DEEPER: "They are not used; move them one folder up, or away.",
    Reason.UNLISTED: "They are not used.",
    Reason.ELSEWHERE: "They are not used.",
    Reason.NO_FILE: "They are not read; restore what they point to, or remove them.",
    Reason.LINKED_FOLDER: "What they lead to is not used.",
    Reason.BARRED: "What lies in them is not used; check their permissions.",
}


@dataclass(frozen=True, slots=True)
class Category:
    """One product: its good images for training, and labelled images for testing (none in a plain folder).

    ``good_masks`` are masks of good images, which mark nothing where all is well. ``warnings`` say what is odd.
    """

    name: str  # in Unicode's normal form, however its folder is spelled
    root: Path
    layout: Layout
    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    good_masks: tuple[Path, ...] = ()
    warnings: tuple[DataWarning, ...] = ()

    def warnings_on(self, concern: Concern) -> list[DataWarning]:
        """The warnings about one half of the data."""
        return [each for each in self.warnings if each.concerns == concern]


def discover(root: Path) -> tuple[str, ...]:
    """Names of the products below ``root``, in natural order.

    Raises:
        DatasetError: there are none, two are called alike, one is called what no product can be, or ``root`` is itself
            a product or lies inside one.
    """
    _refuse_product(root)
    names = tuple(folders_by_name(folder for folder in folders(root) if layout_of(folder) is not None))
    if not names:
        deeper = [folder for folder in folders(root) if any(layout_of(each) is not None for each in folders(folder))]
        hint = f"Products lie in {deeper[0]}: give that folder. " if deeper else ""
        raise DatasetError(
            f"{root} holds no product; there should be one folder per product, in MVTec AD or VisA layout or with good "
            f"images directly inside. {hint}{what_is_in(root)}"
        )
    return names


def passed_over(root: Path) -> list[DataWarning]:
    """What ``discover`` passes over though there are images in it: folders without a layout, and single files."""
    warnings = WarningList(root, root.resolve().name)
    others = [folder for folder in folders(root) if layout_of(folder) is None]
    missed = [folder for folder in others if any(each.is_image for each in leftovers(folder, (), [folder]))]
    warnings.add(
        "training",
        "folders with images that are no products",
        missed,
        "They are left out; a product's folder holds train/good (MVTec AD), Data/Images (VisA), or images directly.",
    )
    warnings.add("training", "images beside the products", images(root), "They are left out.")
    lost = [path for path in entries(root) if path.is_symlink() and not path.exists()]
    warnings.add("training", "links beside the products that lead nowhere", lost, "Restore what they point to.")
    return warnings.found


def load_category(root: Path, name: str, *, check: bool = True) -> Category:
    """Find one product's images, and check them: every training image is decoded once, unless ``check`` is false.

    Raises ``DatasetError``, naming the path and what to do, when a folder is missing, when there are no good
    images, when any of them cannot be read, or when a mask has no image. A test image of a defect may lack a
    mask. Test images and masks are only looked up here; ``moleflow.training.data.checks`` decodes them.
    """
    category = _find(root, name)
    return load_checked([category])[0] if check else category


def load_categories(root: Path, names: Sequence[str]) -> list[Category]:
    """As ``load_category`` for several products; one ``DatasetError`` names every image that cannot be used."""
    return load_checked([_find(root, name) for name in names])


def load_checked(categories: Sequence[Category]) -> list[Category]:
    """``categories`` with the warnings that a look into their training images gives. Errors as ``load_category``."""
    checked = [check_training(each.name, each.root, each.train, each.test) for each in categories]
    refuse_unusable("training images", checked)
    return [with_warnings(category, found) for category, found in zip(categories, checked, strict=True)]


def with_warnings(category: Category, checked: Checked) -> Category:
    """The same category, with what a check found behind what is known already."""
    return replace(category, warnings=(*category.warnings, *checked.warnings))


def read_image(path: Path, side: int | None = None, *, white_level: int = FULL_SCALE) -> np.ndarray:
    """Decode one image to RGB, ``(height, width, 3)`` uint8. ``DatasetError`` if it cannot be.

    With the ``side`` of the model's input, it is decoded exactly as the service does, at that size, and 16-bit values
    are uint16; else 0…``white_level`` of them becomes 0…255.
    """
    try:
        return open_rgb(path, white_level=white_level) if side is None else open_for_model(path, side).pixels
    except ImageError as error:
        raise DatasetError(str(error)) from error


def _find(root: Path, name: str) -> Category:
    """One product's files, none of them opened. Errors as ``load_category``."""
    name = checked_name(name)
    _refuse_product(root)
    folder = product_folder(root, name)
    if not is_folder(folder):
        raise DatasetError(f"There is no folder {folder}, where product {name!r} should be. {what_is_in(root)}")
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
                    f"{root / VISA_TABLE} lists no normal image for training on object {name!r}; add such rows, or "
                    "remove the table to train on every normal image."
                )
        case Layout.FOLDER:
            files = plain_files(folder)
        case None:
            raise DatasetError(
                f"{folder} is no product: it holds neither train/good (MVTec AD), nor Data/Images (VisA), nor images "
                f"ending in {SUFFIXES_LISTED}. {what_is_in(folder)}"
            )
    if not files.train:
        source = child(folder, "train") / "good" if layout is Layout.MVTEC else folder / "Data/Images/Normal"
        raise DatasetError(
            f"{source} holds no good images to train on; put some there, ending in {SUFFIXES_LISTED}. "
            f"{what_is_in(source if is_folder(source) else source.parent)}"
        )
    _warn_of_leftovers(folder, files, warnings)
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


def _warn_of_leftovers(folder: Path, files: Files, warnings: WarningList) -> None:
    """Note what could be an image in a product's folder and is not used, one line for each reason and place."""

    def group(each: Leftover) -> tuple[str, str]:
        return str(each.place), each.reason

    found = sorted(leftovers(folder, files.used(), files.read), key=group)  # stable: natural order within a group
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
    """Note what test images lack to be measured on."""
    unmarked = [sample.path for sample in files.bad if not sample.masks]
    warnings.add(
        "testing", "defective images without a mask", unmarked, "They count for image figures only, not for pixels."
    )
    if files.bad and not files.good:
        warnings.add(
            "testing",
            "test folders without good images",
            [files.bad[0].path.parent.parent],
            "Without them there is no AUROC, no AP and no rate of false alarms; put some into test/good.",
        )
    if files.good and not files.bad:
        warnings.add(
            "testing",
            "test folders without defective images",
            [files.good[0].path.parent.parent],
            "Without them there is no AUROC, no AP and no share of defects found.",
        )


def _refuse_product(root: Path) -> None:
    """``DatasetError`` when ``root``, where one folder a product should be, is a product or a part of one."""
    here = root.resolve()
    for product in (here, *here.parents[:_DEPTH_OF_PRODUCTS]):
        inside = [part.casefold() for part in here.relative_to(product).parts]
        if (not inside or inside[0] in _PARTS or inside[:2] == _VISA_IMAGES) and _is_marked_product(product):
            what = "is a product itself" if not inside else f"lies inside the product {product}"
            raise DatasetError(
                f"{root} {what}; give the folder that holds the products, {product.parent}, and name the product: "
                f"--task {product.name}."
            )


def _is_marked_product(folder: Path) -> bool:
    """Whether a folder has the layout of MVTec AD or VisA down to its good images."""
    visa = child(child(child(folder, "Data"), "Images"), "Normal")
    return is_folder(visa) or any(is_good(each.name) for each in folders(child(folder, "train")))
