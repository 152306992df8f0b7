"""Limits on the structure of image files, checked before a decoder sees them.

Bytes and pixels do not bound a decoder's work: a file within both limits may have millions of segments, chunks or tags
that each cost time or memory. Each format is walked here from part to part, with constant work per part, up to the
first part too many.
"""

import re
import struct
from collections.abc import Callable

from moleflow.model.errors import ImageTooLargeError, UnsupportedImageError

__all__ = ["MAX_SCANS", "check_structure"]

MAX_SCANS = 100
"""Most scans of a JPEG. Encoders write about ten; the decoder visits the whole image for each."""

MAX_SCANNED_PIXELS = 10**9
"""Most pixels × scans of a JPEG: 25 scans of 40 megapixels take over a second."""

MAX_SEGMENTS = 2_000
"""Most segments of a JPEG. A colour profile has up to 255, 32 MB of metadata 500, and a scan about three."""

MAX_EXIF_SEGMENTS = 64
"""Most EXIF segments of a JPEG: 4 MB together; cameras write 64 kB."""

MAX_RESOURCES = 20_000
"""Most Photoshop image resources in a JPEG; Photoshop writes about fifty."""

MAX_GAP = 64 * 1024
"""Most stray bytes between segments before a JPEG's first scan. Encoders write none; Pillow reads them one by one."""

MAX_CHUNKS = 20_000
"""Most chunks of a PNG: 32 MB in pieces of 2 kB are 16,000; encoders write at least 8 kB per chunk."""

MAX_EXTRA_CHUNKS = 1_000
"""Most non-pixel chunks of a PNG. Each may be compressed text or a profile, which expand to up to a megabyte."""

MAX_BLOCKS = 20_000
"""Most blocks of a GIF before its first image: comments and extensions, 255 bytes each."""

MAX_RUN_BYTES = 2 * 1024**2
"""Largest run-length encoded BMP; Pillow decodes them in Python, run by run."""

MAX_RUN_PIXELS = 10_000_000
"""Most pixels of a run-length encoded BMP; Pillow fills skipped pixels one by one."""

MAX_TAGS = 6_000
"""Most tags of a TIFF or of EXIF metadata: more than fit into a JPEG segment; photographs have a few hundred."""

MAX_TAG_BYTES = 64 * 1024**2
"""Most bytes of all tags together; tags may overlap, so the file size is no bound."""

MAX_TAG_VALUES = 40_000
"""Most numbers in a tag, which become Python objects: one strip per row for images of 32,768 rows."""

MAX_TILE_PIXELS = 4096**2
"""TIFF tiles up to this size are always allowed; larger ones must not be much larger than the image."""

_SCAN, _END, _APP1, _APP13 = 0xDA, 0xD9, 0xE1, 0xED
"""JPEG markers: start of scan, end of image (ITU-T T.81, table B.1), and the segments of EXIF and Photoshop."""

_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""JPEG markers of frame headers, which hold the image's size (T.81, table B.1)."""

_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")
"""A marker with a segment, or the end of image; not a stuffed zero, restart or other standalone marker (T.81, B.1.1).
Matching only the last fill byte before it keeps the search linear."""

_EXIF, _RESOURCE = b"Exif\0\0", b"8BIM"

_TILE_WIDTH, _TILE_LENGTH, _WIDTH, _LENGTH = 322, 323, 256, 257
"""TIFF tags (TIFF 6.0, sections 8 and 15)."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a TIFF value by its type (TIFF 6.0, section 2; BigTIFF adds 16 to 18)."""

_NUMBERS = {3: "H", 4: "I", 16: "Q"}
"""``struct`` formats of the TIFF integer types that image and tile sizes may have."""

_BYTES = frozenset({1, 2, 6, 7})
"""TIFF types that are read as one byte string."""


def check_structure(data: bytes, kind: str) -> None:
    """Refuse a file whose decoding might cost far more than its bytes and pixels suggest.

    ``kind`` is its format by ``moleflow.model.images.decode.image_format``. Damaged files are left to the decoder.
    Takes time linear in the bytes: 0.1 s for the worst 32 MB.

    Raises:
        UnsupportedImageError, ImageTooLargeError: the structure exceeds a limit.
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
            raise _refused(f"a JPEG of {pixels:,} pixels with {scans} or more scans", "which takes too long to decode")
        if segments > MAX_SEGMENTS:
            raise _refused(f"a JPEG of more than {MAX_SEGMENTS:,} segments")
        if len(exif) > MAX_EXIF_SEGMENTS or resources > MAX_RESOURCES:
            raise _refused(f"a JPEG with EXIF metadata of {len(exif)} segments and {resources:,} other resources")
        if gap > MAX_GAP:
            raise _refused(f"a JPEG with more than {MAX_GAP:,} bytes between its segments")
        # Skip by the segment's length: it may contain a thumbnail with its own markers.
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
    if len(data) > 10 and data[10] & 0x80:  # a global colour table (GIF89a, section 18)
        position += 3 << (data[10] & 7) + 1
    while position < len(data) and data[position : position + 1] != b",":  # the first image (section 20)
        # An extension is a label and blocks up to an empty one; anything else is skipped byte by byte.
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
    if header < 40 or compression not in (1, 2):  # OS/2 header, or not run-length encoded
        return
    if len(data) > MAX_RUN_BYTES or abs(width * height) > MAX_RUN_PIXELS:
        raise _refused(f"a run-length encoded BMP of more than {MAX_RUN_BYTES:,} bytes or {MAX_RUN_PIXELS:,} pixels")


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
    # The decoder ignores damaged metadata whose counts lead beyond the end.
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
            raise _refused("a file with overlapping metadata")
        if size and values > MAX_TAG_VALUES and kind not in _BYTES:
            raise _refused(f"a file with {values:,} numbers in the metadata tag {tag}")
        if values == 1 and (number := _NUMBERS.get(kind)) and (big or kind in (3, 4)):
            (value,) = struct.unpack_from(order + number, data, position + tag_bytes - (8 if big else 4))
            numbers[tag] = max(value, numbers.get(tag, 0))  # decoders differ in which of duplicate tags they use
    tile = numbers.get(_TILE_WIDTH, 0) * numbers.get(_TILE_LENGTH, 0)
    if tile > max(MAX_TILE_PIXELS, 2 * numbers.get(_WIDTH, 0) * numbers.get(_LENGTH, 0)):
        raise ImageTooLargeError(
            f"The image is a TIFF with tiles of {tile:,} pixels, larger than the image itself; save it again with "
            "smaller tiles, or as PNG."
        )


def _refused(what: str, why: str = "which common encoders never write") -> UnsupportedImageError:
    return UnsupportedImageError(f"The image is {what}, {why}; save it again as PNG or as a baseline JPEG.")
