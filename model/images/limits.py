"""What the structure of an image file may be, checked before a decoder sees it.

A decoder's work does not grow with the pixels alone: a file within every limit of bytes and pixels may hold millions of
segments, chunks or tags, each of which costs time or memory of its own. Each format is walked here from part to part.
The walk does constant work a part and ends at the first part too many; all that is within these limits is decoded.
"""

import re
import struct
from collections.abc import Callable

from moleflow.model.errors import ImageTooLargeError, UnsupportedImageError

__all__ = ["MAX_SCANS", "check_structure"]

MAX_SCANS = 100
"""Most scans of a JPEG. Encoders write about ten; the decoder passes over the whole image for each."""

MAX_SCANNED_PIXELS = 10**9
"""Most pixels of a JPEG times its scans: 25 scans of 40 megapixels, which take over a second."""

MAX_SEGMENTS = 2_000
"""Most segments of a JPEG. A profile of colours has up to 255, metadata of 32 MB 500, and a scan about three."""

MAX_EXIF_SEGMENTS = 64
"""Most segments of a JPEG that EXIF metadata are put together from: 4 MB, of which cameras write 64 kB."""

MAX_RESOURCES = 20_000
"""Most image resources that Photoshop may have left in a JPEG, where it leaves some fifty."""

MAX_GAP = 64 * 1024
"""Most bytes in all between the segments before a JPEG's first scan, where encoders write none; Pillow reads them one
by one."""

MAX_CHUNKS = 20_000
"""Most chunks of a PNG. Pixels of 32 MB in pieces of 2 kB are 16,000; encoders write pieces of 8 kB and more."""

MAX_EXTRA_CHUNKS = 1_000
"""Most chunks of a PNG that hold no pixels. Each may be text or a profile, which are unpacked to up to a megabyte."""

MAX_BLOCKS = 20_000
"""Most blocks of a GIF before its first image: comments and extensions, 255 bytes each."""

MAX_RUN_BYTES = 2 * 1024**2
"""Largest run-length coded BMP; Pillow decodes them in Python, run by run."""

MAX_RUN_PIXELS = 10_000_000
"""Most pixels of a run-length coded BMP; what a run leaves out of a row is filled in pixel by pixel."""

MAX_TAGS = 6_000
"""Most tags of a TIFF or of EXIF metadata, more than fit into a JPEG's segment; photographs have some hundred."""

MAX_TAG_BYTES = 64 * 1024**2
"""Most bytes of all tags together, which may all point at the same ones."""

MAX_TAG_VALUES = 40_000
"""Most numbers in a tag, which become Python objects: one strip a row for images of 32,768 rows."""

MAX_TILE_PIXELS = 4096**2
"""Largest tile of a TIFF smaller than this; no tile needs to be much larger than its image."""

_SCAN, _END, _APP1, _APP13 = 0xDA, 0xD9, 0xE1, 0xED
"""JPEG markers: start of scan, end of image (ITU-T T.81, table B.1), and the segments of EXIF and Photoshop."""

_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""JPEG markers of a frame's header, which holds the image's size (T.81, table B.1)."""

_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")
"""A marker with a segment of its own, or the end: no stuffed zero, restart marker or other lone one (T.81, B.1.1). Fill
bytes may come before it; looking for the last one alone takes time linear in their number."""

_EXIF, _RESOURCE = b"Exif\0\0", b"8BIM"

_TILE_WIDTH, _TILE_LENGTH, _WIDTH, _LENGTH = 322, 323, 256, 257
"""TIFF tags (TIFF 6.0, sections 8 and 15)."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a TIFF value by its type (TIFF 6.0, section 2; BigTIFF adds 16 to 18)."""

_NUMBERS = {3: "H", 4: "I", 16: "Q"}
"""How ``struct`` calls the TIFF types of whole numbers that the size of an image or a tile may have."""

_BYTES = frozenset({1, 2, 6, 7})
"""TIFF types whose values stay one string of bytes."""


def check_structure(data: bytes, kind: str) -> None:
    """Refuse an image file whose decoding might cost far more than its bytes and pixels do.

    ``kind`` is the format that ``moleflow.model.images.decode.image_format`` told. Damaged files are the decoder's to
    refuse. Raises ``UnsupportedImageError`` or ``ImageTooLargeError``; takes time linear in the bytes, 0.1 s for 32 MB
    of the worst.
    """
    checks: dict[str, Callable[[bytes], None]] = {
        "JPEG": _check_jpeg,
        "PNG": _check_png,
        "GIF": _check_gif,
        "BMP": _check_bmp,
        "WebP": _check_webp,
        "TIFF": check_tags,
    }
    checks[kind](data)


