"""A file is the complete old one or the complete new one, even if the writer is killed at any time."""

import os
import random
import socket
import stat
import time
from functools import partial
from pathlib import Path

import pytest
from forked import Processes

from moleflow.model.files.atomic import atomic_write, target_of


def test_the_new_content_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    for content in ("old", "new"):
        with atomic_write(path) as temporary:
            temporary.write_text(content)
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_the_old_file_stays_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("half of the ne")
        assert path.read_text() == "old"
        assert temporary.parent.parent == path.parent  # a rename must stay on one file system


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_default_mode(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_the_next_writer_removes_what_a_killed_one_left_behind(tmp_path: Path, processes: Processes) -> None:
    path = tmp_path / "factory[1].safetensors"  # with glob characters
    killed = processes.run(
        "import os, signal\nfrom pathlib import Path\nfrom moleflow.model.files.atomic import atomic_write\n"
        f"with atomic_write(Path({str(path)!r})) as temporary:\n"
        "    temporary.write_text('half')\n    temporary.with_name('.tmpOfALibrary').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert killed.status == -9
    assert len(list(tmp_path.iterdir())) == 1
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_files_of_a_longer_name_are_kept(tmp_path: Path) -> None:
    # `factory.v2` may be written by another process at this moment.
    with atomic_write(tmp_path / "factory.v2") as other:
        other.write_text("other")
        with atomic_write(tmp_path / "factory") as temporary:
            temporary.write_text("mine")
    assert (tmp_path / "factory.v2").read_text() == "other"


def test_kills_at_random_times_never_leave_a_partial_file(tmp_path: Path, processes: Processes) -> None:
    path = tmp_path / "file"
    code = (
        "from pathlib import Path\nfrom moleflow.model.files.atomic import atomic_write\n"
        f"path = Path({str(path)!r})\nnumber = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    with atomic_write(path) as temporary:\n"
        "        temporary.write_text(f'{number % 10}' * 200_000)\n"
    )
    rng = random.Random(0)
    seen = set()

    def is_written(before: int | None) -> bool:
        return path.exists() and path.stat().st_mtime_ns != before

    for _ in range(8):
        writer = processes.start(code)
        before = path.stat().st_mtime_ns if path.exists() else None
        writer.wait_for(partial(is_written, before))
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


def write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def test_a_symbolic_link_is_kept_and_its_target_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    target, middle, link = tmp_path / "store" / "v1", tmp_path / "middle", tmp_path / "link"
    target.write_text("old")
    middle.symlink_to("store/v1")
    link.symlink_to(middle)
    write(link, "new")
    assert link.is_symlink()
    assert middle.is_symlink()
    assert not target.is_symlink()
    assert target.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "middle", "store"]


def test_writing_to_a_dangling_link_creates_its_target(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("store/v1")
    write(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "store" / "v1").read_text() == "new"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_a_link_across_file_systems_is_followed(tmp_path: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        link, target = tmp_path / "link", Path(elsewhere) / "file"
        target.write_text("old")
        link.symlink_to(target)
        write(link, "new")
        assert target.read_text() == "new"
        assert link.is_symlink()
        assert list(Path(elsewhere).iterdir()) == [target]


def test_a_cycle_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        write(tmp_path / "a", "new")
    assert (tmp_path / "a").is_symlink()


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("/dev/null")
    with listening:
        for name, kind in (("fifo", "FIFO"), ("folder", "folder"), ("socket", "socket"), ("link", "device")):
            before = (tmp_path / name).lstat()
            with pytest.raises(OSError, match=f"it is a {kind}"):
                write(tmp_path / name, "new")
            assert os.path.samestat((tmp_path / name).lstat(), before)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o444, 0o2640])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    write(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_replaced_file_keeps_its_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    os.chown(path, 1234, 4321)
    path.chmod(0o640)
    write(path, "new")
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 4321, 0o640)


def test_the_mode_is_kept_even_if_the_owner_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o660)
    monkeypatch.setattr("os.chown", refuse)
    write(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o660)


def test_extended_attributes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    try:
        os.setxattr(path, "user.origin", b"line 3")
    except (OSError, AttributeError):
        pytest.skip("no extended attributes here")
    write(path, "new")
    assert os.getxattr(path, "user.origin") == b"line 3"


def test_a_hard_link_keeps_the_old_content(tmp_path: Path) -> None:
    path, snapshot = tmp_path / "file", tmp_path / "snapshot"
    path.write_text("old")
    snapshot.hardlink_to(path)
    write(path, "new")
    assert (path.read_text(), snapshot.read_text()) == ("new", "old")


def test_concurrent_writers_do_not_remove_each_others_temporary_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as one:
        one.write_text("one")
        with atomic_write(path) as other:
            other.write_text("other")
        assert one.exists()
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_without_locks_other_temporary_folders_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "file"
    with atomic_write(path) as one:
        one.write_text("one")
        write(path, "other")
        assert one.exists()
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_of_maximum_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)  # 254 bytes; truncating the temporary name splits a character
    write(path, "new")
    assert path.read_text() == "new"


def test_a_link_in_place_of_the_temporary_folder_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").touch()
    (tmp_path / ".file.0.tmp").symlink_to(precious)
    write(tmp_path / "file", "new")
    assert (precious / "data").exists()


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, processes: Processes) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    done = processes.run(
        "import resource\nfrom pathlib import Path\nfrom moleflow.model.files.atomic import atomic_write\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"with atomic_write(Path({str(path)!r})) as temporary:\n    temporary.write_bytes(bytes(5000))\n"
    )
    assert "File too large" in done.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_target_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert target_of(Path("file")) == tmp_path.resolve() / "file"
