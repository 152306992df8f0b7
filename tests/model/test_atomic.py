"""A file is the old one or the new one, never half: also when the writer is killed, at any instant."""

import random
import time
from pathlib import Path

import pytest
from forked import Processes

from model.atomic import atomic_write


def test_the_new_content_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    for content in ("old", "new"):
        with atomic_write(path) as temporary:
            temporary.write_text(content)
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_until_the_block_ends_the_old_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("half of the ne")
        assert path.read_text() == "old"
        assert temporary.parent.parent == path.parent  # a rename between file systems would be a copy


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_has_the_mode_that_an_ordinary_one_has(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path, processes: Processes) -> None:
    path = tmp_path / "factory[1].safetensors"  # with characters that a pattern would read otherwise
    killed = processes.run(
        "import os, signal\nfrom pathlib import Path\nfrom model.atomic import atomic_write\n"
        f"with atomic_write(Path({str(path)!r})) as temporary:\n"
        "    temporary.write_text('half')\n    temporary.with_name('.tmpOfALibrary').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert killed.status == -9
    assert len(list(tmp_path.iterdir())) == 1
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_files_of_a_longer_name_are_left_alone(tmp_path: Path) -> None:
    # `factory.v2` may be written by another process at this moment.
    with atomic_write(tmp_path / "factory.v2") as other:
        other.write_text("other")
        with atomic_write(tmp_path / "factory") as temporary:
            temporary.write_text("mine")
    assert (tmp_path / "factory.v2").read_text() == "other"


def test_kills_at_random_instants_never_leave_half_a_file(tmp_path: Path, processes: Processes) -> None:
    path = tmp_path / "file"
    code = (
        "from pathlib import Path\nfrom model.atomic import atomic_write\n"
        f"path = Path({str(path)!r})\nnumber = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    with atomic_write(path) as temporary:\n"
        "        temporary.write_text(f'{number % 10}' * 200_000)\n"
    )
    rng = random.Random(0)
    seen = set()
    for _ in range(8):
        writer = processes.start(code)
        before = path.stat().st_mtime_ns if path.exists() else None
        writer.wait_for(lambda before=before: path.exists() and path.stat().st_mtime_ns != before)
        time.sleep(rng.uniform(0, 0.02))
        writer.kill()
        assert writer.finish().status == -9
        content = path.read_text()
        assert len(content) == 200_000
        assert len(set(content)) == 1
        seen |= set(content)
    with atomic_write(path) as temporary:
        temporary.write_text("end")
    assert list(tmp_path.iterdir()) == [path]
