"""Commands report file problems in one line, before the work if possible, and lose nothing."""

import os
import stat
from pathlib import Path

import pytest
from command_lines import TRAINING, listed, run, says
from forked import Processes
from tiny_model import PLUGIN, write_product

from moleflow.model.files.exclusive import exclusive
from moleflow.model.store.checkpoint import Checkpoint


def test_training_into_a_link_writes_its_target(
    processes: Processes, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    link, store = tmp_path / "current", tmp_path / "store"
    store.mkdir()
    link.symlink_to("store/v1")
    done = run(processes, "train", data, "--task", "bolt", "--checkpoint", link, *TRAINING)
    assert done.status == 0, done.stderr
    (store / "v1").chmod(0o660)
    with exclusive(store / "v1"):
        done = run(processes, "train", data, "--task", "nut", "--checkpoint", link, *TRAINING)
        says(done, "another process is training")
    done = run(processes, "train", data, "--task", "nut", "--replace", "--checkpoint", link, *TRAINING)
    says(done, "there is no product 'nut' to replace")
    assert link.is_symlink()
    assert [task.name for task in Checkpoint.open(link).header.tasks] == ["bolt"]
    assert (listed(tmp_path), listed(store)) == (["current", "store"], ["v1", "v1.history.jsonl"])
    assert stat.S_IMODE((store / "v1").stat().st_mode) == 0o660


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("folder", "is a folder"),
        ("fifo", "is a FIFO or a device"),
        ("/dev/null", "is a FIFO or a device"),
        ("file/below", "a part of it is a file"),
        ("loop", "form a cycle"),
        ("x" * 300, "choose a shorter name"),
        ("x" * 250, "choose a shorter name"),
    ],
)
def test_an_unwritable_checkpoint_is_reported_before_training(
    processes: Processes, data: Path, tmp_path: Path, target: str, hint: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    before = listed(tmp_path)
    says(run(processes, "train", data, "--checkpoint", tmp_path / target, *TRAINING), hint)
    assert listed(tmp_path) == before


def test_an_unwritable_cache_is_reported_before_training(processes: Processes, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(processes, "train", data, "--checkpoint", tmp_path / "new", "--cache", tmp_path / "file", *TRAINING)
    says(done, "the embedding cache", "it is not a folder")
    assert listed(tmp_path) == ["file"]


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
"""Limits file sizes to what a check writes."""

FULL = """
import errno, itertools, pathlib
count, plain = itertools.count(), pathlib.Path.write_bytes
def write_bytes(self, data):
    if next(count) >= {allowed}:
        plain(self, data[:1])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))
    return plain(self, data)
pathlib.Path.write_bytes = write_bytes
"""
"""The disk is full after this many small files."""


@pytest.mark.parametrize(
    ("before", "options", "hint"),
    [
        (FULL.format(allowed=0), (), "the checkpoint"),
        (FULL.format(allowed=1), (), "the history of training"),
        (FULL.format(allowed=2), (), "the journal of training"),
        (LIMITED, (), "the state of training"),
        (LIMITED, ("--cache", "cache"), "the embedding cache"),
    ],
)
def test_a_full_disk_ends_training_with_one_error(
    processes: Processes, data: Path, tmp_path: Path, before: str, options: tuple[str, ...], hint: str
) -> None:
    arguments = ("train", data, "--task", "bolt", "--checkpoint", "ck/new", *options, *TRAINING)
    done = run(processes, *arguments, before=f"import os; os.chdir({str(tmp_path)!r})\n{before}")
    says(done, hint, "make room")
    assert not (tmp_path / "ck" / "new").exists()
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".tmp", ".lock")] == []


def test_a_disk_that_fills_up_while_writing_the_checkpoint_loses_no_product(
    processes: Processes, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "factory.safetensors"
    done = run(processes, "train", data, "--task", "bolt", "--checkpoint", path, *TRAINING)
    assert done.status == 0, done.stderr
    before = path.read_bytes()
    full = """
import errno, moleflow.model.store.checkpoint as module
def write(path, *rest):
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")
module.write_tensor_file = write
"""
    done = run(processes, "train", data, "--task", "gear", "--checkpoint", path, *TRAINING, before=full)
    assert done.status == 1
    assert done.stderr.splitlines()[-1].startswith("error: checkpoint ")
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))
    done = run(processes, "train", data, "--task", "gear", "--checkpoint", path, *TRAINING)  # there is space again
    assert done.status == 0, done.stderr
    assert "continues after epoch 1 of 1" in done.stderr


