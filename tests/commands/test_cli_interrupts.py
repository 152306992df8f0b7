"""An interrupt ends a command without a traceback and without a partial file."""

import signal
from pathlib import Path

import pytest
from command_lines import TRAINING, run
from forked import Processes, moleflow_code
from tiny_model import PLUGIN

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
