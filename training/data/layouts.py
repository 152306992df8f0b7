"""Supported data set layouts: which files of a product are training images, test images and ground-truth masks.

Detected by folder names, ignoring case:

- MVTec AD: ``PRODUCT/train/good``, ``PRODUCT/test/good``, ``PRODUCT/test/DEFECT`` and
  ``PRODUCT/ground_truth/DEFECT/NAME_mask.png`` (or ``NAME.png``). As in MVTec LOCO, an image may have several masks in
  a folder, ``PRODUCT/ground_truth/DEFECT/NAME/*.png``.
- VisA: ``PRODUCT/Data/Images/Normal``, ``…/Anomaly`` and ``PRODUCT/Data/Masks/Anomaly/NAME.png``. The split is that of
  ``split_csv/1cls.csv`` beside the products if it exists (``moleflow.training.data.visa_table``); otherwise every
  normal image is a training image.
- A plain folder of good images, ``PRODUCT/*.png``, ``*.jpg`` and so on: training only.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from moleflow.training.data.folders import child, folders, images, is_folder, natural_sort
from moleflow.training.data.samples import Layout, Sample, is_good
from moleflow.training.data.visa_table import VisaRow
from moleflow.training.data.warnings import WarningList
from moleflow.training.errors import DatasetError

__all__ = ["Files", "layout_of", "mvtec_files", "plain_files", "visa_files", "visa_listed"]

_MASK_SUFFIX = "_mask"
"""Suffix of mask names in MVTec AD."""


@dataclass(slots=True)
class Files:
    """The files of a product. ``read`` are the folders that were searched for images."""

    train: list[Path] = field(default_factory=list)
    good: list[Sample] = field(default_factory=list)
    bad: list[Sample] = field(default_factory=list)
    good_masks: list[Path] = field(default_factory=list)
    read: list[Path] = field(default_factory=list)

    def images_in(self, folder: Path) -> tuple[Path, ...]:
        """The images directly inside ``folder``, which is added to ``read``."""
        self.read.append(folder)
        return images(folder)

    def used(self) -> set[Path]:
        """Every file used in training or testing."""
        tested = {path for sample in (*self.good, *self.bad) for path in (sample.path, *sample.masks)}
        return {*self.train, *tested, *self.good_masks}


def layout_of(folder: Path) -> Layout | None:
    """The layout of a product's folder, or ``None``."""
    if is_folder(child(folder, "train")):
        return Layout.MVTEC
    if is_folder(_visa_images(folder)):
        return Layout.VISA
    return Layout.FOLDER if images(folder) else None


def plain_files(folder: Path) -> Files:
    files = Files()
    files.train += files.images_in(folder)
    return files


def mvtec_files(folder: Path, warnings: WarningList) -> Files:
    """MVTec AD's layout, with LOCO's nested masks. ``DatasetError`` for a mask without exactly one image."""
    files = Files()
    for each in _good_folders(child(folder, "train"), warnings):
        files.train += files.images_in(each)
    test, truth = child(folder, "test"), child(folder, "ground_truth")
    for each in _good_folders(test, warnings):
        files.good += [Sample(path, None) for path in files.images_in(each)]
    for each in folders(truth):
        if is_good(each.name):
            files.good_masks += files.images_in(each)
            for below in folders(each):
                files.good_masks += files.images_in(below)
    defects = {_composed(each.name) for each in (*folders(test), *folders(truth)) if not is_good(each.name)}
    empty = []
    for defect in natural_sort(defects, str):
        samples = _with_masks(files, _spelled(test, defect), _spelled(truth, defect), defect)
        if not samples:
            empty.append(test / defect)
        files.bad += samples
    warnings.add("testing", "defects without images", empty, "They are ignored; remove the folder or add images.")
    return files


def visa_files(folder: Path) -> Files:
    """VisA without its split table: normal images are for training, anomalous ones for testing."""
    files, normal = Files(), child(_visa_images(folder), "Normal")
    anomaly, masks = child(_visa_images(folder), "Anomaly"), child(child(child(folder, "Data"), "Masks"), "Anomaly")
    files.train += files.images_in(normal)
    files.bad += _with_masks(files, anomaly, masks, "anomaly")
    return files


def visa_listed(folder: Path, rows: Iterable[VisaRow]) -> Files:
    """VisA with its split table; ``rows`` are those of one object."""
    by_folder = visa_files(folder)  # checks that every mask has an image
    files = Files(read=by_folder.read)
    for row in rows:
        masks = (row.mask,) if row.mask else ()
        if row.is_training:
            files.train.append(row.image)
        elif row.defect is None:
            files.good.append(Sample(row.image, None))
            files.good_masks += masks
        else:
            files.bad.append(Sample(row.image, row.defect, masks))
    files.train[:] = natural_sort(files.train, lambda path: path.name)
    for samples in (files.good, files.bad):
        samples[:] = natural_sort(samples, lambda sample: sample.path.name)
    return files


def _composed(name: str) -> str:
    """A name in Unicode form NFC; macOS writes decomposed names."""
    return unicodedata.normalize("NFC", name)


def _spelled(folder: Path, name: str) -> Path:
    """The folder called ``name`` inside ``folder``, in any Unicode form; it may be missing."""
    return next((each for each in folders(folder) if _composed(each.name) == name), folder / name)


def _visa_images(folder: Path) -> Path:
    return child(child(folder, "Data"), "Images")


def _good_folders(folder: Path, warnings: WarningList) -> list[Path]:
    """The folders of good images inside ``train`` or ``test``; warns of names other than ``good``."""
    found = [each for each in folders(folder) if is_good(each.name)]
    warnings.add(
        "training" if folder.name.casefold() == "train" else "testing",
        f"folders in {folder.name} that are treated as {folder.name}/good",
        [each for each in found if each.name != "good"],
        "Rename them to good, or to a name that is not a synonym of it.",
    )
    return found


def _with_masks(files: Files, images_folder: Path, masks: Path, defect: str) -> list[Sample]:
    """Match the images of one defect with their masks, by stem or by folder."""
    paths = files.images_in(images_folder)
    of_stem: dict[str, list[Path]] = {}
    for path in paths:
        of_stem.setdefault(_composed(path.stem), []).append(path)
    masks_of: dict[Path, tuple[Path, ...]] = {}
    single = [(each, (each,), _composed(each.stem)) for each in files.images_in(masks)]
    nested = [(each, files.images_in(each), _composed(each.name)) for each in folders(masks)]
    for source, found, name in (*single, *nested):
        if not found:
            continue
        stem = name if name in of_stem else name.removesuffix(_MASK_SUFFIX)
        owners = of_stem.get(stem, [])
        if not owners:
            raise DatasetError(
                f"{source} is a mask without an image: {images_folder} has no image named {stem!r}; "
                "add that image or remove the mask."
            )
        if len(owners) > 1:
            raise DatasetError(f"{source} is a mask of both {owners[0]} and {owners[1]}; rename one of the images.")
        if owners[0] in masks_of:
            raise DatasetError(
                f"{source} and {masks_of[owners[0]][0]} are both masks of image {stem!r}; remove one of them, or move "
                f"all masks of the image to the folder {masks / stem}."
            )
        masks_of[owners[0]] = found
    return [Sample(path, defect, masks_of.get(path, ())) for path in paths]
