"""Archives from anybody: what is read of them, and what is not."""

import os
import tracemalloc
import zipfile

import pytest
from archives import zipped

from moleflow.service.errors import ArchiveError
from moleflow.service.teaching import archive
from moleflow.service.teaching.archive import archived_files, is_archive

MOST = 100_000


def read(data: bytes) -> dict[str, bytes | str]:
    """Content or error of each file."""
    return {
        name: content if isinstance(content, bytes) else f"{type(content).__name__}: {content}"
        for name, content in archived_files(data, MOST)
    }


def test_every_file_is_read_and_folders_are_not_files() -> None:
    data = zipped({"a.png": b"first", "empty/": b"", "ü.png": b"second"})
    assert is_archive(data) and not is_archive(b"first")
    assert read(data) == {"a.png": b"first", "ü.png": b"second"}
    assert read(zipped({"a.png": b"stored"}, zipfile.ZIP_STORED)) == {"a.png": b"stored"}


@pytest.mark.parametrize("name", ["good/a.png", "../a.png", "/etc/a.png", "C:\\a.png", ".."])
def test_a_file_with_a_path_is_refused_and_the_others_are_kept(name: str) -> None:
    found = read(zipped({name: b"x", "b.png": b"y"}))
    assert found.pop("b.png") == b"y"
    assert "in a folder of the archive" in str(found.popitem()[1])


def test_an_archive_in_an_archive_is_not_opened() -> None:
    found = read(zipped({"inner.zip": zipped({"a.png": b"x"})}))
    assert "an archive in the archive" in str(found["inner.zip"])


def test_uncommon_methods_are_refused() -> None:
    found = read(zipped({"a.png": b"x" * 100}, zipfile.ZIP_LZMA))
    assert "make the archive with Deflate" in str(found["a.png"])


def test_a_file_that_is_too_large_is_refused_before_it_is_expanded() -> None:
    found = read(zipped({"big.bmp": os.urandom(MOST + 1), "small.png": b"x" * 6000}))
    assert "ImageTooLargeError" in str(found["big.bmp"])
    assert found["small.png"] == b"x" * 6000


def test_an_archive_that_expands_too_much_is_refused() -> None:
    with pytest.raises(ArchiveError, match="images do not shrink so far"):
        read(zipped({"bomb.bmp": bytes(10**6)}))


def test_an_entry_that_lies_about_its_size_takes_no_more_memory_than_it_says() -> None:
    size = 50 * 10**6
    data = zipped({"a.png": bytes(size), "filler": bytes(range(256)) * 4}, zipfile.ZIP_DEFLATED)
    said = (1000).to_bytes(4, "little")
    data = data.replace(size.to_bytes(4, "little"), said)
    tracemalloc.start()
    try:
        found = read(data)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
    assert "damaged" in str(found["a.png"])


def test_too_many_entries_are_refused_before_they_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_ENTRIES", 5)
    assert len(read(zipped({f"{number}.png": b"x" for number in range(5)}))) == 5
    many = zipped({f"{number}.png": b"x" for number in range(6)})
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ArchiveError, match="about 6 entries; at most 5"):
        read(many)


@pytest.mark.parametrize("end", [30, -30])
def test_a_cut_archive_is_refused(end: int) -> None:
    with pytest.raises(ArchiveError, match="cannot be read"):
        read(zipped({"a.png": b"some content"})[:end])


def test_a_damaged_file_is_named_and_the_others_are_read() -> None:
    data = bytearray(zipped({"a.png": b"some content", "b.png": b"other"}, zipfile.ZIP_STORED))
    data[data.index(b"some content")] ^= 1
    found = read(bytes(data))
    assert "damaged" in str(found["a.png"])
    assert found["b.png"] == b"other"