def _check_jpeg(data: bytes) -> None:
    position, segments, scans, gap, pixels, resources = 2, 0, 0, 0, 0, 0
    exif: list[bytes] = []
    while (marker := _MARKER.search(data, position)) is not None:
        code, end = marker[1][0], marker.end()
        if code == _END and scans:  # before a scan, Pillow goes on
            break
        segments += 1
        scans += code == _SCAN
        gap += 0 if scans else marker.start() - position
        body = end if code == _END else end + int.from_bytes(data[end : end + 2], "big")
        if code in _FRAMES:
            height, width = struct.unpack(">HH", data[end + 3 : end + 7].ljust(4, b"\0"))
            pixels = height * width
        if code == _APP1 and data.startswith(_EXIF, end + 2):
            exif.append(data[end + 2 + len(_EXIF) : body])
        resources += data.count(_RESOURCE, end, body) if code == _APP13 else 0
        if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
            raise _refused(f"a JPEG of {pixels:,} pixels in {scans} scans or more", "which takes too long to decode")
        if segments > MAX_SEGMENTS:
            raise _refused(f"a JPEG of more than {MAX_SEGMENTS:,} segments")
        if len(exif) > MAX_EXIF_SEGMENTS or resources > MAX_RESOURCES:
            raise _refused(f"a JPEG with EXIF metadata of {len(exif)} segments and {resources:,} other resources")
        if gap > MAX_GAP:
            raise _refused(f"a JPEG with more than {MAX_GAP:,} bytes between its segments")
        # The length of a segment says where it ends: it may hold a thumbnail with markers of its own.
        position = max(body, end)
    check_tags(b"".join(exif))
    if not scans and len(data) - position > MAX_GAP:
        raise _refused("a JPEG without a scan")


def _check_png(data: bytes) -> None:
    position, chunks, extra = 8, 0, 0
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name == b"IEND":
            return
        chunks += 1
        extra += name != b"IDAT"
        if chunks > MAX_CHUNKS or extra > MAX_EXTRA_CHUNKS:
            raise _refused(
                f"a PNG of more than {MAX_EXTRA_CHUNKS if extra > MAX_EXTRA_CHUNKS else MAX_CHUNKS:,} chunks"
            )
        if name == b"eXIf":
            check_tags(data[position + 8 : position + 8 + length])
        position += 12 + length


def _check_gif(data: bytes) -> None:
    position, blocks = 13, 0
    if len(data) > 10 and data[10] & 0x80:  # a global table of colours (GIF89a, section 18)
        position += 3 << (data[10] & 7) + 1
    while position < len(data) and data[position : position + 1] != b",":  # the first image (section 20)
        # An extension is its label and blocks, the last of them empty; what is none of these is skipped by the byte.
        extension = data[position : position + 1] == b"!"
        position += 2 if extension else 1
        blocks += 1
        while extension and position < len(data) and blocks <= MAX_BLOCKS:
            length = data[position]
            position += 1 + length
            blocks += 1
            if not length:
                break
        if blocks > MAX_BLOCKS:
            raise _refused(f"a GIF of more than {MAX_BLOCKS:,} blocks before its first image")


def _check_bmp(data: bytes) -> None:
    header, width, height, compression = struct.unpack("<Iii4xI", data[14:34].ljust(20, b"\0"))
    if header < 40 or compression not in (1, 2):  # as OS/2 wrote it, without compression, or not in runs
        return
    if len(data) > MAX_RUN_BYTES or abs(width * height) > MAX_RUN_PIXELS:
        raise _refused(f"a run-length coded BMP of more than {MAX_RUN_BYTES:,} bytes or {MAX_RUN_PIXELS:,} pixels")


def _check_webp(data: bytes) -> None:
    position, chunks = 12, 0
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise _refused(f"a WebP of more than {MAX_CHUNKS:,} chunks")
        if name == b"EXIF":
            body = data[position + 8 : position + 8 + length]
            check_tags(body.removeprefix(_EXIF))
        position += 8 + length + length % 2


def check_tags(data: bytes) -> None:
    """Refuse a TIFF, or EXIF metadata, which are one, whose first directory asks for too much."""
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    where, width, kinds, tag_bytes = (8, "Q", "HHQ", 20) if big else (4, "I", "HHI", 12)
    try:
        (offset,) = struct.unpack_from(order + width, data, where)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
    except (struct.error, OverflowError):
        return
    first, total = offset + (8 if big else 2), 0
    # Damaged metadata, whose counts lead beyond the end, are passed over by the decoder.
    count = min(count, max(0, len(data) - first) // tag_bytes)
    if count > MAX_TAGS:
        raise _refused(f"a file with metadata of {count:,} tags")
    numbers: dict[int, int] = {}
    for position in range(first, first + count * tag_bytes, tag_bytes):
        tag, kind, values = struct.unpack_from(order + kinds, data, position)
        size = values * _SIZES.get(kind, 0)
        size = size if size <= len(data) else 0
        total += size
        if total > MAX_TAG_BYTES:
            raise _refused("a file whose metadata overlap each other")
        if size and values > MAX_TAG_VALUES and kind not in _BYTES:
            raise _refused(f"a file with {values:,} numbers in the metadata tag {tag}")
        if values == 1 and (number := _NUMBERS.get(kind)) and (big or kind in (3, 4)):
            (value,) = struct.unpack_from(order + number, data, position + tag_bytes - (8 if big else 4))
            numbers[tag] = max(value, numbers.get(tag, 0))  # of a tag that is there twice, decoders choose differently
    tile = numbers.get(_TILE_WIDTH, 0) * numbers.get(_TILE_LENGTH, 0)
    if tile > max(MAX_TILE_PIXELS, 2 * numbers.get(_WIDTH, 0) * numbers.get(_LENGTH, 0)):
        raise ImageTooLargeError(
            f"The image is a TIFF with tiles of {tile:,} pixels, more than the whole image has; save it again with "
            "smaller tiles, or as PNG."
        )


def _refused(what: str, why: str = "which no ordinary program writes") -> UnsupportedImageError:
    return UnsupportedImageError(f"The image is {what}, {why}; save it again as PNG or as an ordinary JPEG.")
