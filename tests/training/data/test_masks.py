"""A mask marks the same pixels in every file format; ambiguous ones give a warning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from moleflow.training.data.masks import Trait, decode_mask, read_mask
from moleflow.training.errors import DatasetError


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "I;16", "1"])
def test_every_nonzero_value_is_marked(tmp_path: Path, mode: str) -> None:
    marked = np.array([[False, True, True], [True, False, False]])
    if mode == "1":
        image = Image.fromarray(marked)
    elif mode == "I;16":
        image = Image.fromarray(marked.astype(np.uint16))
    elif mode == "P":
        image = Image.fromarray(marked.astype(np.uint8))
        image.putpalette([0, 0, 0] * 256)
    else:
        image = Image.fromarray(marked.astype(np.uint8)).convert(mode)
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), marked)


def test_a_jpeg_mask_is_thresholded_at_mid_grey(tmp_path: Path) -> None:
    marked = np.zeros((32, 32), bool)
    marked[5:20, 7:23] = True
    Image.fromarray(marked.astype(np.uint8) * 255).save(tmp_path / "mask.jpg", quality=80)
    assert np.array_equal(read_mask(tmp_path / "mask.jpg"), marked)


def test_a_mask_is_resized_by_nearest_neighbour(tmp_path: Path) -> None:
    marked = np.array([[True, False], [False, True]])
    Image.fromarray(marked.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    expected = np.kron(marked, np.ones((3, 2), bool))
    assert np.array_equal(read_mask(tmp_path / "mask.png", 6, 4), expected)


def test_an_unreadable_mask_is_a_dataset_error(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"mask\.png is not a PNG"):
        read_mask(tmp_path / "mask.png")


def blob(height: int = 24, width: int = 32) -> np.ndarray:
    """A mask of a rectangle."""
    marked = np.zeros((height, width), bool)
    marked[5:13, 7:23] = True
    return marked


def grey(marked: np.ndarray) -> Image.Image:
    return Image.fromarray(marked.astype(np.uint8) * 255)


def palette_mask(indices: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8)).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(colours)
    return image


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_an_adaptive_palette_is_read_by_its_colours(tmp_path: Path) -> None:
    marked = blob()
    for number, shown in enumerate((marked, ~marked)):
        image = grey(shown).convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
        path = saved(image, tmp_path / f"{number}.png")
        assert np.array_equal(read_mask(path), shown)
        assert decode_mask(path).traits == frozenset()


def test_a_voc_palette_marks_every_class_and_not_the_black_background(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 2], [0, 15, 1]])
    voc = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [0, 0, 64] * 13
    path = saved(palette_mask(indices, voc), tmp_path / "mask.png")
    assert np.array_equal(read_mask(path), indices > 0)


def test_black_is_background_at_any_palette_index(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 1], [2, 1, 0]])
    path = saved(palette_mask(indices, [255, 0, 0, 0, 0, 0, 0, 255, 0]), tmp_path / "mask.gif")
    assert np.array_equal(read_mask(path), indices != 1)


def test_a_palette_without_black_is_read_by_index_with_a_warning(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 1], [0, 0, 1]])
    path = saved(palette_mask(indices, [255, 255, 255, 200, 0, 0]), tmp_path / "mask.png")
    mask = decode_mask(path)
    assert np.array_equal(mask.marked, indices > 0)
    assert mask.traits == {Trait.NO_BLACK}


def test_a_mask_in_the_alpha_channel_is_read_with_a_warning(tmp_path: Path) -> None:
    marked = blob()
    for number, colour in enumerate(((0, 0, 0), (255, 0, 0))):
        image = Image.new("RGB", (32, 24), colour)
        image.putalpha(grey(marked))
        mask = decode_mask(saved(image, tmp_path / f"{number}.png"))
        assert np.array_equal(mask.marked, marked)
        assert mask.traits == {Trait.ALPHA}


def test_transparent_pixels_are_not_marked(tmp_path: Path) -> None:
    pixels = np.full((24, 32, 4), (255, 255, 255, 0), np.uint8)
    pixels[blob()] = (200, 0, 0, 255)
    assert np.array_equal(read_mask(saved(Image.fromarray(pixels), tmp_path / "mask.png")), blob())


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "RGB"])
def test_black_is_background_in_every_colour_space(tmp_path: Path, mode: str) -> None:
    image = grey(blob()).convert("RGB").convert(mode)
    # Pillow before 12 cannot read its own uncompressed YCbCr files.
    assert np.array_equal(read_mask(saved(image, tmp_path / "mask.tif", compression="tiff_lzw")), blob())


def test_a_bilevel_tiff_with_inverted_values_is_read_as_displayed(tmp_path: Path) -> None:
    path = saved(grey(blob()).convert("1"), tmp_path / "mask.tif", compression="group4", tiffinfo={262: 0})
    with Image.open(path) as image:
        assert isinstance(image, TiffImageFile)
        assert image.tag_v2[262] == 0
        shown = np.asarray(image.convert("L")) > 0
    assert np.array_equal(read_mask(path), shown)


def test_a_soft_edge_is_thresholded_with_a_warning(tmp_path: Path) -> None:
    large = grey(blob(240, 320)).resize((160, 120), Image.Resampling.NEAREST)
    soft = large.resize((32, 24), Image.Resampling.BICUBIC).resize((160, 120), Image.Resampling.BICUBIC)
    mask = decode_mask(saved(soft, tmp_path / "mask.png"))
    assert mask.traits == {Trait.SOFT}
    assert np.array_equal(mask.marked, np.asarray(soft) > np.asarray(soft).max() / 2)


def test_an_edge_drawn_with_few_shades_is_soft_too(tmp_path: Path) -> None:
    large = np.zeros((48, 64), bool)
    large[11:27, 13:45] = large[27:30, 20:33] = True
    soft = grey(large).resize((32, 24), Image.Resampling.BOX)
    assert len(np.unique(np.asarray(soft))) == 5
    mask = decode_mask(saved(soft, tmp_path / "mask.png"))
    assert mask.traits == {Trait.SOFT}
    assert np.array_equal(mask.marked, np.asarray(soft) > 127)


def test_greys_that_fill_areas_are_labels(tmp_path: Path) -> None:
    numbers = np.kron([[0, 60, 120], [0, 180, 255]], np.ones((5, 5))).astype(np.uint8)
    mask = decode_mask(saved(Image.fromarray(numbers), tmp_path / "mask.png"))
    assert mask.traits == frozenset()
    assert np.array_equal(mask.marked, numbers > 0)


def test_defect_numbers_are_not_a_soft_edge(tmp_path: Path) -> None:
    numbers = np.kron(np.arange(17).reshape(1, 17), np.ones((3, 3))).astype(np.uint8)
    mask = decode_mask(saved(Image.fromarray(numbers), tmp_path / "mask.png"))
    assert mask.traits == frozenset()
    assert np.array_equal(mask.marked, numbers > 0)


def test_several_masks_of_one_image_are_united(tmp_path: Path) -> None:
    one, other = np.zeros((4, 6), bool), np.zeros((8, 12), bool)
    one[0, 0] = other[6:, 10:] = True
    paths = [saved(grey(one), tmp_path / "a.png"), saved(grey(other), tmp_path / "b.png")]
    expected = one.copy()
    expected[3, 5] = True
    assert np.array_equal(read_mask(paths), expected)
    assert np.array_equal(read_mask(paths, 8, 12), np.kron(expected, np.ones((2, 2), bool)))