def test_an_image_that_disappears_before_it_is_read_is_named(processes: Processes, data: Path, tmp_path: Path) -> None:
    write_product(tmp_path / "data", "bolt", 0, count=6)
    victim = tmp_path / "data" / "bolt" / "3.png"
    before = f"""
import pathlib, moleflow.training.continual.sequence as module
plain = module.load_categories
def load_categories(*arguments, **options):
    found = plain(*arguments, **options)
    pathlib.Path({str(victim)!r}).unlink()
    return found
module.load_categories = load_categories
"""
    done = run(processes, "train", tmp_path / "data", "--checkpoint", tmp_path / "new", *TRAINING, before=before)
    says(done, "3.png", "cannot be read")


NOBODY = "import os; os.setgroups([]); os.setgid(54321); os.setuid(54321); os.environ.pop('HOME', 0); os.umask(0o077)"
"""A user without name, home and permissions, as in a container."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_missing_permissions_are_reported(processes: Processes, data: Path, checkpoint: Path, tmp_path: Path) -> None:
    for path in (tmp_path, *list(tmp_path.parents)[:3], checkpoint.parent, data):
        path.chmod(path.stat().st_mode | 0o055)
    write_product(tmp_path / "data", "bolt", 0, count=6)
    (tmp_path / "data" / "bolt").chmod(0)
    (tmp_path / "mine").mkdir(mode=0o777)
    (tmp_path / "mine").chmod(0o777)
    done = run(processes, "train", data, "--task", "bolt", "--checkpoint", tmp_path / "new", *TRAINING, before=NOBODY)
    says(done, "the checkpoint", "check the permissions")
    new = tmp_path / "mine" / "new"
    done = run(processes, "train", tmp_path / "data", "--task", "bolt", "--checkpoint", new, *TRAINING, before=NOBODY)
    says(done, "bolt", "permissions")
    done = run(processes, "predict", checkpoint, tmp_path / "data", "--plugin", PLUGIN, before=NOBODY)
    assert "bolt: the folder cannot be read: Permission denied" in done.stderr
    assert done.status == 1
    done = run(processes, "train", data, "--task", "bolt", "--checkpoint", new, *TRAINING, before=NOBODY)
    assert done.status == 0, done.stderr
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


@pytest.mark.parametrize("place", ["folder", "fifo", "/dev/zero", "/dev/stdin", "-", "x" * 300])
def test_a_file_that_is_not_a_checkpoint_is_reported_at_once(processes: Processes, tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    says(run(processes, "inspect", place if place == "-" else tmp_path / place))


@pytest.mark.parametrize("content", ["", '{"a":', "[" * 100_000, "null", "folder", "fifo"])
def test_a_file_that_is_not_an_evaluation_is_reported(processes: Processes, tmp_path: Path, content: str) -> None:
    path = tmp_path / "evaluation.json"
    if content == "folder":
        path.mkdir()
    elif content == "fifo":
        os.mkfifo(path)
    else:
        path.write_text(content)
    says(run(processes, "summarise", path, path), "evaluation.json", "moleflow evaluate --json")


@pytest.mark.parametrize("target", ["file", "file/below", "taken"])
def test_an_unwritable_demo_folder_is_reported(processes: Processes, tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "taken" / "demo.safetensors").mkdir(parents=True)
    says(run(processes, "demo", "--directory", tmp_path / target, "--no-serve"))
    assert listed(tmp_path / "taken") == ["demo.safetensors"]
    assert (tmp_path / "file").read_text() == "precious"


def test_a_deleted_working_directory_is_reported_only_if_needed(
    processes: Processes, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    gone = f"import os; path = {str(tmp_path / 'gone')!r}; os.mkdir(path); os.chdir(path); os.rmdir(path)"
    hint = "the current folder was removed"
    says(run(processes, "train", data, "--checkpoint", "new", *TRAINING, before=gone), hint)
    says(run(processes, "predict", checkpoint, "0.png", "--plugin", "plug", before=gone), hint)
    done = run(processes, "predict", checkpoint, data / "bolt", "--plugin", PLUGIN, before=gone)
    assert done.status == 0, done.stderr


def test_no_folder_of_temporary_files_is_needed(processes: Processes, data: Path, tmp_path: Path) -> None:
    missing = f"import os, tempfile; os.environ['TMPDIR'] = '/none'; tempfile.tempdir = {str(tmp_path / 'none')!r}"
    arguments = ("train", data, "--task", "bolt", "--checkpoint", tmp_path / "new", *TRAINING)
    assert run(processes, *arguments, before=missing).status == 0
