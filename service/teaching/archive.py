"""The images of an uploaded ZIP archive, which may be hostile.

Nothing is extracted: entries are read into memory one at a time, none larger than an image may be, and their names are
only quoted. Images must be at the top of the archive, since the folders of a data set hold defective ones too.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator

from moleflow.model.errors import ImageTooLargeError, UnsupportedImageError, describe
from moleflow.service.errors import ArchiveError

__all__ = ["MAX_ENTRIES", "archived_files", "is_archive"]

MAX_ENTRIES = 2000
"""Files in one archive. 100 images are many for a product."""

_MAX_EXPANSION = 20
"""An archive may expand by this factor. Photographs hardly shrink in an archive; a bitmap of flat parts may by 10."""

_ENTRY = b"PK\x01\x02"
"""What every entry of an archive's directory begins with."""

_STARTS = b"PK\x03\x04", b"PK\x05\x06"
"""What an archive begins with: a file, or the end of an empty directory."""

_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""Others expand a few bytes at a time to megabytes, whatever is asked for."""

_ENCRYPTED = 0x1
"""Bit of an entry's flags."""


def is_archive(data: bytes) -> bool:
    """Whether a file is a ZIP archive, by its first bytes."""
    return data.startswith(_STARTS)


def archived_files(data: bytes, max_file_bytes: int) -> Iterator[tuple[str, bytes | Exception]]:
    """Name and content of each file, or the error that it causes, in the archive's order.

    Raises ``ArchiveError``: the archive cannot be read, has too many entries, or expands too much. Blocks for the time
    of decompressing an entry.
    """
    # Before the directory is parsed, which takes memory for every entry.
    if (count := data.count(_ENTRY)) > MAX_ENTRIES:
        raise ArchiveError(
            f"The archive has about {count:,} entries; at most {MAX_ENTRIES:,} are accepted. Send several archives."
        )
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise ArchiveError(f"The archive cannot be read ({describe(error)}); make it again.") from error
    entries = [each for each in archive.infolist() if not each.is_dir()]
    expanded = sum(each.file_size for each in entries)
    if expanded > _MAX_EXPANSION * len(data) or sum(each.compress_size for each in entries) > len(data):
        raise ArchiveError(
            f"The archive of {len(data):,} bytes says that it holds {expanded:,}; images do not shrink so far. Send "
            "the images themselves."
        )
    for entry in entries:
        yield entry.filename, _content(archive, entry, max_file_bytes)


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, max_bytes: int) -> bytes | Exception:
    """The content of an entry, or why it is not taken."""
    if "/" in entry.filename or "\\" in entry.filename or entry.filename in (".", ".."):
        return UnsupportedImageError(
            "The file is in a folder of the archive. Put good images at its top (zip -j): folders may hold defective "
            "ones too."
        )
    if entry.flag_bits & _ENCRYPTED:
        return UnsupportedImageError("The file is encrypted; make the archive without a password.")
    if entry.file_size > max_bytes:
        return ImageTooLargeError(
            f"The file has {entry.file_size:,} bytes; at most {max_bytes:,} are accepted. Save it as JPEG or PNG."
        )
    if entry.compress_type not in _METHODS:
        return UnsupportedImageError("The file is compressed by an uncommon method; make the archive with Deflate.")
    try:
        with archive.open(entry) as file:
            content = file.read(entry.file_size)  # without a number, as much as the data expand to
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, ValueError) as error:
        return UnsupportedImageError(f"The file in the archive is damaged ({describe(error)}); make the archive again.")
    if is_archive(content):
        return UnsupportedImageError("The file is an archive in the archive; send it by itself.")
    return content
