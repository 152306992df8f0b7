"""Watching a folder: which files are taken, and when."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from moleflow.folder.rows import FileState
from moleflow.folder.watch import follow
from moleflow.image_files import ImageFile


class Polls:
    """A watched folder, polled by hand: ``poll`` returns the names that one look at it yields."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.done, self.stop = folder, set[tuple[str, FileState]](), threading.Event()
        self._files = follow(self._find, lambda file, state: (file.path.name, state) in self.done, self.stop, 0.0)

    def _find(self) -> Iterator[ImageFile]:
        return (ImageFile(path, Path(path.name)) for path in sorted(self.folder.iterdir()))

    def poll(self) -> list[str]:
        names = []
        while (file := next(self._files)) is not None:
            found = file.path.stat()
            self.done.add((file.path.name, FileState(found.st_size, found.st_mtime)))
            names.append(file.path.name)
        return names


def test_a_file_is_taken_once_its_size_is_stable(tmp_path: Path) -> None:
    polls = Polls(tmp_path)
    (tmp_path / "a").write_bytes(b"1")
    assert polls.poll() == []
    (tmp_path / "a").write_bytes(b"12")
    assert polls.poll() == []
    assert polls.poll() == ["a"]
    assert polls.poll() == []


def test_an_old_file_need_not_wait(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    os.utime(tmp_path / "a", (1.0, 1.0))
    assert Polls(tmp_path).poll() == ["a"]


def test_a_changed_file_is_taken_again(tmp_path: Path) -> None:
    polls = Polls(tmp_path)
    for content, seconds in ((b"1", 1.0), (b"1", 2.0)):
        (tmp_path / "a").write_bytes(content)
        os.utime(tmp_path / "a", (seconds, seconds))
        assert polls.poll() == ["a"]


def test_it_ends_when_it_is_told(tmp_path: Path) -> None:
    polls = Polls(tmp_path)
    assert polls.poll() == []
    polls.stop.set()
    assert list(polls._files) == []
