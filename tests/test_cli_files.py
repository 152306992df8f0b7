"""Commands report file problems in one line, before the work if possible, and lose nothing."""

import json
import os
import signal
import stat
from pathlib import Path

import pytest
from forked import Finished, Processes, moleflow_code
from tiny_model import PLUGIN, tiny_checkpoint, write_product, write_tested_product

from moleflow.model.files.exclusive import exclusive
from moleflow.model.store.checkpoint import Checkpoint

TRAINING = (
    "--preset",
    "small",
    "--backbone",
    "tiny_backbone",
    "--plugin",
    PLUGIN,
    "--image-size",
    32,
    "--epochs",
    1,
    "--folds",
    1,
    "--device",
    "cpu",
    "--precision",
    "fp32",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("cli") / "factory.safetensors").path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bolts and gears to train on, nuts to test on."""
    root = tmp_path_factory.mktemp("data")
    write_product(root, "bolt", 0, count=6)
    write_product(root, "gear", 2, count=6)
    write_tested_product(root, "nut", 1)
    return root


def run(processes: Processes, *arguments: object, before: str = "") -> Finished:
    return processes.run(moleflow_code(*arguments, before=before))


PROGRESS = "chooses the patches to remember"
"""What training says before its first epoch."""


def says(done: Finished, *hints: str) -> None:
    """Check that the only output, but for progress, is one line of error with these hints."""
    assert done.status == 1
    lines = [line for line in done.stderr.splitlines() if not line.endswith(PROGRESS)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for hint in hints:
        assert hint in done.stderr


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    done = run(processes, "train", data, "--task", "bolt", "--replace", "--checkpoint", link, *TRAINING)
    says(done, "was learned first")
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


def test_no_output_may_be_an_input(processes: Processes, data: Path, checkpoint: Path, tmp_path: Path) -> None:
    link, before = tmp_path / "link", checkpoint.read_bytes()
    link.symlink_to(checkpoint)
    for option in ("--json", "--report"):
        says(run(processes, "evaluate", checkpoint, data, option, link), "would overwrite the input")
    assert checkpoint.read_bytes() == before
    (tmp_path / "a.json").write_text("{}")
    says(run(processes, "summarise", tmp_path / "a.json", "--json", tmp_path / "a.json"), "would overwrite the input")


@pytest.mark.parametrize("where", [("evaluate", "--json"), ("evaluate", "--report"), ("ablate", "--markdown")])
@pytest.mark.parametrize("target", ["folder", "/dev/full"])
def test_an_unwritable_output_is_reported_before_the_work(
    processes: Processes, data: Path, checkpoint: Path, tmp_path: Path, where: tuple[str, str], target: str
) -> None:
    (tmp_path / "folder").mkdir()
    command, option = where
    if command == "evaluate":
        arguments: tuple[object, ...] = ("evaluate", checkpoint, data, "--plugin", PLUGIN)
    else:
        arguments = ("ablate", "core", data, "--task", "nut", "--out", tmp_path / "out", "--plugin", PLUGIN)
    says(run(processes, *arguments, option, tmp_path / target), "cannot be written")
    assert listed(tmp_path) == ["folder"]


@pytest.mark.parametrize("target", ["file", "file/below", "taken"])
def test_an_unwritable_demo_folder_is_reported(processes: Processes, tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "taken" / "demo.safetensors").mkdir(parents=True)
    says(run(processes, "demo", "--directory", tmp_path / target, "--no-serve"))
    assert listed(tmp_path / "taken") == ["demo.safetensors"]
    assert (tmp_path / "file").read_text() == "precious"


OUTPUTS = {
    "full": "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)",
    "closed": "import os, sys; sys.stdout = None; os.close(1)",
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("command", ["inspect", "inspect --json", "predict", "help"])
def test_a_failing_standard_output_is_one_error(
    processes: Processes, data: Path, checkpoint: Path, output: str, command: str
) -> None:
    arguments = {
        "inspect": ("inspect", checkpoint),
        "inspect --json": ("inspect", checkpoint, "--json"),
        "predict": ("predict", checkpoint, data / "bolt", "--plugin", PLUGIN),
        "help": ("--help",),
    }[command]
    says(run(processes, *arguments, before=OUTPUTS[output]), "standard output cannot be used")


def test_results_are_written_even_if_they_cannot_be_printed(
    processes: Processes, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", checkpoint, data, "--task", "nut", "--plugin", PLUGIN, "--json", tmp_path / "found.json")
    done = run(processes, *arguments, before=OUTPUTS["full"])
    assert done.status == 1
    assert json.loads((tmp_path / "found.json").read_text())["products"] == ["bolt", "nut", "gear"]


def test_results_of_a_checkpoint_with_an_undecodable_name_can_be_written(
    processes: Processes, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors"))
    odd.write_bytes(checkpoint.read_bytes())
    done = run(processes, "inspect", odd)
    assert done.status == 0, done.stderr
    done = run(processes, "predict", odd, data / "bolt" / "0.png", "--plugin", PLUGIN, "--json")
    assert done.status == 0, done.stderr
    json.loads(done.stdout.encode())
    arguments = ("--task", "nut", "--plugin", PLUGIN, "--json", tmp_path / "e.json", "--report", tmp_path / "e.html")
    done = run(processes, "evaluate", odd, data, *arguments)
    assert done.status == 0, done.stderr


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


INTERRUPTED = {
    "while the command line is imported": """
import sys
del sys.modules["moleflow.cli"]
class Finder:
    def find_spec(self, name, *rest):
        if name == "moleflow.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
""",
    "while a command imports": """
import sys
sys.modules.pop("moleflow.model.detector", None)
class Finder:
    def find_spec(self, name, *rest):
        if name == "moleflow.model.detector":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
""",
    "while an image is read": """
import moleflow.model.files.regular_file as module
def read(path, limit=None):
    raise KeyboardInterrupt
module.read_regular_file = read
""",
}


@pytest.mark.parametrize("moment", INTERRUPTED)
def test_an_interrupt_ends_a_command_without_a_traceback(
    processes: Processes, data: Path, checkpoint: Path, moment: str
) -> None:
    done = run(processes, "predict", checkpoint, data / "bolt", "--plugin", PLUGIN, before=INTERRUPTED[moment])
    assert done.status == 130
    assert done.stderr.strip() == ""


def test_an_interrupt_while_writing_the_checkpoint_leaves_no_partial_file(
    processes: Processes, data: Path, tmp_path: Path
) -> None:
    before = """
import moleflow.model.store.checkpoint as module
def write(path, *rest):
    path.write_bytes(b"half")
    raise KeyboardInterrupt
module.write_tensor_file = write
"""
    arguments = ("train", data, "--task", "bolt", "--checkpoint", tmp_path / "new", *TRAINING)
    done = run(processes, *arguments, before=before)
    assert done.status == 130
    assert "run the same command again" in done.stderr
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".*"))


def test_sigint_ends_training_with_advice(processes: Processes, data: Path, tmp_path: Path) -> None:
    arguments = ("train", data, "--task", "bolt", "--checkpoint", tmp_path / "new", *TRAINING, "--epochs", 100_000)
    process = processes.start(moleflow_code(*arguments))
    process.wait_for((tmp_path / "new.training").exists)
    process.kill(signal.SIGINT)
    done = process.finish()
    assert done.status == 130, done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "new.training").exists()
    assert not (tmp_path / "new.lock").exists()
