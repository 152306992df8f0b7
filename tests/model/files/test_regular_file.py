"""Only regular files are read; anything else is refused without blocking."""

import os
import socket
from pathlib import Path

import pytest

from moleflow.model.files.regular_file import read_regular_file


def test_a_file_is_read_completely(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert read_regular_file(tmp_path / "file") == read_regular_file(tmp_path / "file", 100) == b"x" * 100


def test_a_file_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 2**42)
    with pytest.raises(OSError, match=r"it has 4,398,046,511,104 bytes; the limit is 99"):
        read_regular_file(path, 99)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fifo", "a FIFO or a device"),
        ("folder", "a folder"),
        ("device", "a FIFO or a device"),
        ("gone", "No such file"),
    ],
)
def test_anything_but_a_regular_file_is_refused_without_blocking(tmp_path: Path, name: str, hint: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    with pytest.raises(OSError, match=hint):
        read_regular_file(tmp_path / name)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - nothing stays open


def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError):
            read_regular_file(tmp_path / "socket")
