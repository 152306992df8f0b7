"""One trainer a checkpoint, by whatever name it goes; what goes with it lies beside the file, not beside its names."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Processes

from moleflow.model.errors import ConfigurationError
from moleflow.model.files.exclusive import exclusive, side_file
from moleflow.training.continual.journal import Journal


def holder(path: Path, ready: Path) -> str:
    """Code that holds the lock on a checkpoint until it is killed."""
    return (
        "import signal\nfrom pathlib import Path\nfrom moleflow.model.files.exclusive import exclusive\n"
        f"with exclusive(Path({str(path)!r})):\n    Path({str(ready)!r}).touch()\n    signal.pause()\n"
    )


@pytest.fixture
def names(tmp_path: Path) -> dict[str, Path]:
    """Names of one checkpoint."""
    real = tmp_path / "store" / "factory.safetensors"
    real.parent.mkdir()
    real.write_bytes(b"checkpoint")
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "folder").symlink_to("store")
    (tmp_path / "hard").hardlink_to(real)
    return {
        "itself": real,
        "link": tmp_path / "link",
        "linked folder": tmp_path / "folder" / "factory.safetensors",
        "roundabout": tmp_path / "store" / ".." / "store" / "factory.safetensors",
        "hard link": tmp_path / "hard",
    }


def test_every_name_of_a_checkpoint_excludes_every_other(
    names: dict[str, Path], tmp_path: Path, processes: Processes
) -> None:
    for held in ("link", "hard link"):
        ready = tmp_path / f"ready {held}"
        other = processes.start(holder(names[held], ready))
        other.wait_for(ready.exists)
        assert other.running(), other.finish().stderr
        for name, path in names.items():
            with pytest.raises(ConfigurationError, match="another process is training"), exclusive(path):
                raise AssertionError(name)
        other.kill()
        other.finish()
    with exclusive(names["link"]):  # what the killed ones left locks nobody out
        pass


BOUND = """
set -e
mount --bind "$1/store" "$1/folder of store"
mount --bind "$1/store/factory" "$1/file of store"
exec "$2" - "$1" <<'CODE'
import sys
from pathlib import Path
from moleflow.model.errors import ConfigurationError
from moleflow.model.files.exclusive import exclusive
top = Path(sys.argv[1])
with exclusive(top / "store" / "factory"):
    for name in ("folder of store/factory", "file of store"):
        try:
            with exclusive(top / name):
                print("taken twice")
        except ConfigurationError as error:
            print(error)
CODE
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_checkpoint_that_is_mounted_elsewhere_too_is_the_same_one(tmp_path: Path) -> None:
    for name in ("store", "folder of store"):
        (tmp_path / name).mkdir()
    for name in ("store/factory", "file of store"):
        (tmp_path / name).touch()
    command = ["unshare", "-m", "sh", "-c", BOUND, "sh", str(tmp_path), sys.executable]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "mount" in done.stderr:
        pytest.skip("nothing can be mounted here")
    folder, file = done.stdout.splitlines()
    assert "another process is training" in folder
    assert "a mount point" in file


def test_a_relative_name_excludes_the_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with exclusive(Path("new")), pytest.raises(ConfigurationError), exclusive(tmp_path / "new"):
        pass


def test_two_names_of_a_checkpoint_that_is_not_there_yet_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("store/factory")
    with exclusive(tmp_path / "link"), pytest.raises(ConfigurationError), exclusive(tmp_path / "store" / "factory"):
        pass
    with exclusive(tmp_path / "store" / "factory"):
        pass


def test_the_lock_is_gone_when_the_training_is(names: dict[str, Path]) -> None:
    with exclusive(names["link"]):
        assert side_file(names["link"], ".lock").exists()
    assert [path.name for path in names["itself"].parent.iterdir()] == ["factory.safetensors"]


@pytest.mark.parametrize("mode", [0o600, 0o444, 0o000])
def test_a_lock_file_left_behind_does_no_harm(tmp_path: Path, mode: int) -> None:
    if mode == 0 and os.geteuid() != 0:
        pytest.skip("only root may open it")
    (tmp_path / "factory.lock").write_text("left")
    (tmp_path / "factory.lock").chmod(mode)
    with exclusive(tmp_path / "factory"):
        pass


def test_a_link_in_place_of_the_lock_is_refused_and_what_it_leads_to_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "factory.lock").symlink_to("precious")
    with (
        pytest.raises(ConfigurationError, match=r"factory.lock', which prevents .* cannot be locked"),
        exclusive(tmp_path / "factory"),
    ):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_what_accompanies_a_checkpoint_lies_beside_the_file(names: dict[str, Path]) -> None:
    for path in (names["link"], names["linked folder"]):
        for suffix in (".training", ".journal", ".lock", ".history.jsonl"):
            assert side_file(path, suffix) == Path(str(names["itself"].resolve()) + suffix)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(ConfigurationError, match="cannot be locked .* on a local disk"),
        exclusive(tmp_path / "factory"),
    ):
        pass


def test_a_name_that_leaves_no_room_for_what_accompanies_it_is_refused_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match="the history of training .* choose a shorter name"),
        exclusive(tmp_path / ("x" * 250)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    with pytest.raises(ConfigurationError, match=r"the journal of training .*it is a folder"):
        Journal(fingerprint="x").write(tmp_path / "journal")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Journal.find(tmp_path / "journal")


def test_the_lock_file_is_not_private_to_who_made_it(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with exclusive(tmp_path / "factory"):
            assert stat.S_IMODE((tmp_path / "factory.lock").stat().st_mode) == 0o644
    finally:
        os.umask(before)
