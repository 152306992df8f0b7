"""Images made to harm their reader: the worst bytes of each format at a given size, and damaged files.

    python -m benchmarks hostile_images KIND SIZE_IN_MB FILE
    python -m benchmarks hostile_images --list

Also a library for ``decode_cost``, ``hostile_load`` and the tests. Everything is reproducible.
"""

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.hostile import jpeg, png, raster, tiff
from benchmarks.hostile.parts import encoded
from benchmarks.shared.command import make_parser

__all__ = ["KINDS", "MANY_PIXELS", "MEGABYTE", "damaged", "good_images"]

MEGABYTE = 10**6

KINDS: dict[str, Callable[[int], bytes]] = {
    f"{family}/{name}": make
    for family, kinds in (
        ("jpeg", jpeg.KINDS),
        ("png", png.KINDS),
        ("tiff", tiff.KINDS),
        ("gif", raster.GIF),
        ("bmp", raster.BMP),
        ("webp", raster.WEBP),
    )
    for name, make in kinds.items()
}
"""Makers by name. Each takes an approximate size in bytes; some need at least a few kilobytes."""

MANY_PIXELS = frozenset(
    {
        "jpeg/many_scans_of_many_pixels",
        "jpeg/tall",
        "png/one_row",
        "png/one_column",
        "png/longest_side",
        "png/interlaced",
        "png/interlaced_16_bit",
        "png/deep",
        "png/deep_grey",
        "png/transparent_palette",
        "png/colour_key",
        "tiff/turned",
        "tiff/bomb_adobe_deflate",
        "tiff/bomb_tiff_lzw",
        "tiff/bomb_lzma",
        "tiff/bomb_zstd",
        "tiff/bomb_jpeg",
        "gif/bomb",
        "webp/bomb",
        "webp/lossy_bomb",
    }
)
"""Kinds that really hold 40 megapixels, so they take a while to make at any size."""

EXTREMES = (b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80", b"\0\0\0\1")
"""Values that overwrite lengths, counts and offsets."""


@functools.cache
def good_images() -> dict[str, bytes]:
    """Small valid files of every format in several variants, by name."""
    height, width = 48, 72
    pixels = np.random.default_rng(1).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    rgb = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "an image"
    frames = [rgb, rgb.transpose(Image.Transpose.ROTATE_180)]
    palette, grey = rgb.quantize(64), rgb.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    return {
        "png": encoded(rgb, "PNG"),
        "png_palette": encoded(palette, "PNG", transparency=3),
        "png_16_bit": encoded(deep, "PNG"),
        "png_alpha": encoded(rgb.convert("RGBA"), "PNG", exif=exif.tobytes()),
        "png_animated": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "jpeg": encoded(rgb, "JPEG", exif=exif.tobytes(), comment=b"an image"),
        "jpeg_progressive": encoded(rgb, "JPEG", progressive=True, icc_profile=bytes(3000)),
        "jpeg_grey": encoded(grey, "JPEG", restart_marker_blocks=2),
        "jpeg_cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
        "webp": encoded(rgb, "WEBP", exif=exif.tobytes()),
        "webp_lossless": encoded(rgb.convert("RGBA"), "WEBP", lossless=True),
        "webp_animated": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "bmp": encoded(rgb, "BMP"),
        "bmp_palette": encoded(palette, "BMP"),
        "tiff": encoded(rgb, "TIFF"),
        "tiff_lzw": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "tiff_deflate": encoded(deep, "TIFF", compression="tiff_adobe_deflate"),
        "tiff_jpeg": encoded(rgb, "TIFF", compression="jpeg"),
        "tiff_group4": encoded(grey.convert("1"), "TIFF", compression="group4"),
        "gif": encoded(palette, "GIF"),
        "gif_animated": encoded(frames[0].quantize(8), "GIF", save_all=True, append_images=[frames[1].quantize(8)]),
    }


def damaged(seed: int) -> tuple[str, bytes]:
    """A valid file with one to four damages, and its description; reproducible from ``seed``."""
    chance = random.Random(seed)
    name, data = chance.choice(sorted(good_images().items()))
    changed, words = bytearray(data), []
    for _ in range(chance.randint(1, 4)):
        damage = chance.choice(DAMAGES)
        damage(changed, chance)
        words.append(damage.__name__)
        if not changed:
            changed += b"\0"
    return f"{name} #{seed}: {', '.join(words)}", bytes(changed)


def truncated(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def bit_flipped(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def bit_flipped_in_head(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 3)):
        data[chance.randrange(min(len(data), 200))] ^= 1 << chance.randrange(8)


def overwritten(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at : at + chance.randint(1, 40)] = chance.randbytes(chance.randint(1, 40))


def made_extreme(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(max(1, len(data) - 4))
    data[at : at + 4] = chance.choice(EXTREMES)


def cut_out(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.randint(1, 100)]


def repeated(data: bytearray, chance: random.Random) -> None:
    at, length = chance.randrange(len(data)), chance.randint(1, 200)
    data[at:at] = data[at : at + length] * chance.randint(1, 50)


def spliced(data: bytearray, chance: random.Random) -> None:
    other = chance.choice(list(good_images().values()))
    data[chance.randrange(len(data)) :] = other[chance.randrange(len(other)) :]


DAMAGES = (truncated, bit_flipped, bit_flipped_in_head, overwritten, made_extreme, cut_out, repeated, spliced)


def main(arguments: Sequence[str]) -> int:
    """Write one file, or list the kinds."""
    parser = make_parser("hostile_images", __doc__)
    parser.add_argument("kind", nargs="?", choices=sorted(KINDS), metavar="KIND")
    parser.add_argument("megabytes", nargs="?", type=float, default=1)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--list", action="store_true", help="print the kinds")
    options = parser.parse_args(arguments)
    if options.list or options.kind is None or options.file is None:
        print("\n".join(KINDS))
        return 0
    options.file.write_bytes(KINDS[options.kind](int(options.megabytes * MEGABYTE)))
    return 0
